"""``bundle``: models of the vault onto a drive, signed and read back."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest, ModelName
from modelvault.bundle.check import stored_size
from modelvault.bundle.format import encode
from modelvault.bundle.index import SUMS_FILE, Index
from modelvault.bundle.journal import Journal, Unfinished, find_unfinished, journal_path
from modelvault.bundle.layout import volume_length
from modelvault.bundle.plan import PlanOptions
from modelvault.bundle.reader import DamagedFrame, open_bundle
from modelvault.bundle.restore import restore_script
from modelvault.bundle.writer import check_blobs, write_bundle
from modelvault.bundle.written import WriteOptions, Written
from modelvault.errors import DigestMismatch, ModelvaultError, PartlyDone, UsageProblem
from modelvault.keys import FIRST_KEY, Role, Signer
from modelvault.operations.contents import Contents, answer, keep_index, known_to_go_to, selection
from modelvault.operations.drives import (
    DrivePlan,
    drive_results,
    drive_warnings,
    lying_there,
    places,
    plan_drives,
    warnings,
)
from modelvault.operations.judging import require_stored
from modelvault.operations.keys import make_key
from modelvault.operations.needed_code import left_behind
from modelvault.operations.sequences import choose_sequence, reserve_sequence
from modelvault.operations.summaries import bundle_model
from modelvault.progress import Progress
from modelvault.results.bundles import BundlePlan, BundleResult
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class BundleRequest:
    """What the user asked for. ``to`` are the drives, on each of which the bundle's directory is made; ``volume_size`` in bytes of tar.

    ``swap`` asks for the next drive when the one that ``to`` names is full: it is told what to say, and comes back when it is there.

    ``site`` is where it goes: what is there is left out; ``assume_sent``: what went there before, too. ``answer`` is the request of a
    site, whose pieces are written instead of models.
    """

    names: tuple[ModelName, ...]
    to: tuple[Path, ...]
    label: str | None = None
    volume_size: int | None = None
    key: str | None = None
    sequence: int | None = None
    read_back: bool = True
    dry_run: bool = False
    site: str | None = None
    assume_sent: bool = False
    answer: Path | None = None
    swap: Callable[[str], None] | None = None


def bundle(vault: Vault, request: BundleRequest, progress: Progress) -> BundlePlan | BundleResult:
    """Write a bundle, or go on with an unfinished one of the same content; with ``dry_run`` only say what that would take.

    Where the newest bundle of this key and label has the same content and lies there finished, nothing is written.

    Raises ``UsageProblem``, ``PolicyRefused``, ``DigestMismatch`` (a blob of the vault rotted), ``NoSpace``, ``VaultLocked`` or an error of the
    drive; ``PartlyDone`` with the result where a drive with volumes on it failed or is not here, and lacks its sums. Whatever happens,
    what was written stays and the next run goes on from there.
    """
    request = replace(request, to=places(vault, request.to, swap=request.swap is not None))
    with vault.holding():
        contents = _contents(vault, request)
        first = request.key is None and not vault.keys.own()
        signer = None if first else vault.keys.signer(request.key)
        begun = find_unfinished(vault.bundle_journals)
        fresh = _index(
            vault, request, contents, choose_sequence(vault, contents.label, request.sequence, signer, begun)
        )
        require_stored(vault, [entry.stored for entry in fresh.models])
        if signer is not None and (finished := _finished(vault, request, fresh, signer, progress)):
            index, written = finished
            if request.dry_run:
                return _plan(vault, request, index, signer, there_already=True)
            if contents.site and not known_to_go_to(vault, contents.site, written.index):
                _record(vault, index, written, signer, contents.site)
            return replace(_result(vault, request, index, written, signer), there_already=True)
        unfinished = _unfinished(begun, request, fresh, signer, progress)
        index = unfinished or fresh
        if request.dry_run:
            check_blobs(index, vault.store.blob_path)
            return _plan(vault, request, index, signer, resumes=unfinished is not None)
        if signer is None:
            signer = make_key(vault, FIRST_KEY, Role.BUNDLE)
            progress.log(f"made the signing key {signer.name}")
        if unfinished is None and request.sequence is None:
            index = replace(index, sequence=reserve_sequence(vault, index.label, signer))
        written = _write(vault, request, index, signer, contents.site, progress)
    result = replace(_result(vault, request, index, written, signer), new_key=first)
    if not written.finished:
        again = (
            "put each of them into the slot, with room for the sums, and run the same command again"
            if request.swap
            else "connect the other drives, with room for the sums, and run the same command again with all of them"
        )
        raise PartlyDone(
            "all volumes are written, but not every drive that holds some got its sums",
            hint=f"{again}; if one is lost or was emptied: `modelvault gc --partial`, then bundle again",
            result=result,
        )
    return result


def _contents(vault: Vault, request: BundleRequest) -> Contents:
    if request.answer is not None:
        if request.names or request.site or request.assume_sent:
            raise UsageProblem(
                "--answer takes no models, no --for and no --assume-sent",
                hint="the request says which pieces are wanted, and where",
            )
        return answer(vault, request.answer, request.label)
    return selection(vault, request.names, request.label, request.site, assume_sent=request.assume_sent)


def _write(
    vault: Vault, request: BundleRequest, index: Index, signer: Signer, site: str | None, progress: Progress
) -> Written:
    options = WriteOptions(
        directories=_directories(request, index),
        journals=vault.bundle_journals,
        read_back=request.read_back,
        swap=request.swap,
    )

    def record(written: Written) -> None:
        _record(vault, index, written, signer, site if written.finished else None)

    try:
        return write_bundle(index, options, vault.store.blob_path, signer, progress, record)
    except DigestMismatch as error:
        if blob := error.data.get("blob"):
            _set_aside(vault, Digest.parse(blob))
        raise


def _set_aside(vault: Vault, blob: Digest) -> None:
    """Move a damaged blob aside, as `verify` does: only then does a pull or an import bring it anew."""
    path = vault.store.blob_path(blob)
    with contextlib.suppress(FileNotFoundError, ModelvaultError):  # whatever stands in the way, `verify` says it
        seen = path.stat()
        if fsio.hash_file(path) != blob:
            vault.set_aside(blob, seen)


def _record(vault: Vault, index: Index, written: Written, signer: Signer, site: str | None) -> None:
    keep_index(vault, index)
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
            **({"site": site} if site else {}),
            **({"patches": index.patches.hex} if index.patches else {}),
        },
    )


def _directories(request: BundleRequest, index: Index) -> tuple[Path, ...]:
    return tuple(place / index.directory_name for place in request.to)


def _result(vault: Vault, request: BundleRequest, index: Index, written: Written, signer: Signer) -> BundleResult:
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
        new_key=False,
        there_already=False,
        left_out=sum(blob.size for blob in index.base),
        patches=index.patches,
        drives=drive_results(written),
        restore_sha256=hashlib.sha256(restore_script()).hexdigest(),
        public_key_sha256=hashlib.sha256(signer.public_pem).hexdigest(),
        warnings=(*warnings(vault, request.to), *drive_warnings(written), *_left_behind(vault, index)),
    )


def _left_behind(vault: Vault, index: Index) -> tuple[str, ...]:
    return () if index.patches else tuple(left_behind(vault, [entry.stored for entry in index.models]))


def _index(vault: Vault, request: BundleRequest, contents: Contents, sequence: int) -> Index:
    return contents.plan(
        PlanOptions(
            label=contents.label,
            sequence=sequence,
            volume_size=request.volume_size or vault.config.volume_size,
        )
    )


def _finished(
    vault: Vault, request: BundleRequest, fresh: Index, signer: Signer, progress: Progress
) -> tuple[Index, Written] | None:
    """Find a bundle of the same content that lies there finished, each volume in its full length.

    Only the newest of this key and label counts, or the one that the request pins: import may refuse an older one.
    """
    sequence = request.sequence or vault.registry.last_sequence(signer.fingerprint, fresh.label, "written")
    index = replace(fresh, sequence=sequence or fresh.sequence)
    directories = tuple(place for place in _directories(request, index) if os.path.lexists(place / SUMS_FILE))
    if not directories or any(unfinished.index == index for unfinished in find_unfinished(vault.bundle_journals)):
        return None
    try:
        there = replace(open_bundle(directories[0], vault.keys.verify), places=directories)
        if there.index != index or there.signer is None or there.signer.fingerprint != signer.fingerprint:
            return None
        stored = stored_size(there)
    except ModelvaultError:
        return None  # absent, or not what was written there: writing says what is in the way
    except DamagedFrame as damage:
        progress.log(f"{directories[0]} is not whole any more: {damage.reason}; it is written again")
        return None
    return index, Written(
        directory=directories[0],
        index=there.digest,
        volumes=len(index.volumes),
        content=sum(map(volume_length, index.volumes)),
        stored=stored,
        resumed=0,
        read_back=False,
        write_seconds=0.0,
        read_back_seconds=0.0,
        drives=lying_there(index, directories),
    )


def _unfinished(
    begun: Sequence[Unfinished], request: BundleRequest, index: Index, signer: Signer | None, progress: Progress
) -> Index | None:
    """Find a bundle of the same content that was begun with this key on one of these drives, and may keep its sequence.

    One that is pinned goes on wherever that is, and so does one whose drives are swapped: what is complete may be on other drives.
    """
    for unfinished in begun:
        if not unfinished.index.same_content(index):
            if not request.dry_run and any(directory.parent in request.to for directory in unfinished.directories):
                name = unfinished.index.directory_name
                progress.log(f"{name} was begun here with other models or options, and is not gone on with")
            continue
        if request.sequence not in {None, unfinished.index.sequence}:
            continue
        same_places = [directory for directory in unfinished.directories if directory.parent in request.to]
        here = [directory for directory in _directories(request, unfinished.index) if directory.is_dir()]
        if signer is None or unfinished.key != signer.fingerprint:
            for directory in here if request.sequence is None else ():
                progress.log(f"{directory} was begun with another key: another bundle is begun")
            continue
        if here:
            return unfinished.index
        if request.sequence or (request.swap and same_places):
            return unfinished.index
        for directory in same_places:
            progress.log(f"{directory}, which was begun, is not on this drive: another bundle is begun here")
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
    if there_already:
        planned = DrivePlan((), 0, 0.0, warnings(vault, request.to))
    else:
        journal = Journal(journal_path(vault.bundle_journals, encode(index)))
        if signer is not None:
            journal.require_key(signer.fingerprint)
        planned = plan_drives(
            vault, request.to, index, journal, read_back=request.read_back, swap=request.swap is not None
        )
    return BundlePlan(
        vault=vault.root,
        directory=_directories(request, index)[0],
        label=index.label,
        models=tuple(bundle_model(entry.stored) for entry in index.models),
        volumes=volumes,
        size=sum(volumes),
        free=planned.free,
        key=signer.name if signer else None,
        resumes=resumes,
        there_already=there_already,
        warnings=(*planned.warnings, *_left_behind(vault, index)),
        drives=planned.drives,
        seconds=planned.seconds,
        left_out=sum(blob.size for blob in index.base),
        patches=index.patches,
    )
