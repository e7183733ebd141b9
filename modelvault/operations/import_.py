"""``import``: from a bundle on a drive to verified models in the vault and in the engines of this machine."""

import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest, ModelName
from modelvault.bundle.index import ModelEntry
from modelvault.bundle.reader import OpenBundle, open_bundle
from modelvault.bundle.receive import receive
from modelvault.errors import DigestMismatch, ModelvaultError, PartlyDone, TrustRefused, UsageProblem
from modelvault.inspect import inspect_model
from modelvault.operations.finding import find_bundles
from modelvault.operations.install import Placement, Step, do_step, found_engines, plan_step, targets_for
from modelvault.operations.publishing import is_published
from modelvault.operations.summaries import bundle_summary
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
    """How one model fared; ``error`` says why it did not get all the way."""

    model: ImportModel
    steps: tuple[EngineStep, ...] = ()
    error: ModelvaultError | None = None
    warnings: tuple[str, ...] = ()


def import_bundles(vault: Vault, request: ImportRequest, progress: Progress) -> ImportsResult:
    """Import bundles one after the other. Nothing is ever written to the medium.

    Raises ``TrustRefused`` before anything is read of a bundle that nobody trusted signed, ``NoSpace``, ``VaultLocked`` or
    ``UsageProblem``. Where models fail, the others go on: ``PartlyDone`` if any got through, else the first model's own error.
    """
    results = []
    outcomes: list[_Outcome] = []
    for path in find_bundles(request.paths):
        bundle, warnings = _open(vault, path, request)
        done = _import(vault, bundle, request, progress)
        outcomes += done.outcomes
        results.append(replace(done.result, warnings=(*warnings, *done.result.warnings)))
    result = ImportsResult(tuple(results))
    _raise_failures(result, outcomes)
    return result


def _raise_failures(result: ImportsResult, outcomes: Sequence[_Outcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if not failed:
        return
    first = failed[0].error
    assert first is not None
    if len(failed) == len(outcomes) == 1:
        first.result = result
        raise first
    names = ", ".join(outcome.model.name for outcome in failed)
    if len(failed) == len(outcomes) and all(type(outcome.error) is type(first) for outcome in failed):
        first.result = result
        raise first
    raise PartlyDone(
        f"{len(failed)} of {len(outcomes)} models did not get all the way: {names}",
        hint=first.hint or "run the same command again once the cause is mended: it goes on where it stopped",
        result=result,
        failed={outcome.model.name: outcome.error.message for outcome in failed if outcome.error},
    )


def _open(vault: Vault, path: Path, request: ImportRequest) -> tuple[OpenBundle, tuple[str, ...]]:
    """Read and judge the index: who signed, and is it news."""
    try:
        bundle = open_bundle(path, vault.keys.verify)
    except TrustRefused:
        if not request.allow_unsigned:
            raise
        bundle = open_bundle(path, None)
    index = bundle.index
    if bundle.signer is None:
        return bundle, (f"{path} is not signed by anyone trusted here: there is no proof of where it comes from",)
    if vault.history_lost and not request.allow_older:
        raise TrustRefused(
            "the vault's event log is gone, and with it the record of what was imported",
            hint="compare the bundle's sequence yourself, then import once with --allow-older",
        )
    newest = vault.newest_imported(bundle.signer.fingerprint, index.label)
    if index.sequence < newest and not request.allow_older:
        raise TrustRefused(
            f"{path} has sequence {index.sequence}, but {newest} of label {index.label} was imported already",
            hint="import the newest bundle, or this one with --allow-older",
            sequence=index.sequence,
            newest=newest,
        )
    return bundle, ()


@dataclass(frozen=True, slots=True)
class _Imported:
    result: ImportResult
    outcomes: tuple[_Outcome, ...]


def _import(vault: Vault, bundle: OpenBundle, request: ImportRequest, progress: Progress) -> _Imported:
    begun = time.monotonic()
    index = bundle.index
    entries = tuple(index.model(name) for name in request.only) or index.models
    missing = {
        blob.digest: blob.size
        for entry in entries
        for blob in entry.blobs
        if not vault.store.has(blob.digest, blob.size)
    }
    staging = vault.partial / f"import-{bundle.digest.hex}"
    _check_name(vault, entries, request.placement)
    if request.dry_run:
        outcomes = tuple(_planned(vault, entry, missing, request.placement) for entry in entries)
    else:
        staging.mkdir(exist_ok=True)
        with fsio.FileLock(staging / "lock", wait=vault.config.lock_wait, what=f"the import of {bundle.places[0]}"):
            outcomes = _receive(vault, bundle, entries, missing, _Work(staging, request, progress))
            complete = all(outcome.error is None for outcome in outcomes)
            if complete and not request.only:
                _record(vault, bundle)
            if complete:
                shutil.rmtree(staging)
    result = ImportResult(
        vault=vault.root,
        bundle=bundle_summary(bundle),
        dry_run=request.dry_run,
        models=tuple(outcome.model for outcome in outcomes),
        installs=tuple(step for outcome in outcomes for step in outcome.steps),
        seconds=time.monotonic() - begun,
        warnings=tuple(dict.fromkeys(warning for outcome in outcomes for warning in outcome.warnings)),
    )
    return _Imported(result, outcomes)


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


@dataclass(frozen=True, slots=True)
class _Work:
    """What every step of one import needs."""

    staging: Path
    request: ImportRequest
    progress: Progress


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


def _new_bytes(entry: ModelEntry, missing: Mapping[Digest, int]) -> int:
    return sum(blob.size for blob in entry.blobs if blob.digest in missing)


def _planned(vault: Vault, entry: ModelEntry, missing: Mapping[Digest, int], placement: Placement) -> _Outcome:
    """Say what would become of a model."""
    model = entry.stored.model
    summary = ImportModel(model.name.text, model.size, _new_bytes(entry, missing), "would be received")
    try:
        targets = targets_for(model, placement)
        steps = tuple(plan_step(vault, Step(entry.stored, target, placement)) for target in targets)
    except ModelvaultError as error:
        return _Outcome(replace(summary, outcome="would be refused", reason=error.message), error=error)
    outcome = "would be installed" if steps else summary.outcome
    warnings = tuple(warning for step in steps for warning in step.warnings)
    return _Outcome(replace(summary, outcome=outcome), steps, warnings=warnings)


def _receive(
    vault: Vault, bundle: OpenBundle, entries: Sequence[ModelEntry], missing: Mapping[Digest, int], work: _Work
) -> tuple[_Outcome, ...]:
    """Take the blobs off the medium, then publish and install model by model."""
    staged: Mapping[Digest, Path] = {}
    failed: Mapping[Digest, str] = {}
    if missing:
        received = receive(bundle, missing.keys(), work.staging, work.progress)
        staged, failed = received.blobs, received.failed
    outcomes = []
    for entry in entries:
        model = entry.stored.model
        summary = ImportModel(model.name.text, model.size, _new_bytes(entry, missing), "received")
        reasons = list(dict.fromkeys(failed[blob.digest] for blob in entry.blobs if blob.digest in failed))
        try:
            if reasons:
                raise DigestMismatch(
                    f"{model.name} is not whole on the medium: {'; '.join(reasons[:3])}",
                    hint="write the bundle again, or bring the missing volume, and import again: what arrived is kept",
                    model=model.name.text,
                )
            _publish(vault, entry, staged)
        except ModelvaultError as error:
            outcomes.append(_Outcome(replace(summary, outcome="refused", reason=error.message), error=error))
            continue
        outcomes.append(_install(vault, entry, summary, work, staged.keys()))
    return tuple(outcomes)


def _publish(vault: Vault, entry: ModelEntry, staged: Mapping[Digest, Path]) -> None:
    """Inspect a model's files and publish them. Raises ``InvalidModelFile`` though the signature was right: it is our gate too."""
    model = entry.stored.model
    with vault.publishing():
        store = vault.store
        where = {
            blob.digest: store.blob_path(blob.digest) if store.has(blob.digest, blob.size) else staged[blob.digest]
            for blob in entry.blobs
        }
        # Whether pickle is acceptable was decided, and signed for, on the connected side.
        report = inspect_model({file.path: where[file.digest] for file in model.files}, allow_pickle=True)
        for blob in entry.blobs:
            if not store.has(blob.digest, blob.size):
                store.publish_blob(staged[blob.digest], blob.digest)
        if not is_published(vault, model):
            vault.publish(model, report.reports)


def _install(vault: Vault, entry: ModelEntry, summary: ImportModel, work: _Work, fresh: Collection[Digest]) -> _Outcome:
    """Install a received model into its engines; if an engine refuses, the model stays received."""
    model = entry.stored.model
    steps: list[EngineStep] = []
    placement = work.request.placement
    try:
        targets = targets_for(model, placement)
        with vault.holding():
            for target in targets:
                step = Step(entry.stored, target, placement, fresh)
                steps.append(do_step(vault, step, work.progress))
    except ModelvaultError as error:
        return _Outcome(replace(summary, reason=error.message), tuple(steps), error)
    warnings = tuple(warning for step in steps for warning in step.warnings)
    if not targets:
        return _Outcome(summary, warnings=(_not_installed(entry),))
    return _Outcome(replace(summary, outcome="installed"), tuple(steps), warnings=warnings)


def _not_installed(entry: ModelEntry) -> str:
    """Explain why a model went into no engine, and how it gets into one."""
    model = entry.stored.model
    reasons = [f"{target.engine}: {adapter.accepts(model)}" for target, adapter in found_engines()]
    why = "; ".join(reasons) if reasons else "no engine was found on this machine"
    return f"{model.name} was received but not installed ({why}); `modelvault install {model.name} --engine ENGINE=DIR` does it"
