"""Taking over files of this machine: linked where that is safe, hashed in any case, and never written to."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from modelvault.artifact import Digest
from modelvault.errors import DigestMismatch
from modelvault.progress import NoProgress
from modelvault.transfer import Fetched, TransferOptions, Transfers, Wanted

CONTENT = os.urandom(300_000)


def wanted(local: Path | None, path: str = "a", content: bytes = CONTENT) -> Wanted:
    @contextmanager
    def opened(start: int, stop: int) -> Iterator[Iterator[bytes]]:
        assert local is not None
        yield iter([local.read_bytes()[start:stop]])

    return Wanted(path, len(content), Digest.of_bytes(content), opened, local=local, local_only=True)


def elsewhere(local: Path, content: bytes = CONTENT) -> Wanted:
    """A file that a source has, too."""

    @contextmanager
    def opened(start: int, stop: int) -> Iterator[Iterator[bytes]]:
        yield iter([content[start:stop]])

    return Wanted("a", len(content), Digest.of_bytes(content), opened, local=local)


def run(home: Path, *files: Wanted) -> tuple[Fetched, ...]:
    with Transfers(home, files, TransferOptions(), NoProgress()) as transfers:
        return transfers.run()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def test_a_file_of_ours_is_linked(source: Path, tmp_path: Path) -> None:
    """Breaks if a hundred gigabytes are copied that lie on the disk already."""
    first, second = run(tmp_path / "partial", wanted(source), wanted(source, "b"))
    assert first.data.samefile(source)
    assert (first.linked, first.received, first.reused) == (True, 0, len(CONTENT))
    assert (second.path, second.data) == ("b", first.data)


def test_a_link_to_a_file_is_followed(source: Path, tmp_path: Path) -> None:
    """Breaks if the link becomes the blob, which then is whatever somebody puts at its end."""
    link = tmp_path / "link"
    link.symlink_to(source)
    (fetched,) = run(tmp_path / "partial", wanted(link))
    assert not fetched.data.is_symlink()
    assert fetched.data.samefile(source)


def test_a_damaged_file_is_refused(source: Path, tmp_path: Path) -> None:
    """Breaks if a link is believed unread; and what is refused must not stay."""
    source.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(DigestMismatch, match=str(source)) as caught:
        run(tmp_path / "partial", wanted(source, content=CONTENT))
    assert caught.value.data["path"] == "a"
    assert source.stat().st_nlink == 1


def test_another_users_file_is_copied(source: Path, tmp_path: Path, as_root: None) -> None:
    """Breaks if the vault holds a file that somebody else may write to: a link shares owner and mode."""
    os.chown(source, 65534, 65534)
    (fetched,) = run(tmp_path / "partial", wanted(source))
    assert not fetched.data.samefile(source)
    assert fetched.data.read_bytes() == CONTENT
    assert fetched.data.stat().st_uid == os.geteuid()
    assert source.stat().st_uid == 65534


def test_a_directory_of_somebody_elses_is_not_linked_from(source: Path, tmp_path: Path, as_root: None) -> None:
    """Breaks if the engine's user can have root share a file of root's own, by a link in a directory that is not root's."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    (theirs / "link").symlink_to(source)
    (fetched,) = run(tmp_path / "partial", wanted(theirs / "link"))
    assert not fetched.data.samefile(source)
    assert source.stat().st_nlink == 1


def test_another_file_system_is_no_obstacle(tmp_path: Path, source: Path) -> None:
    """Breaks if a store on another disk cannot be taken over at all."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    home = elsewhere / f"modelvault-test-{os.getpid()}"
    try:
        (fetched,) = run(home, wanted(source))
        assert not fetched.linked
        assert fetched.data.read_bytes() == CONTENT
    finally:
        for path in sorted(home.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        home.rmdir()


def test_a_transfer_that_was_begun_never_writes_through_the_link(source: Path, tmp_path: Path) -> None:
    """Breaks if a pull that goes on after an adoption that was killed writes into the store's own file."""
    key = wanted(source).key
    (tmp_path / "partial" / key).mkdir(parents=True)
    os.link(source, tmp_path / "partial" / key / "linked")
    (fetched,) = run(tmp_path / "partial", Wanted("a", len(CONTENT), Digest.of_bytes(CONTENT), wanted(source).open))
    assert not fetched.data.samefile(source)
    (again,) = run(tmp_path / "partial", wanted(source))
    assert again.linked
    assert source.read_bytes() == CONTENT


def test_a_copy_stands_in_for_the_source(source: Path, tmp_path: Path) -> None:
    """Breaks if what is on the machine is fetched once more, or if a damaged copy keeps the file from coming."""
    (fetched,) = run(tmp_path / "partial", elsewhere(source))
    assert fetched.linked
    for state in ("damaged", "gone"):
        source.write_bytes(b"x" * len(CONTENT))
        if state == "gone":
            source.unlink()
        (fetched,) = run(tmp_path / state, elsewhere(source))
        assert (fetched.linked, fetched.received, fetched.data.read_bytes()) == (False, len(CONTENT), CONTENT)


def test_a_copy_that_cannot_be_linked_is_read(source: Path, tmp_path: Path, as_root: None) -> None:
    """Breaks if a copy of another user's is fetched from the source all the same, or waits for the network's rate."""
    os.chown(source, 65534, 65534)

    asked = []

    @contextmanager
    def opened(start: int, stop: int) -> Iterator[Iterator[bytes]]:
        asked.append((start, stop))
        yield iter([CONTENT[start:stop]])

    limit = TransferOptions(limit_rate=len(CONTENT) // 60)
    before = time.monotonic()
    with Transfers(tmp_path / "partial", [replace(elsewhere(source), open=opened)], limit, NoProgress()) as transfers:
        (fetched,) = transfers.run()
    assert time.monotonic() - before < 30
    assert asked == []
    assert (fetched.received, fetched.reused) == (0, len(CONTENT))
    assert fetched.data.read_bytes() == CONTENT
    assert not fetched.data.samefile(source)
