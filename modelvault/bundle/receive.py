"""Receiving blobs from a bundle into a staging directory: verified, synced, resumable.

```
<staging>/<sha256 of a blob>          its bytes, at their final length from the start
<staging>/<sha256 of bundle.json>.log "volume frame" per line: frames whose content is in place
```

A frame of the log is not read from the drive again; what lies in staging is compared with the digest that the frame table has
for its content.
"""

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.bundle.content import Frontier, Verdict
from modelvault.bundle.layout import FramePlan, Piece
from modelvault.bundle.pipeline import BackgroundSync, default_threads, ordered
from modelvault.bundle.reader import Damage, OpenBundle, OpenVolume, load_table, open_volume
from modelvault.errors import UsageProblem
from modelvault.progress import Progress, Task


@dataclass(frozen=True, slots=True)
class Received:
    """What came of it: complete blobs (verified and synced) and where they lie, failed ones and why.

    ``read`` are the bytes of content taken from the drive, ``resumed`` those that an earlier run had taken.
    """

    blobs: Mapping[Digest, Path]
    failed: Mapping[Digest, str]
    read: int
    resumed: int


def receive(
    bundle: OpenBundle, wanted: Collection[Digest], staging: Path, progress: Progress, *, threads: int | None = None
) -> Received:
    """Take blobs out of a bundle. What is missing or damaged fails only the blobs that need it; the reason names the place.

    Run it again with the same staging directory to go on after an interruption. Raises ``NoSpace`` when the disk of ``staging``
    is full, ``UsageProblem`` for a blob that the bundle does not list.
    """
    for blob in wanted:
        if blob not in bundle.index.sizes:
            raise UsageProblem(f"the bundle does not hold the blob {blob}")
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _Receiver(bundle, frozenset(wanted), staging, progress).run(threads or default_threads())


class _Log:
    """The frames that are in place. A killed process leaves at most its last line torn; that line is dropped."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        data = fsio.read_exactly(self._descriptor, 0, os.fstat(self._descriptor).st_size)
        good = data.rfind(b"\n") + 1
        os.ftruncate(self._descriptor, good)
        self._lines = set(data[:good].splitlines())

    def holds(self, volume: int, position: int) -> bool:
        return b"%d %d" % (volume, position) in self._lines

    def add(self, volume: int, position: int) -> None:
        os.write(self._descriptor, b"%d %d\n" % (volume, position))

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class _Taken:
    """One frame's content in place, or why not; then ``damaged`` is the frame that the reason is about."""

    position: int
    content: bytes | Damage
    resumed: bool = False
    damaged: int = -1


class _Receiver:
    """One run."""

    def __init__(self, bundle: OpenBundle, wanted: frozenset[Digest], staging: Path, progress: Progress) -> None:
        self._bundle = bundle
        self._wanted = wanted
        self._staging = staging
        self._progress = progress
        self._alive = set(wanted)
        self._failed: dict[Digest, str] = {}
        self._complete: dict[Digest, Path] = {}
        self._frontier = Frontier(bundle.index.sizes)
        self._read = 0
        self._resumed = 0

    def run(self, threads: int) -> Received:
        sizes = self._bundle.index.sizes
        log = _Log(self._staging / f"{self._bundle.digest.hex}.log")
        numbers = self._bundle.index.volumes_of(self._wanted)
        total = sum(sizes[blob] for blob in self._wanted)
        with (
            contextlib.closing(log),
            fsio.no_space_at(self._staging),
            ThreadPoolExecutor(threads) as pool,
            self._progress.task("receiving", total, overall=True) as task,
        ):
            self._look_ahead(numbers)
            fsio.require_space(self._staging, self._unallocated())
            with BackgroundSync() as sync:
                self._create(sync)
                for number in numbers:
                    self._volume(number, _Run(pool, threads + 1, log, sync, task))
            fsio.fsync_directory(self._staging)
        return Received(self._complete, self._failed, self._read, self._resumed)

    def _look_ahead(self, numbers: Collection[int]) -> None:
        """Fail what needs a volume that is not there, before hours are spent on the rest of it."""
        missing = set(self._bundle.missing)
        for number in numbers:
            if number in missing:
                self._fail_volume(number, self._bundle.lack)
                continue
            try:
                with open_volume(self._bundle, number):
                    pass
            except Damage as damage:
                self._fail_volume(number, f"volume {number}: {damage.reason}")

    def _unallocated(self) -> int:
        """Count the bytes for which the staging directory has no blocks yet."""
        missing = 0
        for blob in self._alive:
            try:
                status = self._path(blob).lstat()
            except FileNotFoundError:
                held = 0
            else:
                held = 512 * status.st_blocks
            missing += max(self._bundle.index.sizes[blob] - held, 0)
        return missing

    def _create(self, sync: BackgroundSync) -> None:
        for blob in sorted(self._alive):
            path = self._path(blob)
            size = self._bundle.index.sizes[blob]
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(descriptor).st_size != size:
                    os.ftruncate(descriptor, 0)
                    fsio.preallocate(descriptor, size)
            finally:
                os.close(descriptor)
            if not size:
                self._judge(Verdict(blob, hashlib.sha256().hexdigest()), sync)

    def _volume(self, number: int, run: "_Run") -> None:
        if not any(member.digest in self._alive for member in self._bundle.index.volumes[number - 1]):
            return
        try:
            with open_volume(self._bundle, number) as volume:
                self._frames(volume, run)
        except Damage as damage:
            self._fail_volume(number, f"volume {number}: {damage.reason}")

    def _frames(self, volume: OpenVolume, run: "_Run") -> None:
        def take(position: int) -> _Taken:
            return self._take(volume, position, run.log)

        with contextlib.closing(ordered(run.pool, take, self._needed(volume), ahead=run.ahead)) as results:
            for taken in results:
                plan = volume.plans[taken.position]
                if isinstance(taken.content, Damage):
                    where = f"volume {volume.number}, frame {taken.damaged + 1}"
                    for piece in plan.pieces:
                        self._fail(piece.digest, f"{where}: {taken.content.reason}")
                    continue
                own = plan.own
                if own is not None and not taken.resumed:
                    run.log.add(volume.number, taken.position)
                    run.sync.wrote(self._path(own.digest), own.length)
                self._count(plan, taken, run.task)
                for verdict in self._frontier.feed(plan, taken.content, self._is_alive):
                    self._judge(verdict, run.sync)

    def _needed(self, volume: OpenVolume) -> Iterator[int]:
        for position, plan in enumerate(volume.plans):
            if plan.holds(self._alive):
                yield position

    def _take(self, volume: OpenVolume, position: int, log: _Log) -> _Taken:
        plan, own = volume.plans[position], volume.plans[position].own
        if own is not None and log.holds(volume.number, position):
            staged = self._staged(own)
            if hashlib.sha256(staged).hexdigest() == volume.table.frames[position].sha256:
                return _Taken(position, staged, resumed=True)
        near = position
        try:
            # Headers and padding that have frames to themselves are compared with the data that they enclose.
            for near in (*_around(volume.plans, position), position):
                content = volume.content(near)
        except Damage as damage:
            return _Taken(position, damage, damaged=near)
        self._store(plan, content)
        return _Taken(position, content)

    def _store(self, plan: FramePlan, content: bytes) -> None:
        start = 0
        with memoryview(content) as view:
            for part in plan.parts:
                if isinstance(part, Piece) and self._is_alive(part):
                    descriptor = os.open(self._path(part.digest), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                    try:
                        with view[start : start + part.length] as data:
                            fsio.write_all(descriptor, data, part.offset)
                    finally:
                        os.close(descriptor)
                start += part.length

    def _staged(self, piece: Piece) -> bytes:
        with fsio.open_regular(self._path(piece.digest)) as descriptor:
            return fsio.read_exactly(descriptor, piece.offset, piece.length)

    def _count(self, plan: FramePlan, taken: _Taken, task: Task) -> None:
        amount = sum(piece.length for piece in plan.pieces if self._is_alive(piece))
        if taken.resumed:
            self._resumed += amount
        else:
            self._read += amount
        task.advance(amount)

    def _judge(self, verdict: Verdict, sync: BackgroundSync) -> None:
        if verdict.right:
            self._alive.discard(verdict.blob)
            self._complete[verdict.blob] = self._path(verdict.blob)
            sync.finish(self._path(verdict.blob))
        else:
            self._fail(verdict.blob, self._locate(verdict.blob))

    def _locate(self, blob: Digest) -> str:
        """Find the frame whose content is not what its table says, for a blob whose own digest came out wrong."""
        for number in self._bundle.index.volumes_of({blob}):
            plans = self._bundle.plans(number)
            try:
                table = load_table(self._bundle, number, plans)
            except Damage as damage:
                return f"volume {number}: {damage.reason}"
            for position, plan in enumerate(plans):
                own = plan.own
                if own is not None and own.digest == blob:
                    found = hashlib.sha256(self._staged(own)).hexdigest()
                    if found != table.frames[position].sha256:
                        return f"volume {number}, frame {position + 1}: its content is not what its table says"
        number = self._bundle.index.volumes_of({blob})[-1]
        return f"volume {number}: what it holds as {self._bundle.index.called(blob)} has another digest"

    def _fail_volume(self, number: int, reason: str) -> None:
        for member in self._bundle.index.volumes[number - 1]:
            if member.is_blob and member.size:
                self._fail(member.digest, reason)

    def _fail(self, blob: Digest, reason: str) -> None:
        if blob in self._alive:
            self._alive.discard(blob)
            self._failed[blob] = reason

    def _is_alive(self, piece: Piece) -> bool:
        return piece.member.is_blob and piece.digest in self._alive

    def _path(self, blob: Digest) -> Path:
        return self._staging / blob.hex


def _around(plans: Sequence[FramePlan], position: int) -> tuple[int, ...]:
    """Name the frames beside one that hold no data."""
    beside = (near for near in (position - 1, position + 1) if 0 <= near < len(plans))
    return tuple(near for near in beside if not plans[near].pieces)


@dataclass(frozen=True, slots=True)
class _Run:
    """What the volumes of one run share."""

    pool: ThreadPoolExecutor
    ahead: int
    log: _Log
    sync: BackgroundSync
    task: Task
