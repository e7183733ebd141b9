"""``add``: a local file or folder becomes a model, through the same door as a pull."""

import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelvault.artifact import (
    FileRole,
    FileSpec,
    Model,
    ModelName,
    Origin,
    Recipe,
    check_distinct,
    check_license,
    file_role,
)
from modelvault.errors import SourceUnavailable, UsageProblem
from modelvault.inspect import check_listing, inspect_model, top_level
from modelvault.operations.modelfile import read_modelfile
from modelvault.operations.publishing import publish_fetched
from modelvault.operations.summaries import summarize
from modelvault.progress import Progress
from modelvault.results.models import AddResult
from modelvault.sources.folder import FolderSource
from modelvault.transfer import TransferOptions, Transfers, Wanted
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class AddRequest:
    """What the user asked for."""

    path: Path
    name: ModelName
    license: str | None = None
    modelfile: Path | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        """Refuse a garbled license before anything is copied."""
        if self.license is not None:
            check_license(self.license)


def add(vault: Vault, request: AddRequest, progress: Progress) -> AddResult:
    """Copy a file or folder into the vault as a model, hashed on the way, resumable like a pull.

    Raises ``UsageProblem``, ``InvalidModelFile``, ``PolicyRefused``, ``NoSpace`` or ``VaultLocked``; the source stays as it is.
    """
    source = FolderSource(request.path)
    files = source.files()
    if not files:
        raise UsageProblem(f"{request.path} holds no files", hint="name a model folder, a .gguf or a .safetensors file")
    check_distinct(request.name, [file.path for file in files])
    # A single file need not be a whole repository: only what lies in a folder can be incomplete.
    if request.path.is_dir():
        check_listing([file.path for file in files], allow_pickle=request.allow_pickle)
        _require_one(request.path, [file.path for file in files])
    wanted = [
        Wanted(
            file.path,
            file.size,
            None,
            functools.partial(source.open_range, file),
            source.identity(file),
            request.name.text,
        )
        for file in files
    ]
    recipe = Recipe(modelfile=read_modelfile(request.modelfile)) if request.modelfile else None
    options = TransferOptions(connections=vault.config.connections, lock_wait=vault.config.lock_wait)
    with Transfers(vault.partial, wanted, options, progress) as transfers:
        fetched = transfers.run()
        if changed := [
            file.path for file, item in zip(files, wanted, strict=True) if source.identity(file) != item.identity
        ]:
            raise SourceUnavailable(
                f"{', '.join(changed[:5])} changed while the model was copied",
                hint="run the command again once nothing writes there any more",
            )
        report = inspect_model({item.path: item.data for item in fetched}, allow_pickle=request.allow_pickle)
        model = Model(
            name=request.name,
            origin=Origin("folder"),
            files=tuple(FileSpec(item.path, item.size, item.sha256) for item in fetched),
            traits=report.traits,
            license=request.license,
            recipe=recipe,
        )
        known = any(entry.name == request.name for entry in vault.store.entries())
        stored, unchanged = publish_fetched(vault, model, report.reports, fetched, transfers)
    return AddResult(vault.root, summarize(stored), unchanged, known and not unchanged, 0, report.warnings)


def _require_one(folder: Path, paths: Sequence[str]) -> None:
    """Refuse a folder of models: no engine looks for weights in several folders below."""
    weights = [path for path in paths if file_role(path) is FileRole.WEIGHT]
    below = sorted({path.partition("/")[0] for path in weights})
    if len(below) > 1 and not any(top_level(weights)):
        raise UsageProblem(
            f"{folder} is not one model: it has weights in {', '.join(below[:5])}{' …' if below[5:] else ''}, and none beside them",
            hint=f"add them one by one: modelvault add {shlex.quote(str(folder / below[0]))} --name NAME",
            folders=below,
        )
