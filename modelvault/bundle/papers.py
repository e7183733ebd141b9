"""The papers that ride back on the drive: what a site holds, and what it still wants of a bundle. Pure.

JSON in the canonical form of ``bundle.json``, with a detached Ed25519 signature by a key of the site. Specified in
``docs/formats/papers.md``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from modelvault.artifact import Digest, ModelName
from modelvault.bundle.format import canonical_json, sha256
from modelvault.bundle.index import MAX_SEQUENCE, SUFFIX, Span, check_label, merged
from modelvault.errors import ModelvaultError, TrustRefused

MAX_PAPER = 16 << 20
"""Bytes that a receipt or request may have at most."""
RECEIPT = "modelvault-receipt/1"
REQUEST = "modelvault-request/1"

_MAX_REASON = 300  # characters of what the paper itself says, in an error
_BYTES_PER_CONTAINER = 32  # as in an index: what is honest has a digest in nearly each
_SPARE_CONTAINERS = 4096


class PaperRefused(TrustRefused):
    """A receipt or request breaks its format, or says something that cannot be so."""

    slug = "paper-refused"


class PaperTooNew(ModelvaultError):
    """A receipt or request is of a later version."""

    slug = "paper-too-new"


def refused(reason: str) -> PaperRefused:
    """Build the error for a paper that breaks its format."""
    return PaperRefused(f"the paper is refused: {reason}", hint="have it written again at the site that it comes from")


def check_site(site: str) -> str:
    """Return ``site`` if a site can be called that; else ``UsageProblem``."""
    return check_label(site, what="site's name")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a site holds: models by the digests of their manifests, sorted by name, and blobs, sorted.

    ``sequence`` grows from one receipt of a site to the next.
    """

    site: str
    sequence: int
    models: tuple[tuple[ModelName, Digest], ...]
    blobs: tuple[Digest, ...]

    @property
    def file_name(self) -> str:
        """What the file is called where the user named a directory."""
        return f"{self.site}.receipt.json"


@dataclass(frozen=True, slots=True)
class Request:
    """What a site still wants of a bundle: pieces of its blobs, sorted and merged.

    ``index`` is the digest of the bundle's ``bundle.json``; its label and sequence are told for people.
    """

    site: str
    index: Digest
    label: str
    sequence: int
    pieces: tuple[Span, ...]

    @property
    def file_name(self) -> str:
        """What the file is called where the user named a directory."""
        return f"{self.label}-{self.sequence}.request.json"

    @property
    def bundle_name(self) -> str:
        """The name of the directory that holds the bundle."""
        return f"{self.label}-{self.sequence}{SUFFIX}"


_Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQUENCE)]
_Sequence = Annotated[int, msgspec.Meta(ge=1, le=MAX_SEQUENCE)]
_Sha256 = Annotated[str, msgspec.Meta(min_length=71, max_length=71)]  # "sha256:" and 64 digits


class _Envelope(msgspec.Struct, frozen=True):
    format: str
    requires: list[str]


class _WireModel(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    name: str
    manifest: _Sha256


class _WireReceipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    requires: list[str]
    site: str
    sequence: _Sequence
    models: list[_WireModel]
    blobs: list[_Sha256]


class _WireRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    requires: list[str]
    site: str
    index: _Sha256
    label: str
    sequence: _Sequence
    pieces: list[tuple[_Sha256, _Number, _Sequence]]


_Wire = TypeVar("_Wire", _WireReceipt, _WireRequest)


def encode_receipt(receipt: Receipt) -> bytes:
    """Write a receipt."""
    return canonical_json(
        _WireReceipt(
            format=RECEIPT,
            requires=[],
            site=receipt.site,
            sequence=receipt.sequence,
            models=[_WireModel(name.text, str(manifest)) for name, manifest in receipt.models],
            blobs=[str(blob) for blob in receipt.blobs],
        )
    )


def decode_receipt(data: bytes) -> Receipt:
    """Read a receipt. Raises ``PaperTooNew`` for one of a later version, ``PaperRefused`` for everything else."""
    return _decoded(data, RECEIPT, lambda: _receipt(_wire(data, _WireReceipt)))


def encode_request(request: Request) -> bytes:
    """Write a request."""
    return canonical_json(
        _WireRequest(
            format=REQUEST,
            requires=[],
            site=request.site,
            index=str(request.index),
            label=request.label,
            sequence=request.sequence,
            pieces=[(str(piece.blob), piece.offset, piece.length) for piece in request.pieces],
        )
    )


def decode_request(data: bytes) -> Request:
    """Read a request. Raises ``PaperTooNew`` for one of a later version, ``PaperRefused`` for everything else."""
    return _decoded(data, REQUEST, lambda: _request(_wire(data, _WireRequest)))


_Paper = TypeVar("_Paper", Receipt, Request)


def _decoded(data: bytes, expected: str, read: Callable[[], _Paper]) -> _Paper:
    if len(data) > MAX_PAPER:
        raise refused(f"it has {len(data):,} bytes")
    if data.count(b"{") + data.count(b"[") > len(data) // _BYTES_PER_CONTAINER + _SPARE_CONTAINERS:
        raise refused("it is built to fill the memory")
    try:
        _check_envelope(msgspec.json.decode(data, type=_Envelope), expected)
        return read()
    except (PaperRefused, PaperTooNew):
        raise
    except RecursionError as error:
        raise refused("it is nested too deeply") from error
    except (msgspec.MsgspecError, ValueError, ModelvaultError) as error:
        raise refused(f"it is not valid: {str(error)[:_MAX_REASON]}") from error


def _check_envelope(envelope: _Envelope, expected: str) -> None:
    kind, _, _ = expected.partition("/")
    if envelope.format.partition("/")[0] != kind:
        raise ValueError(f"it is {envelope.format[:80]!r} where {expected!r} is wanted")
    if envelope.format != expected or envelope.requires:
        raise PaperTooNew(
            "the paper was written by a later version of modelvault than this one",
            hint="use the version that wrote it, or a later one",
        )


def _wire(data: bytes, kind: type[_Wire]) -> _Wire:
    wire = msgspec.json.decode(data, type=kind)
    if canonical_json(wire) != data:
        raise ValueError("it is not in canonical form")
    return wire


def _receipt(wire: _WireReceipt) -> Receipt:
    models = tuple((ModelName(model.name), sha256(model.manifest)) for model in wire.models)
    names = [name.text for name, _ in models]
    if names != sorted(set(names)) or wire.blobs != sorted(set(wire.blobs)):
        raise ValueError("its models or blobs are not sorted, or one is listed twice")
    return Receipt(check_site(wire.site), wire.sequence, models, tuple(map(sha256, wire.blobs)))


def _request(wire: _WireRequest) -> Request:
    pieces = tuple(Span(sha256(blob), offset, length) for blob, offset, length in wire.pieces)
    if not pieces or pieces != merged(pieces):
        raise ValueError("its pieces are none, not sorted, or not merged")
    return Request(check_site(wire.site), sha256(wire.index), check_label(wire.label), wire.sequence, pieces)
