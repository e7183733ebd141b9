"""``inspect``: what a file, a folder or a bundle says about itself. Needs no vault."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelvault.errors import UsageProblem
from modelvault.inspect import check_listing, inspect_file, inspect_model
from modelvault.operations.finding import is_bundle
from modelvault.operations.summaries import bundle_summary
from modelvault.results.bundles import BundleSummary, Inspected, InspectResult
from modelvault.sources.folder import FolderSource

if TYPE_CHECKING:
    from modelvault.keys import KeyRing


def inspect_paths(paths: Sequence[Path], keys: "KeyRing | None" = None) -> InspectResult:
    """Look at each path; ``keys`` tell whose signature a bundle carries, if there is a vault to ask.

    Raises ``UsageProblem``, ``InvalidModelFile`` or, for a bundle that breaks its format, ``TrustRefused``.
    """
    items = tuple(_inspect(path.expanduser(), keys) for path in paths)
    return InspectResult(items, tuple(warning for item in items for warning in item.warnings))


def _inspect(path: Path, keys: "KeyRing | None") -> Inspected | BundleSummary:
    if not path.exists():
        raise UsageProblem(f"{path} does not exist", hint="`modelvault show MODEL` is for what lies in the vault")
    if is_bundle(path):
        # Imported here: only bundles need cryptography and zstandard.
        from modelvault.operations.trust import open_trusted  # noqa: PLC0415

        bundle, warnings = open_trusted(path, keys, allow_unsigned=True)
        return replace(bundle_summary(bundle), warnings=warnings)
    return _folder(path) if path.is_dir() else _file(path)


def _file(path: Path) -> Inspected:
    report = inspect_file(path)
    return Inspected(
        path=path,
        kind="file",
        format=report.format,
        architecture=report.architecture,
        quantization=report.quantization,
        parameters=report.parameters,
        tensors=report.tensors,
        size=path.stat().st_size,
        metadata=report.metadata,
        warnings=report.warnings,
    )


def _folder(path: Path) -> Inspected:
    files = FolderSource(path).files()
    # To look at pickles is safe; `pull` and `add` are where they are refused.
    check_listing([file.path for file in files], allow_pickle=True)
    report = inspect_model({file.path: path / file.path for file in files}, allow_pickle=True)
    metadata = {
        f"{name}: {key}": value for name, file in report.reports.items() for key, value in file.metadata.items()
    }
    return Inspected(
        path=path,
        kind="folder",
        format=report.traits.format,
        architecture=report.traits.architecture,
        quantization=report.traits.quantization,
        parameters=report.traits.parameters,
        tensors=sum(file.tensors for file in report.reports.values()),
        size=sum(file.size for file in files),
        metadata=metadata,
        warnings=report.warnings,
    )
