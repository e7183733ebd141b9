"""``modelvault import``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli.console import human_size, human_time
from modelvault.cli.install import Engines, Link, Modelfile, Owner, engine_lines
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table
from modelvault.cli.verify import Site

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.installs import ImportResult, ImportsResult


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
    modelfile: Modelfile = None,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Import though nobody trusted signed: no proof of origin.")
    ] = False,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Import though a newer bundle of this label was imported.")
    ] = False,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Record that you accept the models' licenses.")
    ] = False,
    receipt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a receipt of what is here then, to be carried back.")
    ] = None,
    site: Site = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Verify a bundle and install its models.

    Its models go into the vault and into the engines found here.
    The drives of one bundle are imported together or one by one, in any order: what has arrived is kept until the rest comes.
    A patch is imported together with the bundle that it mends, or alone after it.
    Without --engine: GGUF models go to Ollama, safetensors formats to vLLM, where these are found.

    \b
    Examples:
      modelvault import
      modelvault import /media/ssd --engine ollama --engine vllm=/srv/hub
      modelvault import /media/ssd --only llama-3.1-8b --as llama3.1:8b
      modelvault import /media/a /media/b --receipt /media/b
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
            placement=Placement.parse(engine or [], name=as_name, link=link, owner=owner, modelfile=modelfile),
            allow_unsigned=allow_unsigned,
            allow_older=allow_older,
            accept_license=accept_license,
            receipt=receipt and receipt.expanduser(),
            site=site,
            dry_run=dry_run,
        )
        with Vault.prospective(default_home(), log=progress.log) as vault:
            return import_bundles(vault, request, progress)

    run("import", as_json, work, lines)


def lines(result: "ImportsResult") -> Iterator[str]:
    """Show each bundle's outcome."""
    for number, outcome in enumerate(result.imports):
        if number:
            yield ""
        yield from _import_lines(outcome)
    if result.receipt is not None:
        from modelvault.cli.receipt import written_lines

        yield ""
        yield from written_lines(result.receipt)


def _import_lines(result: "ImportResult") -> Iterator[str]:
    bundle = result.bundle
    signer = f"signed by {bundle.signer}" if bundle.signer else "NOT signed by anyone trusted"
    yield f"{bundle.path}"
    yield f"  label {bundle.label}, sequence {bundle.sequence}; {signer}"
    rows = [(model.name, human_size(model.size), human_size(model.new_bytes), model.outcome) for model in result.models]
    yield from table(("model", "size", "from the drive", "outcome"), rows, right=(1, 2))
    verb = "would replace" if result.dry_run else "replaces"
    yield from (f"  {model.name} {verb} {model.replaces}" for model in result.models if model.replaces)
    yield from (f"  {model.reason}" for model in result.models if model.reason)
    for disk in result.disks:
        yield f"needs {human_size(disk.needed)} of {human_size(disk.free)} that are free on the file system of {disk.path}"
    yield from _sum(result)
    yield from engine_lines(result.installs, dry_run=result.dry_run)


def _sum(result: "ImportResult") -> Iterator[str]:
    """Say what came off the drives, and what is still to come."""
    from modelvault.bundle.index import name_volumes

    if result.wanted:
        yield f"still to come: {name_volumes(result.wanted)}"
    if result.dry_run:
        return
    took = human_time(result.seconds)
    if result.received or result.resumed:
        resumed = f", of which {human_size(result.resumed)} were here already" if result.resumed else ""
        yield f"verified and received {human_size(result.received + result.resumed)}{resumed}, in {took}"
        yield f"  into {result.vault}"
    elif not any(model.reason for model in result.models):
        yield f"everything was here already: nothing was read from the drive ({took})"
