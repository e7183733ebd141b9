"""``modelvault rm`` and ``modelvault gc``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.console import counted, human_size
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.models import GcResult, RemoveResult


def rm(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name that `list` prints.", autocompletion=completion.models)
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what that would free.")] = False,
    as_json: Json = False,
) -> None:
    """Take a model out of the vault's list.

    `gc` frees its bytes; installs in engines stay.

    \b
    Examples:
      modelvault rm llama-3.1-8b --dry-run
      modelvault rm llama-3.1-8b
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.operations.rm import remove
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "RemoveResult":
        with Vault.existing(default_home(), log=progress.log) as vault:
            return remove(vault, ModelName(model), dry_run=dry_run)

    run("rm", as_json, work, _removed)


def _removed(result: "RemoveResult") -> Iterator[str]:
    yield f"{'would remove' if result.dry_run else 'removed'} {result.model} from {result.vault}"
    if result.installs:
        yield "still installed; to remove it there:"
    yield from (f"  {install.removal}" for install in result.installs)
    if result.freeable is not None:
        yield f"`modelvault gc` would {'then' if result.dry_run else 'now'} free {human_size(result.freeable)}"


def gc(
    partial: Annotated[
        bool, typer.Option("--partial", help="Delete unfinished transfers too: they then start from nothing.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Free the bytes that no model needs.

    \b
    Example:
      modelvault gc --dry-run
    """
    from modelvault.config import default_home
    from modelvault.operations.gc import collect
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "GcResult":
        with Vault.existing(default_home(), log=progress.log) as vault:
            return collect(vault, dry_run=dry_run, partial=partial)

    run("gc", as_json, work, _collected)


def _collected(result: "GcResult") -> Iterator[str]:
    verb = "would free" if result.dry_run else "freed"
    yield f"{verb} {human_size(result.size)} in {counted(result.blobs, 'blob')} of {result.vault}"
    if result.linked:
        yield f"{human_size(result.linked)} stay on the disk: engines have hard links to them (`modelvault installs`)"
    if result.partial:
        yield f"{verb} {human_size(result.partial_size)} in {counted(len(result.partial), 'unfinished transfer')}"
