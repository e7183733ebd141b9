"""``import``: from a bundle on a drive to verified models in the vault and in the engines of this machine."""

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest, ModelName
from modelvault.bundle.index import Blob, BundleUnfinished, ModelEntry
from modelvault.bundle.reader import OpenBundle
from modelvault.bundle.receive import Received, receive
from modelvault.engines import Target
from modelvault.errors import DigestMismatch, ModelvaultError, PartlyDone, UsageProblem, in_words
from modelvault.inspect import ModelReport, inspect_model
from modelvault.operations.finding import find_bundles
from modelvault.operations.install import Placement, Step, do_step, plan_step, targets_for
from modelvault.operations.publishing import is_published
from modelvault.operations.summaries import bundle_summary
from modelvault.operations.trust import FINISH, check_news, open_trusted
from modelvault.progress import Progress
from modelvault.results import DiskLine, EngineStep, ImportModel, ImportResult, ImportsResult
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What the user asked for. No ``paths``: look on the mounted drives; no ``only``: every model."""

    paths: tuple[Path, ...] = ()
    only: tuple[ModelName, ...] = ()
    placement: Placement = field(default_factory=Placement)
    allow_unsigned: bool = False
    allow_older: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How one model fared. ``error`` says why it did not get all the way; ``received``: at least it is in the vault."""

    model: ImportModel
    steps: tuple[EngineStep, ...] = ()
    error: ModelvaultError | None = None
    received: bool = True
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Done:
    """How one bundle fared. ``resumed`` are bytes that an earlier run had received; ``disks`` what a plan would fill."""

    outcomes: tuple[_Outcome, ...]
    resumed: int = 0
    disks: tuple[DiskLine, ...] = ()


def import_bundles(vault: Vault, request: ImportRequest, progress: Progress) -> ImportsResult:
    """Import bundles one after the other. Nothing is ever written to the medium.

    Every bundle is opened and judged before anything is taken from the first. Raises ``TrustRefused`` for one that nobody trusted
    signed or that is older than what was imported, ``NoSpace``, ``VaultLocked`` or ``UsageProblem``. Where models fail, the others go
    on: ``PartlyDone`` if any got through, else the first model's own error.
    """
    opened = []
    for path in find_bundles(request.paths):
        bundle, warnings = open_trusted(path, vault.keys, allow_unsigned=request.allow_unsigned)
        check_news(vault, bundle, allow_older=request.allow_older)
        entries = tuple(bundle.index.model(name) for name in request.only) or bundle.index.models
        opened.append((_Job(bundle, entries, _lenient(entries, request.placement), request, progress), warnings))
    _check_modelfile([entry for job, _ in opened for entry in job.entries], request.placement)
    for job, _ in opened:
        _check_placement(vault, job.entries, request.placement)
    if not request.dry_run:
        vault.create()
        if request.allow_older and vault.history_lost:
            vault.accept_lost_history()
    results: list[ImportResult] = []
    outcomes: list[_Outcome] = []
    for job, warnings in opened:
        begun = time.monotonic()
        try:
            done = _plan(vault, job) if request.dry_run else _import(vault, job)
        except ModelvaultError as error:
            done = _Done(tuple(_refused(_summary(entry, {}, ""), error) for entry in job.entries))
        outcomes += done.outcomes
        results.append(_result(vault, job, done, warnings, seconds=time.monotonic() - begun))
    result = ImportsResult(tuple(results))
    _raise_failures(result, outcomes)
    return result


def _raise_failures(result: ImportsResult, outcomes: Sequence[_Outcome]) -> None:
    failed = [(outcome, outcome.error) for outcome in outcomes if outcome.error is not None]
    if not failed:
        return
    first = failed[0][1]
    nothing = len(failed) == len(outcomes)
    alike = len({type(error) for _, error in failed}) == 1
    if nothing and (alike or not any(outcome.received for outcome, _ in failed)):
        first.result = result
        raise first
    names = ", ".join(dict.fromkeys(outcome.model.name for outcome, _ in failed))
    raise PartlyDone(
        f"{len(failed)} of {len(outcomes)} models did not get all the way: {names}",
        hint=first.hint or "run the same command again once the cause is mended: it goes on where it stopped",
        result=result,
        failed=[f"{outcome.model.name}: {error.message}" for outcome, error in failed],
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """One bundle that was judged, and what is wanted of it. ``lenient``: a model that no named engine takes is only received."""

    bundle: OpenBundle
    entries: tuple[ModelEntry, ...]
    lenient: bool
    request: ImportRequest
    progress: Progress

    def missing(self, vault: Vault) -> dict[Digest, int]:
        """The blobs that the vault does not have, with their sizes."""
        blobs = (blob for entry in self.entries for blob in entry.blobs)
        return {blob.digest: blob.size for blob in blobs if not vault.store.has(blob.digest, blob.size)}


def _lenient(entries: Sequence[ModelEntry], placement: Placement) -> bool:
    """Engines named for a whole bundle need not take every model of it, but an engine that takes none was named by mistake."""
    return any(placement.takers(entry.stored.model) for entry in entries)


def _targets(entry: ModelEntry, job: _Job) -> tuple[Target, ...]:
    model, placement = entry.stored.model, job.request.placement
    return placement.takers(model) if job.lenient else targets_for(model, placement)


def _import(vault: Vault, job: _Job) -> _Done:
    """Receive, publish and install."""
    bundle = job.bundle
    staging = vault.partial / f"import-{bundle.digest.hex}"
    what = f"the import of {bundle.places[0]}"
    with fsio.locked_directory(staging, wait=vault.config.lock_wait, what=what, on_wait=job.progress.log):
        missing = job.missing(vault)
        received = receive(bundle, missing.keys(), staging, job.progress) if missing else Received({}, {}, 0, 0)
        refused = _publish(vault, job, received)
        outcomes = []
        for entry in job.entries:
            summary = _summary(entry, missing, "received")
            if entry.name in refused:
                outcomes.append(_refused(summary, refused[entry.name]))
            else:
                outcomes.append(_install(vault, entry, summary, job, received.blobs.keys()))
        if not refused:
            shutil.rmtree(staging)
    return _Done(tuple(outcomes), received.resumed)


def _refused(summary: ImportModel, error: ModelvaultError) -> _Outcome:
    return _Outcome(replace(summary, outcome="refused", reason=error.message), error=error, received=False)


def _result(vault: Vault, job: _Job, done: _Done, warnings: Sequence[str], *, seconds: float) -> ImportResult:
    said = [warning for outcome in done.outcomes for warning in outcome.warnings]
    short = [
        f"the file system of {disk.path} has {disk.free:,} bytes free, and {disk.needed:,} are needed"
        for disk in done.disks
        if disk.needed > disk.free
    ]
    return ImportResult(
        vault=vault.root,
        bundle=bundle_summary(job.bundle),
        dry_run=job.request.dry_run,
        models=tuple(outcome.model for outcome in done.outcomes),
        installs=tuple(step for outcome in done.outcomes for step in outcome.steps),
        disks=done.disks,
        resumed=done.resumed,
        seconds=seconds,
        warnings=tuple(dict.fromkeys((*warnings, *said, *short))),
    )


def _record(vault: Vault, bundle: OpenBundle) -> None:
    """Remember a complete import: what is older is refused from now on."""
    vault.record(
        "bundle-imported",
        {
            "index": bundle.digest.hex,
            "label": bundle.index.label,
            "sequence": bundle.index.sequence,
            "key": bundle.signer.fingerprint if bundle.signer else None,
            "path": str(bundle.places[0]),
            "models": [str(entry.name) for entry in bundle.index.models],
        },
    )


def _check_modelfile(entries: Sequence[ModelEntry], placement: Placement) -> None:
    """Refuse one Modelfile for several models."""
    if placement.modelfile is not None and len(entries) != 1:
        raise UsageProblem(
            f"--modelfile is for one model, and {len(entries)} would be imported",
            hint=f"choose one: --only {entries[0].name} --modelfile FILE",
        )


def _check_placement(vault: Vault, entries: Sequence[ModelEntry], placement: Placement) -> None:
    """Refuse a bad Modelfile or ``--as`` before hours of reading: a name that no engine takes, or that several models would get."""
    if placement.name is None and placement.modelfile is None:
        return
    taken: dict[tuple[str, str], ModelName] = {}
    for entry in entries:
        name = entry.stored.model.name
        try:
            targets = targets_for(entry.stored.model, placement)
            steps = [plan_step(vault, Step(entry.stored, target, placement)) for target in targets]
        except UsageProblem:
            raise
        except ModelvaultError:
            continue  # the model's own: it is received all the same, and its outcome says what the engine has against it
        for step in steps:
            other = taken.setdefault((step.engine, step.directory), name)
            if other != name and placement.name is not None:
                raise UsageProblem(
                    f"--as {placement.name} would be the name of both {other} and {name}",
                    hint=f"choose one: --only {name} --as {placement.name}",
                )


def _summary(entry: ModelEntry, missing: Mapping[Digest, int], outcome: str) -> ImportModel:
    new_bytes = sum(blob.size for blob in entry.blobs if blob.digest in missing)
    return ImportModel(entry.name.text, entry.stored.model.size, new_bytes, outcome)


def _plan(vault: Vault, job: _Job) -> _Done:
    """Say what would become of each model, and how full that would make which file systems."""
    missing = job.missing(vault)
    outcomes = []
    for entry in job.entries:
        summary = _summary(entry, missing, "would be received")
        try:
            targets = _targets(entry, job)
            steps = tuple(plan_step(vault, Step(entry.stored, target, job.request.placement)) for target in targets)
        except ModelvaultError as error:
            refused = replace(summary, outcome="would be refused", reason=error.message)
            outcomes.append(_Outcome(refused, error=error))
            continue
        planned = replace(summary, outcome="would be installed") if steps else summary
        outcomes.append(_Outcome(planned, steps, warnings=_warnings(entry, job, steps)))
    written = [(Path(step.directory), step.extra_bytes) for outcome in outcomes for step in outcome.steps]
    return _Done(tuple(outcomes), disks=_disks([(vault.root, sum(missing.values())), *written]))


def _disks(written: Sequence[tuple[Path, int]]) -> tuple[DiskLine, ...]:
    """Sum up by file system what would be written below each directory."""
    found: dict[int, DiskLine] = {}
    for path, size in written:
        device = fsio.existing_parent(path).stat().st_dev
        disk = found.get(device) or DiskLine(path, 0, fsio.free_space(path))
        found[device] = replace(disk, needed=disk.needed + size)
    return tuple(found.values())


def _publish(vault: Vault, job: _Job, received: Received) -> dict[ModelName, ModelvaultError]:
    """Publish every model that is whole, and remember the bundle if all are; give what is wrong with the others.

    Raises ``TrustRefused`` if a newer bundle was imported meanwhile, ``VaultLocked`` or ``NoSpace``.
    """
    refused: dict[ModelName, ModelvaultError] = {}
    reports: dict[ModelName, ModelReport] = {}
    for entry in job.entries:
        try:
            with in_words():
                reports[entry.name] = _inspect(vault, job.bundle, entry, received)
        except ModelvaultError as error:
            refused[entry.name] = error
    with vault.publishing():
        # Hours may have passed. From this look to the record, nobody else publishes: of two imports at once, the newer stays.
        check_news(vault, job.bundle, allow_older=job.request.allow_older)
        for entry in job.entries:
            if entry.name in refused:
                continue
            try:
                with in_words():
                    _publish_model(vault, entry, received.blobs, reports[entry.name])
            except ModelvaultError as error:
                refused[entry.name] = error
        if not refused and not job.request.only:
            _record(vault, job.bundle)
    return refused


def _not_whole(bundle: OpenBundle, entry: ModelEntry, reasons: Sequence[str]) -> DigestMismatch:
    """Build the error for a model that is damaged on the medium, or is missing there."""
    if bundle.missing and not bundle.finished and list(reasons) == [bundle.lack]:
        message = f"{entry.name}: the bundle is not finished: {bundle.lack}"
        return BundleUnfinished(message, hint=f"{FINISH}; what arrived here is kept", model=entry.name.text)
    return DigestMismatch(
        f"{entry.name} is not whole on the medium: {'; '.join(reasons[:3])}",
        hint="write the bundle again, or bring the missing volume, and import again: what arrived is kept",
        model=entry.name.text,
    )


def _inspect(vault: Vault, bundle: OpenBundle, entry: ModelEntry, received: Received) -> ModelReport:
    """Inspect a model's files. Raises ``InvalidModelFile`` though the signature was right: it is our gate too."""
    reasons = list(
        dict.fromkeys(received.failed[blob.digest] for blob in entry.blobs if blob.digest in received.failed)
    )
    if reasons:
        raise _not_whole(bundle, entry, reasons)
    where = {blob.digest: _place(vault, entry, blob, received.blobs) for blob in entry.blobs}
    # Whether pickle is acceptable was decided, and signed for, on the connected side.
    return inspect_model({file.path: where[file.digest] for file in entry.stored.model.files}, allow_pickle=True)


def _publish_model(vault: Vault, entry: ModelEntry, staged: Mapping[Digest, Path], report: ModelReport) -> None:
    for blob in entry.blobs:
        path = _place(vault, entry, blob, staged)
        if path != vault.store.blob_path(blob.digest):
            vault.store.publish_blob(path, blob.digest)
    if not is_published(vault, entry.stored.model):
        vault.publish(entry.stored.model, report.reports)


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


def _install(vault: Vault, entry: ModelEntry, summary: ImportModel, job: _Job, fresh: Collection[Digest]) -> _Outcome:
    """Install a received model into its engines; if an engine refuses, the model stays received."""
    steps: list[EngineStep] = []
    try:
        with vault.holding(), in_words():
            if not is_published(vault, entry.stored.model):
                raise ModelvaultError(
                    f"{entry.name} was replaced in the vault by another import meanwhile: that one is installed, not this",
                    hint="`modelvault show MODEL` says what the vault holds, and where it is installed",
                )
            for target in _targets(entry, job):
                step = Step(entry.stored, target, job.request.placement, fresh)
                steps.append(do_step(vault, step, job.progress))
    except ModelvaultError as error:
        failed = replace(summary, reason=error.message)
        return _Outcome(failed, tuple(steps), error, warnings=_warnings(entry, job, steps) if steps else ())
    done = replace(summary, outcome="installed") if steps else summary
    return _Outcome(done, tuple(steps), warnings=_warnings(entry, job, steps))


def _warnings(entry: ModelEntry, job: _Job, steps: Sequence[EngineStep]) -> tuple[str, ...]:
    """What the steps warn of; or, where there are none, why the model goes into no engine and how it gets into one."""
    if steps:
        return tuple(warning for step in steps for warning in step.warnings)
    model, placement = entry.stored.model, job.request.placement
    return (
        f"{model.name} goes into no engine; {placement.why_none(model)}; to install it: `{placement.command(model)}`",
    )
