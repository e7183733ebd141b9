"""What goes wrong in a vault: several processes at once, a registry, a list or a log that is lost, places that are no vault."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from faulty_hub import FaultyHub
from large_model import LARGE, SIZE
from machines import PROGRAM, Machine, flip_bit, trust
from refusals import blobs, failed, running, succeeded

from modelvault.locks import FileLock

PATIENT = {"MODELVAULT_LOCK_WAIT": "60"}


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    path = tmp_path / "drive"
    path.mkdir()
    return path


# ── several processes on one vault ──


def test_two_pulls_of_one_model(machine: Callable[..., Machine], large: Path) -> None:
    """Breaks if two pulls of the same files write over each other, or fetch them twice."""
    with FaultyHub({"org/large": large}, send_buffer=16 << 10) as hub:
        hub.faults.rate = 300_000  # for a connection, of which there are some: longer than the others wait
        pc = machine("pc", hub.url)
        patient = Machine(pc.root, hub.url, PATIENT)
        reached = hub.reached(LARGE, SIZE // 30)
        with running(pc, "pull", "org/large") as first:
            assert reached.wait(60)
            error = failed(pc, "pull", "org/large", code=11)
            assert error["code"] == "vault-locked"
            assert f"the transfer of {LARGE} is in use" in error["message"]
            waited = pc.run("pull", "org/large", code=11).err
            assert waited.count(f"waiting for another modelvault that uses the transfer of {LARGE}") == 1
            asked = len(hub.asked("hub"))
            with running(patient, "pull", "org/large", "--json") as second:
                second.until(lambda: len(hub.asked("hub")) > asked)
                hub.faults.rate = None
                first.end(0)
                result = json.loads(second.end(0).out)["result"]
        assert (result["unchanged"], result["received"]) == (True, 0)
        assert hub.bytes_sent(LARGE) == (large / LARGE).stat().st_size
    assert pc.models() == {"org/large"}
    assert not list(pc.vault.glob("partial/*/lock"))
    pc.run("verify")


def test_two_pulls_that_share_files(
    machine: Callable[..., Machine], large: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    """Breaks if a long pull blocks another model's, though the two have a small file in common."""
    slow, quick = tmp_path / "slow", Path(shutil.copytree(tiny_gguf, tmp_path / "quick"))
    slow.mkdir()
    (slow / LARGE).hardlink_to(large / LARGE)
    for folder in (slow, quick):
        (folder / "LICENSE").write_text("the same for both\n")
    with FaultyHub({"org/large": slow, "org/tiny": quick}, send_buffer=16 << 10) as hub:
        hub.faults.hold = hold = threading.Event()
        pc = machine("pc", hub.url)
        reached = hub.reached(LARGE, SIZE // 30)
        with running(pc, "pull", "org/large") as first, ExitStack() as let_go:
            let_go.callback(hold.set)  # else the hub would not end where the test fails
            assert reached.wait(60)
            hub.faults.hold = None
            succeeded(pc, "pull", "org/tiny")
            succeeded(pc, "gc")
            hold.set()
            first.end(0)
    assert pc.models() == {"org/large", "org/tiny"}
    assert not list(pc.vault.glob("partial/*/lock"))
    pc.run("verify")


def test_what_a_killed_second_transfer_left(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if a small file that was fetched twice at once lies there for good after a kill, or is taken from a process that works on it."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    left, held = (pc.vault / "partial" / f"sha256-{digit * 64}+2" for digit in "ab")
    for path in (left, held):
        path.mkdir()
        (path / "data").write_bytes(b"half of it")
    with FileLock(held / "lock"):
        assert pc.json("gc").result["partial"] == [left.name]
    assert not left.exists()
    assert held.exists()


@pytest.mark.parametrize("names", [("one", "two"), ("same", "same")])
def test_two_adds_at_once_make_a_vault(
    machine: Callable[..., Machine], tiny_gguf: Path, names: tuple[str, str]
) -> None:
    """Breaks if two processes that make one vault between them lose a model, or trip over the registry's first tables."""
    pc = machine("pc", **PATIENT)
    with ExitStack() as stack:
        adds = [stack.enter_context(running(pc, "add", tiny_gguf, "--name", name)) for name in names]
        for add in adds:
            add.end(0)
    assert pc.models() == set(names)
    pc.run("verify")
    before = [event["data"] for event in events(pc) if event["kind"] == "model-published"]
    assert {data["model"] for data in before} == set(names)
    pc.run("registry", "rebuild")


def test_others_while_a_bundle_is_written(
    machine: Callable[..., Machine], large: Path, tiny_gguf: Path, drive: Path
) -> None:
    """Breaks if a model is removed under a bundle's hands, or if a bundle of hours keeps people from pulling."""
    pc = machine("pc")
    pc.run("add", large, "--name", "large")
    with running(pc, "bundle", "--to", drive, "--sequence", "1") as bundle:
        bundle.until(lambda: any(path.stat().st_size for path in drive.glob("*/volume-0001.tar.zst")))
        bundle.signal(signal.SIGSTOP)
        with FaultyHub({"org/tiny": tiny_gguf}) as hub:
            succeeded(Machine(pc.root, hub.url), "pull", "org/tiny")
        for command in (("rm", "large"), ("gc",)):
            error = failed(pc, *command, code=11)
            assert error["code"] == "vault-locked"
            assert "in use by another modelvault process" in error["message"]
            assert "wait for it to end" in error["hint"]
            assert pc.run(*command, code=11).err.count("waiting for another modelvault that uses the vault in") == 1
        assert "bundle" in failed(pc, "bundle", "large", "--to", drive, "--sequence", "1", code=11)["message"]
        succeeded(pc, "verify")
        bundle.signal(signal.SIGCONT)
        bundle.end(0)
    assert pc.models() == {"large", "org/tiny"}
    pc.run("verify", *drive.glob("*.mvbundle"))
    pc.run("rm", "large")
    assert pc.json("gc").result["size"] >= (large / LARGE).stat().st_size


def test_rm_waits_for_a_bundle(machine: Callable[..., Machine], large: Path, drive: Path) -> None:
    """Breaks if `rm` with patience gives up, or does not wait and takes the blobs away from the bundle."""
    pc = machine("pc", **PATIENT)
    pc.run("add", large, "--name", "large")
    with running(pc, "bundle", "--to", drive) as bundle:
        bundle.until(lambda: any(drive.glob("*/volume-0001.tar.zst")))
        bundle.signal(signal.SIGSTOP)
        with running(pc, "rm", "large") as rm:
            bundle.signal(signal.SIGCONT)
            bundle.end(0)
            rm.end(0)
    assert pc.models() == set()
    pc.run("verify", *drive.glob("*.mvbundle"), "--allow-unsigned")


def test_gc_after_a_killed_add(machine: Callable[..., Machine], large: Path) -> None:
    """Breaks if what a killed command leaves cannot be got rid of, or is taken from a command that still runs."""
    pc = machine("pc")
    with running(pc, "add", large, "--name", "large") as add:
        add.until(lambda: any(pc.vault.glob("partial/*/data")))
        add.signal(signal.SIGSTOP)
        assert succeeded(pc, "gc", "--partial")["partial"] == []
        add.signal(signal.SIGKILL)
        add.end(-signal.SIGKILL)
    assert len(succeeded(pc, "gc", "--partial")["partial"]) == 1
    assert not list(pc.vault.glob("partial/*/data"))
    succeeded(pc, "add", large, "--name", "large")


# ── the registry ──


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> tuple[Machine, Path]:
    """A server that imported and installed sequence 20, and the drive, on which 10 lies too; to be copied, not used."""
    root = tmp_path_factory.mktemp("received")
    pc, server, drive = Machine(root / "pc"), Machine(root / "server"), root / "drive"
    for path in (pc.root, server.root, drive):
        path.mkdir()
    pc.run("add", tiny_gguf, "--name", "tiny")
    for sequence in (10, 20):
        pc.run("bundle", "--to", drive, "--sequence", str(sequence))
    trust(server, pc, drive / "models-20.mvbundle")
    server.run("import", drive / "models-20.mvbundle", "--engine", f"folder={root / 'models'}")
    return server, drive


@pytest.fixture
def server(received: tuple[Machine, Path], tmp_path: Path) -> Machine:
    """A copy of that server."""
    root = tmp_path / "server"
    shutil.copytree(received[0].root, root)
    return Machine(root)


@pytest.fixture
def older_and_newer(received: tuple[Machine, Path]) -> Path:
    """The drive with both bundles."""
    return received[1]


def events(machine: Machine) -> list[dict[str, Any]]:
    """The lines of the event log."""
    return [json.loads(line) for line in (machine.vault / "events.jsonl").read_text().splitlines()]


def lose_registry(server: Machine) -> None:
    for path in server.vault.glob("registry.sqlite*"):
        path.unlink()


def spoil_registry(server: Machine) -> None:
    lose_registry(server)
    (server.vault / "registry.sqlite").write_bytes(os.urandom(20_000))


@pytest.mark.parametrize("harm", [lose_registry, spoil_registry])
def test_the_registry_is_rebuilt(server: Machine, older_and_newer: Path, harm: Callable[[Machine], None]) -> None:
    """Breaks if the registry holds anything that layout and log do not give back: models, installs, high-water marks."""
    shown = server.json("show", "tiny").result
    harm(server)
    for command in (
        ("verify",),
        ("rm", "tiny"),
        ("gc",),
        ("bundle", "--to", older_and_newer),
        ("import", older_and_newer / "models-20.mvbundle"),
        ("uninstall", "tiny", "--engine", f"folder={server.root / 'models'}"),
    ):
        error = failed(server, *command, code=1)
        assert "registry" in error["message"]
        assert "modelvault registry rebuild" in error["hint"], command
    assert server.models() == {"tiny"}, "list needs no registry"
    assert "modelvault registry rebuild" in server.json("show", "tiny").document["warnings"][0]
    rebuilt = succeeded(server, "registry", "rebuild")
    assert {key: rebuilt[key] for key in ("models", "installs", "bundles")} == {
        "models": 1,
        "installs": 1,
        "bundles": 1,
    }
    again = server.json("show", "tiny").result
    assert [again[key] for key in ("model", "files", "metadata", "installs")] == [
        shown[key] for key in ("model", "files", "metadata", "installs")
    ]
    error = failed(server, "import", older_and_newer / "models-10.mvbundle", code=14)
    assert error["code"] == "trust"
    assert "--allow-older" in error["hint"]


def test_a_rebuild_that_cannot_be_finished_keeps_the_registry(server: Machine, older_and_newer: Path) -> None:
    """Breaks if a changed line of the log is believed, or if the attempt costs the registry that is there."""
    log = server.vault / "events.jsonl"
    server.run("verify")  # the last line has no successor that could give its change away
    original = log.read_bytes()
    changed = original.replace(b'"sequence":20', b'"sequence":11')
    assert changed != original
    log.write_bytes(changed)
    error = failed(server, "registry", "rebuild", code=1)
    assert error["code"] == "event-log-damaged"
    assert "restore the file from a copy" in error["hint"]
    failed(server, "import", older_and_newer / "models-10.mvbundle", code=1)
    assert len(server.json("show", "tiny").result["installs"]) == 1
    log.write_bytes(original)
    succeeded(server, "registry", "rebuild")


def test_a_torn_line_of_the_log(server: Machine) -> None:
    """Breaks if a crash in the middle of a line makes the log unreadable."""
    log = server.vault / "events.jsonl"
    with log.open("ab") as file:
        file.write(b'{"n":99,"ti')
    server.run("verify")
    assert [event["kind"] for event in events(server)][-2:] == ["recovered", "check"]
    succeeded(server, "registry", "rebuild")


def test_the_log_is_gone(server: Machine, older_and_newer: Path) -> None:
    """Breaks if losing the log, or writing to a new one, quietly ends the protection against older bundles."""
    (server.vault / "events.jsonl").unlink()
    server.run("verify")
    error = failed(server, "import", older_and_newer / "models-10.mvbundle", code=14)
    assert "--allow-older" in error["hint"]
    server.run("import", older_and_newer / "models-20.mvbundle", "--allow-older")
    failed(server, "import", older_and_newer / "models-10.mvbundle", code=14)


# ── the list of models ──


def test_a_damaged_list_of_models(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if `gc` takes a damaged ``index.json`` at its word and deletes every model."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    index, before = pc.vault / "index.json", blobs(pc)
    original = index.read_bytes()
    index.unlink()
    assert "the list of its models is gone" in failed(pc, "gc", code=13)["message"]
    assert not index.exists()
    for text in (
        "",
        '{"schemaVersion":2}',
        '{"schemaVersion":2,"manifests":[{}]}',
        '{"schemaVersion":2,"manifests":[{"digest":"sha256:zz","size":3,"annotations":{}}]}',
    ):
        index.write_text(text)
        error = failed(pc, "gc", code=13)
        assert str(index) in error["message"]
        assert "put a copy" in error["hint"]
    assert blobs(pc) == before
    index.write_text("{")
    assert succeeded(pc, "registry", "rebuild")["listed"] == ["tiny"]
    assert index.read_bytes() == original
    assert succeeded(pc, "gc")["blobs"] == 0
    pc.run("verify")


def test_a_damaged_manifest(machine: Callable[..., Machine], tiny_gguf: Path, tiny_awq: Path) -> None:
    """Breaks if a manifest that rotted is believed, or if `gc` then counts its files as not needed."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    manifest = pc.vault / "blobs" / "sha256" / pc.json("list").result["models"][0]["manifest"].removeprefix("sha256:")
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes().replace(b"tiny-Q8_0", b"tiny-Q8_1"))
    before = blobs(pc)
    pc.run("add", tiny_awq, "--name", "other")
    assert "modelvault rm tiny" in failed(pc, "gc", code=13)["hint"]
    for code, command in ((13, ("gc",)), (12, ("verify",)), (12, ("show", "tiny"))):
        error = failed(pc, *command, code=code)
        assert str(manifest) in error["message"]
    listed = pc.json("list")
    assert [model["name"] for model in listed.result["models"]] == ["other"]
    assert str(manifest) in listed.document["warnings"][0]
    assert before.items() <= blobs(pc).items()
    pc.run("rm", "tiny")
    pc.run("gc")
    pc.run("verify")


def test_a_damaged_manifest_is_mended(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if bringing a model again does not heal it: that is what every hint advises."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    manifest = pc.vault / "blobs" / "sha256" / pc.json("list").result["models"][0]["manifest"].removeprefix("sha256:")
    manifest.chmod(0o600)
    flip_bit(manifest, 20)
    pc.run("add", tiny_gguf, "--name", "tiny")
    assert succeeded(pc, "verify")["damage"] == []
    assert pc.models() == {"tiny"}


# ── places and settings ──


def test_the_vault_is_a_file(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if a mistyped MODELVAULT_HOME costs a file, or is not explained."""
    pc = machine("pc")
    pc.vault.write_text("precious")
    for command in (("add", tiny_gguf, "--name", "tiny"), ("list",), ("keys", "new")):
        assert "MODELVAULT_HOME" in failed(pc, *command, code=2)["hint"]
    assert pc.vault.read_text() == "precious"


def test_there_is_no_vault(machine: Callable[..., Machine]) -> None:
    """Breaks if a command that only looks makes a vault in the wrong place, which then seems to be an empty one."""
    pc = machine("pc")
    for command in (("list",), ("verify",), ("gc",), ("show", "tiny"), ("rm", "tiny"), ("registry", "rebuild")):
        assert "there is no vault" in failed(pc, *command, code=2)["message"]
    assert not pc.vault.exists()


def test_a_bad_setting(machine: Callable[..., Machine]) -> None:
    """Breaks if a mistyped setting is taken as it is: no connections at all, a wait for ever."""
    pc = machine("pc")
    environment = {name: value for name, value in pc.environment().items() if name != "MODELVAULT_LOCK_WAIT"}
    pc.run("keys", "new")
    for line in (
        "nonsense",
        "unknown = 1",
        "connections = 0",
        "connections = inf",
        "lock_wait = nan",
        "volume_size = 0",
    ):
        (pc.vault / "config.toml").write_text(line)
        done = subprocess.run([*PROGRAM, "list"], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2, (line, done)
        assert f"error: {pc.vault / 'config.toml'}: " in done.stderr, (line, done)
        assert "\nhint: " in done.stderr, (line, done)


@pytest.mark.parametrize("name", ["../x", "a\nb"])
def test_a_name_that_is_none(machine: Callable[..., Machine], tiny_gguf: Path, name: str) -> None:
    """Breaks if a name gets in that could not be a directory, or one of another directory."""
    assert "not a model name" in failed(machine("pc"), "add", tiny_gguf, f"--name={name}", code=2)["message"]


def empty(folder: Path) -> str:
    del folder
    return "holds no files"


def dangling(folder: Path) -> str:
    (folder / "model.gguf").symlink_to("nothing")
    return "is a link to nothing"


def linked_folder(folder: Path) -> str:
    (folder / "inner").symlink_to("..")
    return "is a link to a folder"


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "config.json")
    return "is not a regular file"


def no_text(folder: Path) -> str:
    Path(os.fsdecode(os.fsencode(folder) + b"/x\xff.gguf")).write_bytes(b"GGUF")
    return "not a safe relative path"


def new_line(folder: Path) -> str:
    (folder / "x\ny.gguf").write_bytes(b"GGUF")
    return "not a safe relative path"


def colliding(folder: Path) -> str:
    (folder / "README.md").write_text("one")
    (folder / "readme.md").write_text("two")
    return "differ only in case"


@pytest.mark.parametrize("make", [empty, dangling, linked_folder, fifo, no_text, new_line, colliding])
def test_a_folder_that_is_no_model(
    machine: Callable[..., Machine], tmp_path: Path, make: Callable[[Path], str]
) -> None:
    """Breaks if a folder is taken with something in it that cannot travel, or if that is left out in silence."""
    folder = tmp_path / "folder"
    folder.mkdir()
    word = make(folder)
    pc = machine("pc")
    error = failed(pc, "add", folder, "--name", "bad", code=2)
    assert word in error["message"]
    assert list(pc.vault.glob("partial/*")) == [], "it was copied before it was looked at"


def test_a_folder_that_cannot_be_read_whole(
    machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path, as_root: None
) -> None:
    """Breaks if the files of a folder that may not be read are left out of the model in silence."""
    folder = tmp_path / "folder"
    shutil.copytree(tiny_gguf, folder)
    (folder / "inner").mkdir(mode=0o000)
    pc = machine("pc")
    for path in (pc.root, *pc.root.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    pc.run("list", code=2)
    os.chown(pc.root, 65534, 65534)
    os.chown(pc.root / "home", 65534, 65534)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    ran = pc.run("add", folder, "--name", "bad", code=1, prefix=nobody)
    assert f"error: {folder / 'inner'}: permission denied\nhint: " in ran.err


def test_names_in_any_language(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path, drive: Path) -> None:
    """Breaks if a file name of a publisher that does not write English cannot make the trip."""
    folder = tmp_path / "Modèles"
    folder.mkdir()
    shutil.copy(next(tiny_gguf.glob("*.gguf")), folder / "модель 模型 ☃.gguf")
    pc, server = machine("pc"), machine("server")
    pc.run("add", folder, "--name", "tiny")
    pc.run("bundle", "--to", drive)
    (bundle,) = drive.iterdir()
    trust(server, pc, bundle)
    server.run("import", bundle, "--engine", f"folder={server.root / 'models'}")
    assert [path.name for path in (server.root / "models" / "tiny").glob("*.gguf")] == ["модель 模型 ☃.gguf"]
