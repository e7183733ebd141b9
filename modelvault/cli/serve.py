"""``modelvault serve``."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli.help import whole_number
from modelvault.cli.run import Json
from modelvault.cli.run import run as run_command

if TYPE_CHECKING:
    from modelvault.progress import Progress


def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", parser=whole_number(0, 65535), help="Port to listen on; 0 takes a free one.")
    ] = 8765,
    as_json: Json = False,
) -> None:
    """Offer the vault as a read-only Hub.

    Other machines of this side then use it as if it were the Hugging Face Hub.

    \b
    Examples:
      modelvault serve --port 8765
      HF_ENDPOINT=http://127.0.0.1:8765 hf download org/name
    """
    from modelvault.config import default_home
    from modelvault.vault import Vault

    def work(progress: "Progress") -> None:
        # The packages of the extra are looked for here, so that their absence is an error like any other.
        from modelvault.serve import create_app, run

        with Vault.existing(default_home()) as vault:
            run(
                create_app(vault.store),
                host,
                port,
                lambda url: progress.log(f"serving {vault.root} at {url} (Ctrl-C ends it)"),
            )
            # On a line of its own: the terminal has shown ^C without an end of line.
            progress.log("\nstopped" if sys.stderr.isatty() else "stopped")

    run_command("serve", as_json, work, lambda _: ())
