"""``modelvault show``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.console import counted, human_size
from modelvault.cli.inspect import metadata_lines
from modelvault.cli.run import Json, run
from modelvault.cli.tables import last_smoke, table

if TYPE_CHECKING:
    from modelvault.results.models import ShowResult


def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name that `list` prints.", autocompletion=completion.models)
    ],
    metadata: Annotated[bool, typer.Option("--metadata", help="Show every metadata key of its files too.")] = False,
    as_json: Json = False,
) -> None:
    """Show all that is known about a model.

    Files, digests, origin, installs, and with --metadata every key that its files hold.

    \b
    Example:
      modelvault show llama-3.1-8b --metadata
    """
    from modelvault.artifact import ModelName
    from modelvault.config import default_home
    from modelvault.operations.show import show
    from modelvault.vault import Vault

    def work(_: object) -> "ShowResult":
        with Vault.existing(default_home()) as vault:
            return show(vault, ModelName(model))

    run("show", as_json, work, lambda result: lines(result, metadata=metadata))


def lines(result: "ShowResult", *, metadata: bool) -> Iterator[str]:
    """Show facts, files, installs."""
    model = result.model
    facts = (
        ("format", model.format),
        ("architecture", model.architecture),
        ("quantization", model.quantization),
        ("parameters", f"{model.parameters:,}" if model.parameters else None),
        ("size", f"{human_size(model.size)} in {counted(model.files, 'file')}"),
        ("source", model.source),
        ("commit", model.commit),
        ("license", model.license),
        ("license page", result.license_link),
        ("license text", ", ".join(result.license_files)),
        ("accepted", result.accepted),
        ("manifest", model.manifest.hex),
        ("added", result.published_at),
        ("brought by", result.brought_by),
        ("last verified", result.last_check),
        ("pickle scan", result.pickle_scan),
        ("vault", str(result.vault)),
    )
    yield model.name
    for label, value in facts:
        if value:
            yield f"  {label:<14}{value}"
    yield ""
    for file in result.files:
        yield f"{file.path} ({human_size(file.size)})"
        yield f"  {file.digest}"
    if result.installs:
        yield ""
        installs = [
            (line.installed_name, line.engine, line.directory, last_smoke(line.last_smoke)) for line in result.installs
        ]
        yield from table(("installed as", "engine", "directory", "tried out"), installs)
    if result.modelfile:
        yield ""
        yield "modelfile:"
        yield from (f"  {line}" for line in result.modelfile.splitlines())
    if metadata:
        yield ""
        yield from metadata_lines(result.metadata)
