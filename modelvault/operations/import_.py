"""``import``: from a bundle on a drive to verified models in the vault and in the engines of this machine."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelvault.artifact import Digest, ModelName
from modelvault.bundle.index import ModelEntry
from modelvault.bundle.receive import Received
from modelvault.errors import ModelvaultError, NoSpace, in_words
from modelvault.formats.remote_code import CODE_FORMAT
from modelvault.operations.admitting import accept_licenses, admit
from modelvault.operations.delivery import gather, in_turn
from modelvault.operations.disks import disks, obstacles, writes
from modelvault.operations.finding import find_bundles
from modelvault.operations.fitting import unheld
from modelvault.operations.import_outcomes import Fared, because, foretold, placed, raise_failures, refused, summary_of
from modelvault.operations.install import Placement, Step, do_step, plan_step, with_needed_code
from modelvault.operations.keys import require_site
from modelvault.operations.papers import require_place, require_writable
from modelvault.operations.placing import Job, jobs_for
from modelvault.operations.publishing import is_published
from modelvault.operations.receipt import write_receipt
from modelvault.operations.receiving import (
    Order,
    Published,
    forecast,
    intake,
    is_here,
    not_whole,
    numbers_of,
    publish,
    require_base,
    take_in,
    volumes_to_come,
)
from modelvault.operations.replacing import replaced_by, step_back
from modelvault.operations.summaries import bundle_summary
from modelvault.operations.trust import check_news
from modelvault.progress import Progress
from modelvault.results.installs import DiskLine, EngineStep, ImportModel, ImportResult, ImportsResult
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
    accept_license: bool = False
    receipt: Path | None = None
    site: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Done:
    """How one bundle fared: bytes ``received``, or ``resumed`` from an earlier run, volumes ``to_come``; ``disks`` that a plan would fill."""

    outcomes: tuple[Fared, ...]
    resumed: int = 0
    received: int = 0
    disks: tuple[DiskLine, ...] = ()
    to_come: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


def import_bundles(vault: Vault, request: ImportRequest, progress: Progress) -> ImportsResult:
    """Import bundles one after the other, each from as many places as were given. Nothing is ever written to the medium.

    Every bundle is opened and judged before anything is taken from the first. Raises ``TrustRefused`` for one that nobody trusted
    signed or that is older than what was imported, ``BaseIncomplete`` for a thin one without its base, ``NoSpace``, ``VaultLocked`` or
    ``UsageProblem``. Where models fail, the others go on: ``PartlyDone`` if any got through or volumes are still to come, else the first
    model's own error.
    """
    if request.receipt is not None:
        require_site(vault, request.site)
        (require_place if request.dry_run else require_writable)(request.receipt)
    vault.store.entries()  # a list that is damaged shall not be met only when hours of reading are over
    jobs = jobs_for(vault, _orders(vault, request, progress), request.placement)
    coming: set[Digest] = set()
    for job in jobs:
        # What an earlier bundle of this import brings may be the base of a later one.
        require_base(job.order, job.order.missing(vault).keys() - coming)
        coming.update(job.order.bundle.index.sizes)
    if not request.dry_run:
        vault.create()
        if request.allow_older and vault.history_lost:
            vault.accept_lost_history()
        if request.accept_license:
            accept_licenses(vault, (job.order for job in jobs))
    results: list[ImportResult] = []
    outcomes: list[Fared] = []
    for job in jobs:
        begun = time.monotonic()
        try:
            with in_words():
                done = _do(vault, job, dry_run=request.dry_run)
        except ModelvaultError as error:
            done = _Done(tuple(refused(summary_of(entry, {}, Received()), error) for entry in job.order.entries))
        installed = [outcome.model.name for outcome in done.outcomes if outcome.steps]
        done = replace(done, warnings=(*done.warnings, *unheld(vault, installed)))
        unseen = tuple(refused(summary_of(entry, {}, Received()), error) for entry, error in job.order.refused)
        done = replace(done, outcomes=done.outcomes + unseen)
        outcomes += done.outcomes
        results.append(_result(vault, job, done, dry_run=request.dry_run, seconds=time.monotonic() - begun))
    result = ImportsResult(tuple(results))
    if request.receipt is not None and not request.dry_run and any(outcome.received for outcome in outcomes):
        result = _with_receipt(vault, request.receipt, request.site, result)
    raise_failures(result, outcomes)
    return result


def _with_receipt(vault: Vault, path: Path, site: str | None, result: ImportsResult) -> ImportsResult:
    """Write the receipt; what is wrong with that hides nothing of the import."""
    try:
        with in_words():
            return replace(result, receipt=write_receipt(vault, path, site))
    except ModelvaultError as error:
        error.result = result
        done = "the import itself is done: write one with `modelvault receipt write PATH`"
        error.hint = f"{error.hint}; {done}" if error.hint else done
        raise


def _orders(vault: Vault, request: ImportRequest, progress: Progress) -> list[Order]:
    """Open and judge what was brought."""
    found = find_bundles(request.paths)
    done = vault.events.imported_indexes()
    deliveries = gather(
        [one.path for one in found],
        vault.keys,
        vault.partial,
        allow_unsigned=request.allow_unsigned,
        done=lambda digest: digest.hex in done,
    )
    if not deliveries:
        progress.log("what these patches mend was imported completely: nothing of them is wanted")
    orders = []
    named = {one.path for one in found if one.named}
    marks = {} if request.allow_older else vault.events.high_water()
    for delivery in in_turn(deliveries, named, marks, progress):
        check_news(vault, delivery.bundle, allow_older=request.allow_older)
        entries = tuple(delivery.bundle.index.model(name) for name in request.only) or delivery.bundle.index.models
        order = Order(delivery, entries, request.allow_older, progress)
        orders.append(admit(vault, order, acceptable=request.accept_license))
    return orders


def _do(vault: Vault, job: Job, *, dry_run: bool) -> _Done:
    if not job.order.entries:  # the policy has refused all of them
        return _Done(())
    return _plan(vault, job) if dry_run else _import(vault, job)


def _import(vault: Vault, job: Job) -> _Done:
    """Receive, publish and install."""
    order = job.order
    with intake(vault, order) as staging:
        missing = order.missing(vault)
        received, published = _receive(vault, order, staging, missing)
        outcomes = {}
        # Code first: models bring what they need of it along, and it would then count as installed before this import.
        for entry in sorted(order.entries, key=lambda entry: entry.stored.model.traits.format != CODE_FORMAT):
            summary = replace(summary_of(entry, missing, received), replaces=published.replaced.get(entry.name))
            if error := published.refused.get(entry.name):
                outcomes[entry.name] = refused(summary, error)
            else:
                outcomes[entry.name] = _install(vault, entry, summary, job, received.blobs.keys())
        to_come = volumes_to_come(vault, order, order.missing(vault))
    ordered = tuple(outcomes[entry.name] for entry in order.entries)
    return _Done(ordered, received.resumed, received.read, to_come=to_come, warnings=published.warnings)


def _receive(vault: Vault, order: Order, staging: Path, missing: Mapping[Digest, int]) -> tuple[Received, Published]:
    """Receive and publish. A disk that is too full for some models does not keep those that are here from the engines."""
    received = Received()
    try:
        received = take_in(vault, order, staging, missing)
        return received, publish(vault, order, received)
    except NoSpace as error:
        lacking: dict[ModelName, ModelvaultError] = {
            entry.name: error for entry in order.entries if not is_here(vault, entry)
        }
        if not lacking:
            raise
        return received, Published(lacking)


def _result(vault: Vault, job: Job, done: _Done, *, dry_run: bool, seconds: float) -> ImportResult:
    delivery = job.order.delivery
    said = [*done.warnings, *(warning for outcome in done.outcomes for warning in outcome.warnings)]
    return ImportResult(
        vault=vault.root,
        bundle=replace(bundle_summary(delivery.bundle), path=delivery.path),
        dry_run=dry_run,
        models=tuple(foretold(outcome.model) if dry_run else outcome.model for outcome in done.outcomes),
        installs=tuple(step for outcome in done.outcomes for step in outcome.steps),
        disks=done.disks,
        received=done.received,
        resumed=done.resumed,
        wanted=done.to_come,
        seconds=seconds,
        warnings=tuple(dict.fromkeys((*delivery.warnings, *said, *obstacles(done.disks)))),
    )


def _plan(vault: Vault, job: Job) -> _Done:
    """Say what would become of each model, and how full that would make which file systems."""
    missing = job.order.missing(vault)
    expected = forecast(vault, job.order, missing)
    outcomes: list[Fared] = []
    warnings: list[str] = []
    for entry in job.order.entries:
        summary = summary_of(entry, missing, expected.received)
        if error := not_whole(job.order, entry, expected.received):
            outcomes.append(refused(summary, error))
        else:
            replacing = replace(summary, replaces=replaced_by(vault, entry))
            outcomes.append(_planned(vault, entry, replacing, job))
            warnings += filter(None, [step_back(vault, entry, job.order.bundle.index)])
    written = writes(step for outcome in outcomes for step in outcome.steps)
    filled = disks([(vault.root, expected.needed), *written])
    return _Done(tuple(outcomes), disks=filled, to_come=numbers_of(expected.received.waiting), warnings=tuple(warnings))


def _planned(vault: Vault, entry: ModelEntry, summary: ImportModel, job: Job) -> Fared:
    steps: list[EngineStep] = []
    coming = [other.stored for other in job.order.entries]
    try:
        with in_words():
            for target in job.targets(entry):
                for step in with_needed_code(vault, Step(entry.stored, target, job.placement, coming=coming)):
                    steps.append(plan_step(vault, step))  # noqa: PERF401 (those before an error count)
    except ModelvaultError as error:
        return Fared(because(placed(summary), error), tuple(steps), error)
    return Fared(placed(summary, steps), tuple(steps), warnings=job.warnings(entry, steps))


def _install(vault: Vault, entry: ModelEntry, summary: ImportModel, job: Job, fresh: Collection[Digest]) -> Fared:
    """Install a received model into its engines; if an engine refuses, the model stays received."""
    steps: list[EngineStep] = []
    try:
        with vault.holding(), in_words():
            if not is_published(vault, entry.stored):
                raise ModelvaultError(
                    f"{entry.name} was replaced in the vault by another import meanwhile: that one is installed, not this",
                    hint="`modelvault show MODEL` says what the vault holds, and where it is installed",
                )
            problems = []
            for target in job.targets(entry):
                try:
                    with in_words():
                        for step in with_needed_code(vault, Step(entry.stored, target, job.placement, fresh)):
                            steps.append(do_step(vault, step, job.order.progress))  # noqa: PERF401 (those before an error count)
                except ModelvaultError as error:  # one engine that cannot take it keeps it from no other
                    problems.append(error)
            if problems:
                raise problems[0]
    except ModelvaultError as error:
        failed = because(placed(summary), error)
        return Fared(failed, tuple(steps), error, warnings=job.warnings(entry, steps) if steps else ())
    return Fared(placed(summary, steps), tuple(steps), warnings=job.warnings(entry, steps))
