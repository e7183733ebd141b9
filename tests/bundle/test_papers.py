"""Receipts and requests, as bytes."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_values import edited

from modelvault.artifact import Digest, ModelName
from modelvault.bundle.index import MAX_SEQUENCE, Span, merged
from modelvault.bundle.papers import (
    MAX_PAPER,
    PaperRefused,
    PaperTooNew,
    Receipt,
    Request,
    decode_receipt,
    decode_request,
    encode_receipt,
    encode_request,
)

DIGESTS = st.integers(0, 5).map(lambda seed: Digest.of_bytes(bytes([seed])))
SPANS = st.builds(Span, DIGESTS, st.integers(0, 60), st.integers(0, 20))
SITES = st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True)
SEQUENCES = st.integers(1, MAX_SEQUENCE)
ONE = Digest.of_bytes(b"one")
TWO = Digest.of_bytes(b"two")


@given(st.lists(SPANS, max_size=12))
def test_merged_spans_hold_the_same_bytes(spans: list[Span]) -> None:
    """Breaks if merging asks for a byte too many or too few, or leaves spans that touch, are empty or out of order."""

    def held(spans: "list[Span] | tuple[Span, ...]") -> set[tuple[Digest, int]]:
        return {(span.blob, position) for span in spans for position in range(span.offset, span.end)}

    found = merged(spans)
    assert held(found) == held(spans)
    assert all(span.length for span in found)
    for one, other in itertools.pairwise(found):
        assert (str(one.blob), one.end) < (str(other.blob), other.offset)


@given(SITES, SEQUENCES, st.sets(st.sampled_from(["a", "b/c", "b/c:Q4_K_M"])), st.sets(DIGESTS))
def test_receipts_round_trip(site: str, sequence: int, names: set[str], blobs: set[Digest]) -> None:
    """Breaks if what a site says it holds is not what the connected side reads."""
    receipt = Receipt(
        site, sequence, tuple((ModelName(name), ONE) for name in sorted(names)), tuple(sorted(blobs, key=str))
    )
    data = encode_receipt(receipt)
    assert decode_receipt(data) == receipt
    assert edited(data) == data


@given(SITES, SEQUENCES, st.lists(SPANS, min_size=1, max_size=12))
def test_requests_round_trip(site: str, sequence: int, spans: list[Span]) -> None:
    """Breaks if what a site wants is not what the connected side reads."""
    request = Request(site, ONE, "models", sequence, (*merged([*spans, Span(TWO, 0, 1)]),))
    data = encode_request(request)
    assert decode_request(data) == request
    assert edited(data) == data


def hostile_receipts() -> dict[str, bytes]:
    """Receipts that nobody may take for one."""
    data = encode_receipt(Receipt("lab", 7, ((ModelName("a"), ONE), (ModelName("b"), TWO)), tuple(sorted((ONE, TWO)))))
    document = json.loads(data)
    return {
        "empty": b"",
        "not json": b"{",
        "list": b"[]",
        "not utf-8": data.replace(b"lab", b"l\xffb"),
        "spaces": json.dumps(document, sort_keys=True).encode(),
        "key twice": data.replace(b'"site":"lab"', b'"site":"other","site":"lab"'),
        "unknown key": edited(data, comment="x"),
        "missing key": edited(data, blobs=...),
        "a request": encode_request(Request("lab", ONE, "models", 7, (Span(ONE, 0, 1),))),
        "deep": data[:-1] + b',"z":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "many containers": data[:-1] + b',"z":[' + b"[]," * 4_000_000 + b"[]]}",
        "too large": data + b" " * MAX_PAPER,
        "site outside": edited(data, site="../lab"),
        "site with a dot at its end": edited(data, site="lab."),
        "sequence zero": edited(data, sequence=0),
        "sequence a float": edited(data, sequence=7.5),
        "sequence huge": edited(data, sequence=1 << 60),
        "models out of order": edited(data, models=document["models"][::-1]),
        "model twice": edited(data, models=[document["models"][0]] * 2),
        "bad name": edited(data, models=[{"name": "../etc", "manifest": str(ONE)}]),
        "blobs out of order": edited(data, blobs=document["blobs"][::-1]),
        "blob twice": edited(data, blobs=[str(ONE)] * 2),
        "blob of sha1": edited(data, blobs=["git-sha1:" + "0" * 40]),
        "no digest": edited(data, blobs=["x" * 71]),
    }


@pytest.mark.parametrize("what", hostile_receipts())
def test_hostile_receipts(what: str) -> None:
    """Breaks if a receipt of any other form is read, whoever signed it."""
    with pytest.raises(PaperRefused):
        decode_receipt(hostile_receipts()[what])


def hostile_requests() -> dict[str, bytes]:
    """Requests that nobody may take for one."""
    data = encode_request(Request("lab", ONE, "models", 7, (Span(ONE, 0, 10), Span(ONE, 20, 10))))
    pieces = json.loads(data)["pieces"]
    return {
        "a receipt": encode_receipt(Receipt("lab", 7, (), ())),
        "unknown key": edited(data, comment="x"),
        "no pieces": edited(data, pieces=[]),
        "empty piece": edited(data, pieces=[[str(ONE), 0, 0]]),
        "negative offset": edited(data, pieces=[[str(ONE), -1, 10]]),
        "huge length": edited(data, pieces=[[str(ONE), 0, 1 << 60]]),
        "out of order": edited(data, pieces=pieces[::-1]),
        "not merged": edited(data, pieces=[[str(ONE), 0, 10], [str(ONE), 10, 10]]),
        "piece of four": edited(data, pieces=[[str(ONE), 0, 10, 10]]),
        "label outside": edited(data, label="../x"),
        "index of sha1": edited(data, index="git-sha1:" + "0" * 40),
    }


@pytest.mark.parametrize("what", hostile_requests())
def test_hostile_requests(what: str) -> None:
    """Breaks if a request of any other form is read, whoever signed it."""
    with pytest.raises(PaperRefused):
        decode_request(hostile_requests()[what])


def test_later_papers_are_named() -> None:
    """Breaks if a paper of a later version is called damaged instead of too new."""
    data = encode_receipt(Receipt("lab", 7, (), ()))
    for later in (edited(data, format="modelvault-receipt/2"), edited(data, requires=["x/0.9"], more=1)):
        with pytest.raises(PaperTooNew):
            decode_receipt(later)
