"""Writing one volume: what an earlier run left is checked, the rest is written, the frame table is signed."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.bundle import drive, layout
from modelvault.bundle.codec import Stored, compress
from modelvault.bundle.content import BadBlob, BlobReader, Frontier, Verdict
from modelvault.bundle.index import Index, Signer, table_name, volume_name
from modelvault.bundle.journal import Journal
from modelvault.bundle.layout import FramePlan, Piece
from modelvault.bundle.pipeline import BackgroundSync, ordered
from modelvault.bundle.table import Frame, FrameTable, encode_table
from modelvault.progress import Progress, Task


@dataclass(frozen=True)
class Job:
    """What all volumes of one run share. ``digest`` is that of ``bundle.json``."""

    index: Index
    digest: Digest
    blobs: BlobReader
    frontier: Frontier
    journal: Journal
    signer: Signer
    progress: Progress
    task: Task
    pool: ThreadPoolExecutor
    side: ThreadPoolExecutor
    ahead: int
    sums: bool


@dataclass(frozen=True, slots=True)
class WrittenVolume:
    """A closed volume. ``documents`` are its table and signature by file name, ``sha256`` its own digest where asked for."""

    table: FrameTable
    documents: dict[str, bytes]
    sha256: str | None
    resumed: int


@dataclass(frozen=True, slots=True)
class _Made:
    """A frame on its way. ``content`` is kept where a blob's digest needs it, ``stored`` where the drive or a sum does."""

    plan: FramePlan
    frame: Frame
    content: bytearray | None
    stored: Stored


class VolumeWriter:
    """One volume of one run."""

    def __init__(self, job: Job, number: int, directory: Path) -> None:
        """Prepare volume ``number``, to lie in ``directory``."""
        self._job = job
        self._number = number
        self._directory = directory
        self._path = directory / volume_name(number)
        self._plans: Sequence[FramePlan] = tuple(layout.frames(job.index.volumes[number - 1]))
        self._whole = hashlib.sha256() if job.sums else None
        self._done = 0

    def write(self) -> WrittenVolume:
        """Bring the volume to its end and sign its table."""
        job = self._job
        with (
            drive.faults(self._directory, needed=self._to_come),
            drive.open_for_update(self._path) as descriptor,
        ):
            resumed = self._check_earlier(descriptor)
            frames = job.journal.frames(self._number)
            end = frames[-1].end if frames else 0
            if os.fstat(descriptor).st_size != end:
                os.ftruncate(descriptor, end)
            if len(frames) < len(self._plans):
                # While the volume is open, nothing signed may vouch for it.
                self.remove_table()
                self._rewind()
                self._write_rest(descriptor, end)
            os.fsync(descriptor)
            job.journal.sync()
            table = FrameTable(job.digest, self._number, job.journal.frames(self._number))
            documents = self._sign(table)
            fsio.fsync_directory(self._directory)  # also where a run that was killed had put them there already
        job.journal.close_volume(self._number)
        return WrittenVolume(table, documents, self._whole.hexdigest() if self._whole else None, resumed)

    def _to_come(self) -> int:
        later = sum(layout.volume_length(members) for members in self._job.index.volumes[self._number :])
        return later + sum(plan.length for plan in self._plans[self._done :])

    def recall(self) -> FrameTable | None:
        """Give the table of a volume that is safe on a drive which is not here; ``None`` if it must be written again after all.

        What it holds of a blob not all of which was read yet is held against the vault's copy: that may have changed since.
        """
        frames = self._job.journal.frames(self._number)
        for plan, frame in zip(self._plans, frames, strict=True):
            made = None
            if any(self._unverified(piece) for piece in plan.pieces):
                content = self._job.blobs.content(plan)
                if hashlib.sha256(content).hexdigest() != frame.sha256:
                    self.begin_again()
                    return None
                made = _Made(plan, frame, content, ())
            self._passed(plan, self._digest(made) if made else ())
        return FrameTable(self._job.digest, self._number, frames)

    def begin_again(self) -> None:
        """Count nothing of what was written, so that another drive can take the volume."""
        self._job.journal.reset(self._number, 0)
        self._job.task.advance(-sum(plan.length for plan in self._plans[: self._done]))
        self._done = 0

    def withdraw(self, blob: Digest) -> None:
        """Have what holds a piece of a bad blob written anew by the next run."""
        count = next((count for count, plan in enumerate(self._plans) if plan.holds({blob})), len(self._plans))
        self._job.journal.reset(self._number, count)

    def remove_table(self) -> None:
        """Unsign the volume. Raises ``OSError``."""
        name = table_name(self._number)
        for path in (self._directory / name, self._directory / f"{name}.sig"):
            drive.remove(path)

    def _sign(self, table: FrameTable) -> dict[str, bytes]:
        data = encode_table(table)
        name = table_name(self._number)
        documents = {name: data, f"{name}.sig": self._job.signer.sign(data)}
        for file, content in documents.items():
            drive.put(self._directory, file, content)
        return documents

    def _check_earlier(self, descriptor: int) -> int:
        """Compare what the journal says with what the drive gives; forget everything from the first difference on."""
        job = self._job
        earlier = job.journal.frames(self._number)
        if not earlier:
            return 0
        os.fsync(descriptor)
        fsio.forget_cached(descriptor)
        resumed = 0

        def reread(item: tuple[FramePlan, Frame]) -> _Made | None:
            return self._reread(descriptor, *item)

        with contextlib.closing(
            ordered(job.pool, reread, zip(self._plans, earlier, strict=False), ahead=job.ahead)
        ) as results:
            for count, made in enumerate(results):
                if made is None:
                    job.progress.log(
                        f"{self._path.name}: frame {count + 1} is not what was written there;"
                        " the volume is written again from there on"
                    )
                    job.journal.reset(self._number, count)
                    break
                self._passed(made.plan, self._digest(made))
                resumed += made.plan.length
        return resumed

    def _reread(self, descriptor: int, plan: FramePlan, frame: Frame) -> _Made | None:
        stored = fsio.read_exactly(descriptor, frame.offset, frame.stored_length)
        if hashlib.sha256(stored).hexdigest() != frame.stored_sha256:
            return None
        content = None
        if any(self._unverified(piece) for piece in plan.pieces):
            content = self._job.blobs.content(plan)
            if hashlib.sha256(content).hexdigest() != frame.sha256:
                return None
        return _Made(plan, frame, content, (stored,))

    def _rewind(self) -> None:
        """Bring the digests of blobs back to where the frames begin that are to be written now.

        A blob that was verified before no longer is if frames of it are written again: the vault's copy may have changed since. So is
        one whose digest had run ahead on another drive. What lies before those frames is right; it is only hashed.
        """
        job = self._job
        if job.index.patches is not None:
            return  # of a patch's blobs not all bytes pass by: they were verified before
        seen = set()
        for plan in self._plans[self._done :]:
            for piece in plan.pieces:
                if not piece.member.is_blob or piece.digest in seen:
                    continue
                seen.add(piece.digest)
                verified = job.journal.verified(piece.digest)
                if verified:
                    job.journal.forget_blob(piece.digest)
                if verified or job.frontier.position(piece.digest) != piece.offset:
                    job.frontier.catch_up(piece.digest, job.blobs.stream(piece.digest, piece.offset))

    def _write_rest(self, descriptor: int, offset: int) -> None:
        job = self._job
        with (
            BackgroundSync() as syncer,
            contextlib.closing(ordered(job.pool, self._make, self._plans[self._done :], ahead=job.ahead)) as results,
        ):
            for made in results:
                frame = replace(made.frame, offset=offset)
                writing = job.side.submit(drive.write_parts, descriptor, made.stored, offset)
                try:
                    verdicts = self._digest(made)
                finally:
                    wait([writing])
                self._settle(writing, descriptor, offset)
                job.journal.add_frame(self._number, frame)
                offset = frame.end
                syncer.wrote(self._path, frame.stored_length)
                self._passed(made.plan, verdicts)

    def _settle(self, writing: Future[None], descriptor: int, offset: int) -> None:
        try:
            writing.result()
        except OSError:
            # Half a frame is of no use, and what it takes up would be missing from the free space that we report.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, offset)
            raise

    def _make(self, plan: FramePlan) -> _Made:
        content = self._job.blobs.content(plan)
        digest = hashlib.sha256(content).hexdigest()
        stored = compress(content)
        stored_digest = hashlib.sha256()
        for part in stored:
            stored_digest.update(part)
        frame = Frame(0, sum(len(part) for part in stored), stored_digest.hexdigest(), plan.length, digest)
        return _Made(plan, frame, content, stored)

    def _digest(self, made: _Made) -> list[Verdict]:
        """Feed the digests that run along with the volume, on another thread the volume's own. Raises ``BadBlob``."""
        whole = self._job.side.submit(self._sum, made.stored)
        verdicts = []
        if made.content is not None:
            verdicts = self._job.frontier.feed(made.plan, made.content, self._unverified)
        whole.result()
        for verdict in verdicts:
            if not verdict.right:
                raise BadBlob(verdict.blob, f"is damaged: its bytes have the digest sha256:{verdict.found}")
        return verdicts

    def _sum(self, stored: Stored) -> None:
        if self._whole is not None:
            for part in stored:
                self._whole.update(part)

    def _passed(self, plan: FramePlan, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            self._job.journal.add_blob(verdict.blob)
        self._done += 1
        self._job.task.advance(plan.length)

    def _unverified(self, piece: Piece) -> bool:
        return piece.member.is_blob and not self._job.journal.verified(piece.digest)
