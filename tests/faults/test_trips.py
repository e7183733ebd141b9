"""Whole trips over two drives with the installed program: there, back for what is wanted, and again with the difference."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from drives import carry
from faulty_hub import FaultyHub
from imports import GGUF, SHARDED, Delivery, Shipment, digests, ship
from machines import SECONDS, Machine, flip_bit, only_bundle, small_disk, trust, trust_site
from make_models import make_large_safetensors
from refusals import failed, fill, running, succeeded

from modelvault.bundle.index import name_volumes

MIB = 1 << 20
VOLUMES = ("--volume-size", "2MiB")
BOTH = {GGUF, SHARDED}
ALONE = ("unshare", "--net")


@pytest.fixture(scope="module")
def shipment(tmp_path_factory: pytest.TempPathFactory) -> Shipment:
    return ship(tmp_path_factory.mktemp("shipment"))


def sender(shipment: Shipment, root: Path) -> Machine:
    """The connected machine as it was after it wrote the bundle, for one test."""
    return Machine(Path(shutil.copytree(shipment.pc.root, root)))


def receiver(shipment: Shipment, root: Path, **variables: str) -> Machine:
    """A server that trusts the sender's key, for one test."""
    return Machine(Path(shutil.copytree(shipment.server.root, root)), variables=variables)


@dataclass(frozen=True)
class Trip:
    """A shipment that was written onto two file systems: the directories of its bundle there, and which volumes each has."""

    shipment: Shipment
    drives: tuple[Path, Path]
    volumes: tuple[tuple[int, ...], tuple[int, ...]]

    def copied(self, root: Path) -> tuple[Path, Path]:
        """Copies of both drives, to be damaged."""
        first, second = (shutil.copytree(at, root / at.parent.name / at.name) for at in self.drives)
        return first, second

    def server(self, root: Path) -> Delivery:
        """A server and its engines, for one test."""
        return Delivery(self.shipment, self.drives[0], receiver(self.shipment, root))


@pytest.fixture(scope="module")
def trip(shipment: Shipment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trip]:
    """Four volumes over two drives, of which the first has no room for all."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    root = tmp_path_factory.mktemp("trip")
    with two_disks(root) as (a, b):
        result = succeeded(shipment.pc, "bundle", "--to", a, "--to", b, *VOLUMES, "--label", "trip")
        drives, volumes = zip(*((only_bundle(place), volumes_on(place)) for place in (a, b)), strict=True)
        assert [tuple(drive["volumes"]) for drive in result["drives"]] == list(volumes)
        assert all(volumes), "one drive has nothing"
        yield Trip(shipment, drives, volumes)


@contextlib.contextmanager
def two_disks(root: Path, leave: int = 5 * MIB) -> Iterator[tuple[Path, Path]]:
    """Two file systems, with little free on the first."""
    with small_disk(root / "a.img", root / "a", 24 * MIB) as a, small_disk(root / "b.img", root / "b", 24 * MIB) as b:
        fill(a, leave)
        yield a, b


def volumes_on(drive: Path) -> tuple[int, ...]:
    """The numbers of the volumes that lie on a drive."""
    return tuple(sorted(int(path.name[7:11]) for path in only_bundle(drive).glob("*.tar.zst")))


# ── there ──


@pytest.mark.root
def test_one_drive_a_day_without_network(trip: Trip, tmp_path: Path) -> None:
    """Breaks if drives that are write-protected cannot be imported on different days, or anything of that needs a network."""
    site = trip.server(tmp_path / "server")
    a, b = trip.drives
    with contextlib.ExitStack() as stack:
        for drive in (a.parent, b.parent):
            remount(drive, "ro")
            stack.callback(remount, drive, "rw")
        site.server.run("import", b, *site.engines, code=3, prefix=ALONE)
        said = site.server.run("verify", b, code=3, prefix=ALONE).out
        assert f"missing: {name_volumes(trip.volumes[0])}" in said
        assert site.installed() == set()
        site.server.run("import", a, *site.engines, "--receipt", tmp_path, "--site", "lab", prefix=ALONE)
        site.server.run("verify", a, b, prefix=ALONE)
    assert site.installed() == BOTH
    assert (tmp_path / "lab.receipt.json").exists()


def remount(disk: Path, option: str) -> None:
    """Mount a file system again, to be read only or to be written too."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


@pytest.mark.root
def test_restored_without_modelvault(trip: Trip, tmp_path: Path) -> None:
    """Breaks if the shell script, skopeo and modelvault do not agree on what came over two drives."""
    out, files = tmp_path / "out", tmp_path / "files"
    a, b = trip.drives
    for bundle, code in ((b, 3), (a, 0)):
        script = ["sh", bundle / "restore.sh", "--key", bundle / "default.pub", "--files", files, out, bundle]
        ran = subprocess.run(list(map(str, script)), capture_output=True, text=True, check=False, timeout=SECONDS)
        assert ran.returncode == code, ran
        assert "signature checked" in ran.stdout
    for name, folder in trip.shipment.folders.items():
        assert digests(files / name.replace("/", "--")) == digests(folder)
    restored = Machine(tmp_path, variables={"MODELVAULT_HOME": str(out)})
    restored.run("registry", "rebuild")
    restored.run("verify")
    assert {model["name"] for model in restored.json("list").result["models"]} == BOTH
    if shutil.which("skopeo"):
        for name in BOTH:
            raw = subprocess.check_output(["skopeo", "inspect", "--raw", f"oci:{out}:{name}"], timeout=SECONDS)
            assert {layer["digest"].removeprefix("sha256:") for layer in json.loads(raw)["layers"]} == set(
                digests(trip.shipment.folders[name]).values()
            )


@pytest.mark.root
def test_two_imports_at_once(trip: Trip, tmp_path: Path) -> None:
    """Breaks if two drives that are imported by two processes at the same time spoil what the other received."""
    site = trip.server(tmp_path / "server")
    patient = Machine(site.server.root, variables={"MODELVAULT_LOCK_WAIT": str(SECONDS)})
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(running(patient, "import", drive, *site.engines)).process for drive in trip.drives]
        for process in both:
            process.communicate(timeout=SECONDS)
    assert sorted(process.returncode for process in both) == [0, 3]
    assert site.installed() == BOTH
    site.server.run("verify")


@pytest.mark.root
def test_the_server_is_full_between_the_drives(trip: Trip, tmp_path: Path) -> None:
    """Breaks if what the first drive brought is lost when the disk has no room for the second, or is brought twice then."""
    with small_disk(tmp_path / "image", tmp_path / "disk", 40 * MIB) as disk:
        site = trip.server(disk / "server")
        site.server.run("import", trip.drives[0], code=3)
        filler = fill(disk, 500_000)
        failed(site.server, "import", trip.drives[1], code=15)
        assert site.server.models() == set()
        filler.unlink()
        (done,) = site.server.json("import", trip.drives[1]).result["imports"]
        assert {model["name"]: model["outcome"] for model in done["models"]} == dict.fromkeys(BOTH, "received")
        assert done["resumed"] > MIB
        site.server.run("verify")


# ── damaged, and mended by a second trip ──


@pytest.mark.root
@pytest.mark.parametrize("which", [0, 1])
def test_a_bit_on_either_drive(trip: Trip, tmp_path: Path, which: int) -> None:
    """Breaks if a damaged frame on one of two drives is not found, not told where, or costs more than a small second trip."""
    drives, site, pc = trip.copied(tmp_path), trip.server(tmp_path / "server"), sender(trip.shipment, tmp_path / "pc")
    number = trip.volumes[which][-1]
    volume = drives[which] / f"volume-{number:04d}.tar.zst"
    flip_bit(volume, volume.stat().st_size // 2)
    ran = site.server.run("import", *drives, *site.engines, code=3 if number in {1, 4} else 12)
    assert f"volume {number}, frame" in ran.out
    assert site.installed() < BOTH
    checked = site.server.json("verify", *drives, "--request", tmp_path / "wish.json", "--site", "lab", code=12)
    (damage,) = checked.result["damage"]
    assert str(drives[which]) in damage["where"]
    assert checked.result["request"]["size"] <= 16 * MIB
    trust_site(pc, tmp_path / "lab.pub", site.server)
    (tmp_path / "c").mkdir()
    patch = succeeded(pc, "bundle", "--answer", tmp_path / "wish.json", "--to", tmp_path / "c")
    assert patch["stored_size"] < checked.result["request"]["size"] + 10_000

    fresh = trip.server(tmp_path / "fresh")  # which has received nothing: drives and patch come together
    fresh.server.run("import", drives[1], only_bundle(tmp_path / "c"), drives[0], *fresh.engines)
    assert fresh.installed() == BOTH
    site.server.run("import", only_bundle(tmp_path / "c"), *site.engines)  # or the patch alone
    assert site.installed() == BOTH


@pytest.mark.root
@pytest.mark.parametrize("deed", ["unsigned", "edited", "by another"])
def test_the_index_of_one_drive(trip: Trip, machine: Callable[..., Machine], tmp_path: Path, deed: str) -> None:
    """Breaks if the index of one of two drives counts though it is not signed by a trusted key, or spoils the other's."""
    drives, site = trip.copied(tmp_path), trip.server(tmp_path / "server")
    index, signature = drives[0] / "bundle.json", drives[0] / "bundle.json.sig"
    if deed == "unsigned":
        signature.unlink()
    elif deed == "edited":
        index.write_bytes(index.read_bytes().replace(b'"label":"trip"', b'"label":"trap"'))
    else:
        other = machine("other")
        other.run("add", trip.shipment.folders[GGUF], "--name", GGUF)
        other.run("bundle", "--to", tmp_path)
        for path in (index, signature):
            shutil.copy2(only_bundle(tmp_path) / path.name, path)
    failed(site.server, "import", drives[0], code=14)
    assert site.server.models() == set()
    ran = site.server.json("import", *drives, *site.engines)
    assert any(str(drives[0]) in warning for warning in ran.document["warnings"])
    assert site.installed() == BOTH


# ── again, with the difference ──


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path, int]:
    """A model at two commits, and how many bytes of the second are new: one file of ten."""
    old, new = tmp_path / "old", tmp_path / "new"
    make_large_safetensors(old, 20_000_000, shards=4)
    make_large_safetensors(tmp_path / "other", 20_000_000, shards=4, seed=1)
    shutil.copytree(old, new)
    changed = next(path.name for path in sorted(old.glob("*.safetensors")))
    shutil.copy2(tmp_path / "other" / changed, new / changed)
    return old, new, (new / changed).stat().st_size


@pytest.mark.root
def test_an_updated_model_travels_as_the_difference(
    machine: Callable[..., Machine], versions: tuple[Path, Path, int], tmp_path: Path, as_root: None
) -> None:
    """Breaks if a new commit with most files the same is fetched whole, carried whole, or not installed as the new one."""
    old, new, size = versions
    pc, lab, name = machine("pc"), machine("lab", MODELVAULT_SITE="lab"), "org/model"
    cache = ("--engine", f"vllm={lab.root / 'hub'}")
    with FaultyHub({name: old}) as hub:
        Machine(pc.root, hub.url).run("pull", name)
    first = tmp_path / "first"
    first.mkdir()
    pc.run("bundle", "--to", first)
    trust(lab, pc, only_bundle(first))
    lab.run("import", first, *cache, "--receipt", first)
    trust_site(pc, first / "lab.pub", lab)
    pc.run("receipt", "add", first)

    with FaultyHub({name: new}) as hub:
        Machine(pc.root, hub.url).run("pull", name)
        fetched = sum(hub.bytes_sent(path.name) for path in new.glob("*.safetensors"))
        commit = hub.commit(name)
    assert size <= fetched <= size * 1.01
    with two_disks(tmp_path) as (a, b):
        result = succeeded(pc, "bundle", "--for", "lab", "--to", a, "--to", b, *VOLUMES)
        carried = sum(path.stat().st_size for drive in (a, b) for path in only_bundle(drive).rglob("volume-*"))
        assert size * 0.95 < carried < size * 1.01 + 50_000
        whole = sum(path.stat().st_size for path in new.iterdir())
        assert carried < whole / 3
        assert result["left_out"] >= whole - size - 50_000
        assert volumes_on(a)
        assert volumes_on(b)
        lab.run("import", b, *cache, code=3)
        lab.run("import", a, *cache)
    snapshot = lab.root / "hub" / "models--org--model" / "snapshots" / commit
    assert digests(snapshot) == digests(new)


def test_a_site_that_lets_nothing_out(shipment: Shipment, tmp_path: Path) -> None:
    """Breaks if what was sent before is brought again, if a trip that never arrived goes unnoticed, or cannot be made up for."""
    pc, lab, drive = sender(shipment, tmp_path / "pc"), receiver(shipment, tmp_path / "lab"), tmp_path / "drive"
    drive.mkdir()
    changed = Path(shutil.copytree(shipment.folders[SHARDED], tmp_path / "changed"))
    (changed / "README.md").write_text("# newer\n")
    to = ("--for", "lab", "--assume-sent", "--to", drive)
    sent = [succeeded(pc, "bundle", name, *to) for name in (GGUF, SHARDED)]
    pc.run("add", changed, "--name", SHARDED)
    sent.append(succeeded(pc, "bundle", SHARDED, *to))
    assert [bundle["left_out"] > 4_000_000 for bundle in sent] == [False, False, True]
    assert sent[2]["stored_size"] < sent[1]["stored_size"] / 10
    lab.run("import", sent[0]["directory"])
    # The second drive was lost on its way.
    assert failed(lab, "import", sent[2]["directory"], code=10)["code"] == "base-incomplete"
    assert lab.models() == {GGUF}
    whole = succeeded(pc, "bundle", SHARDED, "--to", drive)
    lab.run("import", whole["directory"], "--engine", f"folder={tmp_path / 'engine'}")
    assert digests(tmp_path / "engine" / "org--sharded").items() >= digests(changed).items()


# ── who is who ──


def test_papers_that_do_not_count(shipment: Shipment, tmp_path: Path) -> None:
    """Breaks if a receipt or request is followed that was edited, or that a key signed which is unknown or for something else."""
    pc, lab = sender(shipment, tmp_path / "pc"), receiver(shipment, tmp_path / "lab", MODELVAULT_SITE="lab")
    drive, back = tmp_path / "drive", tmp_path / "back"
    back.mkdir()
    bundle = carry(shipment.bundle, drive, [1, 2])
    asked = Path(lab.json("verify", bundle, "--request", back, code=3).result["request"]["path"])
    receipt = Path(lab.json("receipt", "write", back).result["path"])
    add, answer = ("receipt", "add", receipt), ("bundle", "--answer", asked, "--to", drive)
    assert "--role receipt" in failed(pc, *answer, code=14)["hint"]  # nobody told the PC of this key
    fingerprint = lab.json("keys", "show", "lab").result["keys"][0]["fingerprint"]
    pc.run("keys", "trust", back / "lab.pub", "--fingerprint", fingerprint)
    for command in (add, answer):
        assert "for bundles" in failed(pc, *command, code=14)["message"]
    pc.run("keys", "revoke", "lab")
    trust_site(pc, back / "lab.pub", lab)
    for path, command in ((receipt, add), (asked, answer)):
        path.write_bytes(path.read_bytes().replace(b'"sequence":', b'"sequence":9'))
        assert "changed" in failed(pc, *command, code=14)["message"]
    assert list(drive.iterdir()) == [bundle]


def test_a_pc_that_was_set_up_anew(
    shipment: Shipment, machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path
) -> None:
    """Breaks if the key of a PC that was set up anew is trusted by its name, or its bundles count as older than the old one's."""
    pc, lab, drive = machine("new"), receiver(shipment, tmp_path / "lab", MODELVAULT_SITE="lab"), tmp_path / "drive"
    drive.mkdir()
    lab.run("import", shipment.bundle)
    pc.run("add", tiny_gguf, "--name", "newer")
    pc.run("bundle", "--to", drive, "--sequence", "5")
    bundle = only_bundle(drive)
    failed(lab, "import", bundle, code=14)
    fingerprint = pc.json("keys", "show").result["keys"][0]["fingerprint"]
    trust_it = ("keys", "trust", bundle / "default.pub", "--fingerprint", fingerprint)
    assert "another name" in failed(lab, *trust_it, code=2)["hint"]
    lab.run(*trust_it, "--name", "new-pc")
    lab.run("import", bundle)
    assert lab.models() == {*BOTH, "newer"}
    # It knows neither the sites nor the bundles of before.
    receipt = lab.json("receipt", "write", drive).result["path"]
    failed(pc, "receipt", "add", receipt, code=14)
    trust_site(pc, drive / "lab.pub", lab)
    pc.run("receipt", "add", receipt)
    assert succeeded(pc, "bundle", "--for", "lab", "--to", drive)["left_out"] > MIB


def test_a_clock_that_went_backwards(shipment: Shipment, tmp_path: Path) -> None:
    """Breaks if a bundle that is written after the clock was set back is refused as older than the one before."""
    pc, lab, drive = sender(shipment, tmp_path / "pc"), receiver(shipment, tmp_path / "lab"), tmp_path / "drive"
    drive.mkdir()
    ahead = 5_000_000_000
    pc.run("bundle", GGUF, "--to", drive, "--sequence", str(ahead))  # as if the clock had been there
    later = succeeded(pc, "bundle", SHARDED, "--to", drive)
    assert later["sequence"] == ahead + 1
    lab.run("import", drive / f"models-{ahead}.mvbundle")
    lab.run("import", later["directory"])
    failed(lab, "import", drive / f"models-{ahead}.mvbundle", code=14)
    assert lab.models() == BOTH


def test_names_that_differ_only_in_case(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if two models whose directories would be one on some file systems go into one bundle, or nobody says which."""
    pc = machine("pc")
    for name in ("tiny", "Tiny"):
        pc.run("add", tiny_gguf, "--name", name)
    error = failed(pc, "bundle", "--to", tmp_path, code=2)
    assert "Tiny and tiny differ only in case" in error["message"]
    pc.run("bundle", "Tiny", "--to", tmp_path)


def test_the_vault_is_no_drive(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if one of several targets lies within the vault, or on its file system unmentioned."""
    pc, drive = machine("pc"), tmp_path / "drive"
    drive.mkdir()
    pc.run("add", tiny_gguf, "--name", "tiny")
    failed(pc, "bundle", "--to", drive, "--to", pc.vault / "blobs", code=2)
    assert list(drive.iterdir()) == []
    warnings = pc.json("bundle", "--to", drive, "--to", tmp_path).document["warnings"]
    assert [warning.split()[0] for warning in warnings if "same file system as the vault" in warning] == [
        str(drive),
        str(tmp_path),
    ]
