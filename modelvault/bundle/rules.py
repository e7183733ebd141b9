"""What must hold in an index beyond its types, so that the rest of the stage can rely on it. Pure."""

from collections.abc import Iterable, Sequence

from modelvault import modelpack
from modelvault.artifact import Digest
from modelvault.bundle.index import (
    INDEX_PATH,
    MAX_MEMBER,
    MAX_VOLUME,
    MIN_VOLUME,
    OCI_LAYOUT_PATH,
    Index,
    Member,
    member_path,
)
from modelvault.bundle.layout import volume_length

_LAYOUT = Digest.of_bytes(modelpack.OCI_LAYOUT)


def check(index: Index) -> None:
    """Raise ``ValueError`` (or an error of the model's own) that names the first rule which the index breaks."""
    if not index.sequence:
        raise ValueError("the sequence is zero")
    if not MIN_VOLUME <= index.volume_size <= MAX_VOLUME:
        raise ValueError(f"volumes of {index.volume_size} bytes are too small or too large")
    _check_models(index)
    _check_first_members(index)
    _check_pieces(index)
    for number, members in enumerate(index.volumes, 1):
        if not members:
            raise ValueError(f"volume {number} is empty")
        if volume_length(members) > index.volume_size:
            raise ValueError(f"volume {number} is longer than its volume_size")


def _check_models(index: Index) -> None:
    if len(index.sizes) != len(index.blobs):
        raise ValueError("a blob is listed twice")
    _no_two_alike((str(entry.name) for entry in index.models), "two models are called")
    needed: set[Digest] = set()
    for entry in index.models:
        config = modelpack.config_digest(entry.manifest)
        if config != (Digest.of_bytes(entry.config), len(entry.config)):
            raise ValueError(f"the config of {entry.name} is not the one that its manifest names")
        for blob in entry.blobs:
            if index.sizes.get(blob.digest) != blob.size:
                raise ValueError(f"{entry.name} needs {blob.digest} of {blob.size} bytes, which is not listed so")
            needed.add(blob.digest)
    if len(needed) != len(index.blobs):
        raise ValueError("a blob is listed that no model needs")


def _no_two_alike(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        folded = name.casefold()
        if folded in seen:
            raise ValueError(f"{what} {name}")
        seen.add(folded)


def _check_first_members(index: Index) -> None:
    first: Sequence[Member] = index.volumes[0][:2] if index.volumes else ()
    if [member.path for member in first] != [OCI_LAYOUT_PATH, INDEX_PATH]:
        raise ValueError(f"volume 1 does not begin with {OCI_LAYOUT_PATH} and {INDEX_PATH}")
    layout, listing = first
    if (layout.digest, layout.size, layout.offset) != (_LAYOUT, len(modelpack.OCI_LAYOUT), 0):
        raise ValueError(f"{OCI_LAYOUT_PATH} is not that of an OCI image layout")
    if listing.size > modelpack.MAX_DOCUMENT or listing.offset:
        raise ValueError(f"{INDEX_PATH} is not one of an OCI image layout")


def _check_pieces(index: Index) -> None:
    """Every blob lies in the volumes once: whole, or as slices in ascending order without gap or overlap."""
    covered = dict.fromkeys(index.sizes, 0)
    placed: set[Digest] = set()
    for position, member in enumerate(member for members in index.volumes for member in members):
        if position < 2:  # noqa: PLR2004 (oci-layout and index.json, checked above)
            continue
        size = index.sizes.get(member.digest)
        if size is None:
            raise ValueError(f"the member {member.path[:120]!r} belongs to no blob")
        if member.path != member_path(member.digest, member.offset, member.size, size):
            raise ValueError(f"the member {member.path[:120]!r} has another name than its content asks for")
        if member.size > MAX_MEMBER or (not member.size and size):
            raise ValueError(f"the member {member.path} has {member.size} bytes")
        if member.offset != covered[member.digest] or (member.digest in placed and not member.size):
            raise ValueError(f"the member {member.path} leaves a gap or covers something twice")
        placed.add(member.digest)
        covered[member.digest] += member.size
    for digest, size in index.sizes.items():
        if digest not in placed or covered[digest] != size:
            raise ValueError(f"the volumes do not hold all of {digest}")
