"""How models fare in an import: what is said of each of them, and what all of them come to."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from modelvault.artifact import Digest
from modelvault.bundle.index import ModelEntry, name_volumes
from modelvault.bundle.receive import Received
from modelvault.errors import ModelvaultError, PartlyDone
from modelvault.operations.delivery import VolumesWanted
from modelvault.results.installs import EngineStep, ImportModel, ImportsResult, Outcome


@dataclass(frozen=True, slots=True)
class Fared:
    """How one model fared. ``error`` says why it did not get all the way; ``received``: at least it is in the vault."""

    model: ImportModel
    steps: tuple[EngineStep, ...] = ()
    error: ModelvaultError | None = None
    received: bool = True
    warnings: tuple[str, ...] = ()


def summary_of(entry: ModelEntry, missing: Collection[Digest], received: Received) -> ImportModel:
    """Say what came of a model off the drives, and whether the vault lacked anything of it."""
    new_bytes = sum(received.taken.get(blob.digest, 0) for blob in entry.blobs)
    outcome = Outcome.RECEIVED if any(blob.digest in missing for blob in entry.blobs) else Outcome.HERE
    return ImportModel(entry.name.text, entry.stored.model.size, new_bytes, outcome)


def refused(summary: ImportModel, error: ModelvaultError) -> Fared:
    """Say that a model did not get into the vault, or that it waits for the rest of it."""
    outcome = Outcome.WAITING if isinstance(error, VolumesWanted) else Outcome.REFUSED
    return Fared(because(replace(summary, outcome=outcome), error), error=error, received=False)


def because(summary: ImportModel, error: ModelvaultError) -> ImportModel:
    """Give the reason with it."""
    return replace(summary, reason=_said(summary.name, error))


def _said(name: str, error: ModelvaultError) -> str:
    """Name the model that an error is about, once."""
    return error.message if error.message.startswith(name) else f"{name}: {error.message}"


def placed(summary: ImportModel, steps: Sequence[EngineStep] = ()) -> ImportModel:
    """Say what became of a model that is in the vault now, by what was done in the engines."""
    if not steps:
        return summary
    return replace(
        summary, outcome=Outcome.INSTALLED_ALREADY if all(step.already for step in steps) else Outcome.INSTALLED
    )


_FORETOLD = {
    Outcome.INSTALLED: Outcome.WOULD_BE_INSTALLED,
    Outcome.RECEIVED: Outcome.WOULD_BE_RECEIVED,
    Outcome.WAITING: Outcome.WOULD_WAIT,
    Outcome.REFUSED: Outcome.WOULD_BE_REFUSED,
}


def foretold(model: ImportModel) -> ImportModel:
    """Say it as a plan does: what would become of it."""
    return replace(model, outcome=_FORETOLD.get(model.outcome, model.outcome))


def raise_failures(result: ImportsResult, outcomes: Sequence[Fared]) -> None:
    """Raise if any model failed: ``PartlyDone`` if others got through or volumes are still to come, else the first one's own error."""
    failed = [(outcome, outcome.error) for outcome in outcomes if outcome.error is not None]
    if not failed:
        return
    first = failed[0][1]
    nothing = len(failed) == len(outcomes) and not any(outcome.steps for outcome in outcomes)
    kinds = {type(error) for _, error in failed}
    several_wait = VolumesWanted in kinds and len(failed) > 1
    if nothing and not several_wait and (len(kinds) == 1 or not any(outcome.received for outcome, _ in failed)):
        first.result = result
        raise first
    names = ", ".join(dict.fromkeys(outcome.model.name for outcome, _ in failed))
    raise (VolumesWanted if kinds == {VolumesWanted} else PartlyDone)(
        f"{len(failed)} of {len(outcomes)} models {'still wait for volumes' if kinds == {VolumesWanted} else 'did not get all the way'}: {names}",
        hint=_what_next([error for _, error in failed], bundles=len(result.imports)),
        result=result,
        failed=[_said(outcome.model.name, error) for outcome, error in failed],
    )


def _what_next(errors: Sequence[ModelvaultError], bundles: int) -> str:
    """Say what to do next: the first one's hint, or all the volumes that models wait for, where each names its own."""
    hint = errors[0].hint
    waiting = [error for error in errors if isinstance(error, VolumesWanted)]
    if (
        bundles == 1
        and errors[0] in waiting
        and len({error.hint for error in waiting}) > 1
        and not any("patch" in (error.hint or "") for error in waiting)
    ):
        volumes = sorted({number for error in waiting for number in error.data["volumes"]})
        return f"import the drives that hold {name_volumes(volumes)}: what arrived is kept"
    return hint or "run the same command again once the cause is mended: it goes on where it stopped"
