"""``modelvault receipt``."""

import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from modelvault.cli.console import counted, human_size
from modelvault.cli.help import Command
from modelvault.cli.keys import fingerprint_lines
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.papers import ReceiptResult, ReceiptsResult, ReceiptWritten
    from modelvault.vault import Vault

app = typer.Typer(
    help="What a site holds; the next bundle brings the rest.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Result = TypeVar("Result")


def _run(
    command: str, as_json: bool, work: "Callable[[Vault], Result]", render: Callable[[Result], Iterable[str]]
) -> None:
    from modelvault.config import default_home
    from modelvault.vault import Vault

    def opened(progress: "Progress") -> Result:
        with Vault.existing(default_home(), log=progress.log) as vault:
            return work(vault)

    run(f"receipt {command}", as_json, opened, render)


@app.command(cls=Command)
def write(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file that ends in .json, or the directory for it.")],
    site: Annotated[
        str | None, typer.Option(metavar="NAME", help="What this site is called; said once, when its key is made.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what this vault holds, signed, to be carried back.

    The first time makes the site's key and prints its fingerprint.

    \b
    Example:
      modelvault receipt write /media/ssd --site lab-7
    """
    from modelvault.operations.receipt import write_receipt

    _run("write", as_json, lambda vault: write_receipt(vault, path.expanduser(), site), written_lines)


@app.command(cls=Command)
def add(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The receipt, or the directory that it lies in.")],
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Accept one that is older than one added before.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take in what a site says it holds; its key must be trusted.

    \b
    Example:
      modelvault receipt add /media/ssd
    """
    from modelvault.operations.receipt import add_receipt

    _run("add", as_json, lambda vault: add_receipt(vault, path.expanduser(), allow_older=allow_older), added_lines)


@app.command("list", cls=Command)
def list_receipts(as_json: Json = False) -> None:
    """List the newest receipt of each site.

    \b
    Example:
      modelvault receipt list
    """
    from modelvault.operations.receipt import list_receipts

    _run("list", as_json, list_receipts, list_lines)


@app.command(cls=Command)
def show(
    site: Annotated[str, typer.Argument(metavar="SITE", help="Whose receipt.")],
    as_json: Json = False,
) -> None:
    """Show which models a site holds, and whether they are the ones here.

    \b
    Example:
      modelvault receipt show lab-7
    """
    from modelvault.operations.receipt import show_receipt

    _run("show", as_json, lambda vault: show_receipt(vault, site), lines)


def written_lines(result: "ReceiptWritten") -> Iterator[str]:
    """Show what was written, and what to do with it."""
    what = f"{counted(result.models, 'model')}, {counted(result.blobs, 'blob')}, {human_size(result.size)}"
    yield f"wrote {result.path}: {result.site} holds {what}"
    if result.new_key:
        yield f"signed with the new key of {result.site}; its fingerprint, to be carried separately:"
        yield from fingerprint_lines(result.fingerprint, result.spelled)
    yield "next, on the connected side:"
    if result.new_key:
        key = str(result.path.with_name(f"{result.site}.pub"))
        yield f"  {shlex.join(['modelvault', 'keys', 'trust', key, '--role', 'receipt'])}   (once)"
    yield f"  {shlex.join(['modelvault', 'receipt', 'add', str(result.path)])}"
    yield f"  modelvault bundle --for {result.site} --to DIR"


def added_lines(result: "ReceiptResult") -> Iterator[str]:
    """Show what was added."""
    verb = "had been added before" if result.unchanged else "added"
    yield f"{verb}: receipt {result.receipt.sequence} of {result.receipt.site}"
    yield ""
    yield from lines(result)
    yield ""
    yield f"`modelvault bundle --for {result.receipt.site} --to DIR` writes only what is not there yet"


_HERE = {"same": "the same", "other": "another", "none": "-"}


def lines(result: "ReceiptResult") -> Iterator[str]:
    """Show one receipt."""
    receipt = result.receipt
    yield f"{receipt.site} holds {counted(receipt.models, 'model')}, {counted(receipt.blobs, 'blob')}"
    if result.models:
        yield ""
        yield from table(
            ("model", "manifest", "here"),
            [(model.name, model.manifest.short, _HERE[model.here]) for model in result.models],
        )


def list_lines(result: "ReceiptsResult") -> Iterator[str]:
    """Show all sites."""
    if not result.receipts:
        yield f"no receipts in {result.vault}: `modelvault receipt add PATH` takes in what a site wrote"
        return
    rows = [
        (line.site, str(line.sequence), str(line.models), str(line.blobs), line.added_at or "-")
        for line in result.receipts
    ]
    yield from table(("site", "sequence", "models", "blobs", "added"), rows, right=(1, 2, 3))
