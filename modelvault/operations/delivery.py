"""What a user brings at once: bundles in pieces on several drives, and patches for them."""

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault.artifact import Digest
from modelvault.bundle.index import INDEX_FILE, refused
from modelvault.bundle.reader import OpenBundle
from modelvault.errors import ModelvaultError, PartlyDone, UsageProblem
from modelvault.keys import KeyRing
from modelvault.operations.finding import several
from modelvault.operations.trust import open_trusted
from modelvault.progress import Progress


class VolumesWanted(PartlyDone):
    """Volumes are not here; what is here, or has arrived, can be used."""

    slug = "volumes-wanted"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One bundle with all places where a part of it lies, and the patches that mend it.

    ``path`` is what the user brought first; ``kept``: patches came alone, the index is what an unfinished import kept.
    """

    bundle: OpenBundle
    patches: tuple[OpenBundle, ...]
    path: Path
    warnings: tuple[str, ...]
    kept: bool = False


def staging_of(partial: Path, index: Digest) -> Path:
    """Say where what arrives of a bundle gathers, in the ``partial`` directory of a vault."""
    return partial / f"import-{index.hex}"


def gather(
    paths: Sequence[Path],
    keys: KeyRing | None,
    partial: Path | None,
    *,
    allow_unsigned: bool,
    done: Callable[[Digest], bool] = lambda _: False,
) -> tuple[Delivery, ...]:
    """Open what lies at ``paths``, put together what belongs together, and give it in the order of the paths.

    A patch needs the index of its bundle: from one of the paths or, if it was kept there, from ``partial``, where imports under way
    are; ``None`` lets a patch stand for itself. One whose bundle is ``done`` is passed over, unless that lies there too. Raises ``TrustRefused`` for what nobody trusted signed, ``UsageProblem`` for a patch
    without its bundle, and for two bundles that call themselves the same.
    """
    opened, warnings = _opened(paths, keys, allow_unsigned=allow_unsigned)
    originals: dict[Digest, OpenBundle] = {}
    patches: dict[Digest, list[OpenBundle]] = {}
    brought: dict[Digest, Path] = {}
    for bundle in opened:
        mended = bundle.index.patches
        if mended is None or (partial is None and mended not in {other.digest for other in opened}):
            originals[bundle.digest] = bundle
            brought.setdefault(bundle.digest, bundle.places[0])
            continue
        patches.setdefault(mended, []).append(bundle)
        brought.setdefault(mended, bundle.places[0])
    for digest in [digest for digest in patches.keys() - originals.keys() if done(digest)]:
        del patches[digest], brought[digest]
    kept = patches.keys() - originals.keys()
    for digest in kept:
        originals[digest], said = _open_kept(digest, patches[digest][0], keys, partial, allow_unsigned=allow_unsigned)
        warnings = (*warnings, *said)
    _require_distinct(tuple(originals.values()))
    for digest, mending in patches.items():
        for patch in mending:
            _require_fit(patch, originals[digest])
    return tuple(
        Delivery(originals[digest], tuple(patches.get(digest, ())), path, warnings, digest in kept)
        for digest, path in brought.items()
    )


def in_turn(
    deliveries: Sequence[Delivery],
    named: Collection[Path],
    marks: Mapping[tuple[str, str], int],
    progress: Progress,
) -> list[Delivery]:
    """Put bundles that were met on a drive, not ``named``, into the order in which they were written; the older ones stay out.

    A drive that went several times holds several, of which one may be the base of the next. ``marks`` are the newest sequences that
    were imported, by key and label. Raises ``UsageProblem`` where those that were met are not of one key and label: which of them is meant,
    only a person can say.
    """
    met = [delivery for delivery in deliveries if not any(place in named for place in delivery.bundle.places)]
    if len(met) < 2:  # noqa: PLR2004 (one has no order)
        return list(deliveries)
    signer, label = met[0].bundle.signer, met[0].bundle.index.label
    if signer is None or any((one.bundle.signer, one.bundle.index.label) != (signer, label) for one in met):
        raise several(delivery.path for delivery in met)
    newest = marks.get((signer.fingerprint, label), 0)
    wanted = []
    for delivery in sorted(met, key=lambda delivery: delivery.bundle.index.sequence):
        if delivery.bundle.index.sequence < newest:
            progress.log(f"passing over {delivery.path}: a newer one was imported already")
        else:
            wanted.append(delivery)
    others = [delivery for delivery in deliveries if delivery not in met]
    return [*others, *(wanted or met[-1:])]


def _opened(
    paths: Sequence[Path], keys: KeyRing | None, *, allow_unsigned: bool
) -> tuple[tuple[OpenBundle, ...], tuple[str, ...]]:
    """Open each directory; those with the same index are one bundle."""
    found: dict[Digest, OpenBundle] = {}
    warnings: list[str] = []
    damaged: list[tuple[Path, ModelvaultError]] = []
    for path in paths:
        try:
            bundle, said = open_trusted(path, keys, allow_unsigned=allow_unsigned)
        except ModelvaultError as error:
            damaged.append((path, error))
            continue
        warnings += said
        other = found.get(bundle.digest)
        if other is not None:
            signed = other if other.signer is not None else bundle
            bundle = replace(signed, places=(*other.places, *bundle.places))
        found[bundle.digest] = bundle
    for path, problem in damaged:
        # Volumes answer to the signed index of another drive as well; their tables say which one they belong to.
        twin = next((bundle for bundle in found.values() if path.name in {place.name for place in bundle.places}), None)
        if twin is None:
            raise _without(problem, found.values())
        found[twin.digest] = replace(twin, places=(*twin.places, path))
        warnings.append(f"{problem.message}: what lies there is read by the index in {twin.places[0]}")
    return tuple(found.values()), tuple(warnings)


def _without(problem: ModelvaultError, others: Collection[OpenBundle]) -> ModelvaultError:
    """Say how the bundles that are in order are imported without the one that is not."""
    if others:
        paths = [str(place) for bundle in others for place in bundle.places]
        without = f"without it: `{shlex.join(['modelvault', 'import', *paths])}`"
        problem.hint = f"{problem.hint}; {without}" if problem.hint else without
    return problem


def _open_kept(
    digest: Digest, patch: OpenBundle, keys: KeyRing | None, partial: Path | None, *, allow_unsigned: bool
) -> tuple[OpenBundle, tuple[str, ...]]:
    """Open the index that an unfinished import kept, for a patch that comes alone."""
    kept = None if partial is None else staging_of(partial, digest)
    if kept is None or not (kept / INDEX_FILE).exists():
        raise UsageProblem(
            f"{patch.places[0]} mends a bundle that is not here and of which nothing has arrived (its index: {digest.short})",
            hint="give the path of that bundle along with it",
            index=str(digest),
        )
    return open_trusted(kept, keys, allow_unsigned=allow_unsigned)


def _require_distinct(bundles: Sequence[OpenBundle]) -> None:
    """Refuse two bundles that call themselves the same: which of them is meant, only a person can say."""
    called: dict[tuple[str, int, str | None], OpenBundle] = {}
    for bundle in bundles:
        name = (bundle.index.label, bundle.index.sequence, bundle.signer.fingerprint if bundle.signer else None)
        other = called.setdefault(name, bundle)
        if other is not bundle:
            both = [str(place) for place in (*other.places, *bundle.places)]
            raise UsageProblem(
                f"two bundles of label {bundle.index.label} and sequence {bundle.index.sequence} with different content were given",
                hint="name the one that is meant: " + ", ".join(both),
                bundles=both,
            )


def _require_fit(patch: OpenBundle, original: OpenBundle) -> None:
    """Refuse a patch that names blobs otherwise than the bundle which it mends."""
    sizes = original.index.sizes
    if any(sizes.get(blob.digest) != blob.size for blob in patch.index.blobs):
        raise refused(f"{patch.places[0]} holds pieces of what {original.index.directory_name} does not have")
