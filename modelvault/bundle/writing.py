"""One run of writing a bundle: each volume is brought to its end on one of the drives, and then each drive."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from modelvault.artifact import Digest
from modelvault.bundle import drive, layout
from modelvault.bundle.content import BadBlob, Frontier
from modelvault.bundle.drives import Wanted, survey
from modelvault.bundle.index import volume_name
from modelvault.bundle.journal import Journal
from modelvault.bundle.pipeline import default_threads
from modelvault.bundle.table import FrameTable
from modelvault.bundle.targets import Targets
from modelvault.bundle.volume import Job, VolumeWriter
from modelvault.bundle.written import Order, Written, WrittenDrive
from modelvault.errors import NoSpace
from modelvault.progress import Progress


class Run:
    """One run."""

    def __init__(self, order: Order, journal: Journal, progress: Progress) -> None:
        """Prepare; nothing is touched yet."""
        self._order = order
        self._index = order.index
        self._options = order.options
        self._journal = journal
        self._progress = progress
        self._targets = Targets(order, journal, progress)
        self._gone: dict[str, list[FrameTable]] = {}
        self._content = sum(layout.volume_length(members) for members in order.index.volumes)

    def run(self) -> Written:
        """Write what is not written yet, and finish every drive that is here."""
        begun = time.monotonic()
        wanted = survey(self._index, self._journal, self._options.directories)
        self._targets.begin(wanted)
        resumed = self._volumes(wanted)
        # Drives that were taken out were read back meanwhile.
        writing = time.monotonic() - begun - sum(target.read_back_seconds for target in self._targets.every())
        self._targets.finish()
        drives = (*self._drives(), *self._drives_that_are_gone())
        return Written(
            directory=next((drive.directory for drive in drives if drive.volumes), drives[0].directory),
            index=Digest.of_bytes(self._order.raw),
            volumes=len(self._index.volumes),
            content=self._content,
            stored=sum(drive.stored for drive in drives),
            resumed=resumed,
            read_back=all(drive.read_back for drive in drives if drive.volumes),
            write_seconds=writing,
            read_back_seconds=sum(target.read_back_seconds for target in self._targets.every()),
            drives=drives,
        )

    def forget_ids(self) -> None:
        """Remove from the drives that are here what only a later run would have asked for."""
        for target in self._targets.live():
            target.forget_id()

    # ── volumes ──

    def _volumes(self, wanted: Sequence[Wanted]) -> int:
        """Write them all; give the bytes of content that were written before."""
        threads = self._options.threads or default_threads()
        with (
            ThreadPoolExecutor(threads) as pool,
            ThreadPoolExecutor(2) as side,
            self._progress.task("writing the bundle", self._content, overall=True) as task,
        ):
            job = Job(
                index=self._index,
                digest=Digest.of_bytes(self._order.raw),
                blobs=self._order.blobs,
                frontier=Frontier(self._index.sizes),
                journal=self._journal,
                signer=self._order.signer,
                progress=self._progress,
                task=task,
                pool=pool,
                side=side,
                ahead=threads + 1,
                sums=not self._options.read_back,
            )
            try:
                self._verify_patched(job)
                return sum(self._volume(job, volume) for volume in wanted)
            except BadBlob as error:
                self._withdraw(job, error.blob)
                raise

    def _verify_patched(self, job: Job) -> None:
        """Verify the blobs of a patch as a whole: not all of their bytes pass by."""
        if self._index.patches is None:
            return
        for blob in self._index.blobs:
            if job.blobs.digest(blob) != blob.digest:
                raise BadBlob(blob.digest, "is damaged")
            self._journal.add_blob(blob.digest)

    def _withdraw(self, job: Job, blob: Digest) -> None:
        """Unsign what holds a piece of a bad blob."""
        self._journal.forget_blob(blob)
        for number in self._index.volumes_of({blob}):
            for target in self._targets.live():
                writer = VolumeWriter(job, number, target.directory)
                writer.withdraw(blob)
                with contextlib.suppress(drive.DriveFailed), drive.faults(target.directory, needed=lambda: 0):
                    writer.remove_table()

    def _volume(self, job: Job, volume: Wanted) -> int:
        """Bring a volume to its end, wherever that is; give the bytes of it that were written before."""
        number, target = volume.number, self._targets.holding(volume.number)
        lost = volume.on is not None and target is None
        if (volume.gone or (lost and self._journal.closed(number) and not volume.size)) and self._recall(job, number):
            return layout.volume_length(self._index.volumes[number - 1])
        if target is None and self._journal.frames(number):
            self._progress.log(f"{volume_name(number)} is on none of the drives here: it is written again")
            self._journal.reset(number, 0)
        while True:
            target = target or self._targets.with_room(number)
            self._journal.begin_volume(number, target.id)
            writer = VolumeWriter(job, number, target.directory)
            try:
                written = writer.write()
            except (drive.DriveFailed, NoSpace) as error:
                self._targets.make_way(target, number, error)
                writer.begin_again()
                target = None
            else:
                target.volumes.append(written)
                return written.resumed

    def _recall(self, job: Job, number: int) -> bool:
        name = self._journal.noted(number).drive
        table = VolumeWriter(job, number, self._journal.directory(name)).recall() if name else None
        if name is None or table is None:
            self._progress.log(f"what {volume_name(number)} holds has changed in the vault: it is written again")
            return False
        self._gone.setdefault(name, []).append(table)
        return True

    # ── what came of it ──

    def _drives(self) -> Iterator[WrittenDrive]:
        targets = sorted(self._targets.every(), key=lambda target: target.problem is not None)
        for target in targets:
            # What is complete on a drive that failed was not written in this run.
            tables = [volume.table for volume in target.volumes] + self._gone.pop(target.id, [])
            yield WrittenDrive(
                directory=target.directory,
                volumes=tuple(sorted(table.volume for table in tables)),
                stored=sum(table.size for table in tables),
                here=target in self._targets.live(),
                finished=target.finished,
                read_back=target.finished and self._options.read_back,
                problem=target.problem,
            )

    def _drives_that_are_gone(self) -> Iterator[WrittenDrive]:
        """The drives of earlier runs, as they were left."""
        for name, tables in self._gone.items():
            volumes = tuple(table.volume for table in tables)
            yield WrittenDrive(
                directory=self._journal.directory(name),
                volumes=volumes,
                stored=sum(table.size for table in tables),
                here=False,
                finished=all(map(self._journal.finished, volumes)),
                read_back=all(map(self._journal.compared, volumes)),
                earlier=True,
            )
