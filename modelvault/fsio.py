"""Files, done carefully: atomic writes, fsync, locks, bounded reads, links. Standard library only.

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
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from modelvault.artifact import Digest
from modelvault.errors import ModelvaultError, NoSpace, VaultLocked

BLOCK = 1 << 20
"""How much is read, hashed or written at once, in bytes."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


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


@contextlib.contextmanager
def no_space_at(path: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn "disk full" inside the block into ``NoSpace`` for the file system of ``path``; ``needed`` is in bytes, if known."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise NoSpace(
                f"a file is larger than the file system of {path} allows",
                hint="use a file system without that limit (FAT32 ends at 4 GiB), or raise the process's limit (ulimit -f)",
                path=str(path),
            ) from error
        if error.errno not in _NO_SPACE:
            raise
        raise no_space(path, needed=needed) from error


def no_space(path: Path, *, needed: int | None = None) -> NoSpace:
    """Build the error for a full file system, with how much is missing if that is known."""
    free = free_space(path)
    missing = None if needed is None else max(needed - free, 0)
    detail = "" if missing is None else f": {missing:,} bytes are missing ({needed:,} needed, {free:,} free)"
    return NoSpace(
        f"no space left on the file system of {path}{detail}",
        hint="free some space and run the same command again",
        path=str(path),
        needed=needed,
        free=free,
        missing=missing,
    )


def free_space(path: Path) -> int:
    """Tell the bytes that this user may still write on the file system of ``path`` (its nearest existing parent)."""
    return shutil.disk_usage(existing_parent(path)).free


def existing_parent(path: Path) -> Path:
    """Give ``path`` itself or the nearest directory above it that exists."""
    candidate = path.absolute()
    while not candidate.exists() and candidate != candidate.parent:
        candidate = candidate.parent
    return candidate


def require_space(path: Path, needed: int) -> None:
    """Raise ``NoSpace`` unless ``needed`` bytes fit on the file system of ``path``."""
    if free_space(path) < needed:
        raise no_space(path, needed=needed)


def preallocate(descriptor: int, size: int) -> None:
    """Give a file its final length and, where the file system can, its blocks, so that a full disk is met early."""
    if size == 0:
        return
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise
        else:
            return
    os.ftruncate(descriptor, size)


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


_WORTH_A_WORD = 1.0  # seconds: a wait that a user would wonder about


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


class FileLock:
    """An advisory lock on a file, for a ``with`` block; it goes when the process dies, however it dies."""

    def __init__(
        self,
        path: Path,
        *,
        shared: bool = False,
        wait: float = 0.0,
        what: str | None = None,
        on_wait: Callable[[str], object] | None = None,
    ) -> None:
        """Prepare the lock; ``wait`` is how many seconds to try before ``VaultLocked`` is raised.

        ``on_wait`` is told once, after a second, what is waited for.
        """
        self._path = path
        self._operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._wait = wait
        self._what = what or str(path)
        self._on_wait = on_wait
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Take the lock; raises ``VaultLocked`` when another process keeps it."""
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        begun = time.monotonic()
        while True:
            try:
                fcntl.flock(self._descriptor, self._operation | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                    self._close()
                    raise
            else:
                if self._still_there():
                    return self
                # The file was removed while we waited for it: whoever comes next would lock another one.
                self._close()
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                continue
            waited = time.monotonic() - begun
            if self._on_wait is not None and waited >= _WORTH_A_WORD:
                self._on_wait(f"waiting for another modelvault that uses {self._what}")
                self._on_wait = None
            if waited >= self._wait:
                self._close()
                raise VaultLocked(
                    f"{self._what} is in use by another modelvault process",
                    hint="wait for it to end, or end it, and run the same command again",
                    path=str(self._path),
                )
            time.sleep(0.05)

    def _still_there(self) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._descriptor))

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    def __exit__(self, *_: object) -> None:
        """Let go."""
        self._close()


@contextlib.contextmanager
def locked_directory(
    path: Path, *, wait: float, what: str, on_wait: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Make a directory and hold the lock in it, though another process may remove both when it is done with them.

    Raises ``VaultLocked`` after ``wait`` seconds; ``on_wait`` is told before that what is waited for.
    """
    with contextlib.ExitStack() as stack:
        while True:
            path.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(path / "lock", wait=wait, what=what, on_wait=on_wait))
            except FileNotFoundError:
                continue  # it was removed between two of our steps
            break
        yield


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
                offset += len(block)
                if on_bytes is not None:
                    on_bytes(block)
            os.fsync(descriptor)
        except BaseException:
            destination.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


# statfs(2) f_type of file systems on which SQLite's shared-memory WAL is unsafe: NFS, SMB, CIFS, SMB2, 9P, Ceph, FUSE.
_NETWORK = {0x6969, 0x517B, 0xFF534D42, 0xFE534D42, 0x01021997, 0x00C36400, 0x65735546}


def file_system_type(path: Path) -> int | None:
    """Give the ``f_type`` of statfs(2) for ``path`` or its nearest existing parent; ``None`` where the system cannot say."""
    if os.uname().sysname != "Linux":
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(256)
        if libc.statfs(os.fsencode(existing_parent(path)), buffer) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFFFFFF


def on_network_file_system(path: Path) -> bool:
    """Tell whether ``path`` lies on NFS, SMB, 9P, Ceph or FUSE. ``False`` where the system cannot say."""
    return file_system_type(path) in _NETWORK
