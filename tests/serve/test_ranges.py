"""Which bytes a Range header asks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelvault.serve.ranges import Span, UnsatisfiableRange, parse_range


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", Span(0, 1)),
        ("bytes=0-99", Span(0, 100)),
        ("bytes=10-", Span(10, 90)),
        ("bytes=90-1000", Span(90, 10)),
        ("bytes=-1", Span(99, 1)),
        ("bytes=-1000", Span(0, 100)),
        ("bytes= 1 - 2 ", Span(1, 2)),
    ],
)
def test_ranges_are_read(header: str, span: Span) -> None:
    """An error of one byte here corrupts every resumed download."""
    assert parse_range(header, 100) == span


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-4",
        "bytes=0-1,3-4",
        "items=0-1",
        "bytes=\u0661-",
        f"bytes={'9' * 30}-",
    ],
)
def test_what_makes_no_sense_means_the_whole_file(header: str | None) -> None:
    """RFC 9110 lets a server ignore such a header, and a whole file is never wrong."""
    assert parse_range(header, 100) is None


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=9999999999999999999-"])
def test_past_the_end_is_refused(header: str) -> None:
    """A client that resumes a finished file must be told so, not be given it again."""
    with pytest.raises(UnsatisfiableRange):
        parse_range(header, 100)


def test_empty_file_has_no_ranges() -> None:
    """There is no first byte to give."""
    with pytest.raises(UnsatisfiableRange):
        parse_range("bytes=0-", 0)


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(1, 1000))
def test_ranges_agree_with_slices(first: int, last: int, size: int) -> None:
    """The span is the slice that the header describes, and never leaves the file."""
    data = bytes(size)
    if first >= size and last >= first:
        with pytest.raises(UnsatisfiableRange):
            parse_range(f"bytes={first}-{last}", size)
        return
    span = parse_range(f"bytes={first}-{last}", size)
    if last < first:
        assert span is None
        return
    assert span is not None
    assert span.length == len(data[first : last + 1])
    assert span.content_range(size) == f"bytes {first}-{first + span.length - 1}/{size}"
