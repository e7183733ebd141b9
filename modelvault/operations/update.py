"""``pull --update``: models of the vault for which there is a newer version are pulled again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from modelvault.artifact import ModelName, StoredModel
from modelvault.errors import ModelvaultError, PartlyDone, in_words
from modelvault.operations.outdated import Followed, asked_revision, follow, survey, unfollowed, upstream_of
from modelvault.operations.pull import PullRequest, pull
from modelvault.operations.upstream import Upstream
from modelvault.progress import Progress
from modelvault.results.models import PullPlan
from modelvault.results.project import ProjectModel
from modelvault.results.updates import UpdateResult
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """What the user asked for. No ``names``: every model whose own name says where it comes from.

    One under a name of the user's (``pull --as``) stays as it is, unless it is named: several versions of a model may lie side by side.
    ``ask`` makes the request for one.
    """

    ask: Callable[[Upstream], PullRequest]
    names: tuple[ModelName, ...] = ()
    endpoint: str | None = None
    dry_run: bool = False


def update(vault: Vault, request: UpdateRequest, progress: Progress) -> UpdateResult:
    """Bring models up to date. They fail each for itself: ``PartlyDone`` if any got through, else the first model's own error."""
    chosen, damaged = survey(vault, request.names)
    errors = list(damaged.values())
    outcomes = [ProjectModel(name, "failed", reason=error.message) for name, error in damaged.items()]
    for stored in chosen:
        try:
            with in_words():
                outcome = _one(vault, request, stored, progress)
        except ModelvaultError as error:
            errors.append(error)
            outcome = ProjectModel(stored.model.name.text, "failed", reason=error.message)
        if outcome is not None:
            outcomes.append(outcome)
    warnings = dict.fromkeys(f"{one.name}: {warning}" for one in outcomes for warning in one.warnings)
    result = UpdateResult(vault.root, request.dry_run, tuple(outcomes), tuple(warnings))
    _raise_failures(result, errors)
    return result


def _one(vault: Vault, request: UpdateRequest, stored: StoredModel, progress: Progress) -> ProjectModel | None:
    """Update one model; ``None`` for one that has no source, or is not to be touched."""
    upstream = upstream_of(vault, stored)
    if upstream is None and request.names:
        return ProjectModel(stored.model.name.text, "no source", reason=unfollowed(vault, stored).reason)
    if upstream is None or (upstream.called is not None and not request.names):
        return None
    followed = follow(vault, stored, progress, request.endpoint)
    if followed is None:
        return None
    if not followed.outdated:
        return _outcome(followed, "up to date", stored.model.size)
    # What was compared is what comes, and what was asked for then stays asked for.
    asked = replace(request.ask(followed.upstream), revision=asked_revision(vault, stored), commit=followed.line.newest)
    done = pull(vault, asked, progress)
    if isinstance(done, PullPlan):
        return _outcome(followed, "would pull", done.total, done.to_download, done.warnings)
    return _outcome(followed, "pulled", done.model.size, warnings=done.warnings)


def _outcome(
    followed: Followed, what: str, size: int, to_download: int | None = None, warnings: Sequence[str] = ()
) -> ProjectModel:
    line = followed.line
    return ProjectModel(
        name=line.model,
        outcome=what,
        repository=followed.upstream.repository,
        commit=line.newest,
        before=line.commit if followed.outdated else None,
        size=size,
        to_download=to_download,
        warnings=tuple(warnings),
    )


def _raise_failures(result: UpdateResult, errors: Sequence[ModelvaultError]) -> None:
    if not errors:
        return
    failed = [model.name for model in result.models if model.outcome == "failed"]
    if len(failed) == len(result.models):
        errors[0].result = result
        raise errors[0]
    raise PartlyDone(
        f"{len(failed)} of {len(result.models)} models were not updated: {', '.join(failed)}",
        hint=errors[0].hint or "run the same command again once the cause is mended: it goes on where it stopped",
        result=result,
        failed=failed,
    )
