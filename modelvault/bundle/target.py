"""What lies on one drive of a bundle: index, papers, the volumes that went there, and the sums over them."""

import contextlib
import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelvault import filesystem, fsio
from modelvault.bundle import drive
from modelvault.bundle.index import INDEX_FILE, SUMS_FILE, Signer, table_name, volume_name
from modelvault.bundle.readback import DriveLostData, read_back
from modelvault.bundle.table import FrameTable
from modelvault.bundle.volume import WrittenVolume
from modelvault.errors import UsageProblem
from modelvault.progress import Progress

SIGNATURE_FILE = f"{SUMS_FILE}.sig"


@dataclass
class Target:
    """The directory of a bundle on one drive.

    ``documents`` are the files that every drive of the bundle carries, by name; ``id`` tells this one from the others. ``problem`` says what is wrong with the drive, once it
    is given up; ``full`` that no volume goes there any more, ``begun`` whether it has its documents, ``finished`` whether its sums were written.
    """

    directory: Path
    documents: Mapping[str, bytes]
    id: str
    volumes: list[WrittenVolume] = field(default_factory=list)
    problem: str | None = None
    full: bool = False
    begun: bool = False
    finished: bool = False
    read_back_seconds: float = 0.0

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the volumes that lie there, in ascending order."""
        return tuple(sorted(volume.table.volume for volume in self.volumes))

    @property
    def documents_size(self) -> int:
        """The bytes of what every drive carries."""
        return sum(map(len, self.documents.values()))

    def begin(self, progress: Progress, *, resumes: bool) -> None:
        """Put the documents there. What says that the drive is finished goes first. Raises an error of the drive."""
        with drive.faults(self.directory, needed=lambda: self.documents_size):
            if not drive.exists(self.directory):
                filesystem.require_space(self.directory, self.documents_size)  # a full drive stays as it is
                self._make()
            fsio.fsync_directory(self.directory.parent)
            for name in (SUMS_FILE, SIGNATURE_FILE):
                drive.remove(self.directory / name)
            drive.sweep(self.directory)
            drive.put(self.directory, drive.ID_FILE, f"{self.id}\n".encode())
            for name, data in self.documents.items():
                if drive.put(self.directory, name, data) and resumes:
                    progress.log(f"{name} was not as it was left; it is written again")
        self.begun = True

    def _make(self) -> None:
        try:
            self.directory.mkdir(parents=True)
        except FileExistsError as error:
            raise UsageProblem(
                f"{self.directory} was made by another process just now",
                hint="run the same command again: it takes another sequence, or choose another place",
            ) from error

    def forget(self, numbers: Collection[int]) -> None:
        """Remove what the drive has of volumes that lie elsewhere: what it held of them when it went away or was full."""
        with drive.faults(self.directory, needed=lambda: 0):
            for number in numbers:
                table = table_name(number)
                for name in (f"{table}.sig", table, volume_name(number)):
                    drive.remove(self.directory / name)

    def has_room(self, needed: int) -> bool:
        """Tell whether a volume of ``needed`` bytes may go there.

        Raises ``DriveFailed`` if the drive is gone: what is below its mount point is not ours.
        """
        if self.full:
            return False
        with drive.faults(self.directory, needed=lambda: needed):
            self.directory.stat()
            return filesystem.free_space(self.directory) >= needed

    def finish(self, signer: Signer, progress: Progress, *, compare: bool) -> None:
        """Write the signed sums, with ``compare`` after reading everything back. Raises ``DriveLostData`` or an error of the drive."""
        documents = {**self.documents}
        for volume in self.volumes:
            documents |= volume.documents
        tables = sorted((volume.table for volume in self.volumes), key=lambda table: table.volume)
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in documents.items()}
        with drive.faults(self.directory, needed=lambda: 0):
            if compare:
                sums |= self._compared(tables, documents, progress)
            sums |= {volume_name(volume.table.volume): volume.sha256 for volume in self.volumes if volume.sha256}
            lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
            drive.put(self.directory, SIGNATURE_FILE, signer.sign(lines))
            drive.put(self.directory, SUMS_FILE, lines)
        self.finished = True

    def forget_id(self) -> None:
        """Remove the id once nobody asks for it any more. Where that fails, it stays and means nothing."""
        with contextlib.suppress(OSError):
            drive.remove(self.directory / drive.ID_FILE)
            fsio.fsync_directory(self.directory)  # else it is back once the drive was pulled out right after we ended

    def clear(self, numbers: Collection[int]) -> None:
        """Leave nothing on a drive that was too full for any of these volumes. Raises an error of the drive."""
        self.forget(numbers)
        with drive.faults(self.directory, needed=lambda: 0):
            for name in (SUMS_FILE, SIGNATURE_FILE, *self.documents, drive.ID_FILE):
                drive.remove(self.directory / name)
            with contextlib.suppress(OSError):  # what else is there is not ours
                self.directory.rmdir()

    def _compared(
        self, tables: Sequence[FrameTable], documents: Mapping[str, bytes], progress: Progress
    ) -> dict[str, str]:
        begun = time.monotonic()
        try:
            sums = read_back(self.directory, tables, documents, progress)
        except DriveLostData as error:
            if not drive.is_there(self.directory):
                raise drive.failed(self.directory, "it is gone") from error
            raise
        self.read_back_seconds = time.monotonic() - begun
        return sums


def check_place(directory: Path, raw_index: bytes, *, ours: bool) -> None:
    """Refuse to write into a directory that holds something other than this very bundle; ``ours``: it carries an id that we gave it."""
    if not drive.exists(directory):
        return
    if not directory.is_dir() or directory.is_symlink():
        raise UsageProblem(f"{directory} is in the way", hint="remove it, or choose another place")
    # What a process leaves that is killed before the index is there may stay.
    holds = (path for path in directory.iterdir() if path.name != drive.ID_FILE and not path.match(fsio.TEMPORARY))
    if not ours and any(holds):
        index = directory / INDEX_FILE
        same = index.is_file() and index.stat().st_size == len(raw_index) and index.read_bytes() == raw_index
        if not same:
            raise UsageProblem(
                f"{directory} holds something else",
                hint="remove it, choose another place, or let modelvault choose the sequence",
            )
