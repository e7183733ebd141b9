"""The bytes of a volume before compression: an ordinary tar, and how it is cut into frames. Pure.

Everything here is a function of the member list alone. The reader uses that: it never parses a tar, it computes what every
header must be and compares.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modelvault.artifact import Digest
from modelvault.bundle.index import Member

BLOCK = 512
"""A tar block, in bytes: headers are one, data is padded to whole ones."""
END = bytes(2 * BLOCK)
"""Two zero blocks end an archive."""
FRAME = 16 << 20
"""The most content that a frame may have, in bytes."""
OWN_FRAMES = 1 << 20
"""Member data of this many bytes or more lies in frames of its own."""

_NAME_FIELD = 100


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that follow from the index: headers and padding."""

    data: bytes

    @property
    def length(self) -> int:
        """How many bytes of the frame's content these are."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a member's data: ``length`` bytes from ``offset`` in the blob ``member.digest``."""

    member: Member
    offset: int
    length: int

    @property
    def digest(self) -> Digest:
        """The blob that the bytes are of."""
        return self.member.digest


@dataclass(frozen=True, slots=True)
class FramePlan:
    """The content of one frame, in order."""

    parts: tuple[Literal | Piece, ...]
    length: int

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The parts that are data."""
        return tuple(part for part in self.parts if isinstance(part, Piece))

    @property
    def own(self) -> Piece | None:
        """The one piece of a frame that holds nothing else, or ``None``."""
        only = self.parts[0]
        return only if len(self.parts) == 1 and isinstance(only, Piece) else None

    def holds(self, blobs: "frozenset[Digest] | set[Digest]") -> bool:
        """Tell whether the frame has data of any of these blobs."""
        return any(isinstance(part, Piece) and part.member.digest in blobs for part in self.parts)


def beside(plans: Sequence[FramePlan], position: int, *, bare: bool) -> Iterator[int]:
    """Name the frames right before and after one that hold no data (``bare``), or that do."""
    for near in (position - 1, position + 1):
        if 0 <= near < len(plans) and bare is not bool(plans[near].pieces):
            yield near


def padding(size: int) -> int:
    """Give the zero bytes that follow ``size`` bytes of data."""
    return -size % BLOCK


def member_length(size: int) -> int:
    """Give the bytes of tar that a member with ``size`` bytes of data takes."""
    return BLOCK + size + padding(size)


def volume_length(members: Sequence[Member]) -> int:
    """Give the bytes of tar of a whole volume."""
    return sum(member_length(member.size) for member in members) + len(END)


def header(path: str, size: int) -> bytes:
    """Write the ustar header of a regular file, mode 0444, owner 0:0 without names, time 0.

    POSIX.1-1988 ustar; ``path`` is ASCII of at most 100 bytes and ``size`` fits eleven octal digits.
    """
    name = path.encode("ascii")
    if len(name) > _NAME_FIELD or not 0 <= size < 8**11:
        raise ValueError(f"no ustar header for {path!r} of {size} bytes")
    fields = (
        name.ljust(_NAME_FIELD, b"\0"),
        b"0000444\0",
        b"0000000\0",
        b"0000000\0",
        b"%011o\0" % size,
        b"00000000000\0",
        b" " * 8,
        b"0",
        bytes(100),
        b"ustar\0",
        b"00",
        bytes(64),
        b"0000000\0",
        b"0000000\0",
    )
    block = b"".join(fields).ljust(BLOCK, b"\0")
    checksum = sum(block)
    return block[:148] + b"%06o\0 " % checksum + block[156:]


def frames(members: Sequence[Member]) -> Iterator[FramePlan]:
    """Cut a volume's tar into frames of at most ``FRAME`` bytes.

    A header, a small member (with its header and padding) and the padding of a large one are units that are never cut; units
    share a frame until the next would not fit. Data of ``OWN_FRAMES`` bytes or more closes the frame before it and lies in
    frames that hold nothing else.
    """
    shared = _Shared()
    for member in members:
        head = Literal(header(member.path, member.size))
        tail = padding(member.size)
        if member.size < OWN_FRAMES:
            unit: list[Literal | Piece] = [head]
            if member.size:
                unit.append(Piece(member, member.offset, member.size))
            if tail:
                unit.append(Literal(bytes(tail)))
            yield from shared.add(unit)
            continue
        yield from shared.add([head])
        yield from shared.close()
        for start in range(0, member.size, FRAME):
            length = min(FRAME, member.size - start)
            yield FramePlan((Piece(member, member.offset + start, length),), length)
        if tail:
            yield from shared.add([Literal(bytes(tail))])
    yield from shared.add([Literal(END)])
    yield from shared.close()


class _Shared:
    """The frame that headers and small members are being gathered in."""

    def __init__(self) -> None:
        self._parts: list[Literal | Piece] = []
        self._length = 0

    def add(self, unit: list[Literal | Piece]) -> Iterator[FramePlan]:
        length = sum(part.length for part in unit)
        if self._length + length > FRAME:
            yield from self.close()
        self._parts += unit
        self._length += length

    def close(self) -> Iterator[FramePlan]:
        if self._parts:
            yield FramePlan(tuple(self._parts), self._length)
        self._parts = []
        self._length = 0
