"""The journal believes only what it wrote."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modelvault.transfer.geometry import piece_count
from modelvault.transfer.journal import Journal, decode, encode_header, encode_piece, read_claims

SIZE = 10 << 20
CHECKSUMS = st.integers(min_value=0, max_value=(1 << 32) - 1)
CLAIMS = st.dictionaries(st.integers(min_value=0, max_value=piece_count(SIZE) - 1), CHECKSUMS)


def _encode(claims: dict[int, int]) -> bytes:
    return encode_header(SIZE) + b"".join(encode_piece(index, checksum) for index, checksum in claims.items())


@given(CLAIMS)
def test_what_was_written_is_read(claims: dict[int, int]) -> None:
    """A claim that is lost here is fetched again for nothing."""
    assert decode(_encode(claims), SIZE) == claims


@given(CLAIMS, st.integers(min_value=0))
def test_a_torn_end_costs_only_the_last_line(claims: dict[int, int], cut: int) -> None:
    """A process killed while it writes a line must neither lose the journal nor have half a line believed."""
    data = _encode(claims)
    torn = decode(data[: len(data) - cut % (len(data) + 1)], SIZE)
    assert torn.items() <= claims.items()


@given(CLAIMS, st.integers(min_value=0), st.integers(min_value=0, max_value=7))
def test_a_flipped_bit_is_never_believed(claims: dict[int, int], at: int, bit: int) -> None:
    """A damaged journal that is believed could vouch for damaged data."""
    data = bytearray(_encode(claims))
    data[at % len(data)] ^= 1 << bit
    assert decode(bytes(data), SIZE).items() <= claims.items()


@given(st.binary(max_size=400))
def test_garbage_holds_no_claims(data: bytes) -> None:
    """Whatever lies there, reading it must not crash a pull."""
    assert decode(data, SIZE) == {}
    assert decode(encode_header(SIZE) + data, SIZE) == {}


def test_another_size_begins_anew() -> None:
    """Pieces of a file of another size are other ranges."""
    assert decode(_encode({0: 7}), SIZE + 1) == {}


def test_appending_after_a_torn_line(tmp_path: Path) -> None:
    """A new line glued to a torn one would be lost with it."""
    path = tmp_path / "journal"
    path.write_bytes(_encode({0: 0xA}) + encode_piece(1, 0xB)[:12])
    journal = Journal(path, SIZE, fresh=False)
    journal.add(2, 0xC)
    journal.add(0, 0xD)
    journal.close()
    assert read_claims(path, SIZE) == {0: 0xD, 2: 0xC}


def test_fresh_and_clear_forget(tmp_path: Path) -> None:
    """After a digest mismatch the old claims must not come back."""
    path = tmp_path / "journal"
    journal = Journal(path, SIZE, fresh=True)
    journal.add(2, 0xC)
    journal.clear()
    journal.close()
    assert read_claims(path, SIZE) == {}
    assert read_claims(tmp_path / "none", SIZE) == {}
