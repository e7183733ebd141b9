"""Receiving blobs from bundles into a staging directory: verified, synced, kept for the next run if they are not whole yet.

What has arrived is never read from a drive again, whichever drive or patch it came from, and never written over: a blob may have
been judged by it.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

from modelvault import filesystem, fsio
from modelvault.artifact import Digest
from modelvault.bundle.content import Frontier, Verdict
from modelvault.bundle.index import Index, Member
from modelvault.bundle.layout import FramePlan, Piece, beside
from modelvault.bundle.pipeline import BackgroundSync, default_threads, ordered
from modelvault.bundle.ranges import Ranges
from modelvault.bundle.reader import DamagedFrame, OpenBundle, OpenVolume, open_volume
from modelvault.bundle.staging import Arrival, Log, Staging
from modelvault.errors import UsageProblem
from modelvault.progress import Progress, Task


@dataclass(frozen=True, slots=True)
class Received:
    """What came of it: complete blobs (verified and synced) and where they lie, and why others are not complete.

    ``failed`` ones are damaged or wrong where they lie; ``waiting`` ones only lack the volumes named, which are not here. ``taken`` are
    the bytes of each blob that came off the drives, ``resumed`` those that an earlier run had taken.
    """

    blobs: Mapping[Digest, Path] = field(default_factory=dict)
    failed: Mapping[Digest, str] = field(default_factory=dict)
    waiting: Mapping[Digest, tuple[int, ...]] = field(default_factory=dict)
    taken: Mapping[Digest, int] = field(default_factory=dict)
    resumed: int = 0

    @property
    def read(self) -> int:
        """The bytes that came off the drives, of all blobs together."""
        return sum(self.taken.values())


def receive(
    bundle: OpenBundle,
    wanted: Collection[Digest],
    staging: Path,
    progress: Progress,
    *,
    patches: Sequence[OpenBundle] = (),
    threads: int | None = None,
) -> Received:
    """Take blobs out of a bundle and the patches that mend it. What is missing or damaged fails only the blobs that need it.

    Run it again with the same staging directory, and other drives, to go on. Raises ``NoSpace`` when the disk of ``staging`` is full,
    ``UsageProblem`` for a blob that the bundle does not list.
    """
    for blob in wanted:
        if blob not in bundle.index.sizes:
            raise UsageProblem(f"the bundle does not hold the blob {blob}")
    place = Staging(staging)
    place.keep_index(bundle)
    return _Receiver((bundle, *patches), frozenset(wanted), place).run(progress, threads or default_threads())


def volumes_wanted(
    index: Index, blobs: Collection[Digest], arrived: Mapping[Digest, Ranges]
) -> dict[Digest, tuple[int, ...]]:
    """Name, for each of these blobs, the volumes that hold something of it which has not arrived."""
    wanted: dict[Digest, list[int]] = {}
    for number, members in enumerate(index.volumes, 1):
        for member in members:
            if member.is_blob and member.digest in blobs and _lacks(member, arrived):
                wanted.setdefault(member.digest, []).append(number)
    return {blob: tuple(dict.fromkeys(numbers)) for blob, numbers in wanted.items()}


def _lacks(member: Member, arrived: Mapping[Digest, Ranges]) -> bool:
    ranges = arrived.get(member.digest)
    return bool(member.size) and (ranges is None or not ranges.covers(member.offset, member.size))


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes of a blob that have not arrived: where in the blob, and where in the content of a frame."""

    blob: Digest
    offset: int
    length: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class _Taken:
    """The parts of one frame, in place; or what is damaged. ``frame`` (from 0) says where."""

    parts: Sequence[_Part]
    content: bytes | DamagedFrame
    frame: int
    arrivals: Sequence[Arrival] = ()


@dataclass(frozen=True, slots=True)
class _Volume:
    """A volume to be read, and what it is called."""

    bundle: OpenBundle
    number: int
    name: str


@dataclass(frozen=True, slots=True)
class _Run:
    """What the volumes of one run share."""

    pool: ThreadPoolExecutor
    ahead: int
    log: Log
    sync: BackgroundSync
    task: Task


class _Receiver:
    """One run. Only the thread that runs it changes anything here; the others read frames and put them in their place."""

    def __init__(self, sources: Sequence[OpenBundle], wanted: frozenset[Digest], staging: Staging) -> None:
        self._sources = sources
        self._staging = staging
        self._sizes = {blob: sources[0].index.sizes[blob] for blob in wanted}
        self._open = set(wanted)
        self._arrived = {blob: Ranges() for blob in wanted}
        self._damaged: dict[Digest, list[tuple[_Part, str]]] = {}
        self._taken: dict[Digest, list[tuple[Arrival, str]]] = {}
        self._patched: dict[Digest, str] = {}
        self._failed: dict[Digest, str] = {}
        self._complete: dict[Digest, Path] = {}
        self._frontier = Frontier(self._sizes)
        self._read = dict.fromkeys(wanted, 0)
        self._resumed = 0

    def run(self, progress: Progress, threads: int) -> Received:
        arrivals = self._staging.arrivals()
        claims = [claim for claim in arrivals if self._possible(claim)]
        # What arrived of models that are not asked for now is theirs: a later run goes on with it.
        others = [claim for claim in arrivals if claim.blob not in self._sizes and self._staging.has_room_for(claim)]
        volumes = list(self._readable())
        with (
            filesystem.no_space_at(self._staging.directory),
            ThreadPoolExecutor(threads) as pool,
            progress.task("receiving", sum(self._sizes.values()), overall=True) as task,
        ):
            reachable = self._reachable(volumes) | {claim.blob for claim in claims}
            unallocated = sum(self._staging.unallocated(blob, self._sizes[blob]) for blob in reachable)
            filesystem.require_space(self._staging.directory, unallocated)
            fresh = {blob for blob in sorted(reachable) if self._staging.create(blob, self._sizes[blob])}
            with BackgroundSync() as sync:
                kept = self._resume(pool, threads + 1, [claim for claim in claims if claim.blob not in fresh], task)
                with contextlib.closing(self._staging.begin_log([*others, *kept])) as log:
                    for blob in sorted(reachable):
                        self._settle(blob, sync)
                    for volume in volumes:
                        self._volume(volume, _Run(pool, threads + 1, log, sync, task))
                for blob in reachable & self._open:
                    sync.finish(self._staging.path(blob))
            fsio.fsync_directory(self._staging.directory)
        return self._outcome()

    def _possible(self, claim: Arrival) -> bool:
        return claim.offset + claim.length <= self._sizes.get(claim.blob, -1)

    def _readable(self) -> Iterator[_Volume]:
        """Find the volumes that can be read, and note what is wrong with others before hours are spent."""
        for source in self._sources:
            for number in sorted(set(source.index.volumes_of(self._open)) - set(source.missing)):
                volume = _Volume(
                    source, number, f"volume {number}{'' if source is self._sources[0] else ' of the patch'}"
                )
                try:
                    with open_volume(source, number):
                        yield volume
                except DamagedFrame as damage:
                    self._note_volume(volume, damage)

    def _reachable(self, volumes: Sequence[_Volume]) -> set[Digest]:
        """Give the blobs of which something can be read; an empty one needs nothing to be read."""
        members = chain.from_iterable(volume.bundle.index.volumes[volume.number - 1] for volume in volumes)
        found = {member.digest for member in members if member.is_blob}
        return found & self._open | {blob for blob, size in self._sizes.items() if not size}

    def _resume(self, pool: ThreadPoolExecutor, ahead: int, claims: Sequence[Arrival], task: Task) -> list[Arrival]:
        """Compare what arrived before with what the log says of it; give what is as it was."""
        kept = []
        with contextlib.closing(ordered(pool, self._staging.content, claims, ahead=ahead)) as contents:
            for claim, content in zip(claims, contents, strict=True):
                # Claims come in order of their offsets, so what an earlier one covers is its part's beginning.
                for offset, length in tuple(self._arrived[claim.blob].gaps(claim.offset, claim.length)):
                    if content is not None:
                        self._count(_Part(claim.blob, offset, length, offset - claim.offset), content)
                        self._resumed += length
                        task.advance(length)
                if content is not None:
                    kept.append(claim)
        return kept

    def _volume(self, volume: _Volume, run: _Run) -> None:
        if not any(self._missing_of(volume)):
            return
        try:
            with open_volume(volume.bundle, volume.number) as opened:
                self._frames(volume, opened, run)
        except DamagedFrame as damage:
            self._note_volume(volume, damage)

    def _frames(self, volume: _Volume, opened: OpenVolume, run: _Run) -> None:
        take = partial(self._take, opened)
        with contextlib.closing(ordered(run.pool, take, self._needed(opened), ahead=run.ahead)) as results:
            for taken in results:
                where = f"{volume.name}, frame {taken.frame + 1}"
                if isinstance(taken.content, DamagedFrame):
                    self._note(taken.parts, f"{where}: {taken.content.reason}")
                    continue
                run.log.add(taken.arrivals)
                for arrival in taken.arrivals:
                    self._taken.setdefault(arrival.blob, []).append((arrival, where))
                    if volume.bundle is not self._sources[0]:
                        self._patched[arrival.blob] = volume.name
                for part in taken.parts:
                    run.sync.wrote(self._staging.path(part.blob), part.length)
                    run.task.advance(part.length)
                    self._read[part.blob] += part.length
                    self._count(part, taken.content)
                for blob in {part.blob for part in taken.parts}:
                    self._settle(blob, run.sync)

    def _needed(self, opened: OpenVolume) -> Iterator[tuple[int, Sequence[_Part]]]:
        """Choose the frames to be read and what of them: no byte of a volume lies in two of its frames."""
        for position, plan in enumerate(opened.plans):
            if parts := tuple(self._parts(plan)):
                yield position, parts

    def _parts(self, plan: FramePlan) -> Iterator[_Part]:
        start = 0
        for part in plan.parts:
            if isinstance(part, Piece) and part.member.is_blob and part.digest in self._open:
                for offset, length in self._arrived[part.digest].gaps(part.offset, part.length):
                    yield _Part(part.digest, offset, length, start + offset - part.offset)
            start += part.length

    def _take(self, opened: OpenVolume, item: tuple[int, Sequence[_Part]]) -> _Taken:
        """Read a frame and put its parts in their place. Runs in other threads."""
        position, parts = item
        near = position
        try:
            # Headers and padding that have frames to themselves are compared with the data that they enclose.
            for near in (*beside(opened.plans, position, bare=True), position):
                content = opened.content(near)
        except DamagedFrame as damage:
            return _Taken(parts, damage, near)
        arrivals = []
        with memoryview(content) as view:
            for part in parts:
                with view[part.start : part.start + part.length] as data:
                    self._staging.store(part.blob, part.offset, data)
                    # Where the table has a digest of just these bytes, the next run may be the one to hold them against it.
                    known = opened.table.frames[position].sha256 if part.length == len(content) else None
                    sha256 = known or hashlib.sha256(data).hexdigest()
                arrivals.append(Arrival(part.blob, part.offset, part.length, sha256))
        return _Taken(parts, content, position, arrivals)

    def _count(self, part: _Part, content: bytes) -> None:
        """Note that a part is in its place; hash it at once if all before it was."""
        self._arrived[part.blob].add(part.offset, part.length)
        if self._frontier.position(part.blob) == part.offset:
            with memoryview(content) as view, view[part.start : part.start + part.length] as data:
                self._judge(self._frontier.advance(part.blob, data))

    def _settle(self, blob: Digest, sync: BackgroundSync) -> None:
        """Judge a blob that is all there; what came out of order is hashed where it lies."""
        if blob not in self._open or not self._arrived[blob].covers(0, self._sizes[blob]):
            pass
        elif not self._sizes[blob]:
            self._judge(Verdict(blob, hashlib.sha256().hexdigest()))
        else:
            for data in self._staging.stream(blob, self._frontier.position(blob)):
                self._judge(self._frontier.advance(blob, data))
        if blob in self._complete:
            sync.finish(self._staging.path(blob))

    def _judge(self, verdict: Verdict | None) -> None:
        if verdict is None:
            return
        self._open.discard(verdict.blob)
        taken = self._taken.pop(verdict.blob, ())
        if verdict.right:
            self._complete[verdict.blob] = self._staging.path(verdict.blob)
        else:
            self._failed[verdict.blob] = self._blame(verdict.blob, taken)
            self._staging.give_up(verdict.blob)  # nobody knows which byte is wrong: all of it has to come again

    def _blame(self, blob: Digest, taken: Iterable[tuple[Arrival, str]]) -> str:
        """Say where a blob whose digest came out wrong went wrong: in a frame, in what a patch brought, or as it was written."""
        for arrival, where in taken:
            if self._staging.content(arrival) is None:
                return f"{where}: its content is not what its table says"
        called = self._sources[0].index.called(blob)
        if blob in self._patched:
            return f"{self._patched[blob]}: with what it holds of {called}, that has another digest"
        return f"{self._last_volume[blob]}: what it holds as {called} has another digest"

    @cached_property
    def _last_volume(self) -> Mapping[Digest, str]:
        volumes = enumerate(self._sources[0].index.volumes, 1)
        return {member.digest: f"volume {number}" for number, members in volumes for member in members}

    def _missing_of(self, volume: _Volume) -> Iterator[_Part]:
        for member in volume.bundle.index.volumes[volume.number - 1]:
            if member.is_blob and member.digest in self._open:
                for offset, length in self._arrived[member.digest].gaps(member.offset, member.size):
                    yield _Part(member.digest, offset, length)

    def _note_volume(self, volume: _Volume, damage: DamagedFrame) -> None:
        self._note(self._missing_of(volume), f"{volume.name}: {damage.reason}")

    def _note(self, parts: "Iterator[_Part] | Sequence[_Part]", reason: str) -> None:
        for part in parts:
            self._damaged.setdefault(part.blob, []).append((part, reason))

    def _outcome(self) -> Received:
        """Say of each blob that is not whole what keeps it: damage, if there is any; else the volumes that are not here."""
        failed = dict(self._failed)
        for blob in self._open & self._damaged.keys():
            for part, reason in self._damaged[blob]:
                if not self._arrived[blob].covers(part.offset, part.length):
                    failed.setdefault(blob, reason)
        waiting = volumes_wanted(self._sources[0].index, self._open - failed.keys(), self._arrived)
        return Received(self._complete, failed, waiting, self._read, self._resumed)
