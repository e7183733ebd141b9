"""Files done carefully: what must hold after a crash, on a full disk, and with something nasty in the way."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from machines import small_disk

from modelvault import fsio
from modelvault.errors import NoSpace, VaultLocked


def test_atomic_write_replaces_whole(tmp_path: Path) -> None:
    """Breaks if a reader could see half a file, or a temporary file stays behind."""
    path = tmp_path / "file"
    fsio.atomic_write(path, b"one")
    fsio.atomic_write(path, b"two", mode=0o444)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o444
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a failing disk costs what was there before."""
    path = tmp_path / "file"
    fsio.atomic_write(path, b"old")

    def failing(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(NoSpace):
        fsio.atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.root
def test_no_space_says_how_much(tmp_path: Path, as_root: None) -> None:
    """Breaks if a full file system is not recognised or not measured."""
    with small_disk(tmp_path / "image", tmp_path / "disk", 8 << 20) as disk:
        with pytest.raises(NoSpace) as caught:
            fsio.require_space(disk, 1 << 30)
        assert caught.value.data["missing"] > 1 << 29
        source = tmp_path / "large"
        source.write_bytes(bytes(9 << 20))
        with pytest.raises(NoSpace):
            fsio.copy_bytes(source, disk / "copy")
        assert not (disk / "copy").exists()


def test_a_wait_is_reported_once(tmp_path: Path) -> None:
    """Breaks if a command that waits for another one looks as if it hung, or says so twenty times a second."""
    said: list[str] = []
    held = fsio.FileLock(tmp_path / "lock")
    held.__enter__()

    def let_go(message: str) -> None:
        said.append(message)
        held.__exit__(None, None, None)

    with fsio.FileLock(tmp_path / "lock", wait=60, what="the vault", on_wait=let_go):
        assert said == ["waiting for another modelvault that uses the vault"]


def test_open_regular_refuses_links_pipes_and_giants(tmp_path: Path) -> None:
    """Breaks if something on a drive could stop us, lead us elsewhere or fill the memory."""
    target = tmp_path / "target"
    target.write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(fsio.NotRegular):
            fsio.read_regular(tmp_path / name, limit=1000)
    with pytest.raises(fsio.NotRegular):
        fsio.read_regular(tmp_path, limit=1000)
    with pytest.raises(fsio.TooLarge):
        fsio.read_regular(target, limit=99)
    assert fsio.read_regular(target, limit=100) == b"x" * 100


def test_lock_keeps_another_process_out(tmp_path: Path) -> None:
    """Breaks if two processes could publish at once, or a dead one keeps the lock."""
    path = tmp_path / "lock"
    code = "import sys; from pathlib import Path; from modelvault.fsio import FileLock\nwith FileLock(Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(VaultLocked), fsio.FileLock(path):
            pass
        other.kill()
        other.wait()
    with fsio.FileLock(path):
        pass


def test_shared_locks_share(tmp_path: Path) -> None:
    """Breaks if two bundles could not be written at once, or one could be removed under."""
    path = tmp_path / "lock"
    with (
        fsio.FileLock(path, shared=True),
        fsio.FileLock(path, shared=True),
        pytest.raises(VaultLocked),
        fsio.FileLock(path),
    ):
        pass


def test_preallocate_takes_the_room(tmp_path: Path) -> None:
    """Breaks if a full disk were met in the tenth hour of a pull instead of the first second."""
    with (tmp_path / "file").open("wb") as file:
        fsio.preallocate(file.fileno(), 1 << 20)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20


def test_write_all_writes_at_the_offset(tmp_path: Path) -> None:
    """Breaks if a short write loses bytes."""
    with (tmp_path / "file").open("w+b") as file:
        fsio.write_all(file.fileno(), b"abc", 5)
        assert fsio.read_exactly(file.fileno(), 0, 100) == bytes(5) + b"abc"


@pytest.mark.root
def test_reflink_shares_blocks_or_says_no(tmp_path: Path, as_root: None) -> None:
    """Breaks if a reflink is claimed where there is none: the plan would promise space that is not there."""
    source = tmp_path / "a"
    source.write_bytes(b"x" * (1 << 20))
    assert fsio.reflink(source, tmp_path / "b") in {True, False}
    with small_disk(tmp_path / "image", tmp_path / "disk", 400 << 20, "xfs") as disk:
        inside = disk / "a"
        inside.write_bytes(b"x" * (1 << 20))
        assert fsio.reflink(inside, disk / "b") is True
        assert (disk / "b").read_bytes() == inside.read_bytes()
        assert fsio.reflink(source, disk / "c") is False
        assert not (disk / "c").exists()
