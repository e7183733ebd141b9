"""``bundle``: models of the vault onto a drive, signed and read back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault import fsio, modelpack
from modelvault.artifact import ModelName, StoredModel
from modelvault.bundle.check import stored_size
from modelvault.bundle.index import Index
from modelvault.bundle.journal import Unfinished, find_unfinished
from modelvault.bundle.layout import volume_length
from modelvault.bundle.plan import PlanOptions, SourceModel, next_sequence, plan_index
from modelvault.bundle.reader import Damage, open_bundle
from modelvault.bundle.writer import WriteOptions, Written, space_needed, write_bundle
from modelvault.errors import ModelvaultError, UsageProblem
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

    Where the newest bundle of this key and label has the same content and lies there finished, nothing is written.

    Raises ``UsageProblem``, ``DigestMismatch`` (a blob of the vault rotted), ``NoSpace``, ``VaultLocked`` or an error of the
    drive. Whatever happens, what was written stays and the next run goes on from there.
    """
    request = replace(request, to=request.to.absolute())
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
        begun = find_unfinished(_journals(vault))
        fresh = _index(vault, request, models, _sequence(vault, request, signer, begun))
        if signer is not None and (finished := _finished(vault, request, fresh, signer, progress)):
            index, written = finished
            if request.dry_run:
                return _plan(vault, request, index, signer, there_already=True)
            return _result(vault, index, written, signer, there_already=True)
        unfinished = _unfinished(begun, request, fresh, progress)
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


def _result(
    vault: Vault,
    index: Index,
    written: Written,
    signer: Signer,
    *,
    new_key: bool = False,
    there_already: bool = False,
) -> BundleResult:
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
        there_already=there_already,
    )


def _journals(vault: Vault) -> Path:
    return vault.partial / "bundles"


def _sequence(vault: Vault, request: BundleRequest, signer: Signer | None, begun: Sequence[Unfinished]) -> int:
    if request.sequence is not None:
        return request.sequence
    label = request.label or vault.config.label
    last = vault.registry.last_sequence(signer.fingerprint, label, "written") if signer else None
    under_way = (unfinished.index.sequence for unfinished in begun if unfinished.index.label == label)
    return next_sequence(max(last or 0, *under_way, 0), time.time())


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


def _finished(
    vault: Vault, request: BundleRequest, fresh: Index, signer: Signer, progress: Progress
) -> tuple[Index, Written] | None:
    """Find a bundle of the same content that lies there finished, each volume in its full length.

    Only the newest of this key and label counts, or the one that the request pins: import may refuse an older one.
    """
    sequence = request.sequence or vault.registry.last_sequence(signer.fingerprint, fresh.label, "written")
    index = replace(fresh, sequence=sequence or fresh.sequence)
    directory = request.to / index.directory_name
    try:
        there = open_bundle(directory, vault.keys.verify)
        if there.index != index or there.signer is None or there.signer.fingerprint != signer.fingerprint:
            return None
        stored = stored_size(there)
    except ModelvaultError:
        return None  # absent, or not what was written there: writing says what is in the way
    except Damage as damage:
        if there.finished:
            progress.log(f"{directory} is not whole any more: {damage.reason}; it is written again")
        return None
    content = sum(map(volume_length, index.volumes))
    return index, Written(
        directory=directory,
        index=there.digest,
        volumes=len(index.volumes),
        content=content,
        stored=stored,
        resumed=0,
        read_back=False,
        write_seconds=0.0,
        read_back_seconds=0.0,
    )


def _unfinished(begun: Sequence[Unfinished], request: BundleRequest, index: Index, progress: Progress) -> Index | None:
    """Find a bundle of the same content that was begun in the same place, and may keep its sequence."""
    for unfinished in begun:
        same_place = unfinished.directory.parent == request.to
        wanted = request.sequence in {None, unfinished.index.sequence}
        if same_place and wanted and unfinished.index.same_content(index):
            if unfinished.directory.is_dir() or request.sequence:
                return unfinished.index
            progress.log(f"{unfinished.directory}, which was begun, is not on this drive: another bundle is begun here")
    return None


def _plan(
    vault: Vault,
    request: BundleRequest,
    index: Index,
    signer: Signer | None,
    *,
    resumes: bool = False,
    there_already: bool = False,
) -> BundlePlan:
    volumes = tuple(map(volume_length, index.volumes))
    directory = request.to / index.directory_name
    free = fsio.free_space(request.to)
    missing = 0 if there_already else space_needed(index, directory) - free
    return BundlePlan(
        vault=vault.root,
        directory=directory,
        label=index.label,
        models=tuple(bundle_model(entry.stored) for entry in index.models),
        volumes=volumes,
        size=sum(volumes),
        free=free,
        key=signer.name if signer else None,
        resumes=resumes,
        there_already=there_already,
        warnings=(f"{missing:,} bytes are missing on {request.to}: make room first",) if missing > 0 else (),
    )
