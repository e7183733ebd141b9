"""The whole-file digest, computed along the contiguous frontier while later pieces are still arriving."""

import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from modelvault.artifact import Algorithm, Digest
from modelvault.errors import DigestMismatch, ModelvaultError
from modelvault.fsio import BLOCK, start_writeback, sync_data
from modelvault.progress import Progress
from modelvault.transfer.partial import Partial

_ROUNDS = 3  # how often a file may change on disk while we work on it before we call the disk broken
_WRITEBACK = 32 << 20  # bytes handed to the disk at a time, so that the sync at the end has little left to do


class _Hashes:
    """The SHA-256, and beside it git's blob hash where that is what was promised."""

    def __init__(self, size: int, promised: Digest | None) -> None:
        self._sha256 = hashlib.sha256()
        self._git: Any = None
        if promised is not None and promised.algorithm is Algorithm.GIT_SHA1:
            # Git's name for the content, not a defence: the SHA-256 beside it is what the vault keeps.
            self._git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, data: memoryview) -> None:
        self._sha256.update(data)
        if self._git is not None:
            self._git.update(data)

    def copy(self) -> "_Hashes":
        twin = object.__new__(_Hashes)
        twin._sha256 = self._sha256.copy()
        twin._git = self._git and self._git.copy()
        return twin

    def sha256(self) -> Digest:
        return Digest.sha256(self._sha256.hexdigest())

    def promised(self) -> Digest:
        """Give the digest in the algorithm of the promise."""
        return self.sha256() if self._git is None else Digest(Algorithm.GIT_SHA1, self._git.hexdigest())


class Frontier:
    """Follows one file from its first byte to its last, as its pieces come to be on disk."""

    def __init__(self, partial: Partial, progress: Progress, requeued: Callable[[], None]) -> None:
        """Prepare. ``progress`` is told the ranges that changed on disk; ``requeued`` wakes the workers for them."""
        self._partial = partial
        self._progress = progress
        self._requeued = requeued
        self._buffer = memoryview(bytearray(BLOCK))

    def run(self) -> Digest | None:
        """Return the SHA-256 of the verified, synced file; ``None`` if the transfer was stopped.

        Raises ``DigestMismatch`` where the bytes are those that the source sent, but not those that it promised.
        """
        promised = self._partial.wanted.digest
        for _ in range(_ROUNDS):
            hashes = self._pass()
            if hashes is None:
                return None
            actual = hashes.promised()
            if promised is None or actual == promised:
                sync_data(self._partial.descriptor)
                return hashes.sha256()
            if not self._changed_pieces():
                self._refuse(promised, actual)
        raise ModelvaultError(
            f"{self._partial.wanted.path}: {self._partial.data} keeps changing while it is written",
            hint="look for another program that writes there, or for a failing disk or memory",
            path=self._partial.wanted.path,
        )

    def _pass(self) -> _Hashes | None:
        partial = self._partial
        hashes = _Hashes(partial.size, partial.wanted.digest)
        index, written = 0, 0
        while index < partial.count:
            if not partial.wait_for(index):
                return None
            advanced = self._advance(index, hashes)
            if advanced is None:
                self._lose([index])
                continue
            hashes = advanced
            index += 1
            if index * partial.piece - written >= _WRITEBACK:
                start_writeback(partial.descriptor, written, index * partial.piece - written)
                written = index * partial.piece
        return hashes

    def _advance(self, index: int, hashes: _Hashes) -> _Hashes | None:
        """Hash one piece; ``None`` if it is from an earlier run and no longer what that run wrote."""
        proof = self._partial.proof_of(index)
        if proof is None:
            self._read(index, hashes.update)
            return hashes
        advanced = hashes.copy()
        if self._checksum(index, advanced.update) != proof:
            return None
        self._partial.proven(index)
        return advanced

    def _read(self, index: int, update: Callable[[memoryview], object]) -> None:
        """Feed a piece to ``update`` in blocks; a file that someone cut short is fed as far as it goes."""
        offset = index * self._partial.piece
        stop = offset + self._partial.length(index)
        while offset < stop:
            length = os.preadv(self._partial.descriptor, [self._buffer[: stop - offset]], offset)
            if length == 0:
                return
            update(self._buffer[:length])
            offset += length

    def _checksum(self, index: int, update: Callable[[memoryview], object] | None = None) -> int:
        """Give the CRC-32 of a piece as it is on disk, feeding it to ``update`` on the way."""
        checksum = 0

        def both(data: memoryview) -> None:
            nonlocal checksum
            checksum = zlib.crc32(data, checksum)
            if update is not None:
                update(data)

        self._read(index, both)
        return checksum

    def _changed_pieces(self) -> bool:
        """Compare all pieces with what was written; have those that differ fetched again."""
        partial = self._partial
        changed = [index for index in range(partial.count) if self._checksum(index) != partial.checksum_of(index)]
        self._lose(changed)
        return bool(changed)

    def _lose(self, pieces: Sequence[int]) -> None:
        partial = self._partial
        for index in pieces:
            start = index * partial.piece
            self._progress.log(
                f"{partial.wanted.path}: bytes {start}-{start + partial.length(index) - 1} changed on disk, "
                "fetching them again"
            )
            partial.lost(index)
        if pieces:
            self._requeued()

    def _refuse(self, promised: Digest, actual: Digest) -> NoReturn:
        partial = self._partial
        partial.forget()
        raise DigestMismatch(
            f"{partial.wanted.path}: the source promised {promised} and sent {actual}",
            hint="run the same command again: the file is fetched anew; if it happens again, the source is damaged",
            path=partial.wanted.path,
            expected=str(promised),
            actual=str(actual),
        )
