"""What ``pull --all`` shows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelvault.cli.console import human_size
from modelvault.cli.tables import table
from modelvault.cli.updates import commits

if TYPE_CHECKING:
    from modelvault.results.project import ProjectModel, ProjectResult


def project_lines(result: "ProjectResult") -> Iterator[str]:
    """Show what became of each model, and of the lock."""
    rows = [(model.name, model.outcome, _size(model), commits(model)) for model in result.models]
    yield from table(("model", "outcome", "size", "commit"), rows, right=(2,))
    yield from (f"  {model.name}: {model.reason}" for model in result.models if model.reason)
    if result.dry_run:
        needed = sum(model.to_download or 0 for model in result.models)
        yield f"to download: {human_size(needed)}; {result.lock} stays as it is"
    elif result.written:
        yield f"locked in {result.lock}: keep it beside {result.file.name} in version control"
    else:
        yield f"{result.lock} did not change"
    yield f"vault: {result.vault}"


def _size(model: "ProjectModel") -> str:
    return human_size(model.size) if model.size is not None else ""
