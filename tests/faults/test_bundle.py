"""What goes wrong on the way from the vault onto a drive, with the installed program."""

import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machines import Machine, flip_bit, only_bundle, small_disk, trust
from make_models import make_gguf_repository, make_large_gguf
from refusals import blob_of, failed, fill, interrupted, running, succeeded, tree

LARGE = "large-Q8_0.gguf"
SIZE = 150_000_000
PINNED = ("--sequence", "7", "--volume-size", "40MiB")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with a large model and a small one; tests leave its vault as it is."""
    root = tmp_path_factory.mktemp("loaded")
    make_large_gguf(root / LARGE, SIZE)
    make_gguf_repository(root / "tiny")
    pc = Machine(root)
    pc.run("add", root / LARGE, "--name", "large")
    pc.run("add", root / "tiny", "--name", "tiny")
    pc.run("keys", "new")
    yield pc
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def undisturbed(loaded: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    """The files of a bundle that nothing got in the way of."""
    drive = tmp_path_factory.mktemp("undisturbed")
    loaded.run("bundle", "--to", drive, *PINNED)
    yield tree(only_bundle(drive))
    shutil.rmtree(drive)


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "drive"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def written(drive: Path) -> int:
    """How many bytes of volumes are on a drive."""
    return sum(path.stat().st_size for path in drive.glob("*.mvbundle/volume-*.tar.zst"))


def end_in_the_middle(pc: Machine, drive: Path, number: signal.Signals, *, after: int = 1) -> int:
    """Begin the pinned bundle and end it at a random moment; gives how much was written when the signal went out."""
    moment = random.randrange(after, SIZE * 8 // 10)
    with running(pc, "bundle", "--to", drive, *PINNED) as bundle:
        bundle.until(lambda: written(drive) >= moment)
        bundle.signal(number)
        ran = bundle.end(-number if number is signal.SIGKILL else 130)
    if number is not signal.SIGKILL:
        interrupted(ran)
    assert not (only_bundle(drive) / "SHA256SUMS").exists(), "what is not finished looks finished"
    return moment


# ── killed, interrupted ──


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_ended_at_random_moments(
    loaded: Machine, undisturbed: dict[str, bytes], drive: Path, number: signal.Signals
) -> None:
    """Breaks if an interrupted bundle starts anew, or if what comes out differs from an undisturbed one in a single byte."""
    moment = end_in_the_middle(loaded, drive, number)
    result = succeeded(loaded, "bundle", "--to", drive, *PINNED)
    assert result["resumed"] > 0, f"ended after {moment} bytes"
    assert tree(only_bundle(drive)) == undisturbed, f"ended after {moment} bytes"


def test_an_interrupted_bundle_resumes_without_being_told_which(loaded: Machine, drive: Path) -> None:
    """Breaks if the sequence, which is the time, makes every rerun another bundle."""
    with running(loaded, "bundle", "--to", drive, "--volume-size", "40MiB") as bundle:
        bundle.until(lambda: written(drive) > 1_000_000)
        bundle.signal(signal.SIGKILL)
        bundle.end(-signal.SIGKILL)
    assert succeeded(loaded, "bundle", "--to", drive, "--volume-size", "40MiB", "--dry-run")["resumes"]
    assert succeeded(loaded, "bundle", "--to", drive, "--volume-size", "40MiB")["resumed"] > 0
    loaded.run("verify", only_bundle(drive), "--allow-unsigned")


def test_an_unfinished_bundle_is_told_as_such(loaded: Machine, machine: Callable[..., Machine], drive: Path) -> None:
    """Breaks if what was never written is told as damage, as advice to use another drive, or more than once."""
    end_in_the_middle(loaded, drive, signal.SIGKILL, after=SIZE // 2)  # the first volume is closed by then
    bundle, server = only_bundle(drive), machine("server")
    ran = loaded.run("verify", bundle, code=12)
    (error,) = [line for line in ran.err.splitlines() if line.startswith("error:")]
    assert error.startswith(f"error: {bundle} is not finished: volume")
    assert error.endswith("not written yet")
    assert "hint: run the same bundle command again on the PC that wrote it" in ran.err
    assert "sha256:" not in ran.out + ran.err
    document = loaded.json("verify", bundle, code=12).document
    assert document["error"]["code"] == "bundle-unfinished"
    assert document["result"]["damage"] == [], "what was written is sound"
    assert "large" in document["error"]["data"]["models"]

    trust(server, loaded, bundle)
    ran = server.run("import", bundle, "--only", "large", code=3)
    assert "not written yet" in ran.err
    assert "hint: run the same bundle command again on the PC that wrote it" in ran.err
    assert "sha256:" not in ran.out + ran.err
    loaded.run("bundle", "--to", drive, *PINNED)  # nothing under way is left behind, for the tests that follow


# ── it was done before ──


def test_a_second_run_finds_the_first(machine: Callable[..., Machine], tiny_gguf: Path, drive: Path) -> None:
    """Breaks if a rerun writes all of it once more, or says that it is there though it is not, or is not the one to import."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    first = succeeded(pc, "bundle", "--to", drive)
    before = tree(drive)
    assert not first["there_already"]
    again = succeeded(pc, "bundle", "--to", drive)
    assert (again["there_already"], again["directory"]) == (True, str(only_bundle(drive)))
    assert (again["sequence"], again["stored_size"]) == (first["sequence"], first["stored_size"])
    assert succeeded(pc, "bundle", "--to", drive, "--dry-run")["there_already"]
    assert "nothing was written" in pc.run("bundle", "--to", drive, "--sequence", str(first["sequence"])).out
    assert tree(drive) == before

    # What was lost since is not passed over in silence.
    volume = next(only_bundle(drive).glob("volume-*.tar.zst"))
    with volume.open("r+b") as file:
        file.truncate(1000)
    ran = pc.run("bundle", "--to", drive, "--sequence", str(first["sequence"]))
    assert "is not whole any more" in ran.err
    assert tree(drive) == before

    newer = succeeded(pc, "bundle", "--to", drive, "--sequence", str(first["sequence"] + 5))
    assert not newer["there_already"]
    assert not succeeded(pc, "bundle", "--to", drive, "--label", "other")["there_already"]
    # The newest of a label is the one that an import takes after it.
    shutil.rmtree(newer["directory"])
    assert not succeeded(pc, "bundle", "--to", drive)["there_already"]


def test_another_drive_at_the_same_place(loaded: Machine, undisturbed: dict[str, bytes], drive: Path) -> None:
    """Breaks if an empty drive in the place of the one on which a bundle was begun is told as one that was tampered with."""
    with running(loaded, "bundle", "--to", drive, "--volume-size", "41MiB") as bundle:
        bundle.until(lambda: written(drive) > 1_000_000)
        bundle.signal(signal.SIGKILL)
        bundle.end(-signal.SIGKILL)
    begun = only_bundle(drive)
    elsewhere = begun.rename(drive.parent / begun.name)
    ran = loaded.run("bundle", "--to", drive, "--volume-size", "41MiB")
    assert f"{begun}, which was begun, is not on this drive" in ran.err
    assert "again" not in ran.err
    assert only_bundle(drive) != begun
    # The first drive is back: what was begun there goes on.
    shutil.rmtree(only_bundle(drive))
    elsewhere.rename(begun)
    assert succeeded(loaded, "bundle", "--to", drive, "--volume-size", "41MiB")["resumed"] > 0


# ── the drive is not ours alone ──


def edit_volume(bundle: Path) -> None:
    (first, *_) = sorted(bundle.glob("volume-*.tar.zst"))
    flip_bit(first, random.randrange(first.stat().st_size))
    (bundle / "bundle.json").write_bytes((bundle / "bundle.json").read_bytes().replace(b"tiny", b"tinz"))
    (bundle / "SHA256SUMS").write_text("all is well\n")


def put_links(bundle: Path) -> None:
    (first, *_) = sorted(bundle.glob("volume-*.tar.zst"))
    victim = bundle.parent / "victim"
    victim.write_bytes(b"precious")
    for name in (first.name, "bundle.json", "README.txt"):
        (bundle / name).unlink()
        (bundle / name).symlink_to(victim)


@pytest.mark.parametrize("edit", [edit_volume, put_links])
def test_someone_edits_an_unfinished_bundle(
    loaded: Machine, undisturbed: dict[str, bytes], drive: Path, edit: Callable[[Path], None]
) -> None:
    """Breaks if bytes that somebody else put on the drive get signed: they must be noticed and written anew."""
    end_in_the_middle(loaded, drive, signal.SIGKILL, after=SIZE // 2)  # the first volume is closed by then
    edit(only_bundle(drive))
    ran = loaded.run("bundle", "--to", drive, *PINNED)
    assert "written again" in ran.err, ran
    assert tree(only_bundle(drive)) == undisturbed
    if edit is put_links:
        assert (drive / "victim").read_bytes() == b"precious"


def test_someone_empties_the_drive(loaded: Machine, undisturbed: dict[str, bytes], drive: Path) -> None:
    """Breaks if what a drive held counts as there once it is empty, or the bundle cannot be written any more."""
    end_in_the_middle(loaded, drive, signal.SIGKILL, after=SIZE // 2)  # the first volume is closed by then
    shutil.rmtree(only_bundle(drive))
    partial = loaded.json("bundle", "--to", drive, *PINNED, code=3)
    assert "gc --partial" in partial.document["error"]["hint"]
    assert [found["here"] for found in partial.result["drives"]] == [True, False]
    shutil.rmtree(only_bundle(drive))
    loaded.run("gc", "--partial")
    loaded.run("bundle", "--to", drive, *PINNED)
    assert tree(only_bundle(drive)) == undisturbed


def test_something_else_lies_there(loaded: Machine, drive: Path) -> None:
    """Breaks if a directory that was not made by this bundle is written into, or a file is overwritten."""
    other = drive / "models-7.mvbundle"
    other.mkdir()
    (other / "bundle.json").write_text("{}")
    error = failed(loaded, "bundle", "--to", drive, *PINNED, code=2)
    assert str(other) in error["message"]
    assert tree(other) == {"bundle.json": b"{}"}
    shutil.rmtree(other)
    other.write_text("a file")
    failed(loaded, "bundle", "--to", drive, *PINNED, code=2)
    assert other.read_text() == "a file"


# ── the vault rotted ──


def test_a_blob_rotted_at_rest(machine: Callable[..., Machine], tiny_gguf: Path, drive: Path) -> None:
    """Breaks if a bit that flipped in the vault travels on, signed; what `verify` then advises must heal it."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    blob = blob_of(pc, "tiny", ".gguf")
    blob.chmod(0o600)
    flip_bit(blob, blob.stat().st_size // 2)
    error = failed(pc, "bundle", "--to", drive, code=12)
    assert blob.name in error["message"]
    assert "tiny" in error["message"]
    bundle = only_bundle(drive)
    assert not list(bundle.glob("volume-*.json*")), "a volume with rotten bytes is signed for"
    server = machine("server")
    trust(server, pc, bundle)
    server.run("import", bundle, code=12)
    assert server.models() == set()

    ran = pc.json("verify", code=12)
    assert ran.document["error"]["code"] == "digest-mismatch"
    assert str(blob) in ran.document["error"]["message"]
    (damage,) = ran.document["result"]["damage"]
    assert (damage["where"], damage["models"]) == (str(blob), ["tiny"])
    assert pc.json("show", "tiny").result["last_check"].endswith("(damaged)")
    assert not blob.exists(), "what is damaged must not be taken for whole"

    assert "again" in ran.document["error"]["hint"]
    pc.run("add", tiny_gguf, "--name", "tiny")
    pc.run("verify")
    assert succeeded(pc, "gc")["blobs"] == 1, "what was set aside is freed"
    pc.run("bundle", "--to", drive)
    server.run("import", only_bundle(drive))


def test_a_blob_is_gone_or_short(machine: Callable[..., Machine], tiny_gguf: Path, drive: Path) -> None:
    """Breaks if a bundle is begun that cannot be finished."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    blob = blob_of(pc, "tiny", ".gguf")
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.truncate(1000)
    assert "1,000 bytes" in failed(pc, "bundle", "--to", drive, code=12)["message"]
    assert not blob.exists()  # it was moved aside, so that adding the model again brings it
    assert "missing" in failed(pc, "bundle", "--to", drive, code=12)["message"]
    assert list(drive.iterdir()) == []
    damage = pc.json("verify", code=12).result["damage"]
    assert [(item["where"], item["problem"]) for item in damage] == [(str(blob), "it is missing")]


# ── no space ──


def test_too_small_a_drive(loaded: Machine, undisturbed: dict[str, bytes], tmp_path: Path, as_root: None) -> None:
    """Breaks if a drive is filled before it is said how much is missing, or what lies there already is not counted."""
    with small_disk(tmp_path / "image", tmp_path / "disk", 256 << 20) as disk:
        filler = fill(disk, 70_000_000)
        (warning,) = loaded.json("bundle", "--to", disk, *PINNED, "--dry-run").document["warnings"]
        assert "bytes are missing" in warning
        error = failed(loaded, "bundle", "--to", disk, *PINNED, code=15)
        assert error["code"] == "no-space"
        assert 75_000_000 < error["data"]["missing"] < 110_000_000
        assert f"{error['data']['missing']:,} bytes are missing" in error["message"]
        assert not list(disk.glob("*.mvbundle")), "something was written"
        filler.unlink()

        end_in_the_middle(loaded, disk, signal.SIGKILL, after=SIZE // 2)
        there = written(disk)
        filler = fill(disk, 5_000_000)
        error = failed(loaded, "bundle", "--to", disk, *PINNED, code=15)
        assert error["data"]["needed"] < SIZE - there + 10_000_000
        assert error["hint"].startswith("free some space and run the same command again")
        filler.unlink()
        assert succeeded(loaded, "bundle", "--to", disk, *PINNED)["resumed"] > 0
        assert tree(only_bundle(disk)) == undisturbed


def test_a_drive_that_cannot_be_written(loaded: Machine, tmp_path: Path, as_root: None) -> None:
    """Breaks if a write-protected stick looks like a bug."""
    with small_disk(tmp_path / "image", tmp_path / "disk", 16 << 20) as disk:
        loaded.run("bundle", "tiny", "--to", disk, "--dry-run")
        remount(disk, "ro")
        assert "read-only" in failed(loaded, "bundle", "tiny", "--to", disk, code=1)["message"]
        remount(disk, "rw")
        succeeded(loaded, "bundle", "tiny", "--to", disk)


def remount(disk: Path, option: str) -> None:
    """Mount a file system again, to be read only or to be written too."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


# ── what cannot be meant ──


def test_what_cannot_be_meant(loaded: Machine) -> None:
    """Breaks if a mistyped command writes somewhere, or is answered by anything but the way to say it right."""
    before = set(loaded.vault.iterdir())
    for word, *arguments in (
        ("not a directory", "--to", "/nowhere/at/all"),
        ("within the vault", "--to", str(loaded.vault)),
        ("within the vault", "--to", str(loaded.vault / "blobs")),
        ("no model nomodel", "nomodel", "--to", "/tmp"),
        ("too small", "--to", "/tmp", "--volume-size", "1"),
        ("not a size", "--to", "/tmp", "--volume-size", "-5GiB"),
        ("not a label", "--to", "/tmp", "--label", "../x"),
        ("no signing key nokey", "--to", "/tmp", "--key", "nokey"),
        ("not a sequence", "--to", "/tmp", "--sequence", "99999999999999999999"),
    ):
        assert word in failed(loaded, "bundle", *arguments, code=2)["message"]
    assert set(loaded.vault.iterdir()) == before
