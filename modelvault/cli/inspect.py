"""``modelvault inspect``."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli.bundle_lines import bundle_lines
from modelvault.cli.console import human_size
from modelvault.cli.run import Json, run

if TYPE_CHECKING:
    from modelvault.artifact import ArraySummary, Scalar
    from modelvault.results.bundles import Inspected, InspectResult

_VALUE_WIDTH = 44


def inspect(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="GGUF or safetensors files, model folders, bundles.")
    ],
    metadata: Annotated[bool, typer.Option("--metadata", help="Show every metadata key too.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a file, folder or bundle is.

    Says what a model file, a model folder or a bundle tells about itself and whether it is sound; needs no vault. A file that breaks a rule of its format ends with exit code 13 and the rule's name.

    \b
    Examples:
      modelvault inspect ./llama-3.1-8b-Q4_K_M.gguf
      modelvault inspect /media/ssd/models-1763700000.mvbundle
    """
    from modelvault.config import default_home
    from modelvault.operations.inspect_ import inspect_paths
    from modelvault.vault import Vault

    def show(result: "InspectResult") -> Iterator[str]:
        return lines(result, metadata=metadata)

    run("inspect", as_json, lambda _: inspect_paths(paths, Vault.keys_of(default_home())), show)


def lines(result: "InspectResult", *, metadata: bool) -> Iterator[str]:
    """Show each item."""
    from modelvault.results.bundles import BundleSummary

    for number, item in enumerate(result.items):
        if number:
            yield ""
        yield from bundle_lines(item) if isinstance(item, BundleSummary) else _file_lines(item, metadata=metadata)


def _file_lines(item: "Inspected", *, metadata: bool) -> Iterator[str]:
    yield f"{item.path}"
    yield f"  {item.kind}, {item.format}, {human_size(item.size)}: sound"
    for label, value in (
        ("architecture", item.architecture),
        ("quantization", item.quantization),
        ("parameters", f"{item.parameters:,}" if item.parameters else None),
        ("tensors", f"{item.tensors:,}"),
    ):
        if value is not None:
            yield f"  {label:<14}{value}"
    if metadata:
        yield from metadata_lines(item.metadata)


def metadata_lines(metadata: "Mapping[str, Scalar | ArraySummary]") -> Iterator[str]:
    """Show metadata, one key a line; long values are cut, arrays are summed up."""
    from modelvault.artifact import ArraySummary

    for key, value in metadata.items():
        if isinstance(value, ArraySummary):
            text = f"{value.length:,} x {value.element} ({value.digest.short})"
        else:
            text = str(value).replace("\n", "\\n")
        yield f"  {key}: {text if len(text) <= _VALUE_WIDTH else text[: _VALUE_WIDTH - 1] + '…'}"
