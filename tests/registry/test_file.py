"""The registry's file: journal modes, other processes, kills, full and read-only disks, damage."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from registry_values import TIME, Logged, applied, install_record, mirrored, report, stored

from modelvault.artifact import ModelName
from modelvault.errors import ModelvaultError, NoSpace, VaultLocked
from modelvault.registry import ModelRow, Registry, RegistryDamaged, RegistryUnreadable, convert
from modelvault.registry.schema import ModelTable

_TESTS = Path(__file__).parents[1]

_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from registry_values import TIME, Logged, report, stored
from modelvault.registry import Registry
with Registry.open(Path(sys.argv[1]), wait=60) as registry:
    for index in range(int(sys.argv[3])):
        registry.record_model(stored(f"{sys.argv[2]}-{index}"), {"model.gguf": report()}, TIME)
        print(index, flush=True)
"""


def _start_writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), name, str(count), str(_TESTS)], stdout=subprocess.PIPE, text=True
    )


def _pragma(path: Path, name: str) -> object:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


def test_the_journal_suits_the_file_system(tmp_path: Path) -> None:
    """If this fails, a vault on NFS is corrupted by WAL, or one carried to a local disk keeps the slow journal."""
    path = tmp_path / "registry.sqlite"
    answers: list[tuple[Callable[[Path], bool], str]] = [
        (lambda _: False, "wal"),
        (lambda _: True, "delete"),
        (lambda _: False, "wal"),
    ]
    for network, mode in answers:
        with Registry.open(path, network=network) as registry:
            assert _pragma(path, "journal_mode") == mode
            registry.record_model(stored(), {}, TIME)
            assert len(registry.models()) == 1


def test_the_file_tells_what_it_is(tmp_path: Path) -> None:
    """If this fails, `file` and we cannot tell a registry from any other SQLite database."""
    with Registry.open(tmp_path / "registry.sqlite"):
        pass
    assert _pragma(tmp_path / "registry.sqlite", "application_id") == int.from_bytes(b"MVLT", "big")


@pytest.mark.parametrize("name", ["with space", "a?b#c%20", "ü", "..."])
def test_odd_paths_work(tmp_path: Path, name: str) -> None:
    """If this fails, a vault in a directory with ``?`` or ``%`` in its name opens another file."""
    folder = tmp_path / name
    with Registry.open(folder / "registry.sqlite") as registry:
        registry.record_model(stored(), {}, TIME)
    assert (folder / "registry.sqlite").stat().st_size > 0
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    """If this fails, two pulls at once make each other fail, or one loses what it recorded; both also create the file."""
    path = tmp_path / "registry.sqlite"
    writers = [_start_writer(path, name, 25) for name in ("a", "b")]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    with Registry.open(path) as registry:
        assert {row.name.text for row in registry.models()} == {
            f"{name}-{index}" for name in "ab" for index in range(25)
        }


@pytest.mark.parametrize("acknowledged", [1, 9, 20])
def test_sigkill_loses_nothing_that_was_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    """If this fails, a kill in the middle of a write leaves half a model, or takes back a finished one."""
    path = tmp_path / "registry.sqlite"
    with _start_writer(path, "victim", 100_000) as writer:
        assert writer.stdout is not None
        for _ in range(acknowledged):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        seen = acknowledged + len(writer.stdout.read().splitlines())
    assert _pragma(path, "integrity_check") == "ok"
    with Registry.open(path) as registry:
        rows = registry.models()
        assert {len(row.stored.model.files) for row in rows} == {2}
        names = {row.name for row in rows}
        assert names >= {ModelName(f"victim-{index}") for index in range(seen - 1)}
        for name in names:
            assert len(registry.metadata(name)) == len(report().metadata)


def test_a_writer_that_waits_too_long_exits_11_and_readers_never_wait(tmp_path: Path) -> None:
    """If this fails, `list` hangs while something is being recorded, or a second writer ends in a traceback."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path, wait=0) as registry, contextlib.closing(sqlite3.connect(path)) as other:
        registry.record_model(stored(), {}, TIME)
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM models")
        assert len(registry.models()) == 1
        with pytest.raises(VaultLocked):
            registry.forget_model(ModelName("org/tiny:Q4_K_M"))
        other.rollback()
        registry.forget_model(ModelName("org/tiny:Q4_K_M"))


def test_a_failed_call_leaves_no_half(tmp_path: Path) -> None:
    """If this fails, a number that SQLite cannot hold leaves a model without its files, or ends in a traceback."""
    with Registry.open(tmp_path / "registry.sqlite") as registry:
        registry.record_model(stored(), {"model.gguf": report()}, TIME)
        with pytest.raises(ModelvaultError, match="63 bits"):
            registry.record_model(stored(), {"model.gguf": replace(report(), parameters=2**64)}, TIME)
        assert len(registry.metadata(ModelName("org/tiny:Q4_K_M"))) == len(report().metadata)
        with pytest.raises(ModelvaultError):
            applied(registry, Logged(1, "install", install_record()), Logged(2, "install", {}))
        assert mirrored(registry) == []


@pytest.mark.parametrize("content", [b"<!doctype html>" * 100, b"SQLite format 3\0" + b"\1" * 4096])
def test_what_is_no_database_is_damage(tmp_path: Path, content: bytes) -> None:
    """If this fails, a ruined registry ends in a traceback instead of naming `registry rebuild`."""
    path = tmp_path / "registry.sqlite"
    path.write_bytes(content)
    with pytest.raises(RegistryDamaged) as caught:
        Registry.open(path)
    assert "modelvault registry rebuild" in str(caught.value.hint)
    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    """If this fails, our tables are put into someone else's database."""
    path = tmp_path / "registry.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(RegistryDamaged, match="other program"):
        Registry.open(path)
    assert path.read_bytes() == before


def test_a_ruined_page_is_damage(tmp_path: Path) -> None:
    """If this fails, bad sectors under the registry end in a traceback."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry:
        for index in range(50):
            registry.record_model(stored(f"m-{index}"), {}, TIME)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * (size - 8192))
    with pytest.raises(RegistryDamaged), Registry.open(path) as registry:
        registry.models()


def test_a_missing_table_is_damage(tmp_path: Path) -> None:
    """If this fails, a registry that someone edited ends in a traceback."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry:
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("DROP TABLE installs")
        with pytest.raises(RegistryDamaged):
            registry.installs()


def test_what_cannot_be_opened_says_so(tmp_path: Path) -> None:
    """If this fails, a directory in the registry's place ends in a traceback."""
    (tmp_path / "registry.sqlite").mkdir()
    with pytest.raises(RegistryUnreadable):
        Registry.open(tmp_path / "registry.sqlite")


def test_opening_does_not_import_alembic(tmp_path: Path) -> None:
    """If this fails, every command pays for migrations that are not needed."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path):
        pass
    code = "import sys; from pathlib import Path; from modelvault.registry import Registry\n"
    code += "with Registry.open(Path(sys.argv[1])) as r: r.models()\nprint('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def _refuses_writes(path: Path) -> None:
    with Registry.open(path) as registry:
        assert len(registry.models()) == 1
        with pytest.raises(RegistryUnreadable) as caught:
            registry.forget_model(ModelName("org/tiny:Q4_K_M"))
        assert "owner" in str(caught.value.hint)


def test_another_users_registry_can_be_read(tmp_path: Path) -> None:
    """If this fails, an ordinary user cannot list the vault that root filled."""
    folder = tmp_path / "vault"
    path = folder / "registry.sqlite"
    with Registry.open(path) as registry:
        registry.record_model(stored(), {}, TIME)
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everything; see the read-only disk below")
        _refuses_writes(path)
    finally:
        folder.chmod(0o755)


@pytest.mark.root
def test_a_registry_on_a_read_only_disk_can_be_read(small_disk: Path) -> None:
    """If this fails, a vault on a read-only mount (a drive with its switch set) cannot even be listed."""
    path = small_disk / "registry.sqlite"
    with Registry.open(path) as registry:
        registry.record_model(stored(), {}, TIME)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    _refuses_writes(path)


@pytest.mark.root
def test_a_full_disk_is_exit_15_and_nothing_is_lost(small_disk: Path) -> None:
    """If this fails, running out of space ruins the registry, or is reported as something else."""
    path = small_disk / "registry.sqlite"
    big = {"model.gguf": replace(report(), metadata={"template": "x" * 100_000})}
    with Registry.open(path) as registry:
        registry.record_model(stored("first"), {}, TIME)
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        with pytest.raises(NoSpace) as caught:
            registry.record_model(stored("second"), big, TIME)
        assert caught.value.exit_code == 15
        assert [row.name.text for row in registry.models()] == ["first"]
        filler.unlink()
        registry.record_model(stored("second"), big, TIME)
        assert len(registry.models()) == 2
    with Registry.open(path) as registry:
        assert len(registry.models()) == 2


@pytest.mark.root
def test_a_full_disk_at_creation_is_exit_15(small_disk: Path) -> None:
    """If this fails, a first pull onto a full disk ends in a traceback, or leaves a registry that cannot be opened."""
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    with pytest.raises(NoSpace):
        Registry.open(small_disk / "registry.sqlite")
    filler.unlink()
    with Registry.open(small_disk / "registry.sqlite") as registry:
        assert registry.models() == ()


@pytest.fixture
def others_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry that this user may only read, with one model; root may write anything, so the system's answer is put in."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry:
        registry.record_model(stored(), {}, TIME)
    monkeypatch.setattr("modelvault.registry.connection.os.access", lambda *_: False)
    with Registry.open(path) as registry:
        yield registry


def _forget_all(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as owner, owner:
        owner.execute("DELETE FROM models")


def test_what_the_owner_writes_is_seen(others_registry: Registry) -> None:
    """If this fails, a reader who cannot lock the registry is shown what it was before, or a mixture."""
    assert len(others_registry.models()) == 1
    _forget_all(others_registry.path)
    assert others_registry.models() == ()


def test_what_was_written_while_it_was_read_does_not_count(
    others_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, a reader who cannot lock the registry believes pages of which some are old and some new."""
    original = convert.model_row

    def interrupted(row: ModelTable) -> ModelRow:
        _forget_all(others_registry.path)
        return original(row)

    monkeypatch.setattr(convert, "model_row", interrupted)
    with pytest.raises(VaultLocked):
        others_registry.models()
