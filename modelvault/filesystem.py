"""What a file system has room for, what kind it is, and the error for one that is full."""

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from modelvault.errors import NoSpace

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


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
