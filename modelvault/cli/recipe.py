"""``modelvault recipe``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.fit import Gpu
from modelvault.cli.help import whole_number
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.results.fit import RecipeResult


def recipe(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name that `list` prints.", autocompletion=completion.models)
    ],
    engine: Annotated[
        str,
        typer.Option(
            metavar="ENGINE[=DIR]", help="llamacpp, ollama, vllm, sglang or tgi.", autocompletion=completion.engines
        ),
    ],
    gpu: Gpu = None,
    form: Annotated[str, typer.Option("--as", metavar="FORM", help="command, systemd or compose.")] = "command",
    context: Annotated[
        int | None, typer.Option(metavar="TOKENS", parser=whole_number(256, 1 << 24), help="8192 by default.")
    ] = None,
    users: Annotated[
        int | None,
        typer.Option(metavar="N", parser=whole_number(1, 10_000), help="Conversations at once; 1 by default."),
    ] = None,
    kv_type: Annotated[str | None, typer.Option("--kv-type", metavar="TYPE", help="Of the cache.")] = None,
    replicas: Annotated[
        int | None, typer.Option(metavar="N", parser=whole_number(1, 64), help="Servers side by side, with an nginx.")
    ] = None,
    user: Annotated[str | None, typer.Option(metavar="USER", help="Whom a systemd unit runs as.")] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the files there instead of printing them.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also for what does not fit.")] = False,
    as_json: Json = False,
) -> None:
    """Write the command that starts an installed model.

    Its flags come from what fits: cards that work together, context, layers on the card, the offline environment.

    \b
    Examples:
      modelvault recipe llama-3.1-8b --engine llamacpp --gpu 24GiB
      modelvault recipe qwen2.5-72b-awq --engine vllm --gpu 2xa100-80 --as systemd
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.operations.recipe import RecipeRequest, recipe, save
    from modelvault.vault import Vault

    def work(_: object) -> "RecipeResult":
        request = RecipeRequest(
            ModelName(model), engine, tuple(gpu or ()), form, context, users or 1, kv_type, replicas or 1, user, force
        )
        with Vault.existing(default_home()) as vault:
            result = recipe(vault, request)
        return save(result, to) if to else result

    run("recipe", as_json, work, lines)


def lines(result: "RecipeResult") -> Iterator[str]:
    """Print the texts, with their names where there are several; or where they were written."""
    for file in result.files:
        if file.path:
            yield f"wrote {file.path}"
            continue
        if len(result.files) > 1:
            yield f"# {file.name}"
        yield from file.text.rstrip("\n").split("\n")
