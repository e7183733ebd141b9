"""Files, done carefully: atomic writes, fsync, bounded reads, links. Standard library only.

The pattern for publishing is everywhere the same: a temporary file in the same directory, its bytes synced, renamed into
place, the directory synced. After a crash there is the old file or the new one, never half of one.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import resource
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from modelvault.artifact import Digest
from modelvault.errors import ModelvaultError, SourceUnavailable
from modelvault.filesystem import no_space_at

BLOCK = 1 << 20
"""How much is read, hashed or written at once, in bytes."""


class NotRegular(ModelvaultError):
    """Something other than a regular file lies where one was expected."""

    slug = "not-a-regular-file"


class TooLarge(ModelvaultError):
    """A file is larger than anything valid could be."""

    slug = "too-large"


def fsync_directory(path: Path) -> None:
    """Make a rename in ``path`` durable. File systems that cannot sync a directory (FUSE, SMB) are tolerated."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(descriptor)


TEMPORARY = f".*.{'[0-9a-f]' * 12}.tmp"
"""The names that ``temporary_beside`` gives, as a pattern."""


def temporary_beside(path: Path) -> Path:
    """Name a fresh temporary file in the directory of ``path``; the leading dot keeps it out of listings."""
    return path.with_name(f".{path.name[:64]}.{secrets.token_hex(6)}.tmp")


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """``pwrite`` everything: a single call writes at most 2 GiB, and less when a signal or a full disk cuts in."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]


def atomic_write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data``, durably, or leave it as it was. Raises ``NoSpace`` on a full disk."""
    temporary = temporary_beside(path)
    with no_space_at(path.parent):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                write_all(descriptor, data, 0)
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsync_directory(path.parent)


def publish(temporary: Path, final: Path, *, mode: int) -> None:
    """Give a finished file of the same file system its final name and mode, durably. Replaces what was there."""
    with no_space_at(final.parent):
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        temporary.rename(final)
    fsync_directory(final.parent)


def sync_data(descriptor: int) -> None:
    """Make a file's bytes durable, without the time stamps where the system can leave them (macOS cannot)."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


_SYNC_FILE_RANGE_WRITE = 2


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Have the system begin to write these bytes to the disk now, without waiting. Only Linux can; a hint, no promise."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "sync_file_range"):
        libc.sync_file_range(
            ctypes.c_int(descriptor),
            ctypes.c_int64(offset),
            ctypes.c_int64(length),
            ctypes.c_uint(_SYNC_FILE_RANGE_WRITE),
        )


@contextlib.contextmanager
def open_regular(path: Path, *, limit: int | None = None) -> Iterator[int]:
    """Open a file from a place that others can write to: no symlink, no FIFO or device, no larger than ``limit`` bytes.

    ``O_NONBLOCK`` keeps a FIFO from stopping us before ``fstat`` can tell. Raises ``NotRegular``, ``TooLarge`` or ``OSError``.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise NotRegular(f"{path} is not a regular file", path=str(path)) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegular(f"{path} is not a regular file", path=str(path))
        if limit is not None and status.st_size > limit:
            raise TooLarge(
                f"{path} has {status.st_size:,} bytes, more than the {limit:,} that are allowed", path=str(path)
            )
        yield descriptor
    finally:
        os.close(descriptor)


def read_regular(path: Path, *, limit: int) -> bytes:
    """Read a whole small file under the rules of ``open_regular``."""
    with open_regular(path, limit=limit) as descriptor:
        return read_exactly(descriptor, 0, os.fstat(descriptor).st_size)


def read_exactly(descriptor: int, offset: int, length: int) -> bytes:
    """``pread`` exactly ``length`` bytes; fewer only at the end of the file."""
    pieces = []
    while length:
        piece = os.pread(descriptor, min(length, 64 * BLOCK), offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextlib.contextmanager
def open_file_range(path: Path, name: str, start: int, stop: int) -> Iterator[Iterator[bytes]]:
    """Open the bytes ``start`` to ``stop`` of a file of this machine. Raises ``SourceUnavailable`` when it has become shorter."""
    with path.open("rb", buffering=0) as reader:
        yield _blocks_of(reader.fileno(), name, start, stop)


def _blocks_of(descriptor: int, name: str, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        block = os.pread(descriptor, min(BLOCK, stop - start), start)
        if not block:
            raise SourceUnavailable(
                f"{name} became shorter while it was read", hint="run the command again once it is still"
            )
        start += len(block)
        yield block


def hash_file(path: Path, on_bytes: Callable[[int], object] | None = None) -> Digest:
    """Compute the SHA-256 of a regular file (links are followed); ``on_bytes`` is told how many bytes each block had.

    Raises ``OSError``, for anything but a regular file too.
    """
    # O_NONBLOCK: a FIFO in an engine's directory must not stop us before fstat can tell.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as reader:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EEXIST, "not a regular file", str(path))
        state = hashlib.sha256()
        buffer = memoryview(bytearray(max(min(status.st_size, BLOCK), 1)))
        while count := reader.readinto(buffer):
            state.update(buffer[:count])
            if on_bytes is not None:
                on_bytes(count)
    return Digest.sha256(state.hexdigest())


def forget_cached(descriptor: int, offset: int = 0, length: int = 0) -> None:
    """Ask the system to drop its cached copy, so that the next read comes from the medium. Needs the data synced before."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


_OTHER_FILES = 256
"""Open files of a process besides those that ``allow_open_files`` is told of: connections, the registry, what libraries hold."""


def allow_open_files(count: int) -> None:
    """Raise this process's limit so that it may hold ``count`` files open, as far as the system lets it (``ulimit -Hn``)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


CANNOT_LINK = frozenset(
    (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS),
)
"""What link(2) fails with where another way has to be found: other mounts, file systems without links, too many of them."""

_FICLONE = 0x40049409  # Linux: ioctl(destination, FICLONE, source); btrfs, XFS, bcachefs, overlay on them


def reflink(source: Path, destination: Path) -> bool:
    """Make ``destination`` a new file that shares its blocks with ``source``; ``False`` if the file system cannot."""
    with source.open("rb") as reader:
        descriptor = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.ioctl(descriptor, _FICLONE, reader.fileno())
        except OSError as error:
            destination.unlink()
            if error.errno in {errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV, errno.ENOTTY, errno.ENOSYS, errno.EPERM}:
                return False
            raise
        else:
            return True
        finally:
            os.close(descriptor)


def can_reflink(source: Path, directory: Path) -> bool:
    """Try a reflink on an unnamed file (``O_TMPFILE``) in ``directory``: exact, and nothing on disk changes, not even a time."""
    if not hasattr(os, "O_TMPFILE"):
        return False
    try:
        descriptor = os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:  # no such thing here, or not ours to write: whoever writes then says what is wrong
        return False
    try:
        with source.open("rb") if source.exists() else tempfile.TemporaryFile(dir=source.parent) as reader:
            fcntl.ioctl(descriptor, _FICLONE, reader.fileno())
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def copy_bytes(source: Path, destination: Path, *, on_bytes: Callable[[bytes], object] | None = None) -> None:
    """Copy into a new file in blocks and sync it; ``on_bytes`` sees every block (to hash it, say)."""
    with source.open("rb", buffering=0) as reader, no_space_at(destination.parent, needed=source.stat().st_size):
        descriptor = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            offset = 0
            while block := reader.read(4 * BLOCK):
                write_all(descriptor, block, offset)
                # Else the sync at the end would be the first to wait for the disk, for all of it.
                start_writeback(descriptor, offset, len(block))
                offset += len(block)
                if on_bytes is not None:
                    on_bytes(block)
            os.fsync(descriptor)
        except BaseException:
            destination.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
