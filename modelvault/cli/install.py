"""``modelvault install`` and ``modelvault uninstall``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.console import counted, human_size
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.installs import EngineStep, InstallResult, UninstallResult

Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="ENGINE[=DIR]",
        help="ollama[=MODELS_DIR], ollama=http://HOST:11434 (a server whose directory is out of reach: on another machine, in a "
        "container), vllm[=HF_HUB_CACHE], llamacpp=MODELS_DIR, tgi[=HF_HOME], sglang[=HF_HUB_CACHE], "
        "textgen=USER_DATA, tabbyapi=MODELS_DIR, exllama=MODELS_DIR or folder=DIR. Repeatable; else Ollama and vLLM, where found.",
        autocompletion=completion.engines,
    ),
]
Link = Annotated[
    str,
    typer.Option(
        metavar="auto|hard|reflink|copy",
        help="How weights get into the engine's directory; the rest is copied.",
        autocompletion=completion.links,
    ),
]
Owner = Annotated[str | None, typer.Option(metavar="USER:GROUP", help="Who owns the installed files.")]
Modelfile = Annotated[
    Path | None, typer.Option(metavar="PATH", help="An Ollama Modelfile to use instead of the model's own.")
]


def install(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name that `list` prints.", autocompletion=completion.models)
    ],
    engine: Engines = None,
    as_name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The engine's name for the model.")
    ] = None,
    link: Link = "auto",
    owner: Owner = None,
    modelfile: Modelfile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Install a model into an engine.

    \b
    Examples:
      modelvault install llama-3.1-8b --engine ollama
      modelvault install llama-3.1-8b --engine ollama=http://gpu1:11434
      modelvault install qwen2.5-7b-awq --engine vllm=/srv/hub --owner vllm:vllm
      modelvault install llama-3.1-8b --engine folder=/srv/llama.cpp/models
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.operations.install import Placement, install
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "InstallResult":
        placement = Placement.parse(engine or [], name=as_name, link=link, owner=owner, modelfile=modelfile)
        with Vault.existing(default_home(), log=progress.log) as vault:
            return install(vault, ModelName(model), placement, progress, dry_run=dry_run)

    run("install", as_json, work, lambda result: engine_lines(result.installs, dry_run=result.dry_run))


def engine_lines(steps: "Sequence[EngineStep]", *, dry_run: bool) -> Iterator[str]:
    """Show what went into which engine and what to type next."""
    if not steps:
        return
    yield ""
    rows = [
        (step.installed_name, step.engine, "there already" if step.already else step.link, human_size(step.extra_bytes))
        for step in steps
    ]
    planned = dry_run and not all(step.already for step in steps)
    header = ("would install as" if planned else "installed as", "engine", "placed by", "extra bytes")
    yield from table(header, rows, right=(3,))
    for directory in dict.fromkeys(step.directory for step in steps):
        yield f"  in {directory}"
    verb = "would replace" if dry_run else "replaces"
    yield from (f"  {step.installed_name} in {step.engine} {verb} {step.replaces}" for step in steps if step.replaces)
    if dry_run:
        if not planned:
            yield "nothing to do"
        return
    # One server serves all models of a directory.
    lines = dict.fromkeys(f"  {line}" for step in steps for line in step.next_steps)
    if lines:
        yield from ("", "next:", *lines)


def uninstall(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="The vault's or the engine's name of the model.", autocompletion=completion.models
        ),
    ],
    engine: Annotated[
        str,
        typer.Option(
            metavar="ENGINE[=DIR]",
            help="Which engine to remove it from, with the directory or address that the install named.",
            autocompletion=completion.engines,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Remove a model from an engine.

    Exactly what was installed goes; the vault keeps the model.

    \b
    Example:
      modelvault uninstall llama-3.1-8b --engine ollama
    """
    from modelvault.config import default_home
    from modelvault.operations.uninstall import uninstall
    from modelvault.vault import Vault

    def work(_: object) -> "UninstallResult":
        with Vault.existing(default_home()) as vault:
            return uninstall(vault, model, engine)

    run("uninstall", as_json, work, _uninstalled)


def _uninstalled(result: "UninstallResult") -> Iterator[str]:
    yield f"removed {result.model} from {result.engine} in {result.directory} ({counted(len(result.removed), 'file')})"
