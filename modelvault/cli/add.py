"""``modelvault add``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli.console import consent_prompt, counted, human_size
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.results.models import AddResult


def add(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="A .gguf or .safetensors file, or a folder that is one model.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What to call the model.")] = None,
    from_ollama: Annotated[
        str | None,
        typer.Option("--from-ollama", metavar="NAME", help="Take a model over that Ollama has, as llama3.1:8b."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ollama's models directory; the one found here if left away.")
    ] = None,
    license_name: Annotated[
        str | None,
        typer.Option("--license", metavar="LICENSE", help="Its license, as apache-2.0; else as its files say."),
    ] = None,
    modelfile: Annotated[
        Path | None, typer.Option(metavar="PATH", help="An Ollama Modelfile that travels with the model.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Take pickle files too: they can run code when loaded.")
    ] = False,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Record that you accept the model's license.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a model of a file or folder, or of one that Ollama has.

    It passes the same checks as a pull. Weights from Ollama's store are linked, not copied, where it belongs to you.

    \b
    Examples:
      modelvault add ./mistral-7b-Q4_K_M.gguf --name mistral-7b
      modelvault add /data/models/our-finetune --name ours/finetune-awq
      modelvault add --from-ollama llama3.1:8b
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.errors import UsageProblem
    from modelvault.operations.add import AddRequest, add
    from modelvault.operations.adopt import AdoptRequest, adopt, ollama_name
    from modelvault.progress import Progress
    from modelvault.vault import Vault

    def work(progress: Progress) -> "AddResult":
        called = ModelName(name) if name else None
        consent = None if as_json else consent_prompt()
        if from_ollama is not None:
            if path is not None or modelfile is not None or allow_pickle:
                raise UsageProblem(
                    "--from-ollama takes a model as Ollama has it, without PATH, --modelfile or --allow-pickle",
                    hint="name either a path or --from-ollama; another Modelfile is given to `modelvault install`",
                )
            adoption = AdoptRequest(
                ollama_name=ollama_name(from_ollama),
                store=store and store.expanduser(),
                name=called,
                license=license_name,
                accept_license=accept_license,
                consent=consent,
            )
            with Vault.open(default_home(), log=progress.log) as vault:
                return adopt(vault, adoption, progress)
        if path is None or called is None or store is not None:
            raise UsageProblem(
                "a PATH and --name are needed, or --from-ollama, to which --store belongs",
                hint="write modelvault add PATH --name NAME, or modelvault add --from-ollama NAME",
            )
        request = AddRequest(
            path=path.expanduser(),
            name=called,
            license=license_name,
            modelfile=modelfile,
            allow_pickle=allow_pickle,
            accept_license=accept_license,
            consent=consent,
        )
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
    if result.linked:
        yield f"{human_size(result.linked)} of it are linked, and take no space of their own"
    yield f"manifest {model.manifest}"
