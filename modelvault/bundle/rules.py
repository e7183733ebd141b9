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
    if index.base and index.patches:
        raise ValueError("it is thin and a patch at once")
    listed = {blob.digest: blob.size for blob in (*index.blobs, *index.base)}
    if len(listed) != len(index.blobs) + len(index.base):
        raise ValueError("a blob is listed twice")
    _no_two_alike((str(entry.name) for entry in index.models), "two models are called")
    left_out = frozenset(index.base)
    needed: set[Digest] = set()
    for entry in index.models:
        config = modelpack.config_digest(entry.manifest)
        if config != (Digest.of_bytes(entry.config), len(entry.config)):
            raise ValueError(f"the config of {entry.name} is not the one that its manifest names")
        if not left_out.isdisjoint(entry.blobs[:2]):
            raise ValueError(f"the manifest or config of {entry.name} is left out")
        held = [blob for blob in entry.blobs if blob.digest in listed]
        for blob in held if index.patches else entry.blobs:
            if listed.get(blob.digest) != blob.size:
                raise ValueError(f"{entry.name} needs {blob.digest} of {blob.size} bytes, which is not listed so")
        if not held:
            raise ValueError(f"it has no piece of {entry.name}")
        needed.update(blob.digest for blob in held)
    if len(needed) != len(listed):
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
    """Every blob lies in the volumes once: whole, or as slices in ascending order without overlap, and without gap but in a patch."""
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
        gap = member.offset - covered[member.digest]
        if gap < 0 or (gap and not index.patches) or (member.digest in placed and not member.size):
            raise ValueError(f"the member {member.path} leaves a gap or covers something twice")
        placed.add(member.digest)
        covered[member.digest] = member.offset + member.size
    for digest, size in index.sizes.items():
        end = covered[digest]
        if digest not in placed or end > size or (end < size and not index.patches):
            raise ValueError(f"the volumes do not hold all of {digest}, or more than that")
