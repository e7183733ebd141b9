"""How files are cut."""

from hypothesis import given
from hypothesis import strategies as st

from modelvault.transfer.geometry import PIECE_MAX, PIECE_MIN, connections_for, piece_count, piece_size, span_pieces

SIZES = st.integers(min_value=0, max_value=1 << 45)


@given(SIZES)
def test_pieces_cover_the_file(size: int) -> None:
    """A file with bytes in no piece would never be fetched whole."""
    piece = piece_size(size)
    assert PIECE_MIN <= piece <= PIECE_MAX
    assert piece & (piece - 1) == 0
    assert (piece_count(size) - 1) * piece < max(size, 1) <= max(piece_count(size) * piece, 1)


@given(st.integers(min_value=64 << 20, max_value=1 << 45))
def test_eight_lost_pieces_are_less_than_one_percent(size: int) -> None:
    """A kill loses a piece for each connection: more than 1 % of the file would break the promise."""
    assert 8 * piece_size(size) < size / 100


@given(st.integers(min_value=1, max_value=1 << 45), st.integers(min_value=1, max_value=64))
def test_spans_shrink_toward_the_end(missing: int, connections: int) -> None:
    """One long request at the end would leave the other connections idle; one of nothing would hang."""
    piece = piece_size(missing)
    pieces = span_pieces(missing, piece, connections)
    assert pieces >= 1
    assert pieces * piece <= max(missing // (2 * connections), 4 << 20, piece)


def test_few_connections_under_a_low_rate() -> None:
    """A connection that is read from once in a minute is closed by the server."""
    assert connections_for(8, None) == 8
    assert connections_for(8, 100_000) == 1
    assert connections_for(8, 1 << 30) == 8
    assert connections_for(0, None) == 1
