"""Reading a finished bundle back from the medium: sticks of fake capacity, bad cables and dying drives are found here."""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from modelvault.bundle import drive
from modelvault.bundle.index import volume_name
from modelvault.bundle.table import Frame, FrameTable
from modelvault.errors import DigestMismatch, ModelvaultError
from modelvault.progress import Progress


class DriveLostData(DigestMismatch):
    """A drive gives back other bytes than were written to it."""

    slug = "drive-lost-data"


def read_back(
    directory: Path, tables: Sequence[FrameTable], documents: Mapping[str, bytes], progress: Progress
) -> dict[str, str]:
    """Compare everything with what was written and give the SHA-256 in hex of each file, by name.

    Raises ``DriveLostData`` that names the file, and in a volume the frame.
    """
    sums = {}
    total = sum(table.size for table in tables)
    with progress.task("reading back", total, overall=True) as task, ThreadPoolExecutor(1) as pool:
        for table in tables:
            name = volume_name(table.volume)
            comparison = _Comparison(directory / name, table.frames)
            whole = hashlib.sha256()
            with contextlib.closing(_pieces(directory / name)) as pieces:
                for piece in pieces:
                    hashed = pool.submit(whole.update, piece)
                    try:
                        comparison.feed(piece)
                    finally:
                        hashed.result()
                    task.advance(len(piece))
            comparison.finish()
            sums[name] = whole.hexdigest()
    for name, data in documents.items():
        _compare(directory / name, data)
        sums[name] = hashlib.sha256(data).hexdigest()
    return sums


def _compare(path: Path, data: bytes) -> None:
    offset, view = 0, memoryview(data)
    with contextlib.closing(_pieces(path)) as pieces:
        for piece in pieces:
            if piece != view[offset : offset + len(piece)]:
                raise lost(path, "it differs from what was written")
            offset += len(piece)
    if offset < len(data):
        raise lost(path, "it is cut off")


def lost(path: Path, what: str) -> DriveLostData:
    """Build the error for a file that the drive did not keep."""
    return DriveLostData(
        f"the drive lost data: {path}: {what}",
        hint="do not use this drive: it may be failing, or smaller than it claims; write the bundle to another one",
        path=str(path),
    )


def _pieces(path: Path) -> drive.Pieces:
    try:
        with contextlib.closing(drive.read_uncached(path)) as pieces:
            yield from pieces
    except OSError as error:
        raise lost(path, (error.strerror or str(error)).lower()) from error
    except ModelvaultError as error:
        raise lost(path, error.message) from error


@dataclass
class _Comparison:
    """Splits the pieces of a file into frames and compares the digest of each."""

    path: Path
    frames: Sequence[Frame]
    _number: int = 0
    _left: int = 0
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self._left = self.frames[0].stored_length

    def feed(self, piece: memoryview) -> None:
        while piece:
            if self._number == len(self.frames):
                raise lost(self.path, "it is longer than what was written")
            part = piece[: self._left]
            self._digest.update(part)
            self._left -= len(part)
            piece = piece[len(part) :]
            if not self._left:
                self._next()

    def _next(self) -> None:
        if self._digest.hexdigest() != self.frames[self._number].stored_sha256:
            raise lost(self.path, f"frame {self._number + 1} differs from what was written")
        self._number += 1
        self._digest = hashlib.sha256()
        if self._number < len(self.frames):
            self._left = self.frames[self._number].stored_length

    def finish(self) -> None:
        if self._number < len(self.frames):
            raise lost(self.path, f"it ends within frame {self._number + 1}")
