"""``modelvault add``."""

from collections.abc import Iterator, Mapping
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
    from_hf_cache: Annotated[
        str | None,
        typer.Option(
            "--from-hf-cache", metavar="ORG/NAME[:QUANT]", help="Take a model over that the Hub's client downloaded."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="With --from-hf-cache: which of those that are there.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Ollama's models directory, or the Hub's cache; else the one found here."),
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
    """Make a model of what lies on this machine.

    A file, a folder, or what Ollama or the Hub's client has. It passes the same checks as a pull. Weights of other programs are linked, not copied, where they belong to you.

    \b
    Examples:
      modelvault add ./mistral-7b-Q4_K_M.gguf --name mistral-7b
      modelvault add /data/models/our-finetune --name ours/finetune-awq
      modelvault add --from-ollama llama3.1:8b
      modelvault add --from-hf-cache Qwen/Qwen2.5-7B-Instruct-AWQ
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.operations.add import AddRequest, add
    from modelvault.operations.adopt_hub_cache import HubCacheAdoption, adopt_from_hub_cache
    from modelvault.operations.adopt_ollama import OllamaAdoption, adopt_from_ollama, ollama_name
    from modelvault.progress import Progress
    from modelvault.vault import Vault

    doors = {"PATH": path, "--from-ollama": from_ollama, "--from-hf-cache": from_hf_cache, "--name": name}
    consent = None if as_json else consent_prompt()
    place = store and store.expanduser()

    def work(progress: Progress) -> "AddResult":
        _check(
            doors, {"--store": store, "--revision": revision, "--modelfile": modelfile, "--allow-pickle": allow_pickle}
        )
        called = ModelName(name) if name else None
        with Vault.open(default_home(), log=progress.log) as vault:
            if from_ollama is not None:
                wanted = OllamaAdoption(ollama_name(from_ollama), place, called, license_name, accept_license, consent)
                return adopt_from_ollama(vault, wanted, progress)
            if from_hf_cache is not None:
                cached = HubCacheAdoption(
                    ModelName(from_hf_cache),
                    revision,
                    place,
                    called,
                    license_name,
                    allow_pickle,
                    accept_license,
                    consent,
                )
                return adopt_from_hub_cache(vault, cached, progress)
            request = AddRequest(
                path=Path(path or "").expanduser(),
                name=ModelName(name or ""),
                license=license_name,
                modelfile=modelfile,
                allow_pickle=allow_pickle,
                accept_license=accept_license,
                consent=consent,
            )
            return add(vault, request, progress)

    run("add", as_json, work, lines)


_OPTIONS = {
    "PATH": {"--modelfile", "--allow-pickle"},
    "--from-ollama": {"--store"},
    "--from-hf-cache": {"--store", "--revision", "--allow-pickle"},
}
"""What may be said beside each of the doors."""


def _check(doors: Mapping[str, object], options: Mapping[str, object]) -> None:
    """Require one door, and nothing that belongs to another."""
    from modelvault.errors import UsageProblem

    chosen = [door for door in _OPTIONS if doors[door] is not None]
    if len(chosen) != 1 or (chosen == ["PATH"] and doors["--name"] is None):
        raise UsageProblem(
            "add takes one model, and has to know what to call one that lies in a file or folder",
            hint="write PATH --name NAME, or --from-ollama NAME, or --from-hf-cache ORG/NAME",
        )
    wrong = [option for option, value in options.items() if value and option not in _OPTIONS[chosen[0]]]
    if wrong:
        others = [door for door, known in _OPTIONS.items() if wrong[0] in known]
        raise UsageProblem(
            f"{wrong[0]} does not belong to {chosen[0]}",
            hint=f"{wrong[0]} goes with {' and '.join(others)}, not with {chosen[0]}",
        )


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
