"""``modelvault policy``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.console import counted
from modelvault.cli.help import Command
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.results.policy import AcceptResult, PolicyCheck, PolicyResult

app = typer.Typer(
    help="The rules for what may come in and go out.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command(cls=Command)
def show(as_json: Json = False) -> None:
    """Show the rules that hold here, and where they are written.

    \b
    Example:
      modelvault policy show
    """
    from modelvault.config import default_home
    from modelvault.operations.policy import show_policy
    from modelvault.vault import Vault

    def work(_: object) -> "PolicyResult":
        with Vault.prospective(default_home()) as vault:
            return show_policy(vault)

    run("policy show", as_json, work, rule_lines)


@app.command(cls=Command)
def check(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Only these models.", autocompletion=completion.models),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which models in the vault break the rules.

    Ends with exit code 17 if any does.

    \b
    Examples:
      modelvault policy check
      modelvault policy check llama-3.1-8b
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.operations.policy import check_policy
    from modelvault.vault import Vault

    def work(_: object) -> "PolicyCheck":
        with Vault.existing(default_home()) as vault:
            return check_policy(vault, [ModelName(name) for name in models or ()])

    run("policy check", as_json, work, check_lines)


@app.command(cls=Command, no_args_is_help=True)
def accept(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Whose license.", autocompletion=completion.models),
    ],
    as_json: Json = False,
) -> None:
    """Record that you accept the licenses of models in the vault.

    \b
    Example:
      modelvault policy accept llama-3.1-8b
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.operations.policy import accept_licenses
    from modelvault.vault import Vault

    def work(_: object) -> "AcceptResult":
        with Vault.existing(default_home()) as vault:
            return accept_licenses(vault, [ModelName(name) for name in models])

    run("policy accept", as_json, work, accept_lines)


def rule_lines(result: "PolicyResult") -> Iterator[str]:
    """Show each file with its rules; a model must break none of them."""
    for file in result.files:
        yield f"{file.path}{'' if file.present else ': there is none'}"
        for line in file.rules:
            yield f"  {line.rule} = {line.value}"
            yield from (f"    but not for {exception}" for exception in line.exceptions)
        if file.present and not file.rules:
            yield "  no rules"
    if not any(file.present for file in result.files):
        yield "without rules, pickle files come in with --allow-pickle only, and none in which a scan finds something dangerous"


def check_lines(result: "PolicyCheck") -> Iterator[str]:
    """Show what is broken."""
    if result.violations:
        rows = [(line.model, line.rule, line.value) for line in result.violations]
        yield from table(("model", "rule", "value"), rows)
    broken = len({line.model for line in result.violations})
    if not result.files:
        yield "there are no rules here: `modelvault policy show` says where they would be"
    yield f"{counted(len(result.checked), 'model')} checked, {broken or 'none'} against the rules"


def accept_lines(result: "AcceptResult") -> Iterator[str]:
    """Show what was accepted."""
    for line in result.accepted:
        yield f"{line.model}: {line.license}, accepted {'before, ' if line.already else ''}by {line.user} at {line.accepted_at}"
