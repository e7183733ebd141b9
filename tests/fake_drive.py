"""A stick that is smaller than it claims, as a file system in user space: it takes every write, and forgets some.

Usage: fake_drive.py MOUNT CAPACITY drop|wrap. What is written beyond CAPACITY bytes is dropped, or ends up over what came first.
"""

import errno
import stat
import sys
from collections.abc import Sequence
from typing import Any

import mfusepy

BLOCK = 4096
CLAIMED = 1 << 20  # blocks: 4 GiB


class FakeDrive(mfusepy.Operations):  # type: ignore[misc]  # mfusepy's base is untyped
    """Directories and files by path; files are lists of block numbers, given out one after the other and never again."""

    use_ns = True

    def __init__(self, capacity: int, *, wraps: bool) -> None:
        self.blocks = capacity // BLOCK
        self.medium = bytearray(self.blocks * BLOCK)
        self.wraps = wraps
        self.given = 0
        self.directories = {"/"}
        self.files: dict[str, tuple[list[int], int]] = {}

    def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
        if path in self.directories:
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path in self.files:
            return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": self.files[path][1]}
        raise mfusepy.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, fh: Any) -> Sequence[str]:
        inside = path.rstrip("/") + "/"
        names = (other[len(inside) :] for other in [*self.directories, *self.files] if other.startswith(inside))
        return [".", "..", *(name for name in names if name and "/" not in name)]

    def statfs(self, path: str) -> dict[str, int]:
        free = CLAIMED - self.given
        return {"f_bsize": BLOCK, "f_frsize": BLOCK, "f_blocks": CLAIMED, "f_bfree": free, "f_bavail": free}

    def mkdir(self, path: str, mode: int) -> int:
        self.directories.add(path)
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self.files[path] = ([], 0)
        return 0

    def unlink(self, path: str) -> int:
        del self.files[path]
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        self.files[new] = self.files.pop(old)
        return 0

    def truncate(self, path: str, length: int, fh: Any = None) -> int:
        blocks, _ = self.files[path]
        self.files[path] = (blocks[: -(-length // BLOCK)], length)
        return 0

    def read(self, path: str, size: int, offset: int, fh: Any) -> bytes:
        blocks, length = self.files[path]
        first = offset // BLOCK
        data = b"".join(self.block(number) for number in blocks[first : (offset + size) // BLOCK + 1])
        return data[offset - first * BLOCK :][: min(size, max(length - offset, 0))]

    def write(self, path: str, data: bytes, offset: int, fh: Any) -> int:
        blocks, length = self.files[path]
        while len(blocks) * BLOCK < offset + len(data):
            blocks.append(self.given)
            self.given += 1
        at = 0
        while at < len(data):
            within = (offset + at) % BLOCK
            part = data[at : at + BLOCK - within]
            self.put(blocks[(offset + at) // BLOCK], within, part)
            at += len(part)
        self.files[path] = (blocks, max(length, offset + len(data)))
        return len(data)

    def block(self, number: int) -> bytes:
        if number >= self.blocks and not self.wraps:
            return bytes(BLOCK)
        start = number % self.blocks * BLOCK
        return bytes(self.medium[start : start + BLOCK])

    def put(self, number: int, within: int, part: bytes) -> None:
        if number < self.blocks or self.wraps:
            start = number % self.blocks * BLOCK + within
            self.medium[start : start + len(part)] = part


if __name__ == "__main__":
    mount, capacity, mode = sys.argv[1:]
    mfusepy.FUSE(FakeDrive(int(capacity), wraps=mode == "wrap"), mount, foreground=True, nothreads=True)
