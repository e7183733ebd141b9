"""``import``: from a bundle on a drive to verified models in the vault and in the engines of this machine."""

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest, ModelName
from modelvault.bundle.index import ModelEntry
from modelvault.bundle.reader import OpenBundle
from modelvault.bundle.receive import receive
from modelvault.engines import Target
from modelvault.errors import DigestMismatch, ModelvaultError, PartlyDone, UsageProblem
from modelvault.inspect import inspect_model
from modelvault.operations.finding import find_bundles
from modelvault.operations.install import (
    Placement,
    Step,
    do_step,
    found_engines,
    plan_step,
    refusals,
    takers,
    targets_for,
)
from modelvault.operations.publishing import is_published
from modelvault.operations.summaries import bundle_summary
from modelvault.operations.trust import check_news, open_trusted
from modelvault.progress import Progress
from modelvault.results import EngineStep, ImportModel, ImportResult, ImportsResult
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
        _check_name(vault, entries, request.placement)
        opened.append((_Job(bundle, entries, _lenient(entries, request.placement), request, progress), warnings))
    if not request.dry_run:
        vault.create()
        if request.allow_older and vault.history_lost:
            vault.accept_lost_history()
    results: list[ImportResult] = []
    outcomes: list[_Outcome] = []
    for job, warnings in opened:
        begun = time.monotonic()
        fared = _plan(vault, job) if request.dry_run else _import(vault, job)
        outcomes += fared
        results.append(_result(vault, job, fared, warnings, seconds=time.monotonic() - begun))
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
    names = ", ".join(outcome.model.name for outcome, _ in failed)
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
    return any(takers(entry.stored.model, placement.targets) for entry in entries)


def _targets(entry: ModelEntry, job: _Job) -> tuple[Target, ...]:
    model, placement = entry.stored.model, job.request.placement
    if job.lenient and not takers(model, placement.targets):
        return ()
    return targets_for(model, placement)


def _import(vault: Vault, job: _Job) -> tuple[_Outcome, ...]:
    """Receive, publish and install; remember the bundle once all of it is in the vault, whatever engines say of it."""
    bundle = job.bundle
    staging = vault.partial / f"import-{bundle.digest.hex}"
    what = f"the import of {bundle.places[0]}"
    with fsio.locked_directory(staging, wait=vault.config.lock_wait, what=what):
        outcomes = _receive(vault, job, staging)
        if all(outcome.received for outcome in outcomes):
            if not job.request.only:
                _record(vault, bundle)
            shutil.rmtree(staging)
    return outcomes


def _result(
    vault: Vault, job: _Job, outcomes: Sequence[_Outcome], warnings: Sequence[str], *, seconds: float
) -> ImportResult:
    said = [warning for outcome in outcomes for warning in outcome.warnings]
    return ImportResult(
        vault=vault.root,
        bundle=bundle_summary(job.bundle),
        dry_run=job.request.dry_run,
        models=tuple(outcome.model for outcome in outcomes),
        installs=tuple(step for outcome in outcomes for step in outcome.steps),
        seconds=seconds,
        warnings=tuple(dict.fromkeys((*warnings, *said))),
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


def _check_name(vault: Vault, entries: Sequence[ModelEntry], placement: Placement) -> None:
    """Refuse a mistyped ``--as`` before hours of reading: one that no engine takes, or that several models would get."""
    if placement.name is None:
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
            if other != name:
                raise UsageProblem(
                    f"--as {placement.name} would be the name of both {other} and {name}",
                    hint=f"choose one: --only {name} --as {placement.name}",
                )


def _summary(entry: ModelEntry, missing: Mapping[Digest, int], outcome: str) -> ImportModel:
    new_bytes = sum(blob.size for blob in entry.blobs if blob.digest in missing)
    return ImportModel(entry.name.text, entry.stored.model.size, new_bytes, outcome)


def _plan(vault: Vault, job: _Job) -> tuple[_Outcome, ...]:
    """Say what would become of each model."""
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
    return tuple(outcomes)


def _receive(vault: Vault, job: _Job, staging: Path) -> tuple[_Outcome, ...]:
    """Take the blobs off the medium, then publish and install model by model."""
    missing = job.missing(vault)
    staged: Mapping[Digest, Path] = {}
    failed: Mapping[Digest, str] = {}
    if missing:
        received = receive(job.bundle, missing.keys(), staging, job.progress)
        staged, failed = received.blobs, received.failed
        # Hours may have passed, and another import may have brought something newer.
        check_news(vault, job.bundle, allow_older=job.request.allow_older)
    outcomes = []
    for entry in job.entries:
        summary = _summary(entry, missing, "received")
        reasons = list(dict.fromkeys(failed[blob.digest] for blob in entry.blobs if blob.digest in failed))
        try:
            if reasons:
                raise DigestMismatch(
                    f"{entry.name} is not whole on the medium: {'; '.join(reasons[:3])}",
                    hint="write the bundle again, or bring the missing volume, and import again: what arrived is kept",
                    model=entry.name.text,
                )
            _publish(vault, entry, staged)
        except ModelvaultError as error:
            refused = replace(summary, outcome="refused", reason=error.message)
            outcomes.append(_Outcome(refused, error=error, received=False))
            continue
        outcomes.append(_install(vault, entry, summary, job, staged.keys()))
    return tuple(outcomes)


def _publish(vault: Vault, entry: ModelEntry, staged: Mapping[Digest, Path]) -> None:
    """Inspect a model's files and publish them. Raises ``InvalidModelFile`` though the signature was right: it is our gate too."""
    model = entry.stored.model
    with vault.publishing():
        store = vault.store
        where: dict[Digest, Path] = {}
        for blob in entry.blobs:
            if store.has(blob.digest, blob.size):
                where[blob.digest] = store.blob_path(blob.digest)
            elif blob.digest in staged:
                where[blob.digest] = staged[blob.digest]
            else:
                raise ModelvaultError(
                    f"{entry.name}: another process freed {blob.digest.short} while the bundle was read",
                    hint="run the same command again: only that is read once more",
                )
        # Whether pickle is acceptable was decided, and signed for, on the connected side.
        report = inspect_model({file.path: where[file.digest] for file in model.files}, allow_pickle=True)
        for blob in entry.blobs:
            if not store.has(blob.digest, blob.size):
                store.publish_blob(staged[blob.digest], blob.digest)
        if not is_published(vault, model):
            vault.publish(model, report.reports)


def _install(vault: Vault, entry: ModelEntry, summary: ImportModel, job: _Job, fresh: Collection[Digest]) -> _Outcome:
    """Install a received model into its engines; if an engine refuses, the model stays received."""
    steps: list[EngineStep] = []
    try:
        with vault.holding():
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
    model = entry.stored.model
    candidates = job.request.placement.targets or tuple(target for target, _ in found_engines())
    reasons = refusals(model, candidates)
    why = "; ".join(reasons) if reasons else "no engine was found on this machine"
    return (f"{model.name} goes into no engine ({why}); `modelvault install {model.name} --engine ENGINE=DIR` does it",)
