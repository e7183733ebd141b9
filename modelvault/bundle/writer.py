"""Writing a bundle: one pass over the blobs, resumable, signed, read back.

The order on the drive: index, signature, README and public key first, then each volume followed by its signed frame table,
``SHA256SUMS`` last. The journal in the vault knows every frame that was written; on resume each is read back from the drive
and compared before anything is added, so that nothing that somebody else put there gets signed.
"""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.bundle import drive, layout
from modelvault.bundle.content import BadBlob, BlobReader, Frontier
from modelvault.bundle.format import encode
from modelvault.bundle.index import INDEX_FILE, SUMS_FILE, Index, Signer, table_name, volume_name
from modelvault.bundle.journal import Journal, journal_path, lock_path
from modelvault.bundle.pipeline import default_threads
from modelvault.bundle.readback import read_back
from modelvault.bundle.readme import readme
from modelvault.bundle.volume import Job, VolumeWriter, WrittenVolume
from modelvault.errors import DigestMismatch, UsageProblem
from modelvault.progress import Progress

README = "README.txt"


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How to write.

    ``directory`` is the bundle's own (``index.directory_name`` in the place the user named), ``journals`` a directory in the
    vault that is kept between runs.
    """

    directory: Path
    journals: Path
    read_back: bool = True
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A finished bundle.

    ``content`` are bytes of tar, ``stored`` the bytes of all volumes on the drive, ``resumed`` the bytes of content that an
    earlier run had written; the times are in seconds.
    """

    directory: Path
    index: Digest
    volumes: int
    content: int
    stored: int
    resumed: int
    read_back: bool
    write_seconds: float
    read_back_seconds: float


def write_bundle(
    index: Index, options: WriteOptions, blob_path: Callable[[Digest], Path], signer: Signer, progress: Progress
) -> Written:
    """Write a bundle, or go on with it where an earlier run of the same index stopped.

    Raises ``DigestMismatch`` for a blob of the vault that is not what its name says, ``NoSpace`` when the drive has too little room,
    before anything is written if that can be told, ``DriveLostData`` when the drive gives back other bytes, ``UsageProblem`` when something else lies in the directory,
    ``VaultLocked`` when another process writes the same bundle.
    """
    raw = encode(index)
    options.journals.mkdir(parents=True, exist_ok=True)
    lock = lock_path(options.journals, raw)
    with fsio.FileLock(lock, what=f"the bundle {index.directory_name}"):
        journal = Journal(journal_path(options.journals, raw))
        _check_blobs(index, blob_path)
        if journal.begun and not drive.exists(options.directory):
            # Another drive than the one it was begun on, or an emptied one: what the journal knows is not there.
            progress.log(f"{options.directory} is not on the drive any more: it is written again from the start")
            journal.remove()
        _check_place(options.directory, raw, resuming=journal.begun)
        fsio.require_space(options.directory, space_needed(index, options.directory))
        journal.begin(raw, options.directory)
        with journal:
            written = _Writer(index, raw, options, BlobReader(index, blob_path), signer).run(journal, progress)
        journal.remove()
        lock.unlink(missing_ok=True)
    return written


def _check_blobs(index: Index, blob_path: Callable[[Digest], Path]) -> None:
    """Find out before the first byte is written that a blob is missing or has another length."""
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
        f"the blob {blob} {what}; it belongs to {models}",
        hint="modelvault verify tells what is damaged; pull or add the model again, then bundle again",
        blob=str(blob),
    )


def space_needed(index: Index, directory: Path) -> int:
    """Give the bytes that writing a bundle, or the rest of it, takes at most on the drive besides what lies in ``directory`` already."""
    needed = 0
    for number, members in enumerate(index.volumes, 1):
        if not drive.exists(directory / table_name(number)):
            needed += max(layout.volume_length(members) - drive.length(directory / volume_name(number)), 0)
    return needed


def _check_place(directory: Path, raw_index: bytes, *, resuming: bool) -> None:
    """Refuse to write into a directory that holds something other than this very bundle."""
    if not drive.exists(directory):
        return
    if not directory.is_dir() or directory.is_symlink():
        raise UsageProblem(f"{directory} is in the way", hint="remove it, or choose another place")
    if not resuming and any(directory.iterdir()):
        index = directory / INDEX_FILE
        same = index.is_file() and index.stat().st_size == len(raw_index) and index.read_bytes() == raw_index
        if not same:
            raise UsageProblem(
                f"{directory} holds something else",
                hint="remove it, choose another place, or let modelvault choose the sequence",
            )


class _Writer:
    """One run."""

    def __init__(self, index: Index, raw: bytes, options: WriteOptions, blobs: BlobReader, signer: Signer) -> None:
        self._index = index
        self._raw = raw
        self._options = options
        self._directory = options.directory
        self._blobs = blobs
        self._signer = signer
        self._content = sum(layout.volume_length(members) for members in index.volumes)

    def run(self, journal: Journal, progress: Progress) -> Written:
        begun = time.monotonic()
        with drive.faults(self._directory, needed=lambda: self._content):
            self._directory.mkdir(parents=True, exist_ok=True)
            fsio.fsync_directory(self._directory.parent)
            drive.remove(self._directory / SUMS_FILE)
            drive.sweep(self._directory)
            documents = self._documents()
            for name, data in documents.items():
                if drive.put(self._directory, name, data) and journal.resumed:
                    progress.log(f"{name} was not as it was left; it is written again")
        volumes = self._volumes(journal, progress)
        for volume in volumes:
            documents |= volume.documents
        tables = [volume.table for volume in volumes]
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in documents.items()}
        written = time.monotonic()
        if self._options.read_back:
            sums |= read_back(self._directory, tables, documents, progress)
        sums |= {volume_name(volume.table.volume): volume.sha256 for volume in volumes if volume.sha256}
        with drive.faults(self._directory, needed=lambda: 0):
            lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
            drive.put(self._directory, SUMS_FILE, lines.encode())
        return Written(
            directory=self._directory,
            index=Digest.of_bytes(self._raw),
            volumes=len(tables),
            content=self._content,
            stored=sum(table.size for table in tables),
            resumed=sum(volume.resumed for volume in volumes),
            read_back=self._options.read_back,
            write_seconds=written - begun,
            read_back_seconds=time.monotonic() - written if self._options.read_back else 0.0,
        )

    def _documents(self) -> dict[str, bytes]:
        """What goes to the drive before the first volume, in this order."""
        return {
            INDEX_FILE: self._raw,
            f"{INDEX_FILE}.sig": self._signer.sign(self._raw),
            README: readme(self._index, self._signer.name, read_back=self._options.read_back),
            f"{self._signer.name}.pub": self._signer.public_pem,
        }

    def _volumes(self, journal: Journal, progress: Progress) -> list[WrittenVolume]:
        threads = self._options.threads or default_threads()
        with (
            ThreadPoolExecutor(threads) as pool,
            ThreadPoolExecutor(2) as side,
            progress.task("writing the bundle", self._content, overall=True) as task,
        ):
            job = Job(
                index=self._index,
                digest=Digest.of_bytes(self._raw),
                directory=self._directory,
                blobs=self._blobs,
                frontier=Frontier(self._index.sizes),
                journal=journal,
                signer=self._signer,
                progress=progress,
                task=task,
                pool=pool,
                side=side,
                ahead=threads + 1,
                sums=not self._options.read_back,
            )
            try:
                return [VolumeWriter(job, number).write() for number in range(1, len(self._index.volumes) + 1)]
            except BadBlob as error:
                journal.forget_blob(error.blob)
                with drive.faults(self._directory, needed=lambda: 0):
                    for number in self._index.volumes_of({error.blob}):
                        VolumeWriter(job, number).withdraw(error.blob)
                raise bad_blob(self._index, error.blob, error.what) from error
