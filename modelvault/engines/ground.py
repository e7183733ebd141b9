"""Care for an engine's directory: refusals in words, a lock, staging names, clearing up, swapping, hashing."""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.errors import EngineRefused, VaultLocked

_PREFIX, _SUFFIX = ".modelvault-", ".tmp"


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn what the system says about ``path`` into errors of ours: ``NoSpace`` for a full disk, else ``EngineRefused``."""
    try:
        with fsio.no_space_at(path):
            yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        reason = (error.strerror or str(error)).lower()
        hint = None
        if error.errno in {errno.EACCES, errno.EPERM}:
            hint = "run the command as root or as the user that the engine runs as"
        elif error.errno == errno.EROFS:
            hint = "the file system is mounted read-only"
        elif error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}:
            hint = "move away what is in the way, then run the same command again"
        raise EngineRefused(f"cannot write to the engine's directory: {where}: {reason}", hint=hint) from error


@contextlib.contextmanager
def standing_on(directory: Path, uid: int) -> Iterator[Path]:
    """Hold on to a directory in which root works for the user ``uid``, and give a name for it that nobody can exchange.

    Whoever owns an engine's directory could put a link to one of root's in it. So a directory reached through a link has to belong
    to that user itself. Raises ``EngineRefused``.
    """
    if os.geteuid() != 0 or uid == 0:
        yield directory
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        here = Path(f"/proc/self/fd/{descriptor}")
        if os.fstat(descriptor).st_uid != uid and here.readlink() != directory.absolute():
            raise EngineRefused(
                f"{directory} leads to a directory that does not belong to the engine's user",
                hint="name the real directory, or give it to the engine's user",
                path=str(directory),
            )
        yield here
    finally:
        os.close(descriptor)


def remove_file(path: Path, uid: int) -> bool:
    """Remove a file or link of an engine that belongs to the user ``uid``; ``False`` if there was none."""
    with standing_on(path.parent, uid) as here:
        name = here / path.name
        if not (name.is_symlink() or name.exists()):
            return False
        name.unlink()
        return True


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other modelvault processes out of an engine's directory, without leaving a lock file in it.

    Raises ``VaultLocked``. NFS and some FUSE file systems cannot lock a directory; there the lock is left out.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise VaultLocked(
                f"{directory} is in use by another modelvault process",
                hint="wait for it to end, or end it, and run the same command again",
                path=str(directory),
            ) from error
        except OSError as error:
            if error.errno not in {errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK}:
                raise
        yield
    finally:
        os.close(descriptor)


def sweep(directory: Path, *, below: bool = False) -> None:
    """Remove what a killed install left in ``directory``, and ``below`` it if asked.

    Only under ``locked``: nobody else's staging may be there.
    """
    if not directory.is_dir():
        return
    pattern = f"{_PREFIX}*{_SUFFIX}"
    for entry in list(directory.rglob(pattern) if below else directory.glob(pattern)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def staging_name(directory: Path) -> Path:
    """Name a fresh temporary file or directory in ``directory``; ``sweep`` finds it."""
    return directory / f"{_PREFIX}{secrets.token_hex(6)}{_SUFFIX}"


@contextlib.contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """Name a directory to fill in ``directory``; what is still there when the block fails is removed."""
    path = staging_name(directory)
    try:
        yield path
    except BaseException:
        if path.is_dir():
            shutil.rmtree(path)
        raise


def hash_file(path: Path, *, on_bytes: Callable[[int], object] | None = None) -> Digest:
    """Compute the SHA-256 of a regular file (links are followed). Raises ``OSError``, ``IsADirectoryError`` among them."""
    # O_NONBLOCK: a FIFO in an engine's directory must not stop us before fstat can tell.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as reader:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EEXIST, "not a regular file", str(path))
        state = hashlib.sha256()
        buffer = memoryview(bytearray(4 * fsio.BLOCK))
        while count := reader.readinto(buffer):
            state.update(buffer[:count])
            if on_bytes is not None:
                on_bytes(count)
    return Digest.sha256(state.hexdigest())


def in_the_way(path: Path, detail: str) -> EngineRefused:
    """Build the error for a file that is not what its name promises and that we did not put there."""
    return EngineRefused(
        f"{path} is in the way: {detail}",
        hint="it was not placed by modelvault: move it away, then run the same command again",
        path=str(path),
    )


_RENAME_EXCHANGE = 2  # linux/fs.h; renameat2(2), Linux 3.15, on ext4, XFS, btrfs, tmpfs and others


def exchange(new: Path, old: Path) -> None:
    """Swap two directories in one step, so that nobody ever finds neither; in two steps where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd = -100  # AT_FDCWD
    arguments = (at_cwd, os.fsencode(new.absolute()), at_cwd, os.fsencode(old.absolute()), _RENAME_EXCHANGE)
    if renameat2 is not None and renameat2(*arguments) == 0:
        return
    aside = staging_name(old.parent)
    old.rename(aside)
    new.rename(old)
