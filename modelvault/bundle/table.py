"""The frame table of a volume, ``volume-NNNN.json``: pure encode and decode.

The table says where each frame lies in the volume, and its digests as stored and decompressed. How many frames there are and
how long the content of each is follows from the index; the table must agree.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from modelvault.artifact import Digest
from modelvault.bundle.format import canonical_json
from modelvault.bundle.index import MAX_SEQUENCE, refused
from modelvault.bundle.layout import FramePlan

FORMAT = "modelvault-frames/1"
_HEX = re.compile(r"[0-9a-f]{64}")
_ROW = 256  # bytes of JSON that a row takes at most: two digests, three numbers
_REST = 4096


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a volume. Offsets and lengths are in bytes, digests SHA-256 in hex."""

    offset: int
    stored_length: int
    stored_sha256: str
    length: int
    sha256: str

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return self.offset + self.stored_length


@dataclass(frozen=True, slots=True)
class FrameTable:
    """The frames of one volume. ``index`` is the SHA-256 of the ``bundle.json`` that the volume belongs to."""

    index: Digest
    volume: int
    frames: tuple[Frame, ...]

    @property
    def size(self) -> int:
        """The bytes of the volume's file."""
        return self.frames[-1].end if self.frames else 0


def stored_limit(length: int) -> int:
    """Give the most bytes that a frame of ``length`` bytes of content may take (more than zstd's own bound)."""
    return length + (length >> 7) + 1024


def table_limit(frames: int) -> int:
    """Give the most bytes that the table of a volume with this many frames may have."""
    return _REST + _ROW * frames


_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQUENCE)]


class _WireTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    index: str
    volume: _Count
    size: _Count
    frames: list[tuple[_Count, _Count, str, _Count, str]]


def encode_table(table: FrameTable) -> bytes:
    """Write ``volume-NNNN.json``."""
    rows = [
        (frame.offset, frame.stored_length, frame.stored_sha256, frame.length, frame.sha256) for frame in table.frames
    ]
    return canonical_json(_WireTable(FORMAT, str(table.index), table.volume, table.size, rows))


def decode_table(data: bytes, index: Digest, volume: int, plans: Sequence[FramePlan]) -> FrameTable:
    """Read a frame table and hold it against what the index asks for.

    Raises ``BundleRefused`` if it is malformed, belongs to another index or volume, has other frames than the index implies,
    or frames that do not follow one another without gap.
    """
    what = f"the frame table of volume {volume}"
    try:
        wire = msgspec.json.decode(data, type=_WireTable)
        table = FrameTable(Digest.parse(wire.index), wire.volume, tuple(Frame(*row) for row in wire.frames))
        if wire.format != FORMAT:
            raise ValueError(f"its format is {wire.format[:80]!r}")
        if (table.index, table.volume) != (index, volume):
            raise ValueError(f"it belongs to volume {table.volume} of the bundle with index {table.index}")
        _check_frames(table, plans)
        if encode_table(table) != data:
            raise ValueError("it is not in canonical form")
    except RecursionError as error:
        raise refused(f"{what} is nested too deeply") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise refused(f"{what} is not valid: {error}") from error
    return table


def _check_frames(table: FrameTable, plans: Sequence[FramePlan]) -> None:
    if len(table.frames) != len(plans):
        raise ValueError(f"it lists {len(table.frames)} frames instead of {len(plans)}")
    position = 0
    for number, (frame, plan) in enumerate(zip(table.frames, plans, strict=True), 1):
        if frame.offset != position:
            raise ValueError(f"frame {number} does not begin where the one before it ends")
        if frame.length != plan.length:
            raise ValueError(f"frame {number} has {frame.length} bytes of content instead of {plan.length}")
        if not 0 < frame.stored_length <= stored_limit(frame.length):
            raise ValueError(f"frame {number} takes {frame.stored_length} bytes")
        if not _HEX.fullmatch(frame.stored_sha256) or not _HEX.fullmatch(frame.sha256):
            raise ValueError(f"frame {number} has no proper digests")
        position = frame.end
