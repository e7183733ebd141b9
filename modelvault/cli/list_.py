"""``modelvault list``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelvault.cli.bundle_lines import model_table
from modelvault.cli.console import counted, human_size
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.results.models import ListResult


def list_models(as_json: Json = False) -> None:
    """List the models in the vault.

    \b
    Example:
      modelvault list --json
    """
    from modelvault.config import default_home
    from modelvault.operations.list_ import list_models
    from modelvault.vault import Vault

    def work(_: object) -> "ListResult":
        with Vault.existing(default_home()) as vault:
            return list_models(vault)

    run("list", as_json, work, lines)


def lines(result: "ListResult") -> Iterator[str]:
    """Show the table, and what is not in it yet."""
    if result.models:
        yield from model_table(result.models)
        yield f"{counted(len(result.models), 'model')}, {human_size(result.size)} in {result.vault}"
    else:
        yield f"the vault {result.vault} is empty"
    for part in result.partial:
        yield f"not complete yet: {part.name or 'a transfer'}, {human_size(part.here)} of {human_size(part.size)} here"
    for part in result.bundles:
        yield f"not finished yet: {part.name}, {human_size(part.here)} of {human_size(part.size)} written"
