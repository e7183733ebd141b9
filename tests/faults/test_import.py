"""What goes wrong between a drive and the engines: damage, forgery, hostile drives, kills, full disks, and what the user types."""

import json
import os
import pty
import random
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from imports import GGUF, MEMORY, SHARDED, Delivery, Shipment, digests, measured, ship, whole_in_cache, whole_in_ollama
from machines import PROGRAM, SECONDS, Machine, Ran, flip_bit, only_bundle, small_disk, trust
from make_models import make_large_gguf, make_large_safetensors

from modelvault.vault import RESERVE

BOTH = {GGUF, SHARDED}


@pytest.fixture(scope="module")
def shipment(tmp_path_factory: pytest.TempPathFactory) -> Shipment:
    return ship(tmp_path_factory.mktemp("shipment"))


@pytest.fixture
def delivery(shipment: Shipment, tmp_path: Path) -> Delivery:
    return shipment.deliver(tmp_path)


def outcomes(ran: Ran) -> dict[str, str]:
    """What became of each model."""
    (imported,) = ran.result["imports"]
    return {model["name"]: model["outcome"] for model in imported["models"]}


def reasons(ran: Ran) -> dict[str, str]:
    """Why the models that were refused were."""
    (imported,) = ran.result["imports"]
    return {model["name"]: model["reason"] for model in imported["models"] if model["reason"]}


def assert_nothing_of(names: set[str], delivery: Delivery) -> None:
    """No file of these models, weights at least, is published or in an engine."""
    published = {path.name for path in (delivery.server.vault / "blobs" / "sha256").iterdir()}
    engines = {path.name.removeprefix("sha256-") for path in delivery.server.root.rglob("blobs/*")}
    for name in names:
        weights = {
            digest
            for file, digest in digests(delivery.shipment.folders[name]).items()
            if file.endswith((".gguf", ".safetensors"))
        }
        assert not weights & (published | engines), f"weights of {name} were published"
    assert delivery.server.models() == BOTH - names


# ── damage ──


@pytest.mark.parametrize("name", ["bundle.json", "bundle.json.sig"])
def test_a_bit_of_the_signed_index(delivery: Delivery, name: str) -> None:
    """Breaks if anything is taken from a bundle whose index is not exactly what was signed."""
    path = delivery.bundle / name
    flip_bit(path, path.stat().st_size // 2)
    ran = delivery.server.json("import", delivery.bundle, *delivery.engines, code=14)
    assert "changed" in ran.document["error"]["message"]
    assert_nothing_of(BOTH, delivery)


@pytest.mark.parametrize(("volume", "suffix"), [(1, "json"), (2, "json.sig"), (4, "json"), (4, "json.sig")])
def test_a_bit_of_a_frame_table(delivery: Delivery, volume: int, suffix: str) -> None:
    """Breaks if a frame table is believed that is not what was signed, or if it stops models that do not need its volume."""
    path = delivery.bundle / f"volume-{volume:04d}.{suffix}"
    flip_bit(path, path.stat().st_size // 2)
    check_damage(delivery, delivery.models_in(volume), rf"volume {volume}: its frame table volume-{volume:04d}\.json")


@pytest.mark.parametrize(
    ("volume", "share", "affected"),
    [
        (1, 0.0, BOTH),  # the manifests of both
        (1, 1.0, {SHARDED}),  # the padding after a shard, and the end of the tar
        (2, 0.0, {SHARDED}),  # the header of a shard
        (2, 0.5, {SHARDED}),
        (3, 1.0, BOTH),  # small files of both
        (4, 0.5, {GGUF}),
        (4, 1.0, {GGUF}),
    ],
)
def test_a_bit_of_a_volume(delivery: Delivery, volume: int, share: float, affected: set[str]) -> None:
    """Breaks if damage to a volume is not noticed, not located, or costs models that it does not touch."""
    path = delivery.bundle / f"volume-{volume:04d}.tar.zst"
    offset = round(share * (path.stat().st_size - 1))
    flip_bit(path, offset, bit=7)
    rows = delivery.tables()[volume - 1]["frames"]
    frame = next(number for number, row in enumerate(rows, 1) if row[0] <= offset < row[0] + row[1])
    check_damage(delivery, affected, rf"volume {volume}, frame {frame}: it is damaged")


def check_damage(delivery: Delivery, affected: set[str], pattern: str) -> None:
    """Import: the affected models are refused for a reason that names the place, the others are installed."""
    ran = delivery.server.json("import", delivery.bundle, *delivery.engines, code=12 if affected == BOTH else 3)
    assert {name for name, outcome in outcomes(ran).items() if outcome == "refused"} == affected
    assert all(re.search(pattern, reasons(ran)[name]) for name in affected), reasons(ran)
    assert delivery.installed() == BOTH - affected
    assert_nothing_of(affected, delivery)


def test_a_missing_volume_is_brought_later(delivery: Delivery) -> None:
    """Breaks if a drive that was left behind costs more than its own models, or costs reading the other drives again."""
    path = delivery.bundle / "volume-0002.tar.zst"
    path.unlink()
    ran = delivery.server.json("import", delivery.bundle, *delivery.engines, code=3)
    assert outcomes(ran) == {GGUF: "installed", SHARDED: "waiting"}
    assert "waiting for volume 2" in reasons(ran)[SHARDED]
    assert ran.result["imports"][0]["wanted"] == [2]
    assert ran.document["status"] == "partial"
    assert_nothing_of({SHARDED}, delivery)
    assert delivery.installed() == {GGUF}

    delivery.bring_again(path.name)
    # Whoever reads again what belongs to a model that is complete meets this damage.
    flip_bit(delivery.bundle / "volume-0004.tar.zst", 600_000)
    done = delivery.server.json("import", delivery.bundle, *delivery.engines)
    assert outcomes(done) == {GGUF: "installed already", SHARDED: "installed"}
    assert {model["name"]: model["new_bytes"] for model in done.result["imports"][0]["models"]}[GGUF] == 0
    assert delivery.installed() == BOTH
    delivery.server.run("verify")


def test_damage_costs_one_frame(delivery: Delivery) -> None:
    """Breaks if one bad frame makes the next run read everything again: the rest may have taken hours."""
    damaged = delivery.bundle / "volume-0002.tar.zst"
    flip_bit(damaged, 600_000)
    delivery.server.run("import", delivery.bundle, *delivery.engines, code=3)
    delivery.bring_again(damaged.name)
    # What was read before is damaged now: the run below succeeds only if it does not read it.
    flip_bit(delivery.bundle / "volume-0001.tar.zst", 600_000)
    flip_bit(delivery.bundle / "volume-0003.tar.zst", 600_000)
    delivery.server.run("import", delivery.bundle, *delivery.engines)
    assert delivery.installed() == BOTH


def test_only_one_model_costs_the_others_nothing(delivery: Delivery) -> None:
    """Breaks if what had arrived of one model, hours of reading, is thrown away when another one is imported alone."""
    left_behind = delivery.bundle / "volume-0002.tar.zst"
    left_behind.unlink()
    begun = delivery.server.json("import", delivery.bundle, "--only", SHARDED, code=3)
    assert begun.result["imports"][0]["received"] > 0
    delivery.server.run("import", delivery.bundle, "--only", GGUF, "--engine", f"ollama={delivery.ollama}")
    assert delivery.server.models() == {GGUF}
    delivery.bring_again(left_behind.name)
    # What was read before is damaged now: the run below succeeds only if it does not read it.
    flip_bit(delivery.bundle / "volume-0001.tar.zst", 600_000)
    delivery.server.run("import", delivery.bundle, *delivery.engines)
    assert delivery.installed() == BOTH
    assert not list((delivery.server.vault / "partial").iterdir())


# ── trust ──


def edit_index(delivery: Delivery) -> None:
    path = delivery.bundle / "bundle.json"
    text = path.read_bytes()
    index = json.loads(text)
    path.write_bytes(text.replace(b'"sequence":%d' % index["sequence"], b'"sequence":%d' % (index["sequence"] + 1)))
    assert path.read_bytes() != text


def remove_signature(delivery: Delivery) -> None:
    (delivery.bundle / "bundle.json.sig").unlink()


def revoke(delivery: Delivery) -> None:
    delivery.server.run("keys", "revoke", "default")


@pytest.mark.parametrize("deed", [edit_index, remove_signature, revoke])
def test_untrusted_bundles(delivery: Delivery, deed: Callable[[Delivery], None]) -> None:
    """Breaks if a bundle gets in that nobody trusted signed, or if its refusal shows the fingerprint to be typed in."""
    deed(delivery)
    for options in ((), ("--dry-run",), ("--json",)):
        ran = delivery.server.run("import", delivery.bundle, *delivery.engines, *options, code=14)
        shown = re.sub(r"[\s:]", "", ran.out + ran.err).lower()
        assert delivery.shipment.fingerprint not in shown
        assert delivery.shipment.fingerprint[:16] not in shown
    assert_nothing_of(BOTH, delivery)
    if deed is not edit_index:
        ran = delivery.server.json("import", delivery.bundle, *delivery.engines, "--allow-unsigned")
        assert "no proof" in " ".join(ran.document["warnings"])
        assert delivery.installed() == BOTH
        assert "UNSIGNED" in delivery.server.json("show", GGUF).result["brought_by"]
        delivery.server.run("registry", "rebuild")
        assert "UNSIGNED" in delivery.server.run("show", GGUF).out


def test_a_signature_of_a_table_by_another_key(delivery: Delivery, tmp_path: Path) -> None:
    """Breaks if volumes of one signer are accepted under the index of another, though both are trusted."""
    other, drive = Machine(tmp_path / "other"), tmp_path / "elsewhere"
    for path in (other.root, drive):
        path.mkdir()
    for name, folder in delivery.shipment.folders.items():
        other.run("add", folder, "--name", name)
    other.run("bundle", "--to", drive, "--volume-size", "2MiB")
    foreign = only_bundle(drive)
    fingerprint = other.json("keys", "show").result["keys"][0]["fingerprint"]
    delivery.server.run("keys", "trust", foreign / "default.pub", "--fingerprint", fingerprint, "--name", "other")
    for name in ("volume-0004.json", "volume-0004.json.sig"):
        shutil.copy(foreign / name, delivery.bundle / name)
    check_damage(delivery, {GGUF}, r"volume 4: its frame table volume-0004\.json is refused")


def test_older_bundles(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if an old bundle, with the weakness it was replaced for, can be played back; or if a repeated import is refused."""
    pc, server, drive = machine("pc"), machine("server"), tmp_path / "drive"
    drive.mkdir()
    pc.run("add", tiny_gguf, "--name", "tiny")
    bundles = {}
    for label, sequence in (("models", 10), ("models", 20), ("other", 5)):
        pc.run("bundle", "--to", drive, "--label", label, "--sequence", str(sequence))
        bundles[label, sequence] = drive / f"{label}-{sequence}.mvbundle"
    trust(server, pc, bundles["models", 20])
    for _ in range(2):
        server.run("import", bundles["models", 20])
    error = server.json("import", bundles["models", 10], code=14).document["error"]
    assert error["data"]["sequence"] == 10
    assert error["data"]["newest"] == 20
    assert "--allow-older" in error["hint"]
    server.run("import", bundles["other", 5])
    server.run("import", bundles["models", 10], "--allow-older")

    # The registry is derived: without it, and rebuilt, the mark still holds.
    for path in server.vault.glob("registry.sqlite*"):
        path.unlink()
    server.run("registry", "rebuild")
    server.run("import", bundles["models", 10], code=14)

    # A log that begins anew is believed no more than the registry; without either it takes a decision, once.
    (server.vault / "events.jsonl").unlink()
    server.run("verify")
    server.run("import", bundles["models", 10], code=14)
    (server.vault / "events.jsonl").unlink()
    error = server.json("import", bundles["models", 20], code=14).document["error"]
    assert "--allow-older" in error["hint"]
    server.run("import", bundles["models", 20], "--allow-older")
    server.run("import", bundles["models", 20])
    server.run("import", bundles["models", 10], code=14)


def converse(machine: Machine, *arguments: str | Path, answer: str) -> tuple[int, str]:
    """Run a command on a terminal and type ``answer`` when it asks; give its exit code and what the terminal showed."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        env=machine.environment() | {"TERM": "dumb"},
        cwd=machine.root,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    shown, asked = b"", False
    try:
        while select.select([leader], [], [], SECONDS)[0]:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # EIO: the last writer has closed the terminal
                break
            if not piece:
                break
            shown += piece
            if not asked and b"fingerprint" in shown:
                asked = True
                os.write(leader, answer.encode() + b"\n")
        return process.wait(timeout=SECONDS), shown.decode()
    finally:
        os.close(leader)
        process.kill()
        process.wait()


def test_trust_is_typed_in(delivery: Delivery) -> None:
    """Breaks if a key is trusted without its fingerprint, or if the machine that is to be convinced shows it."""
    server, key = delivery.server, delivery.bundle / "default.pub"
    fingerprint = delivery.shipment.fingerprint
    server.run("keys", "revoke", "default")
    refused = server.run("keys", "trust", key, code=14)
    assert "keys show" in refused.err
    assert fingerprint[:16] not in refused.err + refused.out
    wrong = server.run("keys", "trust", key, "--fingerprint", "sha256:" + "0" * 64, code=14)
    short = server.run("keys", "trust", key, "--fingerprint", fingerprint[:-1], code=14)
    assert fingerprint[:16] not in wrong.err + wrong.out + short.err + short.out
    for name in ("README.txt", "no-such-file"):
        server.run("keys", "trust", delivery.bundle / name, "--fingerprint", fingerprint, code=2)

    code, shown = converse(server, "keys", "trust", key, answer="0" * 64)
    assert (code, fingerprint[:16] in shown) == (14, False), shown
    code, shown = converse(server, "keys", "trust", key, answer=" ".join(re.findall("....", fingerprint.upper())))
    assert code == 0, shown
    server.run("import", delivery.bundle)
    server.run("keys", "revoke", "sha256:" + fingerprint)
    server.run("import", delivery.bundle, code=14)
    server.run("keys", "revoke", "default", code=2)


# ── hostile drives ──


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def link(path: Path) -> None:
    aside = path.parent.parent / path.name
    shutil.move(path, aside)
    path.symlink_to(aside)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gigabyte(path: Path) -> None:
    os.truncate(path, 1 << 30)


def deep(path: Path) -> None:
    path.write_bytes(b'{"models":' * 1_000_000 + b"[" * 5_000_000)


@pytest.mark.parametrize(
    ("deed", "name"),
    [
        (fifo, "bundle.json"),
        (device, "bundle.json"),
        (link, "bundle.json"),
        (directory, "bundle.json"),
        (gigabyte, "bundle.json"),
        (deep, "bundle.json"),
        (fifo, "bundle.json.sig"),
        (gigabyte, "bundle.json.sig"),
    ],
)
def test_hostile_indexes(delivery: Delivery, deed: Callable[[Path], None], name: str) -> None:
    """Breaks if a drive can hang the server, fill its memory, or lead it elsewhere, before anything is verified."""
    deed(delivery.bundle / name)
    before = sorted(path.name for path in delivery.server.vault.rglob("*"))
    signature = name.endswith(".sig")
    for options in ((), ("--allow-unsigned",)):
        expected = 0 if signature and options else 14
        ran, memory = measured(delivery.server, "import", delivery.bundle, *options, code=expected)
        assert memory < MEMORY
        assert "hint:" in ran.err or not expected
    if not signature:
        assert sorted(path.name for path in delivery.server.vault.rglob("*")) == before


@pytest.mark.parametrize("name", ["volume-0004.json", "volume-0004.json.sig", "volume-0004.tar.zst"])
@pytest.mark.parametrize("deed", [fifo, device, link, directory, gigabyte])
def test_hostile_volumes(delivery: Delivery, deed: Callable[[Path], None], name: str) -> None:
    """Breaks if what lies in place of a volume or its table hangs the server or costs more than the models that need it."""
    deed(delivery.bundle / name)
    whole = deed is gigabyte and name.endswith("zst")  # zeros after the last frame, which nobody reads
    options = () if name.endswith("sig") else ("--allow-unsigned",)
    ran, memory = measured(delivery.server, "import", delivery.bundle, *options, "--json", code=0 if whole else 3)
    assert memory < MEMORY
    assert outcomes(ran) == {GGUF: "received" if whole else "refused", SHARDED: "received"}
    if not whole:
        assert "volume 4" in reasons(ran)[GGUF]
        assert_nothing_of({GGUF}, delivery)


# ── kills ──

LARGE = 100_000_000


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Shipment:
    """A bundle of two models of some 100 MB together."""
    root = tmp_path_factory.mktemp("heavy")
    folders = {GGUF: root / "tiny", SHARDED: root / "sharded"}
    folders[GGUF].mkdir()
    make_large_gguf(folders[GGUF] / "tiny-Q8_0.gguf", LARGE // 2)
    make_large_safetensors(folders[SHARDED], LARGE // 2, shards=3)
    pc, server, drive = Machine(root / "pc"), Machine(root / "server"), root / "drive"
    for path in (pc.root, server.root, drive):
        path.mkdir()
    for name, folder in folders.items():
        pc.run("add", folder, "--name", name)
    pc.run("bundle", "--to", drive, "--no-readback")
    trust(server, pc, only_bundle(drive))
    return Shipment(pc, only_bundle(drive), server, folders)


@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_killed_at_random_moments(heavy: Shipment, tmp_path: Path, mode: str) -> None:
    """Breaks if a power cut during an import leaves an engine with half a model, or a vault that the next run cannot go on with."""
    delivery = heavy.deliver(tmp_path)
    command: tuple[str | Path, ...] = ("import", delivery.bundle, *delivery.engines, "--link", mode)
    (tmp_path / "probe").mkdir()
    probe = heavy.deliver(tmp_path / "probe")
    started = time.monotonic()
    probe.server.run("import", probe.bundle, *probe.engines, "--link", mode)
    whole = time.monotonic() - started
    shutil.rmtree(tmp_path / "probe")
    moments = random.Random(mode)
    for _ in range(4):
        with delivery.server.started(*command) as process:
            wait_for(process, moments.uniform(0.15, 1.0) * whole)
        # Whatever is listed is whole.
        assert delivery.installed() <= BOTH
        delivery.server.models()
    delivery.server.run(*command)
    assert delivery.installed() == BOTH
    delivery.server.run("verify")
    left = [path for path in delivery.server.root.rglob("*") if path.name.endswith(".tmp")]
    assert left == [], "a killed import left something behind for good"
    assert list((delivery.server.vault / "partial").iterdir()) == []


def wait_for(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Let a process run for a while, or to its end."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ── full disks ──


@pytest.fixture
def disk(as_root: None, tmp_path: Path) -> Iterator[Path]:
    """A file system of some 180 MB, of which a file that can be removed takes the better part."""
    with small_disk(tmp_path / "disk.img", tmp_path / "disk", 180 << 20) as mounted:
        with (mounted / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 100 << 20)
        yield mounted


@pytest.mark.root
def test_vault_full(heavy: Shipment, tmp_path: Path, disk: Path) -> None:
    """Breaks if a full disk loses what was received, does not say how much is missing, or lists what is not there."""
    delivery = heavy.deliver(tmp_path)
    server = Machine(delivery.server.root, variables={"MODELVAULT_HOME": str(disk / "vault")})
    shutil.copytree(delivery.server.vault, disk / "vault")
    free = shutil.disk_usage(disk).free
    ran = server.json("import", delivery.bundle, *delivery.engines, code=15)
    needed = sum(path.stat().st_size for folder in heavy.folders.values() for path in folder.iterdir())
    missing = ran.document["error"]["data"]["missing"]
    assert abs(missing - (needed + RESERVE - free)) < 2_000_000, (missing, needed, free)
    assert server.models() == set()
    assert list(delivery.ollama.rglob("*")) == []
    (disk / "ballast").unlink()
    server.run("import", delivery.bundle, *delivery.engines)
    assert delivery.installed() == BOTH


@pytest.mark.root
@pytest.mark.parametrize("spare", [8_000, 80_000, 800_000])
def test_no_room_for_the_books(shipment: Shipment, tmp_path: Path, as_root: None, spare: int) -> None:
    """Breaks if a disk that takes the models, but not the registry with them, ends the import in a crash or a torn vault."""
    delivery = shipment.deliver(tmp_path)
    # Small file systems have blocks of 1 KiB, on which SQLite's shared memory can meet the full disk.
    with small_disk(tmp_path / "disk.img", tmp_path / "disk", 24 << 20) as disk:
        shutil.copytree(delivery.server.vault, disk / "vault")
        server = Machine(delivery.server.root, variables={"MODELVAULT_HOME": str(disk / "vault")})
        needed = sum(path.stat().st_size for folder in shipment.folders.values() for path in folder.iterdir())
        with (disk / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - needed - spare)
        for _ in range(2):
            server.run("import", delivery.bundle, code=15)
            assert server.models() == set()
        (disk / "ballast").unlink()
        server.run("import", delivery.bundle)
        assert server.models() == BOTH
        server.run("verify")


@pytest.mark.root
def test_engine_full(heavy: Shipment, tmp_path: Path, disk: Path) -> None:
    """Breaks if an engine's full disk gives it half a model, or loses the model that the vault has received."""
    delivery = heavy.deliver(tmp_path)
    os.truncate(disk / "ballast", 140 << 20)
    with (disk / "ballast").open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 140 << 20)
    engine = ("--engine", f"ollama={disk / 'ollama'}")
    plan = delivery.server.json("import", delivery.bundle, "--only", GGUF, *engine, "--dry-run").result["imports"][0]
    assert plan["installs"][0]["link"] == "copy"
    assert plan["installs"][0]["extra_bytes"] > LARGE // 2
    ran = delivery.server.json("import", delivery.bundle, "--only", GGUF, *engine, code=15)
    assert outcomes(ran) == {GGUF: "received"}
    assert ran.document["error"]["data"]["missing"] > 0
    assert delivery.server.models() == {GGUF}
    assert list(whole_in_ollama(disk / "ollama")) == []
    (disk / "ballast").unlink()
    done = delivery.server.json("import", delivery.bundle, "--only", GGUF, *engine)
    assert outcomes(done) == {GGUF: "installed"}
    assert list(whole_in_ollama(disk / "ollama")) == [GGUF]


# ── what the user types ──


def test_which_bundle(delivery: Delivery) -> None:
    """Breaks if import picks a bundle for the user where there are several, or does not say what to do where there is none."""
    server, drive = delivery.server, delivery.bundle.parent
    pc = Machine(Path(shutil.copytree(delivery.shipment.pc.root, drive.parent / "pc")))
    pc.run("bundle", GGUF, "--label", "others", "--to", drive)
    (second,) = drive.glob("others-*")
    error = server.json("import", drive, code=2).document["error"]
    assert error["data"]["bundles"] == sorted(map(str, (delivery.bundle, second)))
    assert all(str(bundle) in error["hint"] for bundle in (delivery.bundle, second))
    empty = drive / "empty"
    empty.mkdir()
    for path in (empty, drive / "nowhere", delivery.bundle / "README.txt"):
        assert ".mvbundle" in server.json("import", path, code=2).document["error"]["hint"]


@pytest.mark.root
def test_mounted_drives_are_searched(delivery: Delivery, as_root: None) -> None:
    """Breaks if `modelvault import` alone does not find the drive that was just plugged in."""
    mounts = "mount -t tmpfs none /media && mount -t tmpfs none /mnt && mount -t tmpfs none /run"
    prefix = ("unshare", "--mount", "sh", "-c")
    none = f'{mounts} && exec "$@"'
    ran = delivery.server.run("import", code=2, prefix=(*prefix, none, "sh"))
    assert "modelvault import PATH" in ran.err
    drive = f'{mounts} && mkdir -p /media/me/ssd && cp -r {delivery.bundle} /media/me/ssd && exec "$@"'
    ran = delivery.server.run("import", prefix=(*prefix, drive, "sh"))
    assert f"/media/me/ssd/{delivery.bundle.name}" in ran.out
    assert delivery.server.models() == BOTH
    copy = drive.replace(" && exec", f" && cp -r {delivery.bundle} /mnt/copy.mvbundle && exec")
    server_again = delivery.server.run("import", prefix=(*prefix, copy, "sh"))
    assert "everything was here already" in server_again.out
    two = copy.replace(" && exec", " && echo >> /mnt/copy.mvbundle/bundle.json && exec")
    # A damaged one is not passed over in silence, for it may be the one that was meant.
    ran = delivery.server.run("import", code=14, prefix=(*prefix, two, "sh"))
    assert "/mnt/copy.mvbundle: the signature does not fit" in ran.err
    assert f"modelvault import /media/me/ssd/{delivery.bundle.name}" in ran.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--only", "nothing"), 2, "it holds: "),
        (("--only", "no name"), 2, "not a model name"),
        (("--engine", "olama"), 2, "ollama, vllm, "),
        (("--engine", "folder"), 2, "DIR"),
        (("--engine", "folder={}/f", "--as", "../x", "--only", GGUF), 2, "not a model name"),
        (("--engine", "ollama={}/o", "--as", "a b", "--only", GGUF), 2, "--as"),
        (("--engine", "vllm={}/v", "--as", "a/b/c", "--only", SHARDED), 2, "--as"),
        (("--engine", "folder={}/f", "--as", "x"), 2, "--only"),
        (("--link", "symlink"), 2, "auto, hard, reflink, copy"),
        (("--owner", "no-such-user"), 2, "USER:GROUP"),
        (("--owner", ""), 2, "it is empty"),
    ],
)
def test_bad_requests(shipment: Shipment, tmp_path: Path, options: tuple[str, ...], code: int, words: str) -> None:
    """Breaks if a typing error costs hours of reading before it is noticed, or is answered without a hint."""
    server = Machine(shipment.server.root)
    given = [option.format(tmp_path) for option in options]
    ran = server.run("import", shipment.bundle, *given, code=code)
    assert words in ran.err
    assert server.models() == set()
    assert list(tmp_path.iterdir()) == []


def test_engine_directories_that_cannot_be(delivery: Delivery) -> None:
    """Breaks if a file in place of an engine's directory gives anything but a clear refusal, or loses the received models."""
    obstacle = delivery.server.root / "file"
    obstacle.write_text("not a directory\n")
    for engine, only in (("ollama", GGUF), ("vllm", SHARDED), ("folder", GGUF)):
        ran = delivery.server.run(
            "import", delivery.bundle, "--engine", f"{engine}={obstacle}", "--only", only, code=16
        )
        assert str(obstacle) in ran.err
        assert "hint:" in ran.err
    assert delivery.server.models() == BOTH
    assert obstacle.read_text() == "not a directory\n"


def test_only_as_and_link(delivery: Delivery) -> None:
    """Breaks if the options of import do not do what they say."""
    server, ollama = delivery.server, delivery.ollama
    name = ("--engine", f"ollama={ollama}", "--only", GGUF, "--as", "mine:v1")
    done = server.json("import", delivery.bundle, *name, "--link", "hard").result["imports"][0]
    assert [step["installed_name"] for step in done["installs"]] == ["mine:v1"]
    assert any("ollama run mine:v1" in line for line in done["installs"][0]["next_steps"])
    assert server.models() == {GGUF}
    weights = digests(delivery.shipment.folders[GGUF])["tiny-Q8_0.gguf"]
    blob = server.vault / "blobs" / "sha256" / weights
    assert (ollama / "blobs" / f"sha256-{weights}").samefile(blob)
    copied = server.root / "copied"
    server.run("import", delivery.bundle, "--only", GGUF, "--engine", f"folder={copied}", "--link", "copy")
    (copy,) = (path for path in copied.rglob("*.gguf"))
    assert copy.read_bytes() == blob.read_bytes()
    assert not copy.samefile(blob)
    # Part of a bundle does not make its sequence the newest that was imported, and the rest can follow.
    server.run("import", delivery.bundle, "--only", SHARDED, "--engine", f"vllm={delivery.cache}")
    assert list(whole_in_cache(delivery.cache)) == [SHARDED]
    # An engine's own model of the same name is not replaced.
    foreign = ollama / "manifests/registry.ollama.ai/library/taken/latest"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("{}")
    taken: tuple[Any, ...] = (
        "import",
        delivery.bundle,
        "--engine",
        f"ollama={ollama}",
        "--only",
        GGUF,
        "--as",
        "taken",
    )
    assert "--as" in server.run(*taken, code=16).err
    assert foreign.read_text() == "{}"


@pytest.mark.root
def test_owner(delivery: Delivery, as_root: None) -> None:
    """Breaks if an engine's user cannot read what was installed for it, or gets the vault's own file into its hands."""
    target = delivery.server.root / "models"
    options = ("--engine", f"folder={target}", "--only", GGUF, "--owner", "65534:65533")
    step = delivery.server.json("import", delivery.bundle, *options).result["imports"][0]["installs"][0]
    assert step["link"] in {"copy", "reflink"}
    for path in target.rglob("*"):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)
    assert {path.stat().st_uid for path in (delivery.server.vault / "blobs" / "sha256").iterdir()} == {0}
    refused = delivery.server.run("import", delivery.bundle, *options, "--link", "hard", "--as", "linked", code=16)
    assert "different users" in refused.err
