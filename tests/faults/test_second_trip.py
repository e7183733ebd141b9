"""What a drive, a vault and a patch are after they have been used once."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from imports import GGUF, Delivery, Shipment, ship
from machines import Machine, flip_bit, only_bundle, trust
from make_models import make_gguf_repository
from refusals import blob_of, failed, succeeded


@pytest.fixture(scope="module")
def shipment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shipment]:
    root = tmp_path_factory.mktemp("shipment")
    yield ship(root)
    shutil.rmtree(root)


@pytest.fixture
def delivery(shipment: Shipment, tmp_path: Path) -> Delivery:
    return shipment.deliver(tmp_path)


@pytest.fixture
def pc(machine: Callable[..., Machine], tiny_gguf: Path) -> Machine:
    one = machine("pc")
    one.run("add", tiny_gguf, "--name", "first")
    return one


def test_a_drive_that_went_twice(pc: Machine, machine: Callable[..., Machine], tmp_path: Path) -> None:
    """The documented routine is one drive and `import` after every trip: older bundles on it must not stop that."""
    drive, server = tmp_path / "drive", machine("server")
    drive.mkdir()
    pc.run("bundle", "--to", drive, "--sequence", "1")
    trust(server, pc, only_bundle(drive))
    server.run("import", drive)
    make_gguf_repository(tmp_path / "more", name="more", seed=2)
    pc.run("add", tmp_path / "more", "--name", "second")
    pc.run("bundle", "--to", drive, "--sequence", "2")
    make_gguf_repository(tmp_path / "most", name="most", seed=3)
    pc.run("add", tmp_path / "most", "--name", "third")
    pc.run("bundle", "--to", drive, "--sequence", "3")
    ran = server.run("import", drive)
    assert server.models() == {"first", "second", "third"}
    assert "passing over" not in ran.err  # the first is what was imported last, and is here
    again = server.run("import", drive)
    assert again.err.count("passing over") == 2
    assert "here already" in again.out


def test_one_trip_brings_base_and_difference(pc: Machine, machine: Callable[..., Machine], tmp_path: Path) -> None:
    """A thin bundle and its base on one drive: the base is imported first, though neither was here before."""
    drive, server = tmp_path / "drive", machine("server")
    drive.mkdir()
    pc.run("bundle", "--to", drive, "--for", "lab", "--assume-sent", "--sequence", "1")
    trust(server, pc, only_bundle(drive))
    make_gguf_repository(tmp_path / "more", name="more", seed=2)
    pc.run("add", tmp_path / "more", "--name", "second")
    pc.run("bundle", "--to", drive, "--for", "lab", "--assume-sent", "--sequence", "2")
    server.run("import", drive)
    assert server.models() == {"first", "second"}


def test_bundles_of_two_labels(pc: Machine, machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Which of two series is meant, only a person can say."""
    drive, server = tmp_path / "drive", machine("server")
    drive.mkdir()
    pc.run("bundle", "--to", drive, "--label", "a")
    trust(server, pc, only_bundle(drive))
    pc.run("bundle", "--to", drive, "--label", "b")
    error = failed(server, "import", drive, code=2)
    assert len(error["data"]["bundles"]) == 2


def test_a_patch_comes_twice(delivery: Delivery, tmp_path: Path) -> None:
    """Whoever runs a command again must not be told that nothing of it ever arrived."""
    server, pc = delivery.server, Machine(Path(shutil.copytree(delivery.shipment.pc.root, tmp_path / "pc")))
    flip_bit(delivery.bundle / "volume-0002.tar.zst", 600_000)
    request = tmp_path / "x.json"
    server.run("verify", delivery.bundle, "--request", request, "--site", "lab-7", code=12)
    (key,) = (key for key in server.json("keys", "show").result["keys"] if key["role"] == "receipt")
    pc.run("keys", "trust", tmp_path / "lab-7.pub", "--role", "receipt", "--fingerprint", key["fingerprint"])
    trip = tmp_path / "trip"
    trip.mkdir()
    pc.run("bundle", "--answer", request, "--to", trip)
    server.run("import", delivery.bundle, only_bundle(trip))
    assert "nothing of them is wanted" in server.run("import", only_bundle(trip)).err
    server.run("import", delivery.bundle, only_bundle(trip))


def test_a_file_that_rotted_is_mended_by_a_pull(pc: Machine, tiny_gguf: Path, tmp_path: Path) -> None:
    """A bundle that meets damage has to leave the vault so that bringing the model again heals it."""
    drive = tmp_path / "drive"
    drive.mkdir()
    blob = blob_of(pc, "first", ".gguf")
    blob.chmod(0o644)
    flip_bit(blob, blob.stat().st_size - 100)
    blob.chmod(0o444)
    error = failed(pc, "bundle", "--to", drive, code=12)
    assert "tiny-Q8_0.gguf" in error["message"]
    assert not blob.exists()
    pc.run("add", tiny_gguf, "--name", "first")
    pc.run("bundle", "--to", drive)


def test_bytes_that_an_engine_keeps_are_not_called_free(pc: Machine) -> None:
    """Who needs room must not be told that there is some now."""
    size = blob_of(pc, "first", ".gguf").stat().st_size
    pc.run("install", "first", "--engine", f"folder={pc.root / 'engine'}", "--link", "hard")
    assert succeeded(pc, "rm", "first")["freeable"] < size
    shown = pc.run("gc").out
    assert "hard links" in shown
    assert size > 1_000_000


def test_one_engine_that_cannot_keeps_it_from_no_other(delivery: Delivery) -> None:
    """The second of two engines is as much wanted as the first."""
    server = delivery.server
    blocked = server.root / "blocked"
    blocked.write_text("a file where a directory should be")
    folder = server.root / "folder"
    engines = ("--engine", f"folder={blocked}", "--engine", f"llamacpp={folder}")
    server.json("import", delivery.bundle, "--only", GGUF, *engines, code=3)
    assert list(folder.rglob("*.gguf"))
    server.run("install", GGUF, *engines, code=3)


def test_an_unfinished_bundle_is_listed(delivery: Delivery, tmp_path: Path) -> None:
    """What was begun and forgotten takes up a drive, and nobody knows of it."""
    pc = Machine(Path(shutil.copytree(delivery.shipment.pc.root, tmp_path / "pc")))
    drive = tmp_path / "other"
    drive.mkdir()
    options = ("bundle", "--to", drive, "--label", "half", "--volume-size", "2MiB")
    with pc.started(*options) as process:
        while not list(drive.glob("*/volume-0001.json")) and process.poll() is None:
            pass
        process.kill()
        process.wait()
    shown = pc.run("list").out
    if "not finished yet" not in shown:
        assert list(drive.glob("*/SHA256SUMS"))  # it was faster than we are
        return
    assert "half" in shown
    ran = pc.run("bundle", "--to", drive, "--label", "half")
    assert "was begun here with other models or options" in ran.err


def test_adding_in_place_of_another(pc: Machine, tmp_path: Path) -> None:
    """A model that is replaced under its name must not look like one that is new."""
    make_gguf_repository(tmp_path / "other", name="other", seed=9)
    assert "in place of the model" in pc.run("add", tmp_path / "other", "--name", "first").out
    assert succeeded(pc, "add", tmp_path / "other", "--name", "first")["unchanged"]
