"""``modelvault registry``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from modelvault.cli.console import counted
from modelvault.cli.help import Command
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.models import RebuildResult

app = typer.Typer(help="The SQLite database that indexes the vault.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def registry() -> None:
    """The SQLite database that indexes the vault."""


@app.command(cls=Command)
def rebuild(as_json: Json = False) -> None:
    """Make the registry anew from the layout and the event log.

    Where the list of models (index.json) is lost or damaged, it is restored first, from the event log.

    \b
    Example:
      modelvault registry rebuild
    """
    from modelvault.config import default_home
    from modelvault.operations.registry import rebuild
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "RebuildResult":
        with Vault.prospective(default_home(), log=progress.log) as vault:
            return rebuild(vault, progress)

    run("registry rebuild", as_json, work, lines)


def lines(result: "RebuildResult") -> Iterator[str]:
    """Show what came back, and what did not."""
    if result.listed:
        yield f"index.json was lost or damaged, and lists again: {', '.join(result.listed)}"
    for damage in result.damage:
        yield f"cannot be read: {damage.where}: {damage.problem}"
    yield (
        f"rebuilt the registry of {result.vault}: {counted(result.models, 'model')}, "
        f"{counted(result.installs, 'install')}, {counted(result.bundles, 'bundle')}, {counted(result.events, 'event')}"
    )
