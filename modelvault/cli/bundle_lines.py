"""How a bundle and models are shown; shared by the commands that show them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modelvault.cli.console import counted, human_size
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.results.bundles import BundleModel, BundleSummary
    from modelvault.results.models import ModelSummary


def bundle_lines(bundle: "BundleSummary") -> Iterator[str]:
    """Show what a bundle says about itself."""
    signer = f"signed by {bundle.signer}" if bundle.signer else "not signed by anyone trusted here"
    yield f"{bundle.path}"
    yield f"  label {bundle.label}, sequence {bundle.sequence}, {counted(bundle.volumes, 'volume')}, {human_size(bundle.size)}; {signer}"
    if bundle.missing or not bundle.finished:
        from modelvault.bundle.index import name_volumes

        lack = f"; not here: {name_volumes(bundle.missing)}" if bundle.missing else ""
        yield f"  {'NOT all of it' if bundle.finished else 'NOT finished: the same bundle command goes on with it'}{lack}"
    yield from model_table(bundle.models)


def model_table(models: "Sequence[BundleModel | ModelSummary]") -> Iterator[str]:
    """Show the models of a bundle or a vault."""
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
