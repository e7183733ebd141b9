"""Care for an engine's directory: refusals in words, a lock, staging names, clearing up, swapping."""

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from modelvault import filesystem
from modelvault.engines.base import Owner
from modelvault.errors import EngineRefused, VaultLocked

_PREFIX, _SUFFIX = ".modelvault-", ".tmp"
_BY_DESCRIPTOR = "/proc/self/fd/"


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turn what the system says about ``path`` into errors of ours: ``NoSpace`` for a full disk, else ``EngineRefused``."""
    try:
        with filesystem.no_space_at(path):
            yield
    except OSError as error:
        where = error.filename
        if not isinstance(where, str) or where.startswith(_BY_DESCRIPTOR):
            where = path
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
    to that user itself; for root, the links have to be root's own. Raises ``EngineRefused``.
    """
    if os.geteuid() != 0 or os.uname().sysname != "Linux":
        yield directory
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        here = Path(f"{_BY_DESCRIPTOR}{descriptor}")
        if here.readlink() != directory.absolute():
            links = [path.lstat().st_uid for path in (directory, *directory.parents) if path.is_symlink()]
            trusted = os.fstat(descriptor).st_uid == uid if uid else bool(links) and not any(links)
        else:
            trusted = True
        if not trusted:
            raise EngineRefused(
                f"{directory} leads to a directory that does not belong to the engine's user",
                hint="name the real directory, or give it to the engine's user",
                path=str(directory),
            )
        yield here
    finally:
        os.close(descriptor)


def keeper(directory: Path, relative: str) -> Owner:
    """Tell for whom root works on a file of an engine's directory: the directory's owner, else whom ``--owner`` named.

    What a link leads to never decides: it could be anybody's.
    """
    status = directory.stat()
    if status.st_uid == 0:
        status = (directory / Path(relative).parts[0]).lstat()
    return Owner(status.st_uid, status.st_gid)


def remove_file(directory: Path, relative: str) -> bool:
    """Remove a file or link of an engine's directory; ``False`` if there was none. Raises as ``standing_on`` does."""
    path = directory / relative
    if not path.parent.is_dir():
        return False
    with standing_on(path.parent, keeper(directory, relative).uid) as here:
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
