"""``modelvault installs``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli.console import counted
from modelvault.cli.run import Json, run
from modelvault.cli.tables import last_smoke, table

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.installs import InstallsResult


def installs(
    check: Annotated[bool, typer.Option("--check", help="Read every byte again, and compare.")] = False,
    as_json: Json = False,
) -> None:
    """List what is installed in engines.

    Which model, in which engine, where, how its weights got there, and whether the files are there with their sizes; with --check, whether
    every byte is what was installed; and when `smoke` last tried it out.

    \b
    Examples:
      modelvault installs
      modelvault installs --check
    """
    from modelvault.config import default_home
    from modelvault.operations.installs import list_installs
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "InstallsResult":
        with Vault.existing(default_home(), log=progress.log) as vault:
            return list_installs(vault, progress, check=check)

    run("installs", as_json, work, lines)


def lines(result: "InstallsResult") -> Iterator[str]:
    """Show the table, and what is wrong."""
    if not result.installs:
        yield "nothing is installed"
        return
    sound = "intact" if result.checked else "there"
    rows = [
        (
            line.model,
            line.engine,
            line.installed_name,
            line.directory,
            line.link,
            "damaged" if line.problems else sound,
            last_smoke(line.last_smoke),
        )
        for line in result.installs
    ]
    yield from table(("model", "engine", "installed as", "directory", "placed by", "state", "tried out"), rows)
    for line in result.installs:
        yield from (f"damaged: {line.installed_name} in {line.engine}: {problem}" for problem in line.problems)
    yield counted(len(result.installs), "install") + ("" if result.checked else "; --check reads every byte")
