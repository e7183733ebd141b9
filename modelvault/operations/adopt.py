"""``add --from-ollama``: a model that Ollama has on this machine already becomes one of the vault's, without a network."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelvault.artifact import (
    Digest,
    FileRole,
    FileSpec,
    Model,
    ModelName,
    Origin,
    SourceFile,
    check_license,
    file_role,
)
from modelvault.engines import engines
from modelvault.errors import DigestMismatch, UsageProblem
from modelvault.inspect import check_listing, inspect_model
from modelvault.ollama_name import OllamaName
from modelvault.operations.judging import listed_candidate, require_inspected, require_listed
from modelvault.operations.licenses import Asking, Terms, settle_license
from modelvault.operations.ollama import check_layers, license_of, recipe_in_layers
from modelvault.operations.publishing import publish_fetched
from modelvault.operations.summaries import summarize
from modelvault.policy import Candidate
from modelvault.progress import Progress
from modelvault.results.models import AddResult
from modelvault.sources import Snapshot
from modelvault.sources.ollama_store import OllamaStore
from modelvault.transfer import Fetched, TransferOptions, Transfers, Wanted
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class AdoptRequest:
    """What the user asked for: a model by Ollama's name; in the vault it gets ``name``, else that one after ``ollama:``."""

    ollama_name: OllamaName
    store: Path | None = None
    name: ModelName | None = None
    license: str | None = None
    accept_license: bool = False
    consent: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        """Refuse a garbled license before anything is hashed."""
        if self.license is not None:
            check_license(self.license)


def ollama_name(text: str) -> OllamaName:
    """Read a name as ``ollama list`` shows it, or as the vault does. Raises ``UsageProblem``."""
    name = ModelName(f"ollama:{text.removeprefix('ollama:')}").ollama
    if name is None:
        raise UsageProblem(f"not a name that Ollama takes: {text[:120]!r}", hint="write one as `ollama list` does")
    return name


def adopt(vault: Vault, request: AdoptRequest, progress: Progress) -> AddResult:
    """Take a model over from an Ollama store, every blob hashed; the weights are linked where owner and mount allow.

    Raises ``SourceUnavailable`` for a model that the store lacks, ``DigestMismatch`` for a blob that is damaged, ``UsageProblem``,
    ``InvalidModelFile``, ``NoSpace`` or ``VaultLocked``. Of the store, only the mode of linked files changes: nobody may write to them.
    """
    store = OllamaStore(request.store or _store_here())
    name = store.find(request.ollama_name)
    listed_as = request.name or ModelName(f"ollama:{name}")
    snapshot = store.snapshot(name)
    check_layers(str(name), snapshot.files)
    asking = Asking(request.accept_license, request.consent)
    origin = Origin("ollama", snapshot.repository, snapshot.commit)
    terms = Terms(listed_as, request.license, pending=request.license is None)
    require_listed(vault, listed_candidate(terms, origin, snapshot.files), acceptable=asking.possible)
    check_listing([file.path for file in snapshot.files], allow_pickle=False)
    here = {
        file.path: file.digest
        for file in snapshot.files
        if file.digest is not None and vault.store.has(file.digest, file.size)
    }
    wanted = [_wanted(store, name, file, listed_as) for file in snapshot.files if file.path not in here]
    options = TransferOptions(connections=vault.config.connections, lock_wait=vault.config.lock_wait)
    with Transfers(vault.partial, wanted, options, progress) as transfers:
        fetched = _fetched(transfers, store, name, snapshot)
        paths = {item.path: item.data for item in fetched}
        paths |= {path: vault.store.blob_path(digest) for path, digest in here.items()}
        report = inspect_model(paths)
        recipe, notes = recipe_in_layers(name, paths)
        digests: dict[str, Digest] = {item.path: item.sha256 for item in fetched} | here
        model = Model(
            name=listed_as,
            origin=origin,
            files=tuple(FileSpec(file.path, file.size, digests[file.path], file.digest) for file in snapshot.files),
            traits=report.traits,
            license=request.license or license_of(report.reports),
            recipe=recipe,
        )
        require_inspected(vault, Candidate.of(model), report, acceptable=asking.possible)
        said = settle_license(vault, Terms.of(model), asking)
        known = any(entry.name == listed_as for entry in vault.store.entries())
        stored, unchanged = publish_fetched(vault, model, report.reports, fetched, transfers)
    linked = sum({item.sha256: item.size for item in fetched if item.linked}.values())
    replaced = known and not unchanged
    return AddResult(vault.root, summarize(stored), unchanged, replaced, linked, (*report.warnings, *notes, *said))


def _store_here() -> Path:
    """Find the store as the engine does, else Ollama's default."""
    engine = engines()["ollama"]
    target = engine.detect() or engine.default()
    if target is None:
        raise UsageProblem("no store of Ollama's was found on this machine", hint="name it with --store DIR")
    return target.directory


def _wanted(store: OllamaStore, name: OllamaName, file: SourceFile, model: ModelName) -> Wanted:
    # As in engines, only weights are linked: what is small somebody may edit.
    weight = file_role(file.path) is FileRole.WEIGHT
    return Wanted(
        file.path,
        file.size,
        file.digest,
        functools.partial(store.open_range, name, file),
        model=model.text,
        local=store.place_of(name, file) if weight else None,
    )


def _fetched(transfers: Transfers, store: OllamaStore, name: OllamaName, snapshot: Snapshot) -> Sequence[Fetched]:
    """Bring the files; a damaged one is named as it lies in the store."""
    try:
        return transfers.run()
    except DigestMismatch as error:
        places = {file.path: store.place_of(name, file) for file in snapshot.files}
        place = places[str(error.data["path"])]
        raise DigestMismatch(
            f"{place} ({error.data['path']} of {name}) is damaged: its content has the digest {error.data['actual']}",
            hint=f"remove it, bring it again with ollama pull {name}, and run the same command again",
            **{**error.data, "path": str(place)},
        ) from error
