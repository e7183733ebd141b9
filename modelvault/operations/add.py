"""``add``: a local file or folder becomes a model, through the same door as a pull."""

import functools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import (
    FileSpec,
    Model,
    ModelName,
    Origin,
    Recipe,
    SourceFile,
    check_distinct,
    license_files,
)
from modelvault.errors import SourceUnavailable, UsageProblem
from modelvault.inspect import ModelReport, inspect_model, separate_folders
from modelvault.operations.judging import listed_candidate, record_scan, require_inspected
from modelvault.operations.licenses import Asking, Terms, settle_license
from modelvault.operations.modelfile import read_modelfile
from modelvault.operations.publishing import publish_fetched
from modelvault.operations.summaries import not_one, summarize
from modelvault.policy import Candidate
from modelvault.progress import Progress
from modelvault.results.models import AddResult
from modelvault.sources.folder import FolderSource
from modelvault.transfer import TransferOptions, Transfers, Wanted
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class AddRequest:
    """What the user asked for. Without ``license`` it is what the files state; ``consent`` asks whether it is accepted."""

    path: Path
    name: ModelName
    license: str | None = None
    modelfile: Path | None = None
    allow_pickle: bool = False
    accept_license: bool = False
    consent: Callable[[str], bool] | None = None


def add(vault: Vault, request: AddRequest, progress: Progress) -> AddResult:
    """Copy a file or folder into the vault as a model, hashed on the way, resumable like a pull.

    Raises ``UsageProblem``, ``InvalidModelFile``, ``PolicyRefused``, ``NoSpace`` or ``VaultLocked``; the source stays as it is.
    """
    source = FolderSource(request.path)
    files = source.files()
    if not files:
        raise UsageProblem(f"{request.path} holds no files", hint="name a model folder, a .gguf or a .safetensors file")
    check_distinct(request.name, [file.path for file in files])
    if request.path.is_dir():
        _require_one(request.path, [file.path for file in files])
    said = _judge_there(vault, request, files)
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
        report = inspect_model({item.path: item.data for item in fetched}, allow_pickle=True)
        model = Model(
            name=request.name,
            origin=Origin("folder"),
            files=tuple(FileSpec(item.path, item.size, item.sha256) for item in fetched),
            traits=report.traits,
            license=request.license or report.license,
            recipe=recipe,
            license_link=_link(request, report),
        )
        require_inspected(vault, Candidate.of(model), report, allow_pickle=request.allow_pickle)
        known = any(entry.name == request.name for entry in vault.store.entries())
        stored, unchanged = publish_fetched(vault, model, report.reports, fetched, transfers)
        if not unchanged:
            record_scan(vault, model.name, report.advice)
    replaced = known and not unchanged
    return AddResult(vault.root, summarize(stored), unchanged, replaced, 0, (*report.warnings, *said))


def _judge_there(vault: Vault, request: AddRequest, files: Sequence[SourceFile]) -> tuple[str, ...]:
    """Inspect and judge the files where they lie, before hours of copying; have the license accepted. Gives what is to be warned of.

    What was copied is inspected and judged again. Raises ``PolicyRefused`` and ``InvalidModelFile``.
    """
    folder = request.path if request.path.is_dir() else request.path.parent
    places = {file.path: folder / file.path for file in files}
    report = inspect_model(places, allow_pickle=True)
    asking = Asking(request.accept_license, request.consent)
    texts = {path: str(fsio.hash_file(places[path])) for path in license_files(places)}
    license_name = report.license if request.license is None else request.license
    terms = Terms(request.name, license_name, _link(request, report), texts)
    candidate = listed_candidate(terms, Origin("folder"), files)
    require_inspected(vault, candidate, report, allow_pickle=request.allow_pickle, acceptable=asking.possible)
    return settle_license(vault, terms, asking)


def _link(request: AddRequest, report: ModelReport) -> str | None:
    """Give the address of the license that the files state; of another one that was typed, nothing is known."""
    return report.license_link if request.license in {None, report.license} else None


def _require_one(folder: Path, paths: Sequence[str]) -> None:
    """Refuse a folder of models."""
    if below := separate_folders(paths):
        raise UsageProblem(
            not_one(folder, below),
            hint=f"add them one by one: modelvault add {shlex.quote(str(folder / below[0]))} --name NAME",
            folders=below,
        )
