"""``bundle``: models of the vault onto a drive, signed and read back."""

import time
from dataclasses import dataclass
from pathlib import Path

from modelvault import fsio, modelpack
from modelvault.artifact import ModelName, StoredModel
from modelvault.bundle.index import Index
from modelvault.bundle.journal import find_unfinished
from modelvault.bundle.layout import volume_length
from modelvault.bundle.plan import PlanOptions, SourceModel, next_sequence, plan_index
from modelvault.bundle.writer import WriteOptions, Written, write_bundle
from modelvault.errors import UsageProblem
from modelvault.keys import Signer
from modelvault.operations.summaries import bundle_model
from modelvault.progress import Progress
from modelvault.results import BundlePlan, BundleResult
from modelvault.vault import Vault

FIRST_KEY = "default"
"""What the key is called that the first bundle of a vault makes."""


@dataclass(frozen=True, slots=True)
class BundleRequest:
    """What the user asked for. ``to`` is where the bundle's directory is made; ``volume_size`` in bytes of tar."""

    names: tuple[ModelName, ...]
    to: Path
    label: str | None = None
    volume_size: int | None = None
    key: str | None = None
    sequence: int | None = None
    read_back: bool = True
    dry_run: bool = False


def bundle(vault: Vault, request: BundleRequest, progress: Progress) -> BundlePlan | BundleResult:
    """Write a bundle, or go on with an unfinished one of the same content; with ``dry_run`` only say what that would take.

    Raises ``UsageProblem``, ``DigestMismatch`` (a blob of the vault rotted), ``NoSpace``, ``VaultLocked`` or an error of the
    drive. Whatever happens, what was written stays and the next run goes on from there.
    """
    if not request.to.is_dir():
        raise UsageProblem(f"{request.to} is not a directory", hint="mount the drive, or make the directory first")
    if request.to.resolve().is_relative_to(vault.root.resolve()):
        raise UsageProblem(
            f"{request.to} lies within the vault", hint="name the drive: modelvault bundle --to /media/ssd"
        )
    with vault.holding():
        models = vault.select(request.names)
        first = request.key is None and not vault.keys.own()
        signer = None if first else vault.keys.signer(request.key)
        fresh = _index(vault, request, models, _sequence(vault, request, signer))
        unfinished = _unfinished(vault, request, fresh)
        index = unfinished or fresh
        if request.dry_run:
            return _plan(vault, request, index, signer, resumes=unfinished is not None)
        if signer is None:
            signer = vault.keys.new(FIRST_KEY)
            vault.record("key-new", {"key": signer.fingerprint, "name": signer.name})
        options = WriteOptions(
            directory=request.to / index.directory_name, journals=_journals(vault), read_back=request.read_back
        )
        written = write_bundle(index, options, vault.store.blob_path, signer, progress)
        _record(vault, index, written, signer)
    return _result(vault, index, written, signer, new_key=first)


def _record(vault: Vault, index: Index, written: Written, signer: Signer) -> None:
    vault.record(
        "bundle-written",
        {
            "index": written.index.hex,
            "label": index.label,
            "sequence": index.sequence,
            "key": signer.fingerprint,
            "path": str(written.directory),
            "models": [str(entry.name) for entry in index.models],
            "read_back": written.read_back,
        },
    )


def _result(vault: Vault, index: Index, written: Written, signer: Signer, *, new_key: bool) -> BundleResult:
    return BundleResult(
        vault=vault.root,
        directory=written.directory,
        label=index.label,
        sequence=index.sequence,
        models=tuple(bundle_model(entry.stored) for entry in index.models),
        volumes=written.volumes,
        content_size=written.content,
        stored_size=written.stored,
        seconds=written.write_seconds,
        read_back=written.read_back,
        read_back_seconds=written.read_back_seconds,
        resumed=written.resumed,
        key=signer.name,
        fingerprint=signer.fingerprint,
        spelled=signer.info.spelled,
        new_key=new_key,
    )


def _journals(vault: Vault) -> Path:
    return vault.partial / "bundles"


def _sequence(vault: Vault, request: BundleRequest, signer: Signer | None) -> int:
    if request.sequence is not None:
        return request.sequence
    label = request.label or vault.config.label
    last = vault.registry.last_sequence(signer.fingerprint, label, "written") if signer else None
    return next_sequence(last or 0, time.time())


def _index(vault: Vault, request: BundleRequest, models: tuple[StoredModel, ...], sequence: int) -> Index:
    sources = []
    for stored in models:
        manifest = vault.store.read_document(stored.manifest)
        config, _ = modelpack.config_digest(manifest)
        sources.append(SourceModel(stored, manifest, vault.store.read_document(config)))
    options = PlanOptions(
        label=request.label or vault.config.label,
        sequence=sequence,
        volume_size=request.volume_size or vault.config.volume_size,
    )
    return plan_index(sources, options)


def _unfinished(vault: Vault, request: BundleRequest, index: Index) -> Index | None:
    """Find a bundle of the same content that was begun in the same place, and may keep its sequence."""
    for unfinished in find_unfinished(_journals(vault)):
        same_place = unfinished.directory.parent == request.to.absolute()
        wanted = request.sequence in {None, unfinished.index.sequence}
        if same_place and wanted and unfinished.index.same_content(index):
            return unfinished.index
    return None


def _plan(vault: Vault, request: BundleRequest, index: Index, signer: Signer | None, *, resumes: bool) -> BundlePlan:
    volumes = tuple(volume_length(members) for members in index.volumes)
    return BundlePlan(
        vault=vault.root,
        directory=request.to / index.directory_name,
        label=index.label,
        models=tuple(bundle_model(entry.stored) for entry in index.models),
        volumes=volumes,
        size=sum(volumes),
        free=fsio.free_space(request.to),
        key=signer.name if signer else None,
        resumes=resumes,
    )
