"""How a stored model is summed up in a result; shared by the operations that show models."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelvault.artifact import StoredModel
from modelvault.results.bundles import BundleModel, BundleSummary
from modelvault.results.models import InstallLine, ModelSummary

if TYPE_CHECKING:
    from pathlib import Path

    from modelvault.bundle.reader import OpenBundle
    from modelvault.registry import InstallRow, SmokeRow
    from modelvault.vault import Vault

_MOST_NAMED = 3  # files


def summarize(stored: StoredModel) -> ModelSummary:
    """Sum up a model for ``list``, ``show`` and the results of whatever brought it in."""
    model = stored.model
    origin = model.origin
    return ModelSummary(
        name=model.name.text,
        format=model.traits.format,
        architecture=model.traits.architecture,
        quantization=model.traits.quantization,
        parameters=model.traits.parameters,
        files=len(model.files),
        size=model.size,
        source=f"{origin.kind}:{origin.repository}" if origin.repository else origin.kind,
        commit=origin.commit,
        license=model.license,
        manifest=stored.manifest,
    )


def not_one(folder: "Path", below: Sequence[str]) -> str:
    """Say that a folder is several models, by the folders below it that have weights."""
    named = ", ".join(below[:5]) + (" …" if below[5:] else "")
    return f"{folder} is not one model: it has weights in {named}, and none beside them"


def lack_warning(vault: "Vault", stored: StoredModel) -> tuple[str, ...]:
    """Say that files of a model are not there, if so, and what to do."""
    lost = vault.store.lacks(stored.model)
    more = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
    named = ", ".join(lost[:_MOST_NAMED]) + more
    return (f"{stored.model.name} is not whole: it lacks {named}; pull, add or import it again",) if lost else ()


def install_line(row: "InstallRow", smokes: "Sequence[SmokeRow]" = ()) -> InstallLine:
    """Sum up an install for ``show``, with its ``smokes`` (the newest first), and for ``rm``, which leaves it."""
    last = last_smoke(row, smokes)
    return InstallLine(row.model, row.engine, row.directory, row.installed_name, row.installed_at, last)


def repair(model: str, engine: str, directory: str) -> str:
    """Give the command that brings what is missing or wrong in an install."""
    return shlex.join(["modelvault", "install", model, "--engine", f"{engine}={directory}"])


def last_smoke(row: "InstallRow", smokes: "Sequence[SmokeRow]") -> str | None:
    """Say when an install was last tried out, as it is now, and with what outcome; ``smokes`` are the newest first."""
    last = next((smoke for smoke in smokes if smoke.is_of(row)), None)
    return f"{last.smoked_at} ({last.outcome})" if last else None


def bundle_model(stored: StoredModel) -> BundleModel:
    """Sum up a model as a part of a bundle."""
    model = stored.model
    return BundleModel(
        name=model.name.text,
        format=model.traits.format,
        quantization=model.traits.quantization,
        files=len(model.files),
        size=model.size,
        manifest=stored.manifest,
    )


def bundle_summary(bundle: "OpenBundle") -> BundleSummary:
    """Sum up a bundle; sizes in bytes before compression."""
    index = bundle.index
    return BundleSummary(
        path=bundle.places[0],
        label=index.label,
        sequence=index.sequence,
        signer=bundle.signer.name if bundle.signer else None,
        fingerprint=bundle.signer.fingerprint if bundle.signer else None,
        models=tuple(bundle_model(entry.stored) for entry in index.models),
        volumes=len(index.volumes),
        size=index.size,
        finished=bundle.finished,
        missing=bundle.missing,
    )
