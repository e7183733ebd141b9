"""``modelvault catalog``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.console import human_size
from modelvault.cli.help import Command
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.config import Config
    from modelvault.results.catalog import CatalogLine, CatalogResult, CatalogShow

app = typer.Typer(
    help="The short names that `pull` knows; alone, it lists them.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


def _config() -> "Config":
    from modelvault.config import default_home, load_config

    return load_config(default_home())


@app.callback()
def catalog(context: typer.Context, as_json: Json = False) -> None:
    """List the short names that `pull` knows.

    \b
    Examples:
      modelvault catalog
      modelvault catalog search korean 24GiB
      modelvault catalog show qwen2.5-7b
    """
    if context.invoked_subcommand is None:
        _list(as_json)
    elif as_json:
        raise typer.BadParameter(
            f"write it behind the command: modelvault catalog {context.invoked_subcommand} … --json"
        )


@app.command("list", cls=Command)
def list_(as_json: Json = False) -> None:
    """List the models with a short name.

    A format that is not the first of its model goes by the name with the format behind it, as qwen2.5-7b-awq.

    \b
    Example:
      modelvault catalog list
    """
    _list(as_json)


def _list(as_json: bool) -> None:
    from modelvault.operations.catalog import list_catalog

    run("catalog list", as_json, lambda _: list_catalog(_config()), lines)


@app.command(cls=Command, no_args_is_help=True)
def search(
    words: Annotated[
        list[str], typer.Argument(metavar="WORD", help="A language, format, memory size, or part of a name or license.")
    ],
    as_json: Json = False,
) -> None:
    """Find the short names that every word fits.

    A memory size, as 24GiB, fits where the weights alone are no larger, by an estimate. Context needs room besides.

    \b
    Examples:
      modelvault catalog search korean 24GiB
      modelvault catalog search coder awq apache
    """
    from modelvault.operations.catalog import search_catalog

    run("catalog search", as_json, lambda _: search_catalog(_config(), words), found_lines)


@app.command(cls=Command, no_args_is_help=True)
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A short name.", autocompletion=completion.catalog)],
    as_json: Json = False,
) -> None:
    """Show one entry: source, license, recipe, and other formats.

    \b
    Example:
      modelvault catalog show llama-3.1-70b-awq
    """
    from modelvault.artifact import ModelName
    from modelvault.operations.catalog import show_entry

    run("catalog show", as_json, lambda _: show_entry(_config(), ModelName(name)), entry_lines)


def lines(result: "CatalogResult") -> Iterator[str]:
    """Show one line for each model, with its formats."""
    models: dict[str, list[CatalogLine]] = {}
    for entry in result.entries:
        models.setdefault(entry.model, []).append(entry)
    rows = [
        (model, forms[0].parameters, _context(forms[0]), forms[0].license, " ".join(form.format for form in forms))
        for model, forms in models.items()
    ]
    yield from table(("name", "weights", "context", "license", "formats"), rows, right=(1, 2))
    yield from _remarks(result)


def found_lines(result: "CatalogResult") -> Iterator[str]:
    """Show one line for each short name, with its size."""
    if not result.entries:
        yield "nothing in the catalog fits all of these words"
        return
    rows = [
        (entry.name, entry.format, human_size(entry.size), _context(entry), entry.license) for entry in result.entries
    ]
    yield from table(("name", "format", "about", "context", "license"), rows, right=(2, 3))
    yield from _remarks(result)


def _remarks(result: "CatalogResult") -> Iterator[str]:
    if gated := [entry.name for entry in result.entries if entry.gated]:
        yield f"gated, so they need an account with access: {', '.join(gated)}"
    unverified = sum(not entry.verified for entry in result.entries)
    if unverified:
        yield f"{unverified} of {len(result.entries)} entries were not checked online yet; `pull` says so when you use one"


def entry_lines(result: "CatalogShow") -> Iterator[str]:
    """Show an entry, line by line."""
    from modelvault.catalog.languages import language_name

    entry = result.entry
    yield f"{entry.name}: {entry.title}"
    facts = [
        ("source", f"hub:{entry.repository}" + (f" at {entry.revision}" if entry.revision else "")),
        ("weights", f"{entry.parameters}, about {human_size(entry.size)}"),
        ("context", f"{entry.context:,} tokens"),
        ("languages", ", ".join(map(language_name, entry.languages))),
        ("license", ", ".join((entry.license, *_conditions(entry)))),
        ("checked", "yes" if entry.verified else "no: nobody has compared source, license and files online yet"),
        ("entry", str(entry.file)),
    ]
    if result.vllm_arguments:
        facts.append(("vllm", " ".join(result.vllm_arguments)))
    for name, value in facts:
        yield f"{name:<9}  {value}"
    if result.modelfile:
        yield "ollama     the Modelfile, without FROM:"
        yield from (f"  {row}".rstrip() for row in result.modelfile.splitlines())
    if result.others:
        yield "other formats:"
        yield from (f"  {other.name}  about {human_size(other.size)}, {other.repository}" for other in result.others)
    yield f"next: modelvault pull {entry.name}"


def _conditions(entry: "CatalogLine") -> Iterator[str]:
    if entry.acceptance:
        yield "asks to be accepted"
    if entry.gated:
        yield "gated: it needs an account with access"


def _context(entry: "CatalogLine") -> str:
    return f"{entry.context // 1024}K"
