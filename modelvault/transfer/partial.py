"""A file under way: ``partial/<key>/{data,journal}``, and which of its pieces are missing, asked for or here."""

import os
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from modelvault.filesystem import preallocate
from modelvault.fsio import write_all
from modelvault.transfer.geometry import piece_count, piece_size, span_pieces
from modelvault.transfer.journal import Journal, read_claims
from modelvault.transfer.values import Wanted

_MISSING, _BUSY, _HERE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file that one request covers, in bytes; begins and ends with a piece.

    ``whole``: the source ignores ranges, so this is everything, and every attempt begins at the start.
    """

    start: int
    stop: int
    whole: bool = False


class Partial:
    """The state of one file. All methods may be called from any thread.

    ``enter`` and ``leave`` count the users of its descriptors: they are open only while the file is worked on (a model may have
    more files than a process may open), and until the last user left, so that a thread that wakes late from the network never
    writes into a file that meanwhile got its number.
    """

    def __init__(self, directory: Path, wanted: Wanted) -> None:
        """Read what earlier runs left in ``directory``, which exists and is locked by us."""
        self.directory = directory
        self.wanted = wanted
        self.size = wanted.size
        self.piece = piece_size(wanted.size)
        self.count = piece_count(wanted.size)
        self.data = directory / "data"
        self.received = 0  # bytes that came over the network in this run, those that were not needed included
        self.sequential = False  # the source ignores ranges: one stream from the start
        self.descriptor = -1
        self._journal: Journal | None = None
        self._users = 0
        self._changed = threading.Condition()
        self._state = bytearray(self.count)
        self._spans = 0
        self._stopped = False
        self._sums = read_claims(directory / "journal", wanted.size) if self.data.exists() else {}
        self._unproven = set(self._sums)  # what an earlier run wrote: believed after it was read back
        for index in self._sums:
            self._state[index] = _HERE
        self._missing = self.size - sum(self.length(index) for index in self._sums)
        self.reused = self.size - self._missing

    def enter(self) -> None:
        """Use the file; the first user opens it."""
        with self._changed:
            if self._users == 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self.descriptor = os.open(self.data, flags, 0o600)
                try:
                    self._journal = Journal(self.directory / "journal", self.size, fresh=not self._sums)
                except BaseException:
                    os.close(self.descriptor)
                    raise
            self._users += 1

    def leave(self) -> None:
        """Stop using the file; the last user closes it."""
        with self._changed:
            self._users -= 1
            if self._users == 0 and self._journal is not None:
                self._journal.close()
                os.close(self.descriptor)

    def __enter__(self) -> Self:
        """Use the file for a ``with`` block."""
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop using it."""
        self.leave()

    def length(self, index: int) -> int:
        """Give the bytes of a piece; the last one may be shorter."""
        return min(self.piece, self.size - index * self.piece)

    def unallocated(self) -> int:
        """Tell how many bytes the file system has yet to find for this file."""
        if not self.data.exists():
            return self.size
        return max(self.size - self.data.stat().st_blocks * 512, 0)

    def allocate(self) -> None:
        """Take the room for the whole file now. ``OSError`` on a full disk."""
        if os.fstat(self.descriptor).st_size != self.size or self.unallocated():
            os.ftruncate(self.descriptor, self.size)
            preallocate(self.descriptor, self.size)

    # -- who fetches what

    def claim(self, connections: int) -> Span | None:
        """Take the next missing span, or nothing if all is here or asked for. ``release`` it in any case."""
        with self._changed:
            first = self._state.find(_MISSING)
            if first < 0 or self._stopped or (self.sequential and self._spans):
                return None
            if self.sequential:
                end, self._missing = self.count, 0
                self._state = self._state.replace(bytes([_MISSING]), bytes([_BUSY]))
                first = 0
            else:
                limit = min(first + span_pieces(self._missing, self.piece, connections), self.count)
                end = first
                while end < limit and self._state[end] == _MISSING:
                    self._state[end] = _BUSY
                    self._missing -= self.length(end)
                    end += 1
            self._spans += 1
            return Span(first * self.piece, min(end * self.piece, self.size), whole=self.sequential)

    def count_came(self, amount: int, *, nearby: bool) -> None:
        """Count bytes that came: over the network, or from ``nearby`` on this machine."""
        with self._changed:
            if nearby:
                self.reused += amount
            else:
                self.received += amount

    def release(self, span: Span) -> None:
        """Give a span back: what of it did not arrive is missing again."""
        with self._changed:
            for index in range(span.start // self.piece, -(-span.stop // self.piece)):
                if self._state[index] == _BUSY:
                    self._state[index] = _MISSING
                    self._missing += self.length(index)
            self._spans -= 1

    def is_here(self, index: int) -> bool:
        """Tell whether a piece is on disk."""
        return self._state[index] == _HERE

    def finished(self, index: int, checksum: int) -> None:
        """Record a piece that was written, with its CRC-32."""
        self._open_journal().add(index, checksum)
        with self._changed:
            self._sums[index] = checksum
            self._state[index] = _HERE
            self._changed.notify_all()

    def bytes_here(self) -> int:
        """Tell how many bytes are on disk."""
        with self._changed:
            return sum(self.length(index) for index, state in enumerate(self._state) if state == _HERE)

    # -- what is done with the pieces once they are here

    def wait_for(self, index: int) -> bool:
        """Wait until piece ``index`` is here; ``False``: the transfer was stopped."""
        with self._changed:
            while self._state[index] != _HERE and not self._stopped:
                self._changed.wait()
            return not self._stopped

    def proof_of(self, index: int) -> int | None:
        """Give the journal's CRC-32 of a piece that an earlier run wrote and nobody has compared yet."""
        with self._changed:
            return self._sums[index] if index in self._unproven else None

    def proven(self, index: int) -> None:
        """Take note that the piece on disk is the one that was written."""
        with self._changed:
            self._unproven.discard(index)

    def checksum_of(self, index: int) -> int:
        """Give the CRC-32 that a piece had when it was written."""
        return self._sums[index]

    def lost(self, index: int) -> None:
        """Have a piece fetched again: it is not what was written."""
        with self._changed:
            self._unproven.discard(index)
            if self._state[index] == _HERE:
                self._state[index] = _MISSING
                self._missing += self.length(index)

    def forget(self) -> None:
        """Forget all pieces, on disk too: the next run fetches the file anew."""
        self._open_journal().clear()
        os.ftruncate(self.descriptor, 0)  # frees the room
        os.ftruncate(self.descriptor, self.size)  # by which a listing knows what is wanted

    def _open_journal(self) -> Journal:
        if self._journal is None:
            raise RuntimeError("the partial file is not open")
        return self._journal

    def stop(self) -> None:
        """Wake those who wait for pieces; they give up."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


class Sink:
    """Puts a stream of chunks into the pieces they belong to, with a checksum of each; skips what is here already.

    ``progress`` is how far new bytes ever reached: it shows whether an attempt got anywhere that no earlier one did.
    """

    def __init__(self, partial: Partial, position: int) -> None:
        """Begin at ``position``, the start of a piece."""
        self._partial = partial
        self.progress = position
        self._begin(position)

    def restart(self) -> None:
        """Go back to the start of the file, for a source that cannot begin elsewhere."""
        self._begin(0)

    def _begin(self, position: int) -> None:
        self.position = position
        self._checksum = 0
        self._skip = position < self._partial.size and self._partial.is_here(position // self._partial.piece)

    def write(self, chunk: bytes) -> int:
        """Take the next bytes of the stream; returns the bytes of the pieces that this finished."""
        partial = self._partial
        view = memoryview(chunk)
        done = 0
        while view:
            index, within = divmod(self.position, partial.piece)
            length = partial.length(index)
            part = view[: length - within]
            if not self._skip:
                write_all(partial.descriptor, part, self.position)
                self._checksum = zlib.crc32(part, self._checksum)
            self.position += len(part)
            if not self._skip:
                self.progress = max(self.progress, self.position)
            view = view[len(part) :]
            if within + len(part) == length:
                done += self._finish(index, length)
        return done

    def _finish(self, index: int, length: int) -> int:
        skipped = self._skip
        if not skipped:
            self._partial.finished(index, self._checksum)
        self._begin(self.position)
        return 0 if skipped else length
