"""All commands, put together. Importing this must stay cheap: operations are imported by the commands that run them."""

import functools
import sys
from typing import Annotated

import typer

from modelvault import __version__
from modelvault.cli import catalog, keys, policy, receipt, registry
from modelvault.cli.add import add
from modelvault.cli.bundle import bundle
from modelvault.cli.doctor import doctor
from modelvault.cli.fit import fit
from modelvault.cli.help import Command
from modelvault.cli.import_ import import_
from modelvault.cli.inspect import inspect
from modelvault.cli.install import install, uninstall
from modelvault.cli.installs import installs
from modelvault.cli.list_ import list_models
from modelvault.cli.pull import pull
from modelvault.cli.recipe import recipe
from modelvault.cli.rm import gc, rm
from modelvault.cli.serve import serve
from modelvault.cli.show import show
from modelvault.cli.smoke import smoke
from modelvault.cli.updates import outdated
from modelvault.cli.verify import verify

app = typer.Typer(
    name="modelvault",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"modelvault {__version__}\n")
        raise typer.Exit


@app.callback()
def modelvault(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Carry language models across an air gap, verified at every step.

    \b
    On the connected PC:        modelvault pull llama-3.1-8b
                                modelvault bundle --to /media/ssd
    On the isolated server:     modelvault import
    """


_command = functools.partial(app.command, cls=Command)
_command(no_args_is_help=True)(pull)
_command(no_args_is_help=True)(add)
_command(no_args_is_help=True)(inspect)
_command("list")(list_models)
_command(no_args_is_help=True)(show)
_command()(verify)
_command()(outdated)
_command(no_args_is_help=True)(rm)
_command()(gc)
_command(no_args_is_help=True)(fit)
_command(no_args_is_help=True)(bundle)
_command("import")(import_)
_command(no_args_is_help=True)(install)
_command(no_args_is_help=True)(uninstall)
_command()(installs)
_command(no_args_is_help=True)(smoke)
_command()(doctor)
_command(no_args_is_help=True)(recipe)
_command()(serve)
app.add_typer(catalog.app, name="catalog")
app.add_typer(receipt.app, name="receipt")
app.add_typer(keys.app, name="keys")
app.add_typer(policy.app, name="policy")
app.add_typer(registry.app, name="registry")
