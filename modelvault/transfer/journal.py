r"""The journal of a partial file: which pieces are on disk, with a checksum of each.

One line of ASCII per fact, each with a check of its own, so that a torn or foreign line is skipped and not believed::

    modelvault-journal 2 <size> <piece> <check>\n         first line: what the journal is about, in bytes
    <index> <8 hex: CRC-32 of the piece> <check>\n      a piece that was written; the last line for an index counts

``check`` is the first 16 hex digits of the SHA-256 of the line before it. The journal is not synced: what it claims is compared
with the data on resume, so the worst that a power cut does is to have pieces fetched again.

The checksum only says where a file changed on disk, so that not all of it is fetched again. Whether the file is the one that was
promised is never its matter: the SHA-256 of the whole decides that. A SHA-256 of each piece beside it would hash every byte twice.
"""

import hashlib
import os
import re
from pathlib import Path

from modelvault.transfer.geometry import piece_count, piece_size

_CHECK = 16
_PIECE = re.compile(r"([0-9]{1,9}) ([0-9a-f]{8})")


def _seal(text: str) -> bytes:
    return f"{text} {hashlib.sha256(text.encode()).hexdigest()[:_CHECK]}\n".encode()


def _unseal(line: bytes) -> str | None:
    text, space, check = line.rpartition(b" ")
    if not space or hashlib.sha256(text).hexdigest()[:_CHECK].encode() != check:
        return None
    return text.decode("ascii", "replace")


def encode_header(size: int) -> bytes:
    """Encode the first line of the journal of a file of ``size`` bytes."""
    return _seal(f"modelvault-journal 2 {size} {piece_size(size)}")


def encode_piece(index: int, checksum: int) -> bytes:
    """Encode the line that says: piece ``index`` was written and has this CRC-32."""
    return _seal(f"{index} {checksum:08x}")


def decode(data: bytes, size: int) -> dict[int, int]:
    """Read a journal: the CRC-32 of each piece it claims; empty if it is about another file or another cut."""
    lines = data.split(b"\n")
    if lines[0] + b"\n" != encode_header(size):
        return {}
    claims: dict[int, int] = {}
    count = piece_count(size)
    for line in lines[1:]:
        match = _PIECE.fullmatch(_unseal(line) or "")
        if match and int(match[1]) < count:
            claims[int(match[1])] = int(match[2], 16)
    return claims


def read_claims(path: Path, size: int) -> dict[int, int]:
    """Read the journal at ``path``: what ``decode`` gives, and nothing if there is none."""
    try:
        return decode(path.read_bytes(), size)
    except FileNotFoundError:
        return {}


class Journal:
    """The journal file of one partial, open for appending."""

    def __init__(self, path: Path, size: int, *, fresh: bool) -> None:
        """Open it; ``fresh`` begins anew, whatever there was."""
        self._size = size
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if fresh:
                self.clear()
            else:
                self._append(b"\n")  # the last line may be torn: the next one must not be glued to it
        except BaseException:
            self.close()
            raise

    def add(self, index: int, checksum: int) -> None:
        """Append one piece. A line is one write, so lines of several threads do not mix."""
        self._append(encode_piece(index, checksum))

    def clear(self) -> None:
        """Forget all pieces."""
        os.ftruncate(self._descriptor, 0)
        self._append(encode_header(self._size))

    def _append(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
