"""``modelvault smoke``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.console import counted, human_time
from modelvault.cli.help import whole_number
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.engines import SmokeResult

_MOST_TOKENS = 4096
_MOST_SECONDS = 86_400


def smoke(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="The vault's or the engine's name of the model.", autocompletion=completion.models
        ),
    ],
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="ENGINE[=DIR]", help="Which install, if there are several.", autocompletion=completion.engines
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The running server; else where the engine usually listens on this machine."),
    ] = None,
    as_name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The server's name for the model, if it is another.")
    ] = None,
    start: Annotated[
        bool, typer.Option("--start", help="Start Ollama or llama-server for this, and end it again.")
    ] = False,
    program: Annotated[
        str | None, typer.Option(metavar="PATH", help="The program to start, if it is not on the PATH.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What to ask instead of counting.")] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", parser=whole_number(1, _MOST_TOKENS), help="How many tokens to ask for; 16 by default."
        ),
    ] = None,
    timeout: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS",
            parser=whole_number(1, _MOST_SECONDS),
            help="How long to wait for a sign of life, 600 by default: large models load slowly.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Try out an installed model in its engine.

    Asks the engine's server for its models and for a few tokens, times them, and records the outcome. The server is one that runs, at the usual
    place on this machine or at --url, or one that --start starts for it. A server that wants a key finds it in MODELVAULT_API_KEY.

    \b
    Examples:
      modelvault smoke llama-3.1-8b
      modelvault smoke llama-3.1-8b --engine ollama --start
      modelvault smoke qwen2.5-7b-awq --url http://127.0.0.1:8000
    """
    from modelvault.config import default_home
    from modelvault.operations.smoke import PROMPT, TIMEOUT, TOKENS, SmokeOptions, smoke
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "SmokeResult":
        options = SmokeOptions(
            engine, url, start, program, as_name, prompt or PROMPT, tokens or TOKENS, float(timeout or TIMEOUT)
        )
        with Vault.existing(default_home(), log=progress.log) as vault:
            return smoke(vault, model, options, progress)

    run("smoke", as_json, work, lines)


def lines(result: "SmokeResult") -> Iterator[str]:
    """Show what the model said and how fast; of a failure, the error tells."""
    if result.problem is not None or result.first_token is None:
        return
    yield f"{result.installed_name} answers in {result.engine}: {' '.join(result.text.split())}"
    where = "started for this, and ended" if result.started else result.address
    known = "" if result.served_as == result.installed_name else f", which calls it {result.served_as}"
    loading = f", {_seconds(result.loading)} of it to load the model" if result.loading is not None else ""
    rate = f"{result.rate:,.1f} tokens/s" if result.rate is not None else "not known, since it was not streamed"
    yield f"  server       {where}{known}"
    yield f"  first token  after {_seconds(result.first_token)}{loading}"
    yield f"  rate         {rate} ({counted(result.tokens, 'token')})"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else human_time(seconds)
