"""What every adapter must do, whatever the engine."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_cases import COMMIT, HUBS, NAMES, Blobs, Case, contents, link_is_true, tree

from modelvault.artifact import Origin
from modelvault.engines import InstalledFile, InstallRecord, LinkMode, Owner, Removal
from modelvault.engines.ground import locked
from modelvault.errors import DigestMismatch, EngineRefused, NoSpace, VaultDamaged, VaultLocked

NOBODY = 65534
STANDING = {"blobs", "manifests", "models", "mmproj"}  # directories that an engine has for all of its models
HERE = Path(__file__).resolve().parents[1]


def install(case: Case, **options: Any) -> InstallRecord:
    return case.engine.install(case.request(**options))


def largest(record: InstallRecord) -> InstalledFile:
    """The weights: in Ollama's and vLLM's stores, the blob."""
    return max((file for file in record.files if "/snapshots/" not in file.path), key=lambda file: file.size)


def as_nobody(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a user who owns nothing. It starts as root: the interpreter may lie where nobody else can read."""
    prelude = f"import os, sys, modelvault.engines, engine_cases\nos.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + script, *arguments],
        env=os.environ | {"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
    )


def open_parents(path: Path) -> None:
    """Let other users pass through pytest's private directories."""
    for parent in path.parents:
        if parent.stat().st_uid == 0 and parent.is_relative_to(tempfile.gettempdir()) and len(parent.parts) > 2:
            parent.chmod(0o755)


def test_plan_changes_nothing_and_comes_true(case: Case) -> None:
    """A dry run that touches the disk is none; one that promises links and then copies fills the disk unannounced."""
    parent = case.directory.parent
    parent.mkdir()
    before = tree(parent)
    plan = case.engine.plan(case.request())
    assert tree(parent) == before
    record = install(case)
    promised = {str(file.path): str(file.link) for file in plan.files}
    done = {f"{record.directory}/{file.path}": file.link for file in record.files}
    assert promised.items() >= done.items()
    assert plan.installed_name == record.installed_name == case.engine.installed_name(case.request())
    written = {
        path: file.size for path, file in zip(done, record.files, strict=True) if done[path] in {"copy", "write"}
    }
    assert plan.extra_bytes >= sum(written.values())
    again = tree(parent)
    after = case.engine.plan(case.request(previous=record))
    assert after.extra_bytes == 0
    assert all(file.there for file in after.files)
    assert tree(parent) == again


@pytest.mark.parametrize("link", [LinkMode.AUTO, LinkMode.COPY])
def test_install_twice_is_a_no_op(case: Case, link: LinkMode) -> None:
    """A repeated import must neither rewrite gigabytes nor forget which files are ours."""
    record = install(case, link=link)
    before = contents(case.directory)
    inodes = {path: (case.directory / path).lstat().st_ino for path in before if ".modelvault" not in path}
    assert install(case, link=link, previous=record) == record
    assert contents(case.directory) == before
    assert inodes == {path: (case.directory / path).lstat().st_ino for path in inodes}


# Copies for one adapter of each kind: there are more steps at which to die, and the code is the kind's.
@pytest.mark.parametrize(
    ("name", "link"),
    [(name, LinkMode.AUTO) for name in NAMES]
    + [(name, LinkMode.COPY) for name in ("ollama", "vllm", "folder", "textgen")],
)
def test_killed_at_any_step(name: str, link: LinkMode, tmp_path: Path) -> None:
    """An engine that sees half a model serves errors, or rubbish; what a crash leaves must not stay for ever."""
    assert steps_survived(name, link.value, str(tmp_path)) > 10


@pytest.mark.parametrize("name", NAMES)
def test_an_update_that_is_killed_at_any_step(name: str, tmp_path: Path) -> None:
    """The engine has the old version or the new one, whole, at any moment; never neither, and never a bit of both."""
    assert steps_survived(name, LinkMode.AUTO.value, str(tmp_path), "update") > 10


def steps_survived(*arguments: str) -> int:
    """Kill installs at every step; give how many steps there were."""
    done = subprocess.run(
        [sys.executable, str(HERE / "engine_crash.py"), *arguments],
        env=os.environ | {"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_links_are_hard_for_the_same_owner(case: Case) -> None:
    """Disk space doubles if this breaks; and the record must say what is true, for removal relies on it."""
    record = install(case)
    blob = largest(record)
    assert blob.link == "hard link"
    known = {str(spec.digest): case.blobs.path(spec.digest) for spec in case.stored().model.files}
    for file in record.files:
        if file.digest in known:
            assert link_is_true(file.link, case.directory / file.path, known[file.digest]), file
    assert case.blobs.intact()


@pytest.mark.parametrize("name", [*HUBS, "folder", "tabbyapi", "exllama"])
def test_what_people_edit_is_never_the_vaults(name: str, blobs: Blobs, tmp_path: Path) -> None:
    """A config.json edited in place must not change the vault's blob, and every other engine's; nor be replaced without a word."""
    case = Case(name, blobs, tmp_path / "engine" / "models")
    record = install(case)
    assert {file.link for file in record.files if "safetensors" in file.path and "snapshots" not in file.path} <= {
        "hard link"
    }
    (path,) = case.directory.rglob("config.json")
    original = path.read_bytes()
    weights = case.directory / largest(record).path
    inode = weights.stat().st_ino
    for edited in (b" " * len(original), b'{"tuned": true}'):
        path.write_bytes(edited)
        assert case.blobs.intact()
        assert case.engine.verify(record) != []
        planned: list[str] = []
        plan = case.engine.plan(case.request(previous=record, on_changed=planned.append))
        assert sum(not file.there for file in plan.files) == (
            1 if name in HUBS else 2
        )  # a folder's marker is the second
        replaced: list[str] = []
        assert install(case, previous=record, on_changed=replaced.append) == record
        assert set(planned) == set(replaced) == {"config.json"}
        assert path.read_bytes() == original
        assert weights.stat().st_ino == inode
    assert case.engine.verify(record) == []
    older: list[str] = []
    updated = case.stored(weights=b"new weights")
    case.engine.install(case.request(updated, previous=record, on_changed=older.append))
    assert older == []


def test_a_blob_that_came_anew_is_linked_anew(case: Case) -> None:
    """After ``rm``, ``gc`` and another import the bytes would lie on the disk twice, and the record would be wrong."""
    record = install(case)
    for file in case.stored().model.files:
        path = case.blobs.path(file.digest)
        data = path.read_bytes()
        path.unlink()
        case.blobs.add(data)
    weights = case.directory / largest(record).path
    assert weights.stat().st_nlink == 1
    plan = case.engine.plan(case.request(previous=record))
    linked = {case.directory / file.path for file in record.files if file.link == "hard link"}
    assert {file.path for file in plan.files if file.link == "hard link"} == linked
    assert install(case, previous=record) == record
    assert weights.stat().st_nlink == 2
    assert case.blobs.intact()


@pytest.mark.root
@pytest.mark.parametrize("name", NAMES)
def test_another_owner_gets_a_reflink(name: str, sharing: Path) -> None:
    """Where blocks can be shared, another user's engine costs no space; and the plan and the record must say that, and be right."""
    blobs = Blobs(sharing / "vault")
    case = Case(name, blobs, sharing / "engine" / "models")
    owner = Owner(NOBODY, NOBODY)
    plan = case.engine.plan(case.request(owner=owner))
    record = install(case, owner=owner)
    assert plan.extra_bytes < largest(record).size
    promised = {str(file.path): str(file.link) for file in plan.files}
    known = {str(spec.digest): blobs.path(spec.digest) for spec in case.stored().model.files}
    assert largest(record).link == "reflink"
    for file in record.files:
        path = case.directory / file.path
        assert promised[str(path)] == file.link
        assert path.lstat().st_uid == NOBODY
        if file.digest in known:
            assert link_is_true(file.link, path, known[file.digest]), file
    assert case.engine.verify(record) == []
    case.engine.uninstall(record)
    assert blobs.intact()


def test_copy_when_asked(case: Case) -> None:
    """``--link copy`` promises independence from the vault."""
    record = install(case, link=LinkMode.COPY)
    blob = largest(record)
    path = case.directory / blob.path
    assert blob.link == "copy"
    assert path.stat().st_nlink == 1
    assert path.stat().st_mode & 0o777 == 0o644
    known = {str(spec.digest): case.blobs.path(spec.digest) for spec in case.stored().model.files}
    for file in record.files:
        if file.digest in known:
            assert link_is_true(file.link, case.directory / file.path, known[file.digest]), file


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="files can be given to another user by root only")
def test_another_users_engine_cannot_change_the_vault(case: Case) -> None:
    """A hard link given to the engine's user would let that user rewrite the vault: the one thing that must never happen."""
    case.directory.mkdir(parents=True)
    os.chown(case.directory, NOBODY, NOBODY)
    open_parents(case.directory)
    assert {file.link for file in case.engine.plan(case.request()).files} <= {"copy", "write", "symlink"}
    record = install(case)
    for path in (case.directory, *case.directory.rglob("*")):
        assert path.lstat().st_uid == NOBODY, path
        assert path.is_symlink() or path.stat().st_mode & 0o044 == 0o044, path
    script = "for p in sys.argv[1:]:\n os.chmod(p, 0o666)\n open(p, 'r+b').write(b'changed')\n"
    paths = [str(case.directory / file.path) for file in record.files if file.link == "copy"]
    changed = as_nobody(script, *paths)
    assert changed.returncode == 0, changed.stderr
    assert case.engine.verify(record) != []
    assert case.blobs.intact()
    assert as_nobody(script, str(case.blobs.path(case.stored().model.files[0].digest))).returncode != 0
    with pytest.raises(EngineRefused, match="different users"):
        install(replace_directory(case, "second"), link=LinkMode.HARD, owner=Owner(NOBODY, NOBODY))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads what another user may not")
def test_what_the_engines_user_cannot_read_is_no_install(case: Case) -> None:
    """A shard of mode 0600 that somebody fetched as root: the engine would fail hours later, with a permission that was denied."""
    owner = Owner(NOBODY, NOBODY)
    record = install(case, owner=owner)
    forget(case, record)
    path = case.directory / largest(record).path
    os.chown(path, 0, 0)
    path.chmod(0o600)
    for attempt in (case.engine.plan, case.engine.install):
        with pytest.raises(EngineRefused, match="may not read it") as refusal:
            attempt(case.request(owner=owner))
        assert f"chmod a+r {path}" in str(refusal.value.hint)
    path.chmod(0o604)
    assert case.engine.verify(install(case, owner=owner)) == []


def forget(case: Case, record: InstallRecord) -> None:
    """Take away what says that an install was ours: what is there is somebody else's now."""
    for marker in case.directory.rglob(".modelvault*.json"):
        marker.unlink()
    if case.name == "ollama":
        (case.directory / record.files[-1].path).unlink()


def replace_directory(case: Case, name: str) -> Case:
    return replace(case, directory=case.directory.parent / name)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="running as another user needs root")
def test_only_root_gives_files_away(case: Case) -> None:
    """A user who installs into the service's directory must hear so at once, not leave files that the service cannot remove."""
    case.directory.mkdir(parents=True)
    case.directory.chmod(0o777)
    case.stored()
    open_parents(case.directory)
    script = (
        "from pathlib import Path; from engine_cases import Blobs, Case\n"
        "from modelvault.errors import EngineRefused\n"
        "case = Case(sys.argv[1], Blobs(Path(sys.argv[2])), Path(sys.argv[3]))\n"
        "try: case.engine.plan(case.request())\n"
        "except EngineRefused as error: print(error.message, error.hint)\n"
    )
    where = [case.name, str(case.blobs.root), str(case.directory)]
    done = as_nobody(script, *where)
    assert "which only root can arrange" in done.stdout, done.stderr
    assert "--owner 65534:65534" in done.stdout


@pytest.mark.parametrize(
    ("name", "origin"), [("org/other:Q8_0", Origin("folder")), ("org/tiny:Q4_0", Origin("hub", "org/tiny", COMMIT))]
)
def test_other_models_are_left_alone(case: Case, name: str, origin: Origin) -> None:
    """Installing or removing one model must not break another, even where they share blobs, or a repository."""
    other = case.stored(name, license="mit", origin=origin)
    first = case.engine.install(case.request(other))
    before = contents(case.directory)
    record = case.engine.install(case.request(case.stored(origin=origin)))
    assert case.engine.verify(first) == []
    removed = case.engine.uninstall(record).removed
    assert removed
    assert contents(case.directory) == before
    assert case.engine.verify(first) == []
    assert not (set(removed) & {f"{first.directory}/{file.path}" for file in first.files})


def test_uninstall_removes_what_was_installed(case: Case) -> None:
    """What stays behind fills the disk unseen; what goes too much is somebody's model."""
    case.directory.mkdir(parents=True)
    (case.directory / "theirs.txt").write_text("kept")
    record = install(case)
    removed = case.engine.uninstall(record).removed
    assert {f"{record.directory}/{file.path}" for file in record.files} <= set(removed)
    assert contents(case.directory) == {"theirs.txt": contents(case.directory)["theirs.txt"]}
    assert not [path for path in case.directory.rglob("*") if path.is_dir() and path.name not in STANDING]
    assert case.blobs.intact()
    assert case.engine.uninstall(record) == Removal()


def test_verify_finds_a_flipped_bit(case: Case) -> None:
    """Damage at rest is what ``verify`` is for, in whichever file."""
    record = install(case, link=LinkMode.COPY)
    assert case.engine.verify(record) == []
    for file in record.files:
        path = case.directory / file.path
        if path.is_symlink():
            continue
        data = path.read_bytes()
        at = len(data) // 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        problems = case.engine.verify(record)
        assert any(str(path) in problem and "content changed" in problem for problem in problems), problems
        path.write_bytes(data)
    assert case.engine.verify(record) == []


def test_verify_finds_a_missing_file(case: Case) -> None:
    """So is loss, of a link too."""
    record = install(case)
    for file in record.files:
        path, aside = case.directory / file.path, case.directory / "aside"
        path.rename(aside)
        problems = case.engine.verify(record)
        assert any(str(path) in problem for problem in problems), problems
        aside.rename(path)
    assert case.engine.verify(record) == []


def test_verify_finds_a_changed_manifest(case: Case) -> None:
    """Whole files of another version are not the model that the vault says is installed."""
    record = install(case)
    decides = {"ollama": "manifests/**/q8_0"} | dict.fromkeys(HUBS, "**/refs/main")
    (path,) = case.directory.glob(decides.get(case.name, "**/.modelvault.json"))
    manifest = case.stored(weights=b"another version").manifest.hex
    changed = path.read_text().replace(case.stored().manifest.hex, manifest)
    path.write_text(manifest[:40] if case.name in HUBS else changed + " " * (case.name == "ollama"))
    (problem,) = case.engine.verify(record)
    assert str(path if case.name in {*HUBS, "ollama"} else path.parent) in problem


def test_damage_of_our_own_is_repaired(case: Case) -> None:
    """The way out of a failed verification is to install again."""
    record = install(case, link=LinkMode.COPY)
    (case.directory / largest(record).path).unlink()
    (case.directory / largest(record).path).write_bytes(b"damaged")
    repaired = install(case, link=LinkMode.COPY, previous=record)
    assert case.engine.verify(repaired) == []
    assert repaired == record


def test_a_foreign_file_in_the_way_is_refused(case: Case) -> None:
    """Overwriting what somebody else put there would lose it; trusting it would serve it."""
    record = install(case, link=LinkMode.COPY)
    path = case.directory / largest(record).path
    case.engine.uninstall(record)
    for data in (b"short", path.name.encode() * (largest(record).size // len(path.name) + 1)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[: largest(record).size])
        before = contents(case.directory)
        with pytest.raises(EngineRefused, match="is in the way") as refusal:
            install(case)
        assert str(path) in refusal.value.message
        assert refusal.value.hint
        assert contents(case.directory) == before


def test_a_directory_in_the_way_is_refused(case: Case) -> None:
    """The same, for something that is not even a file."""
    record = install(case)
    case.engine.uninstall(record)
    (case.directory / largest(record).path).mkdir(parents=True)
    with pytest.raises(EngineRefused):
        install(case)


def test_a_file_instead_of_the_directory_is_refused(case: Case) -> None:
    """A mistyped directory must end in words, not in a traceback."""
    case.directory.parent.mkdir()
    case.directory.write_text("a file")
    with pytest.raises(EngineRefused):
        case.engine.install(case.request())


@pytest.mark.root
def test_full_disk(case: Case, small_disk: Path) -> None:
    """A full disk must cost nothing but the attempt, and say how much is missing."""
    case = replace(case, directory=small_disk / "models")
    before = contents(small_disk)
    with pytest.raises(NoSpace) as full:
        case.engine.install(case.request())
    assert full.value.data["missing"] > 0
    assert contents(small_disk) == before


@pytest.mark.root
def test_disk_that_fills_up_meanwhile(case: Case, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same when the space went after it was counted."""
    case = replace(case, directory=small_disk / "models")
    monkeypatch.setattr("modelvault.filesystem.require_space", lambda *_: None)
    with pytest.raises(NoSpace):
        case.engine.install(case.request())
    assert case.visible() == set()
    assert not [path for path in small_disk.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.root
def test_read_only_directory(case: Case, small_disk: Path) -> None:
    """A read-only mount is refused with the reason."""
    case = replace(case, directory=small_disk / "models")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(EngineRefused, match="read-only") as refusal:
        case.engine.install(case.request(case.stored(weights=b"x")))
    assert refusal.value.hint == "the file system is mounted read-only"
    assert str(small_disk) in refusal.value.message


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="running as another user needs root")
def test_a_directory_that_may_not_be_written(case: Case) -> None:
    """The engine's directory belongs to the right user, who took the right to write away: words, and what helps."""
    case.directory.mkdir(parents=True)
    case.stored()
    open_parents(case.directory)
    for path in (case.blobs.root, *case.blobs.root.rglob("*"), case.directory):
        os.chown(path, NOBODY, NOBODY)
    case.directory.chmod(0o555)
    script = (
        "from pathlib import Path; from engine_cases import Blobs, Case\n"
        "from modelvault.errors import EngineRefused\n"
        "case = Case(sys.argv[1], Blobs(Path(sys.argv[2])), Path(sys.argv[3]))\n"
        "try: case.engine.install(case.request())\n"
        "except EngineRefused as error: print(error.message, '/', error.hint)\n"
    )
    done = as_nobody(script, case.name, str(case.blobs.root), str(case.directory))
    assert f"{case.directory}" in done.stdout, done.stderr
    assert "permission denied / run the command as root or as the user that the engine runs as" in done.stdout
    assert list(case.directory.iterdir()) == []


@pytest.mark.root
def test_another_file_system(case: Case, small_disk: Path) -> None:
    """Across file systems there are no links: the plan must say copy, and ``--link hard`` must say why not."""
    case = replace(case, directory=small_disk / "models")
    request = case.request(case.stored(weights=b"tiny"))
    plan = case.engine.plan(request)
    assert {str(file.link) for file in plan.files} <= {"copy", "write", "symlink"}
    record = case.engine.install(request)
    assert case.engine.verify(record) == []
    elsewhere = replace(request.target, directory=small_disk / "elsewhere")
    for mode in (LinkMode.HARD, LinkMode.REFLINK):
        for attempt in (case.engine.plan, case.engine.install):
            with pytest.raises(EngineRefused, match="file system"):
                attempt(replace(request, link=mode, target=elsewhere))


def test_a_damaged_blob_of_the_vault_is_not_installed(case: Case) -> None:
    """A copy is hashed while it is made: what rotted in the vault must not reach the engine."""
    stored = case.stored()
    weights = max(stored.model.files, key=lambda file: file.size)
    path = case.blobs.path(weights.digest)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[7] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(DigestMismatch):
        case.engine.install(case.request(stored, link=LinkMode.COPY))
    assert case.visible() == set()
    path.write_bytes(data[:-1])
    with pytest.raises(DigestMismatch):
        case.engine.install(case.request(stored))
    path.unlink()
    with pytest.raises(DigestMismatch, match="missing from the vault"):
        case.engine.install(case.request(stored))


def test_two_processes(case: Case) -> None:
    """Two installs into one directory at once would sweep away each other's staging."""
    case.directory.mkdir(parents=True)
    with locked(case.directory), pytest.raises(VaultLocked):
        install(case)
    install(case)


def test_a_new_version_takes_the_place_of_the_old(case: Case) -> None:
    """After an update the engine must serve the new files, and the old ones must not stay for ever."""
    old = install(case)
    updated = case.stored(weights=b"new weights")
    record = case.engine.install(case.request(updated, previous=old))
    assert record.installed_name == old.installed_name
    assert case.engine.verify(record) == []
    case.engine.uninstall(record)
    assert contents(case.directory) == {}


def test_records_survive_json(case: Case) -> None:
    """The registry and the event log keep records as JSON: a lossy one could not be verified or removed."""
    record = install(case)
    assert InstallRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert all(type(file.link) is str for file in record.files)
    for change in (
        {"engine": 1},
        {"files": [{"path": "../x"}]},
        {"files": [1]},
        {"directory": "relative"},
        {"manifest": "x"},
    ):
        with pytest.raises(VaultDamaged, match="record of the install") as refused:
            InstallRecord.from_json(record.to_json() | change)
        assert refused.value.hint
    later = record.to_json() | {"more": 1, "files": [file | {"more": 1} for file in record.to_json()["files"]]}
    assert InstallRecord.from_json(later) == record


def test_the_recipe_can_be_typed(case: Case) -> None:
    """What is printed at the end is copied into a shell."""
    lines = case.engine.recipe(install(case))
    assert lines
    for line in lines:
        assert subprocess.run(["sh", "-n", "-c", line], check=False).returncode == 0


def test_progress_is_told(case: Case) -> None:
    """Copying a large model takes minutes, in which something must move."""
    seen: list[int] = []
    install(case, link=LinkMode.COPY, on_bytes=seen.append)
    assert sum(seen) >= largest(install(case)).size
