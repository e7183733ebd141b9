"""From the drives into the vault: what is missing is received and verified, models that are whole are published, the rest is kept."""

import contextlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from modelvault import filesystem
from modelvault.artifact import Digest, ModelName
from modelvault.bundle.index import Blob, BundleUnfinished, Member, ModelEntry, name_volumes
from modelvault.bundle.ranges import Ranges
from modelvault.bundle.reader import OpenBundle
from modelvault.bundle.receive import Received, receive, volumes_wanted
from modelvault.bundle.staging import Staging
from modelvault.errors import DigestMismatch, ModelvaultError, NoSpace, PolicyRefused, SourceUnavailable, in_words
from modelvault.inspect import ModelReport, inspect_model
from modelvault.locks import locked_directory
from modelvault.operations.delivery import Delivery, VolumesWanted, staging_of
from modelvault.operations.judging import record_scan, refused_unseen, require_inspected
from modelvault.operations.publishing import is_published
from modelvault.operations.replacing import replaced_by, step_back
from modelvault.operations.trust import FINISH, check_news
from modelvault.policy import Candidate
from modelvault.progress import Progress
from modelvault.vault import RESERVE, Vault

_MOST_NAMED = 3


class BaseIncomplete(SourceUnavailable):
    """A thin bundle leaves out what this vault does not have."""

    slug = "base-incomplete"


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted of a delivery: ``entries``, less those that the policy has ``refused`` unseen."""

    delivery: Delivery
    entries: tuple[ModelEntry, ...]
    allow_older: bool
    progress: Progress
    refused: tuple[tuple[ModelEntry, PolicyRefused], ...] = ()

    @property
    def bundle(self) -> OpenBundle:
        """The bundle itself."""
        return self.delivery.bundle

    def missing(self, vault: Vault) -> dict[Digest, int]:
        """The blobs that the vault does not have, with their sizes."""
        blobs = (blob for entry in self.entries for blob in entry.blobs)
        return {blob.digest: blob.size for blob in blobs if not vault.store.has(blob.digest, blob.size)}


def require_base(order: Order, missing: Collection[Digest]) -> None:
    """Refuse a thin bundle whose base is not all here, before anything is written. Raises ``BaseIncomplete``."""
    index = order.bundle.index
    lacking = [blob.digest for blob in index.base if blob.digest in missing]
    if not lacking:
        return
    wanted = {entry.name for entry in order.entries}
    models = [str(name) for name in index.needing(lacking) if name in wanted]
    named = [index.called(blob) for blob in lacking[:_MOST_NAMED]]
    more = f" and {len(lacking) - len(named)} more" if len(lacking) > len(named) else ""
    raise BaseIncomplete(
        f"{order.delivery.path} leaves out what this vault does not have: {', '.join(named)}{more}",
        hint="write a receipt of what is here with `modelvault receipt write PATH`, add it on the connected side with "
        "`modelvault receipt add PATH`, and have the bundle written again; or have it written whole, without --for",
        models=models,
        missing=sorted(map(str, lacking)),
    )


def volumes_to_come(vault: Vault, order: Order, missing: Collection[Digest]) -> tuple[int, ...]:
    """Name the volumes that are wanted and not here, by what has arrived."""
    there = Staging(staging_of(vault.partial, order.bundle.digest)).ranges()
    return numbers_of(_waiting(order, missing, there))


def numbers_of(waiting: Mapping[Digest, Sequence[int]]) -> tuple[int, ...]:
    """Give the volumes that blobs wait for, each once."""
    return tuple(sorted({number for numbers in waiting.values() for number in numbers}))


def _waiting(
    order: Order, missing: Collection[Digest], there: Mapping[Digest, Ranges]
) -> dict[Digest, tuple[int, ...]]:
    """Say which blobs cannot be whole without volumes that are not here, and which those are."""
    absent = set(order.bundle.missing)
    wanted = volumes_wanted(order.bundle.index, missing, there).items()
    lacking = {blob: tuple(number for number in numbers if number in absent) for blob, numbers in wanted}
    return {blob: numbers for blob, numbers in lacking.items() if numbers}


@dataclass(frozen=True, slots=True)
class Forecast:
    """What receiving would come to, unless the medium is damaged: what it would leave, and the bytes that it needs in the vault."""

    received: Received
    needed: int


def forecast(vault: Vault, order: Order, missing: Mapping[Digest, int]) -> Forecast:
    """Say what receiving would come to; nothing is read but the index and what has arrived."""
    staging = Staging(staging_of(vault.partial, order.bundle.digest))
    there = staging.ranges()
    arrived = {blob: ranges.total for blob, ranges in there.items()}
    for member in chain.from_iterable(map(_here, (order.bundle, *order.delivery.patches))):
        there.setdefault(member.digest, Ranges()).add(member.offset, member.size)
    sizes = {blob: size for blob, size in missing.items() if blob in there}
    taken = {blob: there[blob].total - arrived.get(blob, 0) for blob in sizes}
    resumed = sum(arrived.get(blob, 0) for blob in sizes)
    received = Received(waiting=_waiting(order, missing, there), taken=taken, resumed=resumed)
    if all(is_here(vault, entry) for entry in order.entries):
        return Forecast(received, 0)
    return Forecast(received, sum(staging.unallocated(blob, size) for blob, size in sizes.items()) + RESERVE)


def _here(bundle: OpenBundle) -> Iterator[Member]:
    """Give the members of the volumes that are here."""
    absent = set(bundle.missing)
    return chain.from_iterable(
        members for number, members in enumerate(bundle.index.volumes, 1) if number not in absent
    )


@contextlib.contextmanager
def intake(vault: Vault, order: Order) -> Iterator[Path]:
    """Have the directory in which the bundle's blobs gather to ourselves; raises ``VaultLocked``.

    It goes when the block ends without exception and nothing in it is waited with any more.
    """
    staging = staging_of(vault.partial, order.bundle.digest)
    what = f"the import of {order.delivery.path}"
    with locked_directory(staging, wait=vault.config.lock_wait, what=what, on_wait=order.progress.log):
        yield staging
        index = order.bundle.index
        kept = Staging(staging).ranges().keys() & index.sizes.keys()
        if all(vault.store.has(blob, index.sizes[blob]) for blob in kept) and not order.missing(vault):
            shutil.rmtree(staging)


def take_in(vault: Vault, order: Order, staging: Path, missing: Mapping[Digest, int]) -> Received:
    """Receive what is missing. Raises as ``receive`` does, ``NoSpace`` also where there would be no room to publish it."""
    require_base(order, missing)
    if not missing:
        return Received()
    try:
        filesystem.require_space(vault.root, forecast(vault, order, missing).needed)
    except NoSpace as error:
        if len(order.entries) > 1:
            error.hint = f"{error.hint}; or import fewer of the {len(order.entries)} models: --only MODEL"
        raise
    return receive(order.bundle, missing, staging, order.progress, patches=order.delivery.patches)


@dataclass(frozen=True, slots=True)
class Published:
    """How publishing went: what is wrong with the models that were ``refused``, what is to be warned of in the others, what they replaced."""

    refused: dict[ModelName, ModelvaultError] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    replaced: dict[ModelName, str] = field(default_factory=dict)


def publish(vault: Vault, order: Order, received: Received) -> Published:
    """Publish every model that is whole, and remember the bundle if with them all are here that the policy lets in.

    Raises ``TrustRefused`` if a newer bundle was imported meanwhile, ``VaultLocked`` or ``NoSpace``.
    """
    refused: dict[ModelName, ModelvaultError] = {}
    reports: dict[ModelName, ModelReport] = {}
    for entry in order.entries:
        try:
            with in_words():
                reports[entry.name] = _inspect(vault, order, entry, received)
        except ModelvaultError as error:
            refused[entry.name] = error
    said = [f"{name}: {warning}" for name, report in reports.items() for warning in report.advice.warnings]
    replaced: dict[ModelName, str] = {}
    if all(entry.name in refused or is_here(vault, entry) for entry in order.entries) and not _news(
        vault, order, refused
    ):
        return Published(refused, tuple(said))
    with vault.publishing():
        # Hours may have passed. From this look to the record, nobody else publishes: of two imports at once, the newer stays.
        check_news(vault, order.bundle, allow_older=order.allow_older)
        for entry in order.entries:
            if entry.name in refused:
                continue
            try:
                with in_words():
                    version, warning = replaced_by(vault, entry), step_back(vault, entry, order.bundle.index)
                    _publish_model(vault, order, entry, received.blobs, reports[entry.name])
            except ModelvaultError as error:
                refused[entry.name] = error
            else:
                replaced |= {entry.name: version} if version else {}
                said += [warning] if warning else []
        if models := _news(vault, order, refused):
            _record(vault, order, models)
    return Published(refused, tuple(said), replaced)


def _news(vault: Vault, order: Order, refused: Mapping[ModelName, ModelvaultError]) -> tuple[ModelName, ...]:
    """Name the models of a bundle of which nothing is still to come, whichever runs brought them, unless that is on record.

    What the policy refuses never comes, and must not leave older bundles admitted.
    """
    if _is_recorded(vault, order) or not all(isinstance(error, PolicyRefused) for error in refused.values()):
        return ()
    models, wanted = order.bundle.index.models, {entry.name for entry in order.entries}
    others = [entry.stored.model for entry in models if entry.name not in wanted]
    never = refused.keys() | refused_unseen(vault, others, acceptable=False).keys()
    due = [entry for entry in models if entry.name not in never]
    return tuple(entry.name for entry in due) if all(is_here(vault, entry) for entry in due) else ()


def is_here(vault: Vault, entry: ModelEntry) -> bool:
    """Whether a model is in the vault, listed and whole."""
    return all(vault.store.has(blob.digest, blob.size) for blob in entry.blobs) and is_published(vault, entry.stored)


def _is_recorded(vault: Vault, order: Order) -> bool:
    index, signer = order.bundle.index, order.bundle.signer
    known = vault.events.imported(signer.fingerprint if signer else None, index.label, index.sequence)
    return order.bundle.digest.hex in known


def _record(vault: Vault, order: Order, models: Collection[ModelName]) -> None:
    """Remember a complete import: what is older is refused from now on."""
    bundle = order.bundle
    vault.record(
        "bundle-imported",
        {
            "index": bundle.digest.hex,
            "label": bundle.index.label,
            "sequence": bundle.index.sequence,
            "key": bundle.signer.fingerprint if bundle.signer else None,
            "path": str(order.delivery.path),
            "models": list(map(str, models)),
        },
    )


def not_whole(order: Order, entry: ModelEntry, received: Received) -> ModelvaultError | None:
    """Build the error for a model that is damaged on the medium, or of which volumes are not here."""
    finished = order.bundle.finished or order.delivery.kept
    others = _of_patches(order, [blob.digest for blob in entry.blobs if blob.digest in received.waiting])
    damaged = dict.fromkeys(received.failed[blob.digest] for blob in entry.blobs if blob.digest in received.failed)
    volumes = sorted({number for blob in entry.blobs for number in received.waiting.get(blob.digest, ())})
    verb = "is" if len(volumes) == 1 else "are"
    lack = f"{name_volumes(volumes)} {verb} {'not here' if finished else 'not written yet'}" if volumes else ""
    facts = {"model": entry.name.text, "volumes": volumes}
    if damaged:
        reasons = [*damaged][:_MOST_NAMED] + [lack] * bool(lack)
        return DigestMismatch(
            f"{entry.name} is not whole on the medium: {'; '.join(reasons)}",
            hint="bring another copy, or have it mended: `modelvault verify PATH --request FILE` writes down what is wanted; "
            "what arrived is kept",
            **facts,
        )
    if not volumes:
        return None
    if not finished:
        hint = f"{FINISH}; what arrived here is kept"
    else:
        hint = f"import the drive that holds {' or '.join([*others, name_volumes(volumes)])}: what arrived is kept"
    if received.read or received.resumed or received.blobs:
        waiting = lack.replace(f" {verb} ", f", which {verb} ", 1)
        return VolumesWanted(f"{entry.name} is waiting for {waiting}", hint=hint, **facts)
    if not finished:
        return BundleUnfinished(f"{entry.name}: the bundle is not finished: {lack}", hint=hint, **facts)
    return DigestMismatch(f"{entry.name} is not whole on the medium: {lack}", hint=hint, **facts)


def _of_patches(order: Order, blobs: Collection[Digest]) -> list[str]:
    """Name the volumes of patches that are not here and hold something of these blobs."""
    wanted = ([n for n in patch.index.volumes_of(blobs) if n in patch.missing] for patch in order.delivery.patches)
    return [f"{name_volumes(numbers)} of the patch" for numbers in wanted if numbers]


def _inspect(vault: Vault, order: Order, entry: ModelEntry, received: Received) -> ModelReport:
    """Inspect a model's files. Raises ``InvalidModelFile`` and ``PolicyRefused`` though the signature was right: it is our gate too."""
    error = not_whole(order, entry, received)
    if error is not None:
        raise error
    where = {blob.digest: _place(vault, entry, blob, received.blobs) for blob in entry.blobs}
    model = entry.stored.model
    # Where no policy says otherwise, whether pickle is acceptable was decided, and signed for, on the connected side.
    report = inspect_model({file.path: where[file.digest] for file in model.files}, allow_pickle=True)
    try:
        require_inspected(vault, Candidate.of(model), report)
    except PolicyRefused as refusal:
        refusal.hint = f"{refusal.hint}; what arrived of it is kept until `modelvault gc --partial`"
        raise
    return report


def _publish_model(
    vault: Vault, order: Order, entry: ModelEntry, staged: Mapping[Digest, Path], report: ModelReport
) -> None:
    for blob in entry.blobs:
        path = _place(vault, entry, blob, staged)
        if path != vault.store.blob_path(blob.digest):
            vault.store.publish_blob(path, blob.digest)
    if not is_published(vault, entry.stored):
        index, signer = order.bundle.index, order.bundle.signer
        brought_by = {
            "label": index.label,
            "sequence": index.sequence,
            "key": signer.fingerprint if signer else None,
        }
        documents = entry.manifest, entry.config
        vault.publish(entry.stored.model, report.reports, {"bundle": brought_by}, documents)
        record_scan(vault, entry.name, report.advice)


def _place(vault: Vault, entry: ModelEntry, blob: Blob, staged: Mapping[Digest, Path]) -> Path:
    """Say where a blob of a model lies by now."""
    if vault.store.has(blob.digest, blob.size):
        return vault.store.blob_path(blob.digest)
    if blob.digest in staged:
        return staged[blob.digest]
    raise ModelvaultError(
        f"{entry.name}: another process freed {blob.digest.short} while the bundle was read",
        hint="run the same command again: only that is read once more",
    )
