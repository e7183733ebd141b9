"""Which bytes there are: against a set of numbers, which cannot be wrong."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from modelvault.bundle.ranges import Ranges

SIZE = 40
SPANS = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 12)), max_size=12)


@given(SPANS, st.integers(0, SIZE), st.integers(0, SIZE))
def test_ranges(spans: list[tuple[int, int]], offset: int, length: int) -> None:
    """Breaks if a byte that is missing counts as there, or the other way round, however ranges touch or overlap."""
    ranges, there = Ranges(), set[int]()
    for begin, count in spans:
        ranges.add(begin, count)
        there |= set(range(begin, begin + count))
    assert {byte for begin, count in ranges for byte in range(begin, begin + count)} == there
    listed = list(ranges)
    assert all(before + count < after for (before, count), (after, _) in pairwise(listed))
    asked = set(range(offset, offset + length))
    gaps = list(ranges.gaps(offset, length))
    assert [byte for begin, count in gaps for byte in range(begin, begin + count)] == sorted(asked - there)
    assert ranges.covers(offset, length) == (asked <= there)
