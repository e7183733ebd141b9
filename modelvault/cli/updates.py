"""``modelvault outdated``, and what ``pull --update`` shows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.console import counted, human_size
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.project import ProjectModel
    from modelvault.results.updates import OutdatedLine, OutdatedResult, UpdateResult


def outdated(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...", help="Names that `list` prints; else all.", autocompletion=completion.models
        ),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Another hub, a mirror, or an Ollama registry.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the vault's models with their sources.

    Only listings are asked for. What is newer there comes with `modelvault pull --update`.

    \b
    Examples:
      modelvault outdated
      modelvault outdated llama-3.1-8b --json
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.operations.outdated import outdated
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "OutdatedResult":
        with Vault.existing(default_home(), log=progress.log) as vault:
            return outdated(vault, [ModelName(name) for name in models or ()], progress, endpoint)

    run("outdated", as_json, work, lines)


def lines(result: "OutdatedResult") -> Iterator[str]:
    """Show each model and what is newer."""
    rows = [
        (line.model, line.state.value, (line.commit or "")[:12], (line.newest or "")[:12]) for line in result.models
    ]
    yield from table(("model", "state", "here", "there"), rows)
    for line in result.models:
        if line.changed or line.reason:
            yield f"  {line.model}: {line.reason or _changes(line)}"
    if any(line.changed and not line.held for line in result.models):
        yield "next: modelvault pull --update"
    yield from (f"next: modelvault pull --update {line.model}" for line in result.models if line.changed and line.held)


def _changes(line: "OutdatedLine") -> str:
    first = line.changed[0]
    others = f" and {counted(len(line.changed) - 1, 'other file')}" if len(line.changed) > 1 else ""
    return f"{first}{others} changed, {human_size(line.to_download)}"


def update_lines(result: "UpdateResult") -> Iterator[str]:
    """Show what became of each model."""
    rows = [(model.name, model.outcome, human_size(model.size or 0), commits(model)) for model in result.models]
    yield from table(("model", "outcome", "size", "commit"), rows, right=(2,))
    yield from (f"  {model.name}: {model.reason}" for model in result.models if model.reason)
    if result.dry_run:
        yield f"to download: {human_size(sum(model.to_download or 0 for model in result.models))}"
    elif any(model.outcome == "pulled" for model in result.models):
        yield "the versions before are freed with `modelvault gc`"
    yield f"vault: {result.vault}"


def commits(model: "ProjectModel") -> str:
    """Show the commit that came, and the one that it came for."""
    now = (model.commit or "")[:12]
    return f"{model.before[:12]} -> {now}" if model.before else now
