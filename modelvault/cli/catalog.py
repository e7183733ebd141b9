"""``modelvault catalog``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.results.models import CatalogResult


def catalog(as_json: Json = False) -> None:
    """List the short names that `pull` knows.

    \b
    Example:
      modelvault catalog
    """
    from modelvault.operations.catalog import list_catalog

    run("catalog", as_json, lambda _: list_catalog(), lines)


def lines(result: "CatalogResult") -> Iterator[str]:
    """Show the table."""
    rows = [(entry.name, entry.format, entry.repository) for entry in result.entries]
    yield from table(("name", "format", "repository"), rows)
    if gated := [entry.name for entry in result.entries if entry.gated]:
        yield f"gated, so they need an account with access: {', '.join(gated)}"
    unverified = sum(not entry.verified for entry in result.entries)
    if unverified:
        yield f"{unverified} of {len(rows)} entries were not checked online yet; `pull` says so when you use one"
