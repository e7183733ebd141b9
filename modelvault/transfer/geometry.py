"""How a file is cut: pieces are the unit of the journal, spans the unit of a request. Pure functions, all in bytes."""

PIECE_MIN = 64 << 10
PIECE_MAX = 8 << 20
SPAN_MIN = 4 << 20
SPAN_MAX = 64 << 20
_PIECES = (
    1024  # or up to twice as many: a killed process loses at most one a connection, and 8 of 1024 are 0.8 % of the file
)


def piece_size(size: int) -> int:
    """Give the journal's unit for a file: a power of two of at most 1/1024 of it, within bounds."""
    target = size // _PIECES
    return min(max(1 << max(target.bit_length() - 1, 0), PIECE_MIN), PIECE_MAX)


def piece_count(size: int) -> int:
    """Tell how many pieces a file has; none if it is empty."""
    return -(-size // piece_size(size))


def span_pieces(missing: int, piece: int, connections: int) -> int:
    """Give the pieces of one request when ``missing`` bytes are left to ask for.

    Half of an even share, so that requests shrink toward the end and no connection is left alone with a long one.
    """
    share = missing // (2 * connections)
    return max(min(max(share, SPAN_MIN), SPAN_MAX) // piece, 1)


def connections_for(connections: int, limit_rate: int | None) -> int:
    """Use fewer connections under a low rate limit: a server closes one that is read from once in a minute."""
    if limit_rate is None:
        return max(connections, 1)
    return max(min(connections, limit_rate // (256 << 10)), 1)
