"""From models to an index: which slice of which blob goes into which volume. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelvault import modelpack
from modelvault.artifact import Digest, StoredModel
from modelvault.bundle.format import encode
from modelvault.bundle.index import (
    INDEX_PATH,
    MAX_DOCUMENT,
    MAX_INDEX,
    MAX_MEMBER,
    MAX_SEQUENCE,
    MAX_VOLUME,
    MIN_VOLUME,
    OCI_LAYOUT_PATH,
    Blob,
    Index,
    Member,
    ModelEntry,
    check_label,
    member_path,
)
from modelvault.bundle.layout import BLOCK, END, FRAME, member_length, padding
from modelvault.errors import UsageProblem

SLICE_UNIT = 1 << 20
"""Every slice but a blob's last is a whole number of these, in bytes."""


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A model to be bundled, with the bytes of its manifest and config as they lie in the vault."""

    stored: StoredModel
    manifest: bytes
    config: bytes


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What decides on a bundle besides its models. ``volume_size`` counts bytes of tar, before compression."""

    label: str
    sequence: int
    volume_size: int


def next_sequence(last: int, now: float) -> int:
    """Choose a sequence: the unix time, or one more than the last of the same key and label if the clock went backwards."""
    return max(last + 1, int(now))


def plan_index(models: Sequence[SourceModel], options: PlanOptions) -> Index:
    """Lay out a bundle. The same models and options give the same index on any machine.

    Raises ``UsageProblem`` for no models, two of one name, a bad label, or volumes too small.
    """
    check_label(options.label)
    if not models:
        raise UsageProblem(
            "there is no model to bundle", hint="pull or add one first; modelvault list shows what is here"
        )
    if not 0 < options.sequence <= MAX_SEQUENCE:
        raise UsageProblem(
            f"not a sequence: {options.sequence}", hint=f"sequences are numbers from 1 to {MAX_SEQUENCE}"
        )
    if not MIN_VOLUME <= options.volume_size <= MAX_VOLUME:
        raise UsageProblem(
            f"volumes of {options.volume_size:,} bytes are too {'small' if options.volume_size < MIN_VOLUME else 'large'}",
            hint=f"choose between {MIN_VOLUME >> 20}MiB and {MAX_VOLUME >> 40}TiB",
        )
    entries = tuple(sorted((_entry(model) for model in models), key=lambda entry: entry.name))
    if len({str(entry.name).casefold() for entry in entries}) != len(entries):
        raise UsageProblem("two of the models have the same name, or names that differ only in case")
    blobs = _blobs_in_order(entries)
    listing = modelpack.encode_index(entry.stored for entry in entries)
    layout = [
        Member(OCI_LAYOUT_PATH, len(modelpack.OCI_LAYOUT), Digest.of_bytes(modelpack.OCI_LAYOUT)),
        Member(INDEX_PATH, len(listing), Digest.of_bytes(listing)),
    ]
    index = Index(
        label=options.label,
        sequence=options.sequence,
        volume_size=options.volume_size,
        models=entries,
        blobs=blobs,
        volumes=_cut(layout, blobs, options.volume_size),
    )
    size = len(encode(index))
    if size > MAX_INDEX:
        raise UsageProblem(
            f"the index would have {size:,} bytes, more than the {MAX_INDEX:,} that a bundle may have",
            hint="bundle fewer models at a time, or choose a larger --volume-size",
        )
    return index


def _entry(model: SourceModel) -> ModelEntry:
    if max(len(model.manifest), len(model.config)) > MAX_DOCUMENT:
        raise UsageProblem(
            f"{model.stored.model.name} has {len(model.stored.model.files):,} files: too many for a bundle",
            hint="take it out, or pull it again without the files that it does not need (--exclude)",
        )
    recipe = model.stored.model.recipe
    return ModelEntry(
        model.stored.model.name, model.manifest, model.config, modelpack.encode_recipe(recipe) if recipe else None
    )


def _blobs_in_order(entries: Iterable[ModelEntry]) -> tuple[Blob, ...]:
    """Manifests and configs first, so that a torn trip still tells what was meant; then each model's files together."""
    entries = tuple(entries)
    documents = (blob for entry in entries for blob in entry.blobs[:2])
    files = (blob for entry in entries for blob in entry.blobs[2:])
    return tuple(dict.fromkeys((*documents, *files)))


def _cut(layout: Sequence[Member], blobs: Sequence[Blob], volume_size: int) -> tuple[tuple[Member, ...], ...]:
    """Fill volumes in order. A blob that does not fit is sliced, but a small one goes whole into the next volume."""
    capacity = volume_size - len(END)
    volumes: list[list[Member]] = [list(layout)]
    left = capacity - sum(member_length(member.size) for member in layout)
    if left < 0:
        raise UsageProblem("the list of models does not fit into one volume", hint="choose a larger --volume-size")
    for blob in blobs:
        offset = 0
        while True:
            size = _fitting(blob.size - offset, left)
            if size is None or (offset == 0 and size < blob.size <= min(FRAME, capacity - 2 * BLOCK)):
                volumes.append([])
                left = capacity
                continue
            volumes[-1].append(Member(member_path(blob.digest, offset, size, blob.size), size, blob.digest, offset))
            left -= member_length(size)
            offset += size
            if offset == blob.size:
                break
    return tuple(tuple(members) for members in volumes)


def _fitting(wanted: int, left: int) -> int | None:
    """Tell how many of ``wanted`` bytes to put where ``left`` bytes of tar are left; ``None`` for a new volume."""
    room = left - BLOCK
    if wanted <= MAX_MEMBER and wanted + padding(wanted) <= room:
        return wanted
    part = min(room, MAX_MEMBER) // SLICE_UNIT * SLICE_UNIT
    return part if part > 0 else None
