"""``bundle.json``, format v1: pure encode and decode.

JSON in one canonical form (UTF-8, sorted keys, no white space), so that equal indexes are equal bytes and no two parsers can
read one index differently. Specified in ``docs/formats/bundle-v1.md``.
"""

import re
from typing import Annotated

import msgspec

from modelvault.artifact import Algorithm, Digest, ModelName
from modelvault.bundle.index import (
    INDEX_PATH,
    MAX_DOCUMENT,
    MAX_INDEX,
    MAX_SEQUENCE,
    PATCH,
    THIN,
    Blob,
    BundleRefused,
    BundleTooNew,
    Index,
    Member,
    ModelEntry,
    check_label,
    refused,
)
from modelvault.bundle.rules import check
from modelvault.errors import ModelvaultError

FORMAT = "modelvault-bundle/1"
KNOWN: frozenset[str] = frozenset({THIN, PATCH})
"""What may stand in ``requires`` and is understood; the rest of format v1 is understood without being announced."""

_REQUIREMENT = re.compile(r"[a-z0-9-]{1,40}/[0-9.]{1,20}")
_MAX_REQUIRES = 4096
_MAX_REASON = 300  # characters of what the index itself says, in an error
# Containers are what costs memory: an honest index has a digest (71 characters) in nearly each of them.
_BYTES_PER_CONTAINER = 32
_SPARE_CONTAINERS = 4096


_Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQUENCE)]
# The shortest that the rules allow: whatever is shorter is refused where it stands, not after a million more of it.
_Sha256 = Annotated[str, msgspec.Meta(min_length=71, max_length=71)]  # "sha256:" and 64 digits
_Path = Annotated[str, msgspec.Meta(min_length=len(INDEX_PATH))]
_Manifest = Annotated[str, msgspec.Meta(min_length=128, max_length=MAX_DOCUMENT)]  # two media types and a digest
_Document = Annotated[str, msgspec.Meta(max_length=MAX_DOCUMENT)]


class _Envelope(msgspec.Struct, frozen=True):
    format: str
    requires: msgspec.Raw


class _WireBlob(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    digest: _Sha256
    size: _Size


class _WireMember(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    path: _Path
    size: _Size
    digest: _Sha256
    offset: _Size = 0


class _WireVolume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    members: Annotated[list[_WireMember], msgspec.Meta(min_length=1)]


class _WireModel(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    manifest: _Manifest
    config: _Document
    recipe: _Document | None = None


class _WireIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: str
    requires: list[str]
    label: str
    sequence: _Size
    volume_size: _Size
    models: list[_WireModel]
    blobs: list[_WireBlob]
    volumes: list[_WireVolume]
    base: list[_WireBlob] = []
    patches: _Sha256 | None = None


def canonical_json(document: object) -> bytes:
    """Write JSON in the one form that the formats of a bundle allow.

    The same bytes as ``json.dumps`` with sorted keys, ``ensure_ascii=False`` and no white space, in a fraction of its memory.
    """
    return msgspec.json.encode(document, order="sorted")


def encode(index: Index) -> bytes:
    """Write ``bundle.json``."""
    return canonical_json(
        _WireIndex(
            format=FORMAT,
            requires=list(index.requires),
            label=index.label,
            sequence=index.sequence,
            volume_size=index.volume_size,
            models=[
                _WireModel(str(entry.name), entry.manifest.decode("utf-8"), entry.config.decode("utf-8"), entry.recipe)
                for entry in index.models
            ],
            blobs=[_WireBlob(str(blob.digest), blob.size) for blob in index.blobs],
            volumes=[
                _WireVolume(
                    [_WireMember(member.path, member.size, str(member.digest), member.offset) for member in members]
                )
                for members in index.volumes
            ],
            base=[_WireBlob(str(blob.digest), blob.size) for blob in index.base],
            patches=None if index.patches is None else str(index.patches),
        )
    )


def decode(data: bytes) -> Index:
    """Read ``bundle.json``, trusting nothing: limits first, then types, then that it all fits together.

    Raises ``BundleTooNew`` for a format or feature of a later version, ``BundleRefused`` for everything else.
    """
    if len(data) > MAX_INDEX:
        raise refused(f"its index has {len(data):,} bytes")
    if data.count(b"{") + data.count(b"[") > len(data) // _BYTES_PER_CONTAINER + _SPARE_CONTAINERS:
        raise refused("its index is built to fill the memory")
    try:
        _check_envelope(msgspec.json.decode(data, type=_Envelope))
        index = _decode(data)
        check(index)
    except (BundleTooNew, BundleRefused):
        raise
    except RecursionError as error:
        raise refused("its index is nested too deeply") from error
    except (msgspec.MsgspecError, ValueError, ModelvaultError) as error:
        raise refused(f"its index is not valid: {str(error)[:_MAX_REASON]}") from error
    return index


def _decode(data: bytes) -> Index:
    """Hold the JSON against its types and its canonical form. What was needed for that is freed on return."""
    wire = msgspec.json.decode(data, type=_WireIndex)
    if canonical_json(wire) != data:
        raise ValueError("it is not in canonical form")
    index = Index(
        label=check_label(wire.label),
        sequence=wire.sequence,
        volume_size=wire.volume_size,
        models=tuple(_model(model) for model in wire.models),
        blobs=tuple(_blob(blob) for blob in wire.blobs),
        volumes=tuple(tuple(_member(member) for member in volume.members) for volume in wire.volumes),
        base=tuple(_blob(blob) for blob in wire.base),
        patches=None if wire.patches is None else sha256(wire.patches),
    )
    if wire.requires != list(index.requires):
        raise ValueError("its requirements are not those that follow from what it holds")
    return index


def _check_envelope(envelope: _Envelope) -> None:
    if envelope.format != FORMAT:
        raise BundleTooNew(
            f"the bundle's format is {envelope.format[:80]!r}, this version reads {FORMAT!r}",
            hint="import it with the version of modelvault that wrote it",
        )
    if len(bytes(envelope.requires)) > _MAX_REQUIRES:
        raise ValueError("its list of requirements is too long")
    for requirement in msgspec.json.decode(envelope.requires, type=list[str]):
        if not _REQUIREMENT.fullmatch(requirement):
            raise ValueError(f"not a requirement: {requirement[:80]!r}")
        feature, _, version = requirement.partition("/")
        if requirement not in KNOWN:
            raise BundleTooNew(
                f"the bundle needs {feature!r}, which this version does not know",
                hint=f"modelvault {version} or later reads it",
                feature=feature,
                version=version,
            )


def _model(wire: _WireModel) -> ModelEntry:
    return ModelEntry(ModelName(wire.name), wire.manifest.encode("utf-8"), wire.config.encode("utf-8"), wire.recipe)


def _blob(wire: _WireBlob) -> Blob:
    return Blob(sha256(wire.digest), wire.size)


def _member(wire: _WireMember) -> Member:
    return Member(wire.path, wire.size, sha256(wire.digest), wire.offset)


def sha256(text: str) -> Digest:
    """Read a SHA-256 digest; ``ValueError`` for anything else, of another algorithm too."""
    digest = Digest.parse(text)
    if digest.algorithm is not Algorithm.SHA256:
        raise ValueError(f"not a SHA-256: {text}")
    return digest
