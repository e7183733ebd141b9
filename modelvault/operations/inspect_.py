"""``inspect``: what a file, a folder or a bundle says about itself. Needs no vault."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelvault.artifact import FileRole, file_role
from modelvault.errors import UsageProblem
from modelvault.inspect import check_listing, inspect_file, inspect_model, separate_folders
from modelvault.operations.finding import bundles_below, is_bundle
from modelvault.operations.summaries import bundle_summary, not_one
from modelvault.results.bundles import BundleSummary, Inspected, InspectResult
from modelvault.sources.folder import FolderSource

if TYPE_CHECKING:
    from modelvault.keys import KeyRing

_MOST_NAMED = 3  # bundles


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
    if not path.is_dir():
        return _file(path)
    _require_no_drive(path)
    return _folder(path)


def _require_no_drive(path: Path) -> None:
    """Refuse a directory of bundles: which of them is meant, only a person knows. One with weights is a model, whatever else is in it."""
    bundles = bundles_below(path)
    if not bundles or any(file_role(entry.name) is FileRole.WEIGHT for entry in path.iterdir()):
        return
    first = shlex.quote(str(bundles[0]))
    names = ", ".join(bundle.name for bundle in bundles[:_MOST_NAMED])
    more = f" and {len(bundles) - _MOST_NAMED} more" if len(bundles) > _MOST_NAMED else ""
    raise UsageProblem(
        f"{path} is no model: it is where bundles lie: {names}{more}",
        hint=f"`modelvault inspect {first}` shows what is in one, `modelvault verify {first}` reads every byte of it",
        bundles=[str(bundle) for bundle in bundles],
    )


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
    several = separate_folders(file.path for file in files)
    warnings = (
        (*report.warnings, f"{not_one(path, several)}; `add` takes them one by one") if several else report.warnings
    )
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
        warnings=warnings,
    )
