"""Writing a bundle: one pass over the blobs, resumable, signed, read back.

The order on a drive: index, signature, README, ``restore.sh`` and public key first, then each volume followed by its signed frame
table, ``SHA256SUMS`` last. The journal in the vault knows every frame that was written; on resume each is read back from the drive
and compared before anything is added, so that nothing that somebody else put there gets signed.
"""

from collections.abc import Callable
from pathlib import Path

from modelvault import filesystem
from modelvault.artifact import Digest
from modelvault.bundle.content import BadBlob, BlobReader
from modelvault.bundle.drives import check, known_ids, lacking, probe, survey, worst_case
from modelvault.bundle.format import encode
from modelvault.bundle.index import Index, Signer
from modelvault.bundle.journal import Journal, journal_path, lock_path
from modelvault.bundle.target import check_place
from modelvault.bundle.writing import Run
from modelvault.bundle.written import Order, WriteOptions, Written
from modelvault.errors import DigestMismatch
from modelvault.locks import FileLock
from modelvault.progress import Progress


def write_bundle(
    index: Index,
    options: WriteOptions,
    blob_path: Callable[[Digest], Path],
    signer: Signer,
    progress: Progress,
    record: Callable[[Written], object] = lambda _: None,
) -> Written:
    """Write a bundle, or go on with it where an earlier run of the same index stopped.

    The journal stays for a later run where a drive that is not here wants to be finished (``Written.finished``). ``record`` is told of
    what was written before the journal goes: a crash between the two has it told once more, by the next run.

    Raises ``DigestMismatch`` for a blob of the vault that is not what its name says, ``NoSpace`` when the drives together have too little
    room, before anything is written if that can be told, ``DriveFailed`` when the last of them went away, ``DriveLostData`` when one gives
    back other bytes, ``UsageProblem`` when something else lies in a directory or another key began this bundle, ``VaultLocked`` when another process writes the same bundle.
    """
    raw = encode(index)
    options.journals.mkdir(parents=True, exist_ok=True)
    lock = lock_path(options.journals, raw)
    with FileLock(lock, what=f"the bundle {index.directory_name}"):
        check_blobs(index, blob_path)
        journal = Journal(journal_path(options.journals, raw))
        journal.require_key(signer.fingerprint)
        for directory, name in zip(options.directories, known_ids(journal, options.directories), strict=True):
            check_place(directory, raw, ours=name is not None)
        _check_drives(index, options, journal)
        journal.begin(raw, options.directories, signer.fingerprint)
        with journal:
            run = Run(Order(index, raw, options, BlobReader(index, blob_path), signer), journal, progress)
            try:
                written = run.run()
            except BadBlob as error:
                raise bad_blob(index, error.blob, error.what) from error
        record(written)
        if written.finished:
            run.forget_ids()
            journal.remove()
            lock.unlink(missing_ok=True)
    return written


def _check_drives(index: Index, options: WriteOptions, journal: Journal) -> None:
    """Find out before the first byte is written that a drive cannot be written to, or that all together have too little room."""
    found = [probe(filesystem.existing_parent(directory.parent)) for directory in options.directories]
    for one in found:
        check(one, max(map(worst_case, index.volumes)))
    lack = lacking(survey(index, journal, options.directories), found)
    if lack is not None and options.swap is None:
        raise lack


def check_blobs(index: Index, blob_path: Callable[[Digest], Path]) -> None:
    """Find out before the first byte is written that a blob is missing or has another length: ``DigestMismatch``."""
    for blob in index.blobs:
        try:
            size = blob_path(blob.digest).stat().st_size
        except FileNotFoundError:
            size = None
        if size != blob.size:
            what = "is missing from the vault" if size is None else f"has {size:,} bytes instead of {blob.size:,}"
            raise bad_blob(index, blob.digest, what)


def bad_blob(index: Index, blob: Digest, what: str) -> DigestMismatch:
    """Build the error for a blob of the vault that cannot be bundled."""
    models = ", ".join(str(name) for name in index.needing({blob}))
    return DigestMismatch(
        f"{index.called(blob)} ({blob}) {what}; it belongs to {models}",
        hint="pull or add the model again, then bundle again; `modelvault verify` tells whether anything else is damaged",
        blob=str(blob),
    )
