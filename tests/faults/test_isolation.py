"""The isolated side: no network, no Hub library; and engines whose user is not to be trusted with the vault's files."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_cases import COMMIT, Blobs, Case, tree
from imports import GGUF, SHARDED, Delivery, Shipment, digests, ship, whole_in_cache, whole_in_ollama
from machines import Machine, small_disk

from modelvault.artifact import Digest, Origin, StoredModel
from modelvault.engines import InstallRecord, Owner
from modelvault.errors import EngineRefused

NOBODY = 65534
_BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"huggingface_hub", "requests", "httpx", "urllib3"}:
            raise RuntimeError(f"the isolated side imports {name}")

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def shipment(tmp_path_factory: pytest.TempPathFactory) -> Shipment:
    return ship(tmp_path_factory.mktemp("shipment"))


@pytest.fixture
def delivery(shipment: Shipment, tmp_path: Path) -> Delivery:
    return shipment.deliver(tmp_path)


@pytest.mark.root
def test_no_network_and_no_hub_library(delivery: Delivery, as_root: None, tmp_path: Path) -> None:
    """Breaks if anything on the isolated side needs a network, or loads the code that would talk to one."""
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(_BLOCKER)
    server = Machine(delivery.server.root, variables={"PYTHONPATH": str(blocker)})
    for module in ("huggingface_hub", "urllib3"):
        probe = [sys.executable, "-c", f"import {module}"]
        done = subprocess.run(probe, env=server.environment(), capture_output=True, text=True, check=False)
        assert f"the isolated side imports {module}" in done.stderr, "the blocker blocks nothing"
    alone = ("unshare", "--net")
    links = subprocess.run([*alone, "ip", "-brief", "link"], capture_output=True, text=True, check=False)
    assert "UP" not in links.stdout

    folder = server.root / "folder"
    server.run("doctor", *delivery.engines, prefix=alone)
    server.run("inspect", delivery.bundle, prefix=alone)
    server.run("verify", delivery.bundle, prefix=alone)
    server.run("import", delivery.bundle, *delivery.engines, "--dry-run", prefix=alone)
    done_import = server.run("import", delivery.bundle, *delivery.engines, prefix=alone)
    assert "ollama run" in done_import.out
    assert "vllm serve" in done_import.out
    assert delivery.installed() == {GGUF, SHARDED}
    server.run("list", prefix=alone)
    server.run("show", SHARDED, prefix=alone)
    server.run("verify", prefix=alone)
    server.run("install", GGUF, "--engine", f"folder={folder}", prefix=alone)
    server.run("uninstall", GGUF, "--engine", f"folder={folder}", prefix=alone)
    server.run("registry", "rebuild", prefix=alone)
    server.run("keys", "list", prefix=alone)
    server.run("receipt", "write", tmp_path / "receipt.json", prefix=alone)
    server.run("rm", GGUF, prefix=alone)
    server.run("gc", prefix=alone)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that other users can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="modelvault-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def as_nobody(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script as the engine's user."""
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", *map(str, arguments)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={"PATH": os.defpath},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def settle(delivery: Delivery, root: Path) -> Delivery:
    """Move a delivery below ``root``, with engine directories that belong to another user."""
    here = Delivery(delivery.shipment, delivery.bundle, Machine(root / "server"))
    shutil.move(delivery.server.root, here.server.root)
    for directory in (here.ollama, here.cache):
        directory.mkdir()
        os.chown(directory, NOBODY, NOBODY)
    # The weakest case: nothing but the files' own modes protects the vault.
    for path in (root, here.server.root, here.server.vault):
        path.chmod(0o755)
    return here


@pytest.mark.root
def test_vault_and_engine_of_different_users(delivery: Delivery, as_root: None, public: Path) -> None:
    """Breaks if the engine's user gets hold of a file of the vault: it could change what the next install is made from."""
    delivery = settle(delivery, public)
    server = delivery.server
    plan = server.json("import", delivery.bundle, *delivery.engines, "--dry-run").result["imports"][0]
    sizes = {
        name: sum(path.stat().st_size for path in folder.iterdir() if path.suffix in {".gguf", ".safetensors"})
        for name, folder in delivery.shipment.folders.items()
    }
    for step in plan["installs"]:
        assert step["link"] in {"copy", "reflink"}
        assert step["link"] == "reflink" or step["extra_bytes"] >= sizes[step["model"]]
    refused = server.json("import", delivery.bundle, *delivery.engines, "--link", "hard", code=16)
    assert "different users" in refused.document["error"]["message"]
    server.run("import", delivery.bundle, *delivery.engines)

    blobs = server.vault / "blobs" / "sha256"
    for blob in blobs.iterdir():
        status = blob.stat()
        assert (status.st_uid, status.st_mode & 0o777, status.st_nlink) == (0, 0o444, 1)
    inodes = {blob.stat().st_ino for blob in blobs.iterdir()}
    for engine in (delivery.ollama, delivery.cache):
        for path in engine.rglob("*"):
            status = path.lstat()
            assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY), path
            assert status.st_ino not in inodes, path

    # The engine's user does its worst, to the vault and to its own files.
    attack = 'for blob in "$1"/*; do chmod u+w "$blob" || printf x >> "$blob" || rm -f "$blob"; done'
    as_nobody(attack, blobs)
    rewrite = 'find "$1" "$2" -type f -size +1000k | while read -r file; do chmod u+w "$file" && printf x >> "$file" || exit 7; done'
    assert as_nobody(rewrite, delivery.ollama, delivery.cache).returncode == 0, "it cannot even use its own files"
    server.run("verify")
    assert {blob.name for blob in blobs.iterdir()} >= set(digests(delivery.shipment.folders[SHARDED]).values())
    # And what it did to its own is noticed and mended.
    server.run("import", delivery.bundle, *delivery.engines)
    assert delivery.installed() == {GGUF, SHARDED}


@pytest.mark.root
@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_reflinks_where_the_file_system_has_them(delivery: Delivery, as_root: None, public: Path, kind: str) -> None:
    """Breaks if 70 GB are copied where the file system could share the blocks between two files of two owners."""
    if shutil.which(f"mkfs.{kind}") is None or kind not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"this machine has no mkfs.{kind}, or a kernel without it")
    with small_disk(public / "disk.img", public / "disk", 320 << 20, kind) as disk:
        here = settle(delivery, disk)
        plan = here.server.json("import", here.bundle, *here.engines, "--dry-run").result["imports"][0]
        assert {step["link"] for step in plan["installs"]} == {"reflink"}
        assert all(step["extra_bytes"] < 100_000 for step in plan["installs"])
        here.server.run("import", here.bundle, *here.engines)
        assert list(whole_in_ollama(here.ollama)) == [GGUF]
        assert list(whole_in_cache(here.cache)) == [SHARDED]
        (weights,) = (path for path in (here.ollama / "blobs").iterdir() if path.stat().st_size > 1_000_000)
        assert weights.stat().st_uid == NOBODY
        assert as_nobody('printf x >> "$1"', weights).returncode == 0
        here.server.run("verify")


@pytest.mark.root
def test_a_read_only_medium(delivery: Delivery, as_root: None, tmp_path: Path) -> None:
    """Breaks if import or verify want to write to the medium, which may be write-protected, or belong to others."""
    with small_disk(tmp_path / "medium.img", tmp_path / "medium", 32 << 20) as medium:
        shutil.copytree(delivery.bundle, medium / delivery.bundle.name)
        for path in (medium / delivery.bundle.name).iterdir():
            path.chmod(0o444)
        subprocess.run(["mount", "-o", "remount,ro", str(medium)], check=True)
        delivery.server.run("inspect", medium / delivery.bundle.name)
        delivery.server.run("verify", medium / delivery.bundle.name)
        delivery.server.run("import", medium, *delivery.engines)
        refused = delivery.server.run("bundle", "--to", medium, "--label", "other", code=1)
        assert "read-only" in refused.err
        assert "hint:" in refused.err
    assert delivery.installed() == {GGUF, SHARDED}


@pytest.mark.root
def test_links_of_the_engines_user_lead_nowhere(
    machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path, as_root: None
) -> None:
    """Breaks if the engine's user can have root write files of its own into a directory of root's."""
    elsewhere = tmp_path / "cron.daily"
    elsewhere.mkdir()
    server = machine("server")
    server.run("add", tiny_gguf, "--name", "tiny")
    root = tmp_path / "ollama"
    root.mkdir()
    (root / "blobs").symlink_to(elsewhere)
    os.chown(root, NOBODY, NOBODY)
    os.lchown(root / "blobs", NOBODY, NOBODY)
    ran = server.run("install", "tiny", "--engine", f"ollama={root}", code=16)
    assert "does not belong to the engine's user" in ran.err
    assert list(elsewhere.iterdir()) == []


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A directory of root's, with files that an engine's user would like to see replaced or removed."""
    directory = tmp_path / "etc"
    for name in ("config.json", "main", "nested/extra.json"):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("root's own\n")
    return directory


def given_away(case: Case) -> Case:
    """Give everything in an engine's directory to the engine's user."""
    case.directory.mkdir(parents=True, exist_ok=True)
    for path in (case.directory, *case.directory.rglob("*")):
        os.lchown(path, NOBODY, NOBODY)
    return case


def plant(path: Path, target: Path) -> None:
    """Put a link where something of the engine's was, as its user could."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    for made in (path, *path.parents):
        if made.name == "models":
            break
        os.lchown(made, NOBODY, NOBODY)


_VLLM = f"models--org--tiny/snapshots/{COMMIT}"
_PLANTED = [
    ("vllm", "models--org--tiny"),
    ("vllm", "models--org--tiny/blobs"),
    ("vllm", "models--org--tiny/refs"),
    ("vllm", "models--org--tiny/snapshots"),
    ("vllm", _VLLM),
    ("vllm", f"{_VLLM}/nested"),
    ("folder", "org--tiny--Q8_0"),
    ("folder", "org--tiny--Q8_0/nested"),
]


def stored_in(case: Case) -> StoredModel:
    return case.stored(origin=Origin("hub", "org/tiny", COMMIT))


@pytest.mark.root
@pytest.mark.parametrize(("engine", "link"), _PLANTED)
def test_an_install_follows_no_planted_link(
    tmp_path: Path, as_root: None, secret: Path, engine: str, link: str
) -> None:
    """Breaks if an engine's user can have root's install write, replace or give away something outside its directory."""
    case = given_away(Case(engine, Blobs(tmp_path / "vault"), tmp_path / "models"))
    plant(case.directory / link, secret)
    before = tree(secret)
    with contextlib.suppress(EngineRefused):
        case.engine.install(case.request(stored_in(case)))
    assert tree(secret) == before


@pytest.mark.root
@pytest.mark.parametrize("owner", [0, NOBODY], ids=["root's directory, --owner", "the user's directory"])
@pytest.mark.parametrize(("engine", "link"), _PLANTED)
def test_a_removal_follows_no_planted_link(
    tmp_path: Path, as_root: None, secret: Path, owner: int, engine: str, link: str
) -> None:
    """Breaks if an engine's user can steer root's removal to files outside its directory."""
    case = given_away(Case(engine, Blobs(tmp_path / "vault"), tmp_path / "models"))
    os.chown(case.directory, owner, owner)
    record = case.engine.install(case.request(stored_in(case), owner=Owner(NOBODY, NOBODY)))
    (secret / "main").write_text(COMMIT)
    for path in ("config.json", "nested/extra.json"):  # as installed, so that nobody could call them edited
        (secret / path).write_bytes(case.blobs.path(_digest(record, path)).read_bytes())
    plant(case.directory / link, secret)
    before = tree(secret)
    with contextlib.suppress(EngineRefused):
        case.engine.uninstall(record)
    assert tree(secret) == before


def _digest(record: InstallRecord, path: str) -> Digest:
    return Digest.parse(next(file.digest for file in record.files if file.path.endswith(f"/{path}")))


@pytest.mark.root
@pytest.mark.parametrize("engine", ["vllm", "folder"])
def test_hard_links_of_the_engines_user_are_only_names(
    tmp_path: Path, as_root: None, secret: Path, engine: str
) -> None:
    """Breaks if root writes through a second name of a file of its own, or gives that file away."""
    case = given_away(Case(engine, Blobs(tmp_path / "vault"), tmp_path / "models"))
    request = case.request(stored_in(case))
    record = case.engine.install(request)
    for file in record.files:
        path = case.directory / file.path
        path.unlink()
        os.link(secret / "config.json", path)
    with contextlib.suppress(EngineRefused):
        case.engine.install(case.request(stored_in(case), previous=record))
    with contextlib.suppress(EngineRefused):
        case.engine.uninstall(record)
    status = (secret / "config.json").stat()
    assert (secret / "config.json").read_text() == "root's own\n"
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o644)


@pytest.mark.root
def test_a_forged_marker_steers_no_removal(tmp_path: Path, as_root: None) -> None:
    """Breaks if an engine's user can have files removed, or text written, by editing our marker in its cache."""
    case = given_away(Case("vllm", Blobs(tmp_path / "vault"), tmp_path / "models"))
    record = case.engine.install(case.request(stored_in(case)))
    folder = case.directory / "models--org--tiny"
    theirs = folder / "blobs" / "theirs"
    theirs.write_text("another model's")
    other = case.directory / "models--org--other" / "blobs" / "theirs"
    other.parent.mkdir(parents=True)
    other.write_text("another repository's")
    (folder / "snapshots" / "evil\n* * * * * root sh").mkdir()
    (path,) = folder.glob(".modelvault-*.json")
    marker = json.loads(path.read_text())
    marker["before"] = "evil\n* * * * * root sh"
    marker["files"] |= {str(forged.relative_to(case.directory)): "copy" for forged in (theirs, other)}
    path.write_text(json.dumps(marker))
    removal = case.engine.uninstall(record)
    assert not {str(theirs), str(other)} & set(removal.removed)
    assert theirs.exists()
    assert other.exists()
    assert not (folder / "refs" / "main").exists()
