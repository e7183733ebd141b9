"""``pull --all``: a project's models, each pulled as it is locked, or locked as it was pulled."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault.artifact import ModelName, StoredModel
from modelvault.errors import ModelvaultError, PartlyDone, UsageProblem, in_words
from modelvault.operations.pinning import Pin
from modelvault.operations.pull import PullRequest, pull
from modelvault.progress import Progress
from modelvault.project.lock import Lock, LockedFile, LockedModel, read_lock, write_lock
from modelvault.project.wanted import Project, WantedModel, read_project
from modelvault.results.models import PullPlan
from modelvault.results.project import ProjectModel, ProjectResult
from modelvault.sources.quantizations import QuantizationWanted
from modelvault.sources.selection import Wish
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class ProjectRequest:
    """What the user asked for: the project's file, whether the lock is to move, and how a model is pulled.

    ``ask`` makes the request for one, from its name, its wish and its revision.
    """

    file: Path
    ask: Callable[[ModelName, Wish, str | None], PullRequest]
    update: bool = False
    dry_run: bool = False


def pull_project(vault: Vault, request: ProjectRequest, progress: Progress) -> ProjectResult:
    """Pull everything that a project wants, and lock it. A model that is locked comes again exactly so, unless ``update``.

    Raises ``UsageProblem`` for a project's file or lock that cannot be read. Models fail each for itself: ``PartlyDone`` if any got
    through, else the first model's own error, both with the result. The lock is written after each model.
    """
    project = read_project(request.file.absolute())
    lock = _known(project, update=request.update)
    outcomes: list[ProjectModel] = []
    errors: list[ModelvaultError] = []
    written = False
    for number, wanted in enumerate(project.models, 1):
        progress.log(f"{number} of {len(project.models)}: {wanted}")
        before = lock.models.get(wanted)
        try:
            with in_words():
                outcome, locked = _one(vault, request, wanted, before, progress)
        except ModelvaultError as error:
            errors.append(error)
            outcomes.append(ProjectModel(str(wanted), "failed", reason=_reason(project, wanted, error)))
            continue
        if locked is not None:
            lock = lock.having(locked)
            written |= write_lock(project.lock, lock)
        outcomes.append(outcome)
    result = ProjectResult(
        vault.root, project.file, project.lock, request.dry_run, written, tuple(outcomes), _warnings(outcomes)
    )
    _raise_failures(result, errors)
    return result


def _known(project: Project, *, update: bool) -> Lock:
    """Read the lock, as far as the project asks for what is in it. Where it is to move, one that cannot be read is as good as none."""
    try:
        return read_lock(project.lock).only(project.models)
    except UsageProblem:
        if update:
            return Lock()
        raise


def _one(
    vault: Vault, request: ProjectRequest, wanted: WantedModel, before: LockedModel | None, progress: Progress
) -> tuple[ProjectModel, LockedModel | None]:
    """Pull one model, or see that it is here; give what became of it, and what is to be locked."""
    locked = before if not request.update else None
    if locked is not None and _is_here(vault, locked):
        return _outcome(locked, "here already", None), locked
    asked = request.ask(wanted.name, Wish(wanted.quant, wanted.include, wanted.exclude), wanted.revision)
    pin = _pin(locked) if locked is not None else None
    done = pull(vault, replace(asked, dry_run=request.dry_run, pin=pin), progress)
    if isinstance(done, PullPlan):
        return _planned(wanted, done, before), None
    locked = _locked(wanted, vault.model(ModelName(done.model.name)))
    outcome = _outcome(locked, "here already" if done.unchanged else "pulled", before)
    return replace(outcome, warnings=done.warnings), locked


def _pin(locked: LockedModel) -> Pin:
    return Pin(locked.repository, locked.commit, {file.path: (file.size, file.digest) for file in locked.files})


def _is_here(vault: Vault, locked: LockedModel) -> bool:
    """Tell whether the vault holds exactly what is locked, whole: then nobody has to be asked."""
    try:
        stored = vault.store.find(locked.name)
        return stored is not None and _locked(locked.wanted, stored) == locked and not vault.store.lacks(stored.model)
    except ModelvaultError:
        return False  # its documents are damaged: pulled again, they are mended


def _locked(wanted: WantedModel, stored: StoredModel) -> LockedModel:
    model, origin = stored.model, stored.model.origin
    return LockedModel(
        wanted=wanted,
        name=model.name,
        source=origin.kind,
        repository=origin.repository or "",
        commit=origin.commit or "",
        files=tuple(sorted(LockedFile(file.path, file.size, file.digest) for file in model.files)),
    )


def _outcome(locked: LockedModel, what: str, before: LockedModel | None) -> ProjectModel:
    moved = before is not None and before.commit != locked.commit
    return ProjectModel(
        name=locked.name.text,
        outcome=what,
        repository=locked.repository,
        commit=locked.commit,
        before=before.commit if before is not None and moved else None,
        size=locked.size,
    )


def _planned(wanted: WantedModel, plan: PullPlan, before: LockedModel | None) -> ProjectModel:
    return ProjectModel(
        name=plan.name or str(wanted),
        outcome="would pull",
        repository=plan.repository,
        commit=plan.commit,
        before=before.commit if before is not None and before.commit != plan.commit else None,
        size=plan.total,
        to_download=plan.to_download,
        warnings=plan.warnings,
    )


def _reason(project: Project, wanted: WantedModel, error: ModelvaultError) -> str:
    """Say why a model failed and what to do; where nobody was asked for a quantization, that is the project's file to say."""
    if isinstance(error, QuantizationWanted):
        names = ", ".join(choice.name for choice in error.data["choices"])
        return f'{error.message}: write quant = "…" under {wanted.name} in {project.file.name}; there are {names}'
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _warnings(outcomes: list[ProjectModel]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{model.name}: {warning}" for model in outcomes for warning in model.warnings))


def _raise_failures(result: ProjectResult, errors: list[ModelvaultError]) -> None:
    if not errors:
        return
    if len(errors) == len(result.models):
        errors[0].result = result
        raise errors[0]
    names = ", ".join(model.name for model in result.models if model.outcome == "failed")
    raise PartlyDone(
        f"{len(errors)} of {len(result.models)} models did not come: {names}",
        hint="run the same command again once the cause is mended: it goes on where it stopped",
        result=result,
        failed=[model.name for model in result.models if model.outcome == "failed"],
    )
