"""``modelvault add``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli.console import counted, human_size
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.results.models import AddResult


def add(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A .gguf or .safetensors file, or a folder that is one model.")
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="What to call the model.")],
    license_name: Annotated[
        str | None, typer.Option("--license", metavar="LICENSE", help="Its license, as apache-2.0.")
    ] = None,
    modelfile: Annotated[
        Path | None, typer.Option(metavar="PATH", help="An Ollama Modelfile that travels with the model.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Take pickle files too: they can run code when loaded.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a model of a local file or folder.

    It passes the same checks as a pull.

    \b
    Examples:
      modelvault add ./mistral-7b-Q4_K_M.gguf --name mistral-7b
      modelvault add /data/models/our-finetune --name ours/finetune-awq
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.operations.add import AddRequest, add
    from modelvault.progress import Progress
    from modelvault.vault import Vault

    def work(progress: Progress) -> "AddResult":
        request = AddRequest(path.expanduser(), ModelName(name), license_name, modelfile, allow_pickle)
        with Vault.open(default_home(), log=progress.log) as vault:
            return add(vault, request, progress)

    run("add", as_json, work, lines)


def lines(result: "AddResult") -> Iterator[str]:
    """Show what was added."""
    model = result.model
    if result.unchanged:
        yield f"{model.name} is in the vault already"
    else:
        added = "checked, and put in place of the model that had this name" if result.replaced else "checked and added"
        yield f"{model.name}: {counted(model.files, 'file')}, {human_size(model.size)}, {added} in {result.vault}"
    yield f"manifest {model.manifest}"
