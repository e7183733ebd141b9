"""One run of writing a bundle: which drive takes which volume, and what happens when one of them is full or vanishes."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from modelvault.artifact import Digest
from modelvault.bundle import drive, layout
from modelvault.bundle.content import BadBlob, BlobReader, Frontier
from modelvault.bundle.drives import Wanted, check, known_ids, lacking, probe, survey, worst_case
from modelvault.bundle.index import INDEX_FILE, Index, Signer, name_volumes, volume_name
from modelvault.bundle.journal import Journal
from modelvault.bundle.pipeline import default_threads
from modelvault.bundle.readback import DriveLostData
from modelvault.bundle.readme import readme
from modelvault.bundle.restore import LIST_FILE, SCRIPT_FILE, restore_list, restore_script
from modelvault.bundle.table import FrameTable
from modelvault.bundle.target import Target, check_place
from modelvault.bundle.volume import Job, VolumeWriter
from modelvault.bundle.written import WriteOptions, Written, WrittenDrive
from modelvault.errors import ModelvaultError, NoSpace
from modelvault.progress import Progress

README = "README.txt"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written. ``raw`` are the bytes of ``bundle.json``."""

    index: Index
    raw: bytes
    options: WriteOptions
    blobs: BlobReader
    signer: Signer


class Run:
    """One run."""

    def __init__(self, order: Order, journal: Journal, progress: Progress) -> None:
        """Prepare; nothing is touched yet."""
        self._order = order
        self._index = order.index
        self._options = order.options
        self._journal = journal
        self._progress = progress
        self._documents = _documents(order)
        self._targets: list[Target] = []
        self._taken_out: list[Target] = []
        self._gone: dict[str, list[FrameTable]] = {}
        self._content = sum(layout.volume_length(members) for members in order.index.volumes)

    def run(self) -> Written:
        """Write what is not written yet, and finish every drive that is here."""
        begun = time.monotonic()
        wanted = survey(self._index, self._journal, self._options.directories)
        self._targets = [self._target(directory) for directory in self._options.directories]
        for number, target in enumerate(self._targets):
            with self._giving_up(target):
                self._begin(target, [volume.number for volume in wanted if volume.on != number])
        resumed = self._volumes(wanted)
        writing = time.monotonic() - begun - sum(target.read_back_seconds for target in self._taken_out)
        self._finish()
        drives = (*self._drives(), *self._drives_that_are_gone())
        written = Written(
            directory=next((drive.directory for drive in drives if drive.volumes), drives[0].directory),
            index=Digest.of_bytes(self._order.raw),
            volumes=len(self._index.volumes),
            content=self._content,
            stored=sum(drive.stored for drive in drives),
            resumed=resumed,
            read_back=all(drive.read_back for drive in drives if drive.volumes),
            write_seconds=writing,
            read_back_seconds=sum(target.read_back_seconds for target in (*self._taken_out, *self._targets)),
            drives=drives,
        )
        if written.finished:
            for target in self._live():
                target.forget_id()
        return written

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
            for target in self._live():
                writer = VolumeWriter(job, number, target.directory)
                writer.withdraw(blob)
                with contextlib.suppress(drive.DriveFailed), drive.faults(target.directory, needed=lambda: 0):
                    writer.remove_table()

    def _volume(self, job: Job, volume: Wanted) -> int:
        """Bring a volume to its end, wherever that is; give the bytes of it that were written before."""
        number, target = volume.number, None if volume.on is None else self._targets[volume.on]
        lost = target is not None and target.problem is not None
        if volume.gone or (lost and self._journal.closed(number) and not volume.size):
            if self._recall(job, number):
                return layout.volume_length(self._index.volumes[number - 1])
            target = None
        if target is None or target.problem:
            if self._journal.frames(number):
                self._progress.log(f"{volume_name(number)} is on none of the drives here: it is written again")
                self._journal.reset(number, 0)
            target = None
        while True:
            target = target or self._with_room(number)
            self._journal.begin_volume(number, target.id)
            writer = VolumeWriter(job, number, target.directory)
            try:
                written = writer.write()
            except (drive.DriveFailed, NoSpace) as error:
                self._make_way(target, number, error)
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

    def _make_way(self, target: Target, number: int, error: ModelvaultError) -> None:
        """Get ready to begin a volume again on another drive; raises the error if there is none for it."""
        if error.data.get("path") != str(target.directory):
            raise error  # it is the vault's own disk that is full
        if isinstance(error, drive.DriveFailed):
            self._give_up(target, error)
            return
        needed = worst_case(self._index.volumes[number - 1])
        target.full = True
        if self._options.swap is None and self._first_with_room(needed) is None:
            raise error
        target.forget([number])

    # ── drives ──

    def _target(self, directory: Path) -> Target:
        """Tell which drive is there: one of an earlier run, or a new one."""
        given = {target.id for target in self._targets}
        (known,) = known_ids(self._journal, [directory])
        return Target(directory, self._documents, drive.new_id() if known is None or known in given else known)

    def _begin(self, target: Target, elsewhere: Collection[int]) -> None:
        """Get a drive ready, without what it holds of volumes that are not to be gone on with there."""
        resumes = self._journal.knows(target.id)
        self._journal.meet(target.id, target.directory)
        target.begin(self._progress, resumes=resumes)
        target.forget(elsewhere)

    def _live(self) -> list[Target]:
        return [target for target in self._targets if target.problem is None]

    def _with_room(self, number: int) -> Target:
        """Choose the first drive with room for a volume. Raises ``NoSpace``, or an error of the last drive."""
        needed = worst_case(self._index.volumes[number - 1])
        while (target := self._first_with_room(needed)) is None:
            if self._options.swap is None:
                raise self._full(number)
            self._swap(number, self._options.swap)
        return target

    def _first_with_room(self, needed: int) -> Target | None:
        for target in self._live():
            with self._giving_up(target):
                if target.has_room(needed):
                    return target
        return None

    def _full(self, number: int) -> ModelvaultError:
        sizes = [worst_case(members) for members in self._index.volumes[number - 1 :]]
        wanted = [Wanted(at, size, size) for at, size in enumerate(sizes, number)]
        found = [probe(target.directory) for target in self._live()]
        return lacking(wanted, found) or NoSpace(
            f"no space left for {volume_name(number)}", hint="name one more drive with --to"
        )

    @contextlib.contextmanager
    def _giving_up(self, target: Target) -> Iterator[None]:
        """Go on without a drive that fails or is full inside the block, as long as there is another one."""
        try:
            yield
        except drive.DriveFailed as error:
            self._give_up(target, error)
        except NoSpace as error:
            at_fault = error.data.get("path") == str(target.directory)
            if not at_fault or (self._options.swap is None and self._live() == [target]):
                raise
            self._progress.log(f"{error.message}: nothing more is written there")
            target.full = True

    def _give_up(self, target: Target, error: ModelvaultError) -> None:
        """Say what is safe on a drive that failed. Raises the error if it was the last one."""
        safe = self._journal.closed_on(target.id)
        target.problem = f"{error.message}; {f'{name_volumes(safe)} on it {_are(safe)} safe' if safe else 'nothing on it is complete'}"
        if self._live():
            self._progress.log(f"{target.problem}; writing goes on without it")
            return
        elsewhere = f"; to go on with another drive, name it with --to and add --sequence {self._index.sequence}"
        raise drive.DriveFailed(
            target.problem, hint=f"{error.hint}{elsewhere if safe else ''}", path=str(target.directory), safe=list(safe)
        ) from error

    def _swap(self, number: int, ask: Callable[[str], None]) -> None:
        """Finish the drive that is full, and have the user put another one in its place."""
        (target,) = self._targets
        if target.volumes:
            self._finish_one(target)
            self._taken_out.append(target)
        place = target.directory.parent
        done = (
            f"{place} is full, with {name_volumes(target.numbers)} on it" if target.volumes else f"{place} has no room"
        )
        message = f"{done}: unmount it, and mount the next drive there for {volume_name(number)}"
        while True:
            ask(message)
            self._targets = []
            self._targets = [self._target(target.directory)]
            try:
                self._check_next(number)
                self._begin(self._targets[0], range(1, len(self._index.volumes) + 1))
            except (ModelvaultError, OSError) as error:
                message = f"that drive does not do: {error}"
            else:
                return

    def _check_next(self, number: int) -> None:
        """Refuse a drive that cannot be the next one. Raises ``ModelvaultError`` or ``OSError``."""
        (target,) = self._targets
        place = target.directory.parent
        wanted = survey(self._index, self._journal, [target.directory])
        # A complete one that is not safe elsewhere: what this drive has of it is not to be removed.
        if there := [at.number for at in wanted if self._journal.closed(at.number) and not at.gone]:
            raise ModelvaultError(f"{name_volumes(there)} of this bundle {_are(there)} on it already")
        check_place(target.directory, self._order.raw, ours=self._journal.knows(target.id))
        found = probe(place)
        check(found, max(map(worst_case, self._index.volumes)))
        needed = worst_case(self._index.volumes[number - 1]) + target.documents_size
        if found.free < needed:
            raise ModelvaultError(f"{needed - found.free:,} bytes are missing on it for {volume_name(number)}")

    # ── the end ──

    def _finish(self) -> None:
        """Finish every drive that is here; then raise what went wrong with one of them."""
        lost = None
        for target in filter(lambda target: target.begun, self._live()):
            try:
                with self._giving_up(target):
                    self._finish_one(target)
            except DriveLostData as error:
                lost = lost or error
        for target in self._live():
            if target.full and not target.volumes:
                with self._giving_up(target):
                    target.clear()
        if lost is not None:
            raise lost

    def _finish_one(self, target: Target) -> None:
        try:
            target.finish(self._order.signer, self._progress, compare=self._options.read_back)
        except DriveLostData:
            for number in target.numbers:
                self._journal.reopen(number)
            raise
        self._journal.finish(target.id, target.numbers, compared=self._options.read_back)

    def _drives(self) -> Iterator[WrittenDrive]:
        targets = sorted((*self._taken_out, *self._targets), key=lambda target: target.problem is not None)
        for target in targets:
            # What is complete on a drive that failed was not written in this run.
            tables = [volume.table for volume in target.volumes] + self._gone.pop(target.id, [])
            yield WrittenDrive(
                directory=target.directory,
                volumes=tuple(sorted(table.volume for table in tables)),
                stored=sum(table.size for table in tables),
                here=target in self._live(),
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
            )


def _are(numbers: Sequence[int]) -> str:
    return "is" if len(numbers) == 1 else "are"


def _documents(order: Order) -> dict[str, bytes]:
    """What every drive gets before its first volume, in this order."""
    return {
        INDEX_FILE: order.raw,
        f"{INDEX_FILE}.sig": order.signer.sign(order.raw),
        README: readme(order.index, order.signer.name, read_back=order.options.read_back),
        SCRIPT_FILE: restore_script(),
        LIST_FILE: restore_list(order.index),
        f"{order.signer.name}.pub": order.signer.public_pem,
    }
