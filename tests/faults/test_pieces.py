"""One bundle on several drives: in any order, over several runs, lost, damaged, mixed up and mended by a second trip."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drives import carry, lose, volume_files
from faulty_hub import FaultyHub
from imports import GGUF, SHARDED, Delivery, Shipment, digests, ship
from machines import SECONDS, Machine, Ran, flip_bit, only_bundle, trust
from make_models import make_gguf_repository

BOTH = {GGUF, SHARDED}


@pytest.fixture(scope="module")
def shipment(tmp_path_factory: pytest.TempPathFactory) -> Shipment:
    return ship(tmp_path_factory.mktemp("shipment"))


@pytest.fixture
def delivery(shipment: Shipment, tmp_path: Path) -> Delivery:
    return shipment.deliver(tmp_path)


@pytest.fixture
def drives(delivery: Delivery, tmp_path: Path) -> tuple[Path, Path]:
    """The four volumes on two drives."""
    return carry(delivery.bundle, tmp_path / "a", [1, 2]), carry(delivery.bundle, tmp_path / "b", [3, 4])


@pytest.fixture
def answering(shipment: Shipment, tmp_path: Path) -> Machine:
    """The connected machine, as it was when it had written the bundle."""
    return Machine(Path(shutil.copytree(shipment.pc.root, tmp_path / "pc")))


def outcomes(ran: Ran) -> dict[str, str]:
    """What became of each model."""
    (imported,) = ran.result["imports"]
    return {model["name"]: model["outcome"] for model in imported["models"]}


def staged(server: Machine) -> list[Path]:
    """What is kept of imports under way."""
    return sorted((server.vault / "partial").glob("import-*")) if server.vault.exists() else []


def introduce(site: Machine, pc: Machine, folder: Path, name: str = "lab-7") -> None:
    """Have the connected side trust the key that signs what rides back from the site."""
    fingerprint = site.json("keys", "show", name).result["keys"][0]["fingerprint"]
    pc.run("keys", "trust", folder / f"{name}.pub", "--role", "receipt", "--fingerprint", fingerprint)


# ── several drives ──


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_drive_after_the_other(delivery: Delivery, drives: tuple[Path, Path], order: tuple[int, int]) -> None:
    """Breaks if drives must come together or in order, if anything is published before it is whole, or if what arrived is lost."""
    first, second = (drives[place] for place in order)
    ran = delivery.server.json("import", first, *delivery.engines, code=3)
    assert outcomes(ran) == dict.fromkeys(BOTH, "waiting")
    imported = ran.result["imports"][0]
    assert imported["wanted"] == {0: [3, 4], 1: [1, 2]}[order[0]]
    assert imported["received"] > 1_000_000
    # What is said of each model came off this drive; a file of both models is told of both.
    came = [model["new_bytes"] for model in imported["models"]]
    assert imported["received"] <= sum(came) < sum(model["size"] for model in imported["models"])
    assert ran.document["error"]["code"] == "volumes-wanted"
    assert {0: "volumes 3 to 4", 1: "volumes 1 to 2"}[order[0]] in ran.document["error"]["hint"]
    assert delivery.server.models() == set()
    assert delivery.installed() == set()
    delivery.server.run("gc")
    plan = delivery.server.json("import", second, *delivery.engines, "--dry-run").result["imports"][0]
    done = delivery.server.json("import", second, *delivery.engines)
    assert outcomes(done) == dict.fromkeys(BOTH, "installed")
    (last,) = done.result["imports"]
    assert [model["new_bytes"] for model in plan["models"]] == [model["new_bytes"] for model in last["models"]]
    assert last["resumed"] == imported["received"]
    assert delivery.installed() == BOTH
    assert staged(delivery.server) == []
    delivery.server.run("verify")


def test_both_drives_at_once(delivery: Delivery, drives: tuple[Path, Path]) -> None:
    """Breaks if two drives of one bundle are taken for two bundles, or if the order of the paths matters."""
    plan = delivery.server.json("import", drives[1], "--dry-run", *delivery.engines, code=3).result["imports"][0]
    assert plan["wanted"] == [1, 2]
    assert {model["outcome"] for model in plan["models"]} == {"would wait"}
    done = delivery.server.json("import", drives[1], drives[0], *delivery.engines)
    assert outcomes(done) == dict.fromkeys(BOTH, "installed")
    assert done.result["imports"][0]["wanted"] == []
    assert delivery.server.json("verify", *drives).result["damage"] == []


def test_what_is_complete_is_installed(delivery: Delivery, tmp_path: Path) -> None:
    """Breaks if a model that is complete waits for others, or if what came for those goes when only the one is wanted again."""
    first = carry(delivery.bundle, tmp_path / "a", [1, 3, 4])
    ran = delivery.server.json("import", first, *delivery.engines, code=3)
    assert outcomes(ran) == {GGUF: "installed", SHARDED: "waiting"}
    assert f"{SHARDED} is waiting for volume 2" in ran.document["error"]["message"] + str(ran.document["error"]["data"])
    delivery.server.run("import", first, *delivery.engines, "--only", GGUF)
    done = delivery.server.json("import", carry(delivery.bundle, tmp_path / "b", [2]), *delivery.engines)
    assert done.result["imports"][0]["resumed"] > 1_000_000
    assert delivery.installed() == BOTH
    assert staged(delivery.server) == []


def test_a_drive_whose_index_is_damaged(delivery: Delivery, drives: tuple[Path, Path]) -> None:
    """Breaks if a bit in one drive's index costs its volumes though another drive has the same index whole."""
    flip_bit(drives[1] / "bundle.json", 100)
    delivery.server.run("import", drives[1], code=14)
    done = delivery.server.json("import", *drives, *delivery.engines)
    assert outcomes(done) == dict.fromkeys(BOTH, "installed")
    assert any(str(drives[1]) in warning for warning in done.document["warnings"])


def test_killed_between_drives(delivery: Delivery, drives: tuple[Path, Path]) -> None:
    """Breaks if an import that is killed while it reads the second drive has to begin anew, or leaves what is not whole."""
    delivery.server.run("import", drives[0], code=3)
    for seconds in (0.5, 0.8, 1.1):
        with delivery.server.started("import", drives[1], *delivery.engines) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        assert delivery.server.models() in (set(), {GGUF}, {SHARDED}, BOTH)
        assert delivery.installed() <= BOTH
    delivery.server.run("import", drives[1], *delivery.engines)
    assert delivery.installed() == BOTH
    delivery.server.run("verify")


# ── what belongs to what ──


@pytest.fixture
def two(machine: Callable[..., Machine], tmp_path: Path) -> tuple[Machine, Path, Path]:
    """A server, and two bundles of one key whose models have several volumes."""
    pc, server = machine("sender"), machine("site")
    found = []
    for number, sequence in enumerate((10, 20)):
        folder, drive = tmp_path / f"model-{number}", tmp_path / f"drive-{number}"
        drive.mkdir()
        make_gguf_repository(folder, name=f"model-{number}")
        (folder / "notes.txt").write_text("a long story\n" * 400_000)
        pc.run("add", folder, "--name", f"model-{number}")
        pc.run("bundle", f"model-{number}", "--to", drive, "--volume-size", "2MiB", "--sequence", str(sequence))
        found.append(only_bundle(drive))
    trust(server, pc, found[0])
    return server, found[0], found[1]


def test_volumes_of_two_bundles_in_one_folder(two: tuple[Machine, Path, Path]) -> None:
    """Breaks if a volume of another bundle passes for one of ours, or is not told as what it is."""
    server, one, other = two
    for name in volume_files(2):
        shutil.copy2(other / name, one / name)
    ran = server.json("import", one, code=12)
    assert "it belongs to volume 2 of the bundle with index" in ran.result["imports"][0]["models"][0]["reason"]
    assert server.models() == set()
    lines = server.json("verify", one, code=12).result["volumes"]
    assert [(line["state"], line["wanted"]) for line in lines[:3]] == [
        ("present", False),
        ("damaged", True),
        ("present", False),
    ]


def test_a_drive_of_another_bundle_among_the_right_ones(two: tuple[Machine, Path, Path], tmp_path: Path) -> None:
    """Breaks if a drive that does not belong there keeps the others from being imported, or is mixed up with them."""
    server, one, other = two
    last = len(list(one.glob("*.tar.zst")))
    drives = [carry(one, tmp_path / "a", [1]), carry(one, tmp_path / "b", range(2, last + 1))]
    stray = carry(other, tmp_path / "c", [2])
    refused = server.json("verify", *drives, stray, code=2).document["error"]
    assert refused["data"]["bundles"] == [str(drives[0]), str(stray)]
    server.run("import", drives[0], stray, drives[1], code=3)
    assert server.models() == {"model-0"}
    server.run("import", other)
    assert server.models() == {"model-0", "model-1"}


def test_two_bundles_that_call_themselves_the_same(
    machine: Callable[..., Machine], tmp_path: Path, tiny_gguf: Path
) -> None:
    """Breaks if two bundles of one label and sequence with different content are taken for one, or one passes for the other later."""
    pc, server = machine("pc"), machine("server")
    bundles = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        pc.run("add", tiny_gguf, "--name", name)
        pc.run("bundle", name, "--to", tmp_path / name, "--sequence", "7")
        bundles.append(only_bundle(tmp_path / name))
    trust(server, pc, bundles[0])
    error = server.json("import", *bundles, code=2).document["error"]
    assert error["data"]["bundles"] == list(map(str, bundles))
    assert server.models() == set()
    server.run("import", bundles[0])
    error = server.json("import", bundles[1], code=14).document["error"]
    assert "--allow-older" in error["hint"]
    assert server.models() == {"first"}
    server.run("import", bundles[1], "--allow-older")
    for bundle in bundles:  # a person said that both are right
        server.run("import", bundle)
    assert server.models() == {"first", "second"}


# ── a second trip ──


def test_a_drive_that_was_cut_off(delivery: Delivery) -> None:
    """Breaks if each of thousands of frames that are gone is a line of its own."""
    volume = delivery.bundle / "volume-0002.tar.zst"
    (rows,) = [table["frames"] for table in delivery.tables() if table["volume"] == 2]
    os.truncate(volume, rows[1][0])
    ran = delivery.server.json("verify", delivery.bundle, code=12)
    (damage,) = ran.result["damage"]
    assert damage["where"] == f"volume 2, frames 2 to {len(rows)}"
    assert damage["problem"].startswith("it is cut off")


def request_of(path: Path) -> dict[str, Any]:
    """What a request says."""
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def test_mended_by_a_second_trip(
    delivery: Delivery, drives: tuple[Path, Path], answering: Machine, tmp_path: Path
) -> None:
    """Breaks if damage on one drive and a drive that was lost cannot be mended by exactly what is wanted."""
    server, back = delivery.server, tmp_path / "back"
    back.mkdir()
    damaged = drives[0] / "volume-0002.tar.zst"
    flip_bit(damaged, 600_000)
    lose(drives[1], 4)
    server.run("import", *drives, *delivery.engines, code=3)
    ran = server.json("verify", *drives, "--request", back, "--site", "lab-7", code=12)
    states = [(line["state"], line["wanted"]) for line in ran.result["volumes"]]
    assert states == [("present", False), ("damaged", True), ("present", False), ("missing", True)]
    assert {model["state"] for model in ran.result["models"]} == {"wanted"}
    (path,) = back.glob("*.request.json")
    assert ran.result["request"]["path"] == str(path)
    asked = request_of(path)
    index = json.loads((delivery.bundle / "bundle.json").read_bytes())
    frame = next(row for row in delivery.tables()[1]["frames"] if row[0] <= 600_000 < row[0] + row[1])
    lost = {m["digest"]: [m.get("offset", 0), m["size"]] for m in index["volumes"][3]["members"] if m["size"]}
    for digest, offset, length in asked["pieces"]:
        assert lost.pop(digest, None) == [offset, length] or length == frame[3]
    assert lost == {}
    assert len(asked["pieces"]) == len([m for m in index["volumes"][3]["members"] if m["size"]]) + 1
    assert asked["label"] == "models"

    introduce(server, answering, back)
    trip = tmp_path / "trip"
    trip.mkdir()
    answering.run("bundle", "--answer", path, "--to", trip)
    patch = only_bundle(trip)
    wanted = sum(length for _, _, length in asked["pieces"])
    assert sum(file.stat().st_size for file in patch.glob("volume-*.zst")) < wanted + 10_000
    # What arrived before is not needed again: the drives stay at home.
    done = server.json("import", patch, *delivery.engines)
    assert outcomes(done) == dict.fromkeys(BOTH, "installed")
    assert delivery.installed() == BOTH
    assert staged(server) == []
    server.run("verify")
    # The patch counts for nothing but its bundle: that is what was imported, and what is older than it stays out.
    server.run("import", delivery.bundle)
    assert "nothing of them is wanted" in server.run("import", patch).err


def test_bundle_and_patch_together(delivery: Delivery, answering: Machine, tmp_path: Path) -> None:
    """Breaks if a bundle and its patch cannot be imported in one run, or verified together, by a server that saw neither before."""
    flip_bit(delivery.bundle / "volume-0002.tar.zst", 600_000)
    first = Machine(Path(shutil.copytree(delivery.server.root, tmp_path / "first")))
    first.run("verify", delivery.bundle, "--request", tmp_path / "x.json", "--site", "lab-7", code=12)
    introduce(first, answering, tmp_path)
    trip = tmp_path / "trip"
    trip.mkdir()
    answering.run("bundle", "--answer", tmp_path / "x.json", "--to", trip)
    patch = only_bundle(trip)
    delivery.server.run("import", patch, code=2)
    ran = delivery.server.json("verify", delivery.bundle, patch)  # damaged, but all of it is mended: 0
    assert (len(ran.result["mended"]), ran.result["damage"]) == (1, [])
    assert [volume["state"] for volume in ran.result["volumes"]] == ["present", "mended", "present", "present"]
    assert {model["state"] for model in ran.result["models"]} == {"present"}
    shown = delivery.server.run("verify", delivery.bundle, patch).out
    assert "mended by the patch: volume 2, frame" in shown
    assert "checked, 1 mended by the patch" in shown
    assert "mended by the patch: volume 2\n" in shown
    assert "damaged:" not in shown
    lose(delivery.bundle, 4)  # what the patch mends is none of what is wrong now
    ran = delivery.server.run("verify", delivery.bundle, patch, code=3)
    assert "what is here is sound, but volume 4" in ran.err
    flip_bit(patch / "volume-0001.tar.zst", 100)
    ran = delivery.server.run("verify", delivery.bundle, patch, code=12)
    assert "volume 1 of the patch, frame" in ran.err
    flip_bit(patch / "volume-0001.tar.zst", 100)
    for name in volume_files(4):
        delivery.bring_again(name)
    done = delivery.server.json("import", patch, delivery.bundle, *delivery.engines)
    assert outcomes(done) == dict.fromkeys(BOTH, "installed")
    nothing = delivery.server.json("verify", delivery.bundle, "--request", tmp_path / "y.json", code=12)
    assert nothing.result["request"] is None
    assert any("nothing is wanted" in warning for warning in nothing.document["warnings"])
    assert not (tmp_path / "y.json").exists()


def test_a_patch_on_two_drives(
    delivery: Delivery, drives: tuple[Path, Path], answering: Machine, tmp_path: Path
) -> None:
    """Breaks if one part of a patch passes for all of it, or if it is not said which part is missing."""
    server, trip = delivery.server, tmp_path / "trip"
    trip.mkdir()
    lose(drives[0], 2)
    lose(drives[1], 3)
    server.run("import", *drives, code=3)
    server.run("verify", *drives, "--request", tmp_path / "x.json", "--site", "lab-7", code=3)
    introduce(server, answering, tmp_path)
    answering.run("bundle", "--answer", tmp_path / "x.json", "--to", trip, "--volume-size", "2MiB")
    patch = only_bundle(trip)
    parts = carry(patch, tmp_path / "c", [1]), carry(patch, tmp_path / "d", [2])
    plan = server.json("import", parts[0], "--dry-run", code=3)
    assert outcomes(plan) == {GGUF: "would wait", SHARDED: "would wait"}
    assert "volume 2 of the patch" in plan.document["error"]["hint"]
    assert "of the patch, volume 2 is missing" in server.run("verify", *drives, parts[0], code=3).err
    ran = server.run("verify", *drives, *parts)
    assert "mended by the patch: volumes 2 to 3" in ran.out
    assert f"{SHARDED}: all here" in ran.out
    ran = server.json("import", parts[1], *delivery.engines, code=3)
    assert outcomes(ran) == {GGUF: "installed", SHARDED: "waiting"}
    server.run("import", parts[0], *delivery.engines)
    assert delivery.installed() == BOTH


def test_a_patch_of_another_bundle(
    delivery: Delivery, two: tuple[Machine, Path, Path], answering: Machine, tmp_path: Path
) -> None:
    """Breaks if a patch is applied to a bundle that it was not written for."""
    flip_bit(delivery.bundle / "volume-0002.tar.zst", 600_000)
    request = tmp_path / "x.json"
    delivery.server.run("verify", delivery.bundle, "--request", request, "--site", "lab-7", code=12)
    introduce(delivery.server, answering, tmp_path)
    trip = tmp_path / "trip"
    trip.mkdir()
    answering.run("bundle", "--answer", request, "--to", trip)
    server, one, _ = two
    patch = only_bundle(trip)
    fingerprint = answering.json("keys", "show", "default").result["keys"][0]["fingerprint"]
    server.run("keys", "trust", patch / "default.pub", "--fingerprint", fingerprint, "--name", "other")
    ran = server.run("import", one, patch, code=2)
    assert "mends a bundle that is not here" in ran.err
    assert server.models() == set()


# ── thin ──


def test_thin_bundles(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if a bundle that leaves out what the site holds does not install there, or passes for whole where that is not."""
    pc, server, stranger = machine("pc"), machine("server"), machine("stranger")
    drive, back = tmp_path / "drive", tmp_path / "back"
    drive.mkdir()
    back.mkdir()
    pc.run("add", tiny_gguf, "--name", "first")
    pc.run("bundle", "--to", drive)
    whole = only_bundle(drive)
    for site in (server, stranger):
        trust(site, pc, whole)
    done = server.json("import", whole, "--receipt", back, "--site", "lab-7")
    receipt = Path(done.result["receipt"]["path"])
    assert receipt.name == "lab-7.receipt.json"
    introduce(server, pc, back)
    pc.run("receipt", "add", receipt)
    changed = tmp_path / "changed"
    shutil.copytree(tiny_gguf, changed)
    (changed / "README.md").write_text("changed\n")
    pc.run("add", changed, "--name", "second")
    (tmp_path / "thin").mkdir()
    pc.run("bundle", "second", "--for", "lab-7", "--to", tmp_path / "thin")
    thin = only_bundle(tmp_path / "thin")
    assert sum(path.stat().st_size for path in thin.glob("volume-*.zst")) < 50_000

    before = sorted(path for path in stranger.vault.rglob("*"))
    verified = stranger.json("verify", thin)
    assert [model["state"] for model in verified.result["models"]] == ["incomplete"]
    assert any("tiny-Q8_0.gguf of second" in warning for warning in verified.document["warnings"])
    assert "second: the bundle leaves out what this vault does not have" in stranger.run("verify", thin).out
    verified = server.json("verify", thin)
    assert [model["state"] for model in verified.result["models"]] == ["held"]
    assert not verified.document["warnings"]
    error = stranger.json("import", thin, code=10).document["error"]
    assert error["code"] == "base-incomplete"
    assert "tiny-Q8_0.gguf of second" in error["message"]
    assert error["data"]["models"] == ["second"]
    assert digests(tiny_gguf)["tiny-Q8_0.gguf"] in str(error["data"]["missing"])
    assert "receipt write" in error["hint"]
    assert sorted(path for path in stranger.vault.rglob("*")) == before
    server.run("import", thin)
    assert server.models() == {"first", "second"}
    server.run("verify")


# ── side by side ──


def test_pull_bundle_and_import_side_by_side(delivery: Delivery, tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if work on different models of one vault gets into each other's way."""
    drive = tmp_path / "out"
    drive.mkdir()
    delivery.server.run("add", tiny_gguf, "--name", "mine")
    with FaultyHub({"demo/other-GGUF": tiny_gguf}) as hub:
        both = Machine(delivery.server.root, hub.url, {"MODELVAULT_LOCK_WAIT": str(SECONDS)})
        with (
            both.started("pull", "demo/other-GGUF") as pull,
            both.started("bundle", "mine", "--to", drive) as bundle,
            both.started("import", delivery.bundle, *delivery.engines) as imported,
        ):
            assert [process.wait(SECONDS) for process in (pull, bundle, imported)] == [0, 0, 0]
    assert delivery.server.models() == {"mine", "demo/other-GGUF", *BOTH}
    delivery.server.run("verify")
    delivery.server.run("verify", only_bundle(drive))


# ── upkeep ──


def test_gc_keeps_what_can_be_gone_on_with(two: tuple[Machine, Path, Path], tmp_path: Path) -> None:
    """Breaks if gc takes what a drive gave while the next one is on its way, or keeps for ever what nobody may import any more."""
    server, older, newer = two
    server.run("import", carry(older, tmp_path / "a", [1, 2]), code=3)
    assert server.json("gc").result["partial"] == []
    assert len(staged(server)) == 1
    server.run("import", newer)
    freed = server.json("gc").result
    assert len(freed["partial"]) == 1
    assert freed["partial_size"] > 1_000_000
    assert staged(server) == []
