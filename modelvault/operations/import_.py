"""``import``: from a bundle on a drive to verified models in the vault and in the engines of this machine."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelvault.artifact import Digest, ModelName
from modelvault.bundle.index import ModelEntry
from modelvault.engines import Target
from modelvault.errors import ModelvaultError, PartlyDone, UsageProblem, in_words
from modelvault.operations.delivery import VolumesWanted, gather
from modelvault.operations.disks import disks, obstacles, writes
from modelvault.operations.finding import find_bundles
from modelvault.operations.install import Placement, Step, do_step, plan_step, targets_for
from modelvault.operations.papers import require_place
from modelvault.operations.publishing import is_published
from modelvault.operations.receipt import write_receipt
from modelvault.operations.receiving import (
    Order,
    intake,
    publish,
    require_base,
    take_in,
    volumes_to_come,
)
from modelvault.operations.summaries import bundle_summary
from modelvault.operations.trust import check_news
from modelvault.progress import Progress
from modelvault.results import DiskLine, EngineStep, ImportModel, ImportResult, ImportsResult
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What the user asked for. No ``paths``: look on the mounted drives; no ``only``: every model.

    ``receipt`` is where to write one afterwards, for the ``site`` of this name.
    """

    paths: tuple[Path, ...] = ()
    only: tuple[ModelName, ...] = ()
    placement: Placement = field(default_factory=Placement)
    allow_unsigned: bool = False
    allow_older: bool = False
    receipt: Path | None = None
    site: str | None = None
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
    """How one bundle fared: bytes ``received``, or ``resumed`` from an earlier run, volumes ``to_come``; ``disks`` that a plan would fill."""

    outcomes: tuple[_Outcome, ...]
    resumed: int = 0
    received: int = 0
    disks: tuple[DiskLine, ...] = ()
    to_come: tuple[int, ...] = ()


def import_bundles(vault: Vault, request: ImportRequest, progress: Progress) -> ImportsResult:
    """Import bundles one after the other, each from as many places as were given. Nothing is ever written to the medium.

    Every bundle is opened and judged before anything is taken from the first. Raises ``TrustRefused`` for one that nobody trusted
    signed or that is older than what was imported, ``BaseIncomplete`` for a thin one without its base, ``NoSpace``, ``VaultLocked`` or
    ``UsageProblem``. Where models fail, the others go on: ``PartlyDone`` if any got through or volumes are still to come, else the first
    model's own error.
    """
    if request.receipt is not None:
        require_place(request.receipt)
    jobs = _jobs(vault, request, progress)
    _check_modelfile([entry for job in jobs for entry in job.order.entries], request.placement)
    for job in jobs:
        _check_placement(vault, job.order.entries, request.placement)
        require_base(job.order, job.order.missing(vault))
    if not request.dry_run:
        vault.create()
        if request.allow_older and vault.history_lost:
            vault.accept_lost_history()
    results: list[ImportResult] = []
    outcomes: list[_Outcome] = []
    for job in jobs:
        begun = time.monotonic()
        try:
            done = _plan(vault, job) if request.dry_run else _import(vault, job)
        except ModelvaultError as error:
            done = _Done(tuple(_refused(_summary(entry, {}, ""), error) for entry in job.order.entries))
        outcomes += done.outcomes
        results.append(_result(vault, job, done, seconds=time.monotonic() - begun))
    result = ImportsResult(tuple(results))
    if request.receipt is not None and not request.dry_run and any(outcome.received for outcome in outcomes):
        result = _with_receipt(vault, request.receipt, request.site, result)
    _raise_failures(result, outcomes)
    return result


def _with_receipt(vault: Vault, path: Path, site: str | None, result: ImportsResult) -> ImportsResult:
    """Write the receipt; what is wrong with that hides nothing of the import."""
    try:
        with in_words():
            return replace(result, receipt=write_receipt(vault, path, site))
    except ModelvaultError as error:
        error.result = result
        error.hint = f"{error.hint}; the import itself is done: write one with `modelvault receipt write PATH`"
        raise


def _jobs(vault: Vault, request: ImportRequest, progress: Progress) -> list["_Job"]:
    """Open and judge what was brought."""
    jobs = []
    found = find_bundles(request.paths)
    for delivery in gather(found, vault.keys, vault.partial, allow_unsigned=request.allow_unsigned):
        check_news(vault, delivery.bundle, allow_older=request.allow_older)
        entries = tuple(delivery.bundle.index.model(name) for name in request.only) or delivery.bundle.index.models
        order = Order(delivery, entries, not request.only, request.allow_older, progress)
        jobs.append(_Job(order, _lenient(entries, request.placement), request))
    return jobs


def _raise_failures(result: ImportsResult, outcomes: Sequence[_Outcome]) -> None:
    failed = [(outcome, outcome.error) for outcome in outcomes if outcome.error is not None]
    if not failed:
        return
    first = failed[0][1]
    nothing = len(failed) == len(outcomes)
    kinds = {type(error) for _, error in failed}
    several_wait = VolumesWanted in kinds and len(failed) > 1
    if nothing and not several_wait and (len(kinds) == 1 or not any(outcome.received for outcome, _ in failed)):
        first.result = result
        raise first
    names = ", ".join(dict.fromkeys(outcome.model.name for outcome, _ in failed))
    raise (VolumesWanted if kinds == {VolumesWanted} else PartlyDone)(
        f"{len(failed)} of {len(outcomes)} models {'still wait for volumes' if kinds == {VolumesWanted} else 'did not get all the way'}: {names}",
        hint=first.hint or "run the same command again once the cause is mended: it goes on where it stopped",
        result=result,
        failed=[f"{outcome.model.name}: {error.message}" for outcome, error in failed],
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """One bundle that was judged, and what is wanted of it. ``lenient``: a model that no named engine takes is only received."""

    order: Order
    lenient: bool
    request: ImportRequest


def _lenient(entries: Sequence[ModelEntry], placement: Placement) -> bool:
    """Engines named for a whole bundle need not take every model of it, but an engine that takes none was named by mistake."""
    return not placement.named or any(placement.takers(entry.stored.model) for entry in entries)


def _targets(entry: ModelEntry, job: _Job) -> tuple[Target, ...]:
    model, placement = entry.stored.model, job.request.placement
    return placement.takers(model) if job.lenient else targets_for(model, placement)


def _import(vault: Vault, job: _Job) -> _Done:
    """Receive, publish and install."""
    order = job.order
    with intake(vault, order) as staging:
        missing = order.missing(vault)
        received = take_in(order, staging, missing)
        refused = publish(vault, order, received)
        outcomes = []
        for entry in order.entries:
            summary = _summary(entry, missing, "received")
            if entry.name in refused:
                outcomes.append(_refused(summary, refused[entry.name]))
            else:
                outcomes.append(_install(vault, entry, summary, job, received.blobs.keys()))
        to_come = volumes_to_come(vault, order, order.missing(vault))
    return _Done(tuple(outcomes), received.resumed, received.read, to_come=to_come)


def _refused(summary: ImportModel, error: ModelvaultError) -> _Outcome:
    outcome = "waiting" if isinstance(error, VolumesWanted) else "refused"
    return _Outcome(replace(summary, outcome=outcome, reason=error.message), error=error, received=False)


def _result(vault: Vault, job: _Job, done: _Done, *, seconds: float) -> ImportResult:
    delivery = job.order.delivery
    said = [warning for outcome in done.outcomes for warning in outcome.warnings]
    return ImportResult(
        vault=vault.root,
        bundle=replace(bundle_summary(delivery.bundle), path=delivery.path),
        dry_run=job.request.dry_run,
        models=tuple(outcome.model for outcome in done.outcomes),
        installs=tuple(step for outcome in done.outcomes for step in outcome.steps),
        disks=done.disks,
        received=done.received,
        resumed=done.resumed,
        wanted=done.to_come,
        seconds=seconds,
        warnings=tuple(dict.fromkeys((*delivery.warnings, *said, *obstacles(done.disks)))),
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
    missing = job.order.missing(vault)
    outcomes = []
    for entry in job.order.entries:
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
    written = writes(step for outcome in outcomes for step in outcome.steps)
    filled = disks([(vault.root, sum(missing.values())), *written])
    return _Done(tuple(outcomes), disks=filled, to_come=volumes_to_come(vault, job.order, missing, planned=True))


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
                steps.append(do_step(vault, step, job.order.progress))
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
