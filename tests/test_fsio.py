"""Files done carefully: what must hold after a crash, on a full disk, and with something nasty in the way."""

import errno
import os
from pathlib import Path

import pytest
from machines import small_disk

from modelvault import fsio
from modelvault.errors import NoSpace


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
