"""``modelvault keys``."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli.help import Command
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.results import KeysResult
    from modelvault.vault import Vault

app = typer.Typer(
    help="The keys that sign, and the trusted ones.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _run(command: str, as_json: bool, work: "Callable[[Vault], KeysResult]", *, create: bool = True) -> None:
    from modelvault.config import default_home
    from modelvault.vault import Vault

    def opened(_: object) -> "KeysResult":
        with Vault.open(default_home(), create=create) as vault:
            return work(vault)

    run(f"keys {command}", as_json, opened, lines)


@app.command(cls=Command)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the key.")] = "default",
    as_json: Json = False,
) -> None:
    """Make a signing key; its public half lies beside it as NAME.pub.

    \b
    Example:
      modelvault keys new release-2026
    """
    from modelvault.operations.keys import new_key

    _run("new", as_json, lambda vault: new_key(vault, name))


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

    Read it here, on the connected side, and carry it separately.

    \b
    Example:
      modelvault keys show
    """
    from modelvault.operations.keys import show_keys

    _run("show", as_json, lambda vault: show_keys(vault, name), create=False)


@app.command(cls=Command)
def trust(
    file: Annotated[Path, typer.Argument(metavar="PATH", help="The public key (NAME.pub), as it lies in the bundle.")],
    fingerprint: Annotated[
        str | None, typer.Option(metavar="FINGERPRINT", help="What `keys show` printed on the connected side.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What to call the key here; the file's name by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Accept a key's signatures from now on.

    Its fingerprint is compared with the one you carried; without --fingerprint that is asked for on a terminal.

    \b
    Example:
      modelvault keys trust /media/ssd/models-1763700000.mvbundle/default.pub
    """
    import sys

    from modelvault.operations.keys import trust_key

    def ask() -> str | None:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return None
        answer: str = typer.prompt("fingerprint, as `keys show` printed it on the connected side", err=True)
        return answer

    _run("trust", as_json, lambda vault: trust_key(vault, file.expanduser(), name, lambda: fingerprint or ask()))


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


def lines(result: "KeysResult") -> Iterator[str]:
    """Show keys; the fingerprints on lines of their own, since they are long."""
    if result.revoked is not None:
        yield f"revoked {result.revoked.name} ({result.revoked.fingerprint[:19]}…): its signatures do not count here any more"
    if not result.keys:
        yield f"no keys in {result.vault}: the first bundle makes one, `modelvault keys trust` accepts another's"
        return
    rows = [(key.name, key.role, str(key.file)) for key in result.keys]
    yield from table(("key", "role", "file"), rows)
    for key in result.keys:
        yield ""
        yield f"{key.name}:"
        yield from fingerprint_lines(key.fingerprint, key.spelled)


def fingerprint_lines(fingerprint: str, spelled: "Sequence[str]") -> Iterator[str]:
    """Show a fingerprint twice: to be pasted, and to be read out."""
    yield f"  {fingerprint}"
    yield from (f"  {line}" for line in spelled)
