"""``modelvault import``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli.console import human_size, human_time
from modelvault.cli.install import Engines, Link, Owner, engine_lines
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results import ImportResult, ImportsResult


def import_(
    paths: Annotated[
        list[Path] | None,
        # readable=False: Typer need not look, the operation says better what is wrong with a path.
        typer.Argument(metavar="PATH", readable=False, help="Bundles, or where they lie; else the mounted drives."),
    ] = None,
    engine: Engines = None,
    only: Annotated[list[str] | None, typer.Option(metavar="MODEL", help="Only this model. Repeatable.")] = None,
    as_name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="The engine's name for the model.")
    ] = None,
    link: Link = "auto",
    owner: Owner = None,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Import though nobody trusted signed: no proof of origin.")
    ] = False,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Import though a newer bundle of this label was imported.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Verify a bundle and install its models.

    Its models go into the vault and into the engines found here.
    Without --engine: GGUF models go to Ollama, safetensors formats to vLLM, where these are found.

    \b
    Examples:
      modelvault import
      modelvault import /media/ssd --engine ollama --engine vllm=/srv/hub
      modelvault import /media/ssd --only llama-3.1-8b --as llama3.1:8b
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.operations.import_ import ImportRequest, import_bundles
    from modelvault.operations.install import Placement
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "ImportsResult":
        request = ImportRequest(
            paths=tuple(path.expanduser() for path in paths or ()),
            only=tuple(ModelName(name) for name in only or ()),
            placement=Placement.parse(engine or [], name=as_name, link=link, owner=owner),
            allow_unsigned=allow_unsigned,
            allow_older=allow_older,
            dry_run=dry_run,
        )
        with Vault.prospective(default_home()) as vault:
            return import_bundles(vault, request, progress)

    run("import", as_json, work, lines)


def lines(result: "ImportsResult") -> Iterator[str]:
    """Show each bundle's outcome."""
    for number, outcome in enumerate(result.imports):
        if number:
            yield ""
        yield from _import_lines(outcome)


def _import_lines(result: "ImportResult") -> Iterator[str]:
    bundle = result.bundle
    signer = f"signed by {bundle.signer}" if bundle.signer else "NOT signed by anyone trusted"
    yield f"{bundle.path}: label {bundle.label}, sequence {bundle.sequence}, {signer}"
    rows = [(model.name, human_size(model.size), human_size(model.new_bytes), model.outcome) for model in result.models]
    yield from table(("model", "size", "from the drive", "outcome"), rows, right=(1, 2))
    for model in result.models:
        if model.reason:
            yield f"  {model.name}: {model.reason}"
    if not result.dry_run:
        received = sum(model.new_bytes for model in result.models if model.outcome != "refused")
        rate = human_size(received / max(result.seconds, 1e-3))
        yield f"verified and received {human_size(received)} in {human_time(result.seconds)} ({rate}/s) into {result.vault}"
    yield from engine_lines(result.installs, dry_run=result.dry_run)
