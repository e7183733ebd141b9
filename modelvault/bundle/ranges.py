"""Which bytes of a blob there are, and which are missing. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Ranges:
    """Ranges of bytes, kept in order and merged where they touch."""

    def __init__(self) -> None:
        """Begin with none."""
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add(self, offset: int, length: int) -> None:
        """Add ``length`` bytes from ``offset`` on."""
        if not length:
            return
        begin, end = offset, offset + length
        first, last = bisect_left(self._ends, begin), bisect_right(self._begins, end)
        if first < last:
            begin, end = min(begin, self._begins[first]), max(end, self._ends[last - 1])
        self._begins[first:last] = [begin]
        self._ends[first:last] = [end]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Give offset and length of what is there."""
        for begin, end in zip(self._begins, self._ends, strict=True):
            yield begin, end - begin

    @property
    def total(self) -> int:
        """How many bytes these are."""
        return sum(self._ends) - sum(self._begins)

    def gaps(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Give offset and length of what is missing within ``length`` bytes from ``offset`` on."""
        end = offset + length
        place = bisect_right(self._ends, offset)
        while offset < end:
            begins = self._begins[place] if place < len(self._begins) else end
            if begins > offset:
                yield offset, min(begins, end) - offset
            offset = self._ends[place] if place < len(self._ends) else end
            place += 1

    def covers(self, offset: int, length: int) -> bool:
        """Tell whether all of ``length`` bytes from ``offset`` on are there."""
        return next(self.gaps(offset, length), None) is None
