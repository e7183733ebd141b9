"""``modelvault doctor``."""

import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.console import counted, human_size, terminal_width
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.results.engines import DoctorResult

_INDENT = 10  # columns of a finding's level


def doctor(
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENGINE[=DIR]",
            help="Look at this directory, too. Repeatable; those found and those installed into are looked at in any case.",
            autocompletion=completion.engines,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for what would go wrong in engines and vault.

    Engines on this machine, their releases and known dangers; their directories: whose they are, who can read and write there, free space, whether
    weights would be linked or copied; the vault, its event log, registry and keys. Changes nothing, needs no vault, and works as any user: what
    it says is what that user would meet. Ends with 16 if an install into a directory would fail, with 1 if the vault stands in the way of
    every install, else with 0, whatever else it found.

    \b
    Examples:
      modelvault doctor
      sudo modelvault doctor --engine llamacpp=/srv/llama
    """
    from modelvault.config import default_home
    from modelvault.operations.doctor import doctor
    from modelvault.vault import Vault

    def work(_: object) -> "DoctorResult":
        with Vault.prospective(default_home()) as vault:
            return doctor(vault, engine or ())

    run("doctor", as_json, work, lines)


def lines(result: "DoctorResult") -> Iterator[str]:
    """Show the engines, then the findings by what they are about, and the count."""
    yield f"vault {result.vault}, seen by {result.user}"
    if result.engines:
        yield ""
        rows = [
            (
                line.engine,
                line.version or "unknown",
                str(line.directory),
                line.owner or ("not there yet" if not line.exists else "unknown"),
                human_size(line.free) if line.free is not None else "unknown",
                line.link or "impossible",
            )
            for line in result.engines
        ]
        yield from table(("engine", "release", "directory", "owner", "free", "install by"), rows, right=(4,))
    for subject in dict.fromkeys(finding.subject for finding in result.findings):
        yield ""
        yield subject
        for finding in result.findings:
            if finding.subject == subject:
                yield from _hung(f"  {finding.level.value:<{_INDENT - 2}}", finding.what)
                if finding.advice:
                    yield from _hung(f"{'':{_INDENT}}do: ", finding.advice)
    yield ""
    dangers = [finding for finding in result.findings if finding.level.value == "danger"]
    blocking = sum(finding.blocks for finding in dangers)
    notes = sum(finding.level.value == "note" for finding in result.findings)
    stops = f" ({blocking} {'keeps' if blocking == 1 else 'keep'} installs from working)" if blocking else ""
    yield f"{counted(len(dangers), 'danger')}{stops}; {counted(notes, 'note')}"


def _hung(mark: str, text: str) -> Iterator[str]:
    """Break text behind a mark at the width of a terminal; elsewhere it stays on one line."""
    if not sys.stdout.isatty():
        yield mark + text
        return
    rest = " " * len(mark)
    yield from textwrap.wrap(
        text,
        terminal_width(sys.stdout),
        initial_indent=mark,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
