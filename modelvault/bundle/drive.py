"""Files on a drive that other people and other systems write to as well.

FAT and exFAT know no modes and no links, sticks are pulled out, and what lies in our directory need not be what we left there.
So: no ``chmod``, nothing is followed, nothing is opened that is not a regular file.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from modelvault import filesystem, fsio
from modelvault.errors import ModelvaultError, UsageProblem

Pieces = Generator[memoryview]
"""The content of a file, piece by piece."""

ID_FILE = "drive-id"
"""Tells the drives of an unfinished bundle apart. Nothing is trusted because of it."""

_PIECE = 8 << 20
_DIRECT = getattr(os, "O_DIRECT", 0)
_F_NOCACHE = getattr(fcntl, "F_NOCACHE", None)  # macOS


def new_id() -> str:
    """Make up an id for a drive."""
    return secrets.token_hex(16)


def read_id(directory: Path) -> str | None:
    """Read what lies there as the drive's id; ``None`` if there is none."""
    with contextlib.suppress(OSError, ModelvaultError, UnicodeDecodeError):
        return fsio.read_regular(directory / ID_FILE, limit=64).decode().removesuffix("\n")
    return None


def put(directory: Path, name: str, data: bytes) -> bool:
    """Make ``directory/name`` hold exactly ``data``, durably. ``False`` if it did so already."""
    path = directory / name
    with contextlib.suppress(OSError, ModelvaultError):
        # Whatever keeps us from reading it (no such file, a symlink, a directory) keeps it from being what we want.
        if fsio.read_regular(path, limit=len(data)) == data:
            return False
    temporary = fsio.temporary_beside(path)
    with filesystem.no_space_at(directory, needed=len(data)):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                fsio.write_all(descriptor, data, 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsio.fsync_directory(directory)
    return True


def exists(path: Path) -> bool:
    """Tell whether there is anything of that name, a dangling link included."""
    return os.path.lexists(path)


def length(path: Path) -> int:
    """Give the bytes of a regular file; 0 if there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def sweep(directory: Path) -> None:
    """Remove the temporary files that a killed ``put`` left."""
    for path in directory.glob(fsio.TEMPORARY):
        if path.is_symlink() or not path.is_dir():
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, link or FIFO if it is there."""
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def open_for_update(path: Path) -> Iterator[int]:
    """Open a file of ours to read and write it, creating it if need be. Anything but a regular file is replaced by one."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            path.unlink()
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_parts(descriptor: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    """Write parts one after the other, in one call where the system takes them all; at most 1024 parts."""
    written = os.pwritev(descriptor, parts, offset)
    for part in parts:
        if written < len(part):
            # A signal or a nearly full drive cut in: whatever is left comes piece by piece, and then the error.
            fsio.write_all(descriptor, memoryview(part)[written:], offset + written)
            written = len(part)
        offset += len(part)
        written -= len(part)


class DriveFailed(ModelvaultError):
    """A drive cannot be written: read-only, pulled out, or broken."""

    slug = "drive-failed"


def failed(directory: Path, reason: str) -> DriveFailed:
    """Build the error for a drive that cannot be written to (any more)."""
    return DriveFailed(
        f"cannot write to {directory}: {reason}",
        hint="connect the drive again and run the same command: it goes on where it stopped",
        path=str(directory),
    )


_UNMOUNTED = {errno.ENOENT, errno.ENOTDIR}
_GONE = {errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EROFS, errno.ENOTCONN, errno.ETIMEDOUT}
_GONE |= {
    getattr(errno, name) for name in ("ENOMEDIUM", "EREMOTEIO", "ESHUTDOWN", "EUCLEAN") if hasattr(errno, name)
}  # Linux


@contextlib.contextmanager
def faults(directory: Path, *, needed: Callable[[], int]) -> Iterator[None]:
    """Give what goes wrong with a drive inside the block its name; ``needed()`` are the bytes that were still to come.

    Raises ``NoSpace`` for a full drive, ``UsageProblem`` for a file too large for its file system, ``DriveFailed`` for one that
    went away.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise filesystem.no_space(directory, needed=needed()) from error
        if error.errno == errno.EFBIG:
            raise UsageProblem(
                f"the file system of {directory} does not take a file this large",
                hint="choose smaller volumes: --volume-size 2GiB",
            ) from error
        if error.errno in _GONE or (error.errno in _UNMOUNTED and not is_there(directory)):
            raise failed(directory, reason) from error
        raise


def is_there(directory: Path) -> bool:
    """Tell whether a directory that we had made is still there: it is not where a drive was unmounted."""
    try:
        return directory.is_dir()
    except OSError:
        return False


def read_uncached(path: Path) -> Pieces:
    """Read a whole file from the medium, not from the system's cache. Each piece is valid until the next is asked for.

    Close the generator (``contextlib.closing``) if it may not be read to its end.

    ``O_DIRECT`` where the file system takes it (it wants aligned memory and offsets, hence the anonymous map and pieces of 8 MiB);
    elsewhere the cached pages are dropped first. The file must have been synced.
    """
    # Not closed but left to its last view: an exception on its way still holds the piece that it is about.
    buffer = memoryview(mmap.mmap(-1, _PIECE))
    with _open_uncached(path) as descriptor:
        offset, size = 0, os.fstat(descriptor).st_size
        # The end is not looked for by a read there: it need not be aligned, and Linux before 5.10 answers EINVAL.
        while offset < size and (count := os.preadv(descriptor, [buffer], offset)):
            yield buffer[:count]
            offset += count


@contextlib.contextmanager
def _open_uncached(path: Path) -> Iterator[int]:
    with fsio.open_regular(path) as descriptor:
        fsio.forget_cached(descriptor)
        if _F_NOCACHE is not None:
            fcntl.fcntl(descriptor, _F_NOCACHE, 1)
        direct = _open_direct(path)
        if direct is None:
            yield descriptor
            return
        try:
            yield direct
        finally:
            os.close(direct)


def _open_direct(path: Path) -> int | None:
    if not _DIRECT:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | _DIRECT)
    except OSError:
        return None  # tmpfs and FUSE before Linux 6.6 refuse the flag
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as probe:
            os.preadv(descriptor, [probe], 0)
    except OSError:
        os.close(descriptor)
        return None  # others take the flag and fail at the first read
    return descriptor
