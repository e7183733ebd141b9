"""Taking a model over that another program has on this machine: hashed again, linked where owner and mount allow, else copied."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelvault.artifact import (
    Algorithm,
    Digest,
    FileRole,
    FileSpec,
    Model,
    ModelName,
    Origin,
    Recipe,
    SourceFile,
    file_role,
)
from modelvault.errors import DigestMismatch
from modelvault.fsio import open_file_range
from modelvault.inspect import ModelReport, check_listing, inspect_model
from modelvault.operations.judging import listed_candidate, record_scan, require_inspected, require_listed
from modelvault.operations.licenses import Asking, Terms, settle_license
from modelvault.operations.publishing import publish_fetched
from modelvault.operations.summaries import summarize
from modelvault.policy import Candidate
from modelvault.progress import Progress
from modelvault.results.models import AddResult
from modelvault.transfer import Fetched, TransferOptions, Transfers, Wanted
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class Adoption:
    """A model as it lies with another program.

    ``place`` says where a file lies, ``remedy`` what to do about one that is damaged. ``license_of`` and ``recipe_in`` read what the
    files say, the latter with what is to be said of it.
    """

    terms: Terms
    origin: Origin
    files: tuple[SourceFile, ...]
    place: Callable[[SourceFile], Path]
    remedy: str
    license_of: Callable[[ModelReport], str | None]
    recipe_in: Callable[[Mapping[str, Path]], tuple[Recipe | None, tuple[str, ...]]]
    license_link: str | None = None
    allow_pickle: bool = False

    @property
    def name(self) -> ModelName:
        """What it is called in the vault."""
        return self.terms.model


def take_over(vault: Vault, adoption: Adoption, asking: Asking, progress: Progress) -> AddResult:
    """Bring a model into the vault, every file hashed. Of where it lies, only the mode of linked files changes: nobody may write to them.

    Raises ``DigestMismatch`` for a file that is damaged, ``UsageProblem``, ``InvalidModelFile``, ``PolicyRefused``, ``NoSpace`` or
    ``VaultLocked``.
    """
    listed = listed_candidate(adoption.terms, adoption.origin, adoption.files)
    require_listed(vault, listed, acceptable=asking.possible)
    check_listing([file.path for file in adoption.files], allow_pickle=adoption.allow_pickle)
    here = {file.path: digest for file in adoption.files if (digest := _in_vault(vault, file)) is not None}
    wanted = [_wanted(adoption, file) for file in adoption.files if file.path not in here]
    options = TransferOptions(connections=vault.config.connections, lock_wait=vault.config.lock_wait)
    with Transfers(vault.partial, wanted, options, progress) as transfers:
        fetched = _fetched(transfers, adoption)
        paths = {item.path: item.data for item in fetched}
        paths |= {path: vault.store.blob_path(digest) for path, digest in here.items()}
        report = inspect_model(paths, allow_pickle=True, repository=adoption.origin.repository)
        recipe, notes = adoption.recipe_in(paths)
        digests = {item.path: item.sha256 for item in fetched} | here
        model = Model(
            name=adoption.name,
            origin=adoption.origin,
            files=tuple(FileSpec(file.path, file.size, digests[file.path], file.digest) for file in adoption.files),
            traits=report.traits,
            license=adoption.license_of(report),
            recipe=recipe,
            license_link=adoption.license_link,
        )
        require_inspected(
            vault, Candidate.of(model), report, allow_pickle=adoption.allow_pickle, acceptable=asking.possible
        )
        said = settle_license(vault, Terms.of(model), asking)
        known = any(entry.name == model.name for entry in vault.store.entries())
        stored, unchanged = publish_fetched(vault, model, report.reports, fetched, transfers)
        if not unchanged:
            record_scan(vault, model.name, report.advice)
    linked = sum({item.sha256: item.size for item in fetched if item.linked}.values())
    replaced = known and not unchanged
    return AddResult(vault.root, summarize(stored), unchanged, replaced, linked, (*report.warnings, *notes, *said))


def _in_vault(vault: Vault, file: SourceFile) -> Digest | None:
    if file.digest is None or file.digest.algorithm is not Algorithm.SHA256:
        return None
    return file.digest if vault.store.has(file.digest, file.size) else None


def _wanted(adoption: Adoption, file: SourceFile) -> Wanted:
    place = adoption.place(file)
    return Wanted(
        file.path,
        file.size,
        file.digest,
        functools.partial(open_file_range, place, str(place)),
        identity=f"{adoption.origin.repository}@{adoption.origin.commit}",
        model=adoption.name.text,
        # As in engines, only weights are linked: what is small somebody may edit.
        local=place if file_role(file.path) is FileRole.WEIGHT else None,
        local_only=True,
    )


def _fetched(transfers: Transfers, adoption: Adoption) -> Sequence[Fetched]:
    """Bring the files; a damaged one is named as it lies there."""
    try:
        return transfers.run()
    except DigestMismatch as error:
        places = {file.path: adoption.place(file) for file in adoption.files}
        place = places[str(error.data["path"])]
        raise DigestMismatch(
            f"{place} ({error.data['path']} of {adoption.name}) is damaged: its content has the digest {error.data['actual']}",
            hint=adoption.remedy,
            **{**error.data, "path": str(place)},
        ) from error
