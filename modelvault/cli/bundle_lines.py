"""How a bundle is shown; shared by the commands that show one."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modelvault.cli.console import counted, human_size
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.results import BundleModel, BundleSummary


def bundle_lines(bundle: "BundleSummary") -> Iterator[str]:
    """Show what a bundle says about itself."""
    signer = f"signed by {bundle.signer}" if bundle.signer else "not signed by anyone trusted here"
    yield f"{bundle.path}"
    yield f"  label {bundle.label}, sequence {bundle.sequence}, {counted(bundle.volumes, 'volume')}, {human_size(bundle.size)}; {signer}"
    yield from model_table(bundle.models)


def model_table(models: "Sequence[BundleModel]") -> Iterator[str]:
    """Show the models of a bundle."""
    rows = [
        (
            model.name,
            model.format,
            model.quantization or "-",
            str(model.files),
            human_size(model.size),
            model.manifest.short,
        )
        for model in models
    ]
    yield from table(("model", "format", "quantization", "files", "size", "manifest"), rows, right=(3, 4))
