"""``modelvault keys``."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from modelvault.cli.console import ask
from modelvault.cli.help import Command
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.results.papers import KeysResult
    from modelvault.vault import Vault

_HALF = 32
"""Hex digits on one of the two lines on which a fingerprint is spelled."""

app = typer.Typer(
    help="The keys that sign, and the trusted ones.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AsRole = Annotated[
    Literal["bundle", "receipt"],
    typer.Option(
        metavar="ROLE",
        help="What the key signs: `bundle`, or `receipt` for a site's receipts and requests.",
        show_default=False,
    ),
]


def _run(
    command: str,
    as_json: bool,
    work: "Callable[[Vault], KeysResult]",
    render: "Callable[[KeysResult], Iterator[str]] | None" = None,
    *,
    create: bool = True,
) -> None:
    from modelvault.config import default_home
    from modelvault.vault import Vault

    def opened(_: object) -> "KeysResult":
        with (Vault.open if create else Vault.existing)(default_home()) as vault:
            return work(vault)

    run(f"keys {command}", as_json, opened, render or lines)


@app.command(cls=Command)
def new(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="What to call the key: `default`, or the site's name, if left away."),
    ] = None,
    role: AsRole = "bundle",
    as_json: Json = False,
) -> None:
    """Make a signing key; its public half lies beside it as NAME.pub.

    A key signs bundles, or with --role receipt what rides back; then NAME is the name of this site.

    \b
    Examples:
      modelvault keys new release-2026
      modelvault keys new lab-7 --role receipt
    """
    from modelvault.keys import Role
    from modelvault.operations.keys import new_key

    _run("new", as_json, lambda vault: new_key(vault, name, Role(role)))


@app.command("list", cls=Command)
def list_keys(as_json: Json = False) -> None:
    """List the vault's own keys and the trusted ones.

    \b
    Example:
      modelvault keys list
    """
    from modelvault.operations.keys import list_keys

    _run("list", as_json, list_keys, create=False)


@app.command(cls=Command)
def show(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which key; all own keys if left away.")] = None,
    as_json: Json = False,
) -> None:
    """Show a key's fingerprint.

    Read it on the machine where the key was made, and carry it separately.

    \b
    Example:
      modelvault keys show
    """
    from modelvault.operations.keys import show_keys

    _run("show", as_json, lambda vault: show_keys(vault, name), _own_lines, create=False)


@app.command(cls=Command)
def trust(
    file: Annotated[Path, typer.Argument(metavar="PATH", help="The public key (NAME.pub), as it lies in the bundle.")],
    fingerprint: Annotated[
        str | None, typer.Option(metavar="FINGERPRINT", help="What `keys show` printed where the key was made.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What to call the key here, or the site's name; the file's name by default."),
    ] = None,
    role: AsRole = "bundle",
    as_json: Json = False,
) -> None:
    """Accept a key's signatures from now on.

    Its fingerprint is compared with the one you carried; without --fingerprint that is asked for on a terminal.

    \b
    Examples:
      modelvault keys trust /media/ssd/models-1763700000.mvbundle/default.pub
      modelvault keys trust /media/ssd/lab-7.pub --role receipt
    """
    from modelvault.keys import Role
    from modelvault.operations.keys import trust_key

    def work(vault: "Vault") -> "KeysResult":
        return trust_key(vault, file.expanduser(), name, lambda: fingerprint or _asked(), Role(role))

    _run("trust", as_json, work)


@app.command(cls=Command)
def revoke(
    key: Annotated[str, typer.Argument(metavar="NAME | FINGERPRINT", help="Which trusted key.")],
    as_json: Json = False,
) -> None:
    """Stop accepting a key's signatures.

    \b
    Example:
      modelvault keys revoke release-2025
    """
    from modelvault.operations.keys import revoke_key

    _run("revoke", as_json, lambda vault: revoke_key(vault, key), create=False)


def _asked() -> str | None:
    """Ask for a fingerprint; where it is read from two lines, as it is spelled out, ask for the second one."""
    first = ask("fingerprint, as `keys show` printed it where the key was made")
    if first is None or len(re.sub(r"[^0-9A-Fa-f]", "", first)) != _HALF:
        return first
    return f"{first} {ask('second line') or ''}"


def lines(result: "KeysResult") -> Iterator[str]:
    """Show keys; the fingerprints on lines of their own, since they are long."""
    if result.revoked is not None:
        yield f"revoked {result.revoked.name} ({result.revoked.fingerprint[:19]}…): its signatures do not count here any more"
    if not result.keys:
        yield f"no keys in {result.vault}: the first bundle makes one, `modelvault keys trust` accepts another's"
        return
    rows = [(key.name, key.role, "own" if key.own else "trusted", str(key.file)) for key in result.keys]
    yield from table(("key", "role", "trust", "file"), rows)
    for key in result.keys:
        yield ""
        yield f"{key.name}:"
        yield from fingerprint_lines(key.fingerprint, key.spelled)


def _own_lines(result: "KeysResult") -> Iterator[str]:
    if result.keys:
        yield from lines(result)
    else:
        yield f"no keys of its own in {result.vault}: the first bundle or receipt makes one; `modelvault keys list` shows the trusted ones"


def fingerprint_lines(fingerprint: str, spelled: "Sequence[str]") -> Iterator[str]:
    """Show a fingerprint twice: to be pasted, and to be read out."""
    yield f"  {fingerprint}"
    yield from (f"  {line}" for line in spelled)
