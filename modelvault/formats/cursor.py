"""Reading forward through a GGUF header, with every length held against what is left before anything is allocated."""

import hashlib
import struct
from typing import NoReturn, Protocol

from modelvault.errors import InvalidModelFile

MAX_HEADER = 128 << 20
"""Bytes; the largest real headers (vocabularies of 262k tokens with merges) have some 20 MiB."""
MAX_TEXT = 16 << 20
"""Bytes of one string, and of all strings outside arrays together: those are kept in memory."""

_CHUNK = 1 << 20
_UINT64 = struct.Struct("<Q")


class Readable(Protocol):
    """Where the header comes from: a file, or the first bytes of one that lies elsewhere."""

    def read(self, size: int, /) -> bytes | None:
        """Give up to ``size`` bytes; none at the end."""
        ...


class Cursor:
    """Reads forward through the header, never past the end of the file or the cap on headers.

    All methods raise ``InvalidModelFile``, with ``gguf-truncated`` where the file ends too early; ``what`` is what was being read.
    """

    def __init__(self, reader: Readable, size: int, name: str) -> None:
        """Start at the first byte; ``size`` is that of the whole file in bytes, ``name`` what errors call it."""
        self._reader = reader
        self._size = size
        self._buffer = b""
        self._start = 0  # offset in the file of the buffer's first byte
        self._at = 0
        self.name = name

    @property
    def offset(self) -> int:
        """Where the next byte lies in the file."""
        return self._start + self._at

    @property
    def size(self) -> int:
        """The size of the whole file in bytes."""
        return self._size

    @property
    def left(self) -> int:
        """How many bytes follow."""
        return self._size - self.offset

    def fail(self, rule: str, detail: str, *, hint: str | None = None) -> NoReturn:
        """Raise ``InvalidModelFile`` for this file."""
        raise InvalidModelFile(self.name, rule, detail, hint=hint)

    def require(self, length: int, what: str) -> None:
        """Refuse early what the rest of the file cannot hold."""
        if length > self.left:
            self.fail(
                "gguf-truncated",
                f"the file ends at {self._size:,} bytes, within {what}",
                hint="the file is incomplete: download it again",
            )
        if self.offset + length > MAX_HEADER:
            self.fail("gguf-header-size", f"the header is larger than {MAX_HEADER:,} bytes")

    def _fill(self, length: int, what: str) -> None:
        """Have at least ``length`` bytes in the buffer."""
        missing = length - (len(self._buffer) - self._at)
        if missing <= 0:
            return
        self.require(length, what)
        pieces = [self._buffer[self._at :]]
        self._start, self._at = self.offset, 0
        while missing > 0:
            piece = self._reader.read(max(missing, _CHUNK))
            if not piece:
                self.fail("gguf-truncated", f"the file ends within {what}", hint="it is shorter than its listed size")
            pieces.append(piece)
            missing -= len(piece)
        self._buffer = b"".join(pieces)

    def take(self, length: int, what: str) -> bytes:
        """Read exactly ``length`` bytes."""
        self._fill(length, what)
        taken = self._buffer[self._at : self._at + length]
        self._at += length
        return taken

    def number(self, form: struct.Struct, what: str) -> int | float:
        """Read one number."""
        self._fill(form.size, what)
        (value,) = form.unpack_from(self._buffer, self._at)
        self._at += form.size
        return value  # type: ignore[no-any-return]  # struct cannot say

    def count(self, what: str) -> int:
        """Read a 64-bit count, length or offset."""
        return int(self.number(_UINT64, what))

    def text(self, limit: int, what: str) -> bytes:
        """Read one string, a 64-bit length and its bytes, of which there may be ``limit``."""
        length = self.count(f"the length of {what}")
        if length > limit:
            # Where the end of the file alone refutes it, that is the better explanation.
            self.require(length, what)
            self.fail("gguf-string-length", f"{what} has {length:,} bytes, more than the {limit:,} that are allowed")
        return self.take(length, what)

    def skip(self, length: int, what: str) -> str:
        """Pass over bytes; gives their SHA-256 as hex."""
        self.require(length, what)
        digest = hashlib.sha256()
        while length:
            piece = self.take(min(length, _CHUNK), what)
            digest.update(piece)
            length -= len(piece)
        return digest.hexdigest()

    def skip_strings(self, count: int, what: str) -> str:
        """Pass over ``count`` strings, each a 64-bit length and its bytes; gives the SHA-256 of it all as hex."""
        self.require(8 * count, what)
        digest = hashlib.sha256()
        unpack = _UINT64.unpack_from
        while count:
            self._fill(8, what)
            buffer, first, end = self._buffer, self._at, len(self._buffer)
            at, length = first, 0
            # The innermost loop of the whole package: local names only, one comparison per string.
            while count and at + 8 <= end:
                (length,) = unpack(buffer, at)
                if at + 8 + length > end:
                    break
                at += 8 + length
                count -= 1
            digest.update(memoryview(buffer)[first:at])
            self._at = at
            if count and at + 8 <= end:
                if length > MAX_TEXT:
                    self.require(8 + length, what)
                    self.fail("gguf-string-length", f"a string of {what} has {length:,} bytes")
                self._fill(8 + length, what)
        return digest.hexdigest()
