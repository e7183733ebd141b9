"""From models to an index: which slice of which blob goes into which volume. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from modelvault import modelpack
from modelvault.artifact import Digest, ModelName, StoredModel
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
    Span,
    check_label,
    member_path,
    merged,
)
from modelvault.bundle.layout import BLOCK, END, FRAME, member_length, padding
from modelvault.bundle.papers import refused
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


def plan_index(models: Sequence[SourceModel], options: PlanOptions, *, held: Collection[Digest] = ()) -> Index:
    """Lay out a bundle. The same models and options give the same index on any machine.

    Blobs that the site holds (``held``) are left out, but for manifests and configs. Raises ``UsageProblem`` for no models, two of one
    name, a bad label, or volumes too small.
    """
    if not models:
        raise UsageProblem(
            "there is no model to bundle", hint="pull or add one first; modelvault list shows what is here"
        )
    _check_options(options)
    entries = tuple(sorted((_entry(model) for model in models), key=lambda entry: entry.name))
    _require_distinct(entries)
    needed = _blobs_in_order(entries)
    left_out = frozenset(held) - {blob.digest for entry in entries for blob in entry.blobs[:2]}
    blobs = tuple(blob for blob in needed if blob.digest not in left_out)
    spans = (Span(blob.digest, 0, blob.size) for blob in blobs)
    base = tuple(blob for blob in needed if blob.digest in left_out)
    return _index(options, entries, blobs, spans, base=base)


def _require_distinct(entries: Sequence[ModelEntry]) -> None:
    """Refuse models whose directories would be the same one where case does not count."""
    names: dict[str, ModelName] = {}
    for entry in entries:
        other = names.setdefault(entry.name.text.casefold(), entry.name)
        if other is not entry.name:
            raise UsageProblem(
                f"{other} and {entry.name} differ only in case or not at all: one bundle cannot hold both",
                hint="name the models that go into this one, and bundle the other with a --label of its own",
            )


def patch_label(label: str) -> str:
    """Name the series of the patches to bundles of ``label``."""
    return f"{label[:58]}-patch"


def plan_patch(original: Index, digest: Digest, spans: Iterable[Span], options: PlanOptions) -> Index:
    """Lay out a bundle of just these pieces of another, whose ``bundle.json`` has ``digest``.

    Raises ``PaperRefused`` for pieces that the other does not have, ``UsageProblem`` as ``plan_index`` does.
    """
    _check_options(options)
    spans = merged(spans)
    for span in spans:
        if span.offset < 0 or span.end > original.sizes.get(span.blob, -1):
            raise refused(
                f"it asks for bytes {span.offset:,} to {span.end:,} of {span.blob}, which the bundle does not have"
            )
    by_blob: dict[Digest, list[Span]] = {}
    for span in spans:
        by_blob.setdefault(span.blob, []).append(span)
    blobs = tuple(blob for blob in original.blobs if blob.digest in by_blob)
    wanted = set(original.needing(by_blob))
    entries = tuple(entry for entry in original.models if entry.name in wanted)
    return _index(options, entries, blobs, (span for blob in blobs for span in by_blob[blob.digest]), patches=digest)


def _check_options(options: PlanOptions) -> None:
    check_label(options.label)
    if not 0 < options.sequence <= MAX_SEQUENCE:
        raise UsageProblem(
            f"not a sequence: {options.sequence}", hint=f"sequences are numbers from 1 to {MAX_SEQUENCE}"
        )
    if not MIN_VOLUME <= options.volume_size <= MAX_VOLUME:
        raise UsageProblem(
            f"volumes of {options.volume_size:,} bytes are too {'small' if options.volume_size < MIN_VOLUME else 'large'}",
            hint=f"choose between {MIN_VOLUME >> 20}MiB and {MAX_VOLUME >> 40}TiB",
        )


def _index(
    options: PlanOptions,
    entries: tuple[ModelEntry, ...],
    blobs: tuple[Blob, ...],
    spans: Iterable[Span],
    *,
    base: tuple[Blob, ...] = (),
    patches: Digest | None = None,
) -> Index:
    listing = modelpack.encode_index(entry.stored for entry in entries)
    layout = [
        Member(OCI_LAYOUT_PATH, len(modelpack.OCI_LAYOUT), Digest.of_bytes(modelpack.OCI_LAYOUT)),
        Member(INDEX_PATH, len(listing), Digest.of_bytes(listing)),
    ]
    sizes = {blob.digest: blob.size for blob in blobs}
    index = Index(
        label=options.label,
        sequence=options.sequence,
        volume_size=options.volume_size,
        models=entries,
        blobs=blobs,
        volumes=_cut(layout, spans, sizes, options.volume_size),
        base=base,
        patches=patches,
    )
    size = len(encode(index))
    if size > MAX_INDEX:
        raise UsageProblem(
            f"the index would have {size:,} bytes, more than the {MAX_INDEX:,} that a bundle may have",
            hint="bundle fewer models at a time, or choose a larger --volume-size"
            if patches is None
            else "so many pieces are wanted that the models had better be bundled again, without --answer",
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


def _cut(
    layout: Sequence[Member], spans: Iterable[Span], sizes: Mapping[Digest, int], volume_size: int
) -> tuple[tuple[Member, ...], ...]:
    """Fill volumes in order. A span that does not fit is sliced, but a small one goes whole into the next volume."""
    capacity = volume_size - len(END)
    volumes: list[list[Member]] = [list(layout)]
    left = capacity - sum(member_length(member.size) for member in layout)
    if left < 0:
        raise UsageProblem("the list of models does not fit into one volume", hint="choose a larger --volume-size")
    for span in spans:
        offset = span.offset
        while True:
            size = _fitting(span.end - offset, left)
            if size is None or (offset == span.offset and size < span.length <= min(FRAME, capacity - 2 * BLOCK)):
                volumes.append([])
                left = capacity
                continue
            path = member_path(span.blob, offset, size, sizes[span.blob])
            volumes[-1].append(Member(path, size, span.blob, offset))
            left -= member_length(size)
            offset += size
            if offset == span.end:
                break
    return tuple(tuple(members) for members in volumes)


def _fitting(wanted: int, left: int) -> int | None:
    """Tell how many of ``wanted`` bytes to put where ``left`` bytes of tar are left; ``None`` for a new volume."""
    room = left - BLOCK
    if wanted <= MAX_MEMBER and wanted + padding(wanted) <= room:
        return wanted
    part = min(room, MAX_MEMBER) // SLICE_UNIT * SLICE_UNIT
    return part if part > 0 else None
