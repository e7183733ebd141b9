"""Verifying a bundle where it lies: every frame, every header, every blob's digest. Nothing is written."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.bundle.content import Frontier, Verdict
from modelvault.bundle.layout import FramePlan, Piece, beside, volume_length
from modelvault.bundle.pipeline import default_threads, ordered
from modelvault.bundle.ranges import Ranges
from modelvault.bundle.reader import DamagedFrame, OpenBundle, OpenVolume, open_volume
from modelvault.progress import Progress, Task


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and the blobs of which a piece lies there.

    ``bundle`` is the digest of the index that the volume belongs to: the bundle's or a patch's. ``frame`` counts from 1 and is ``None``
    where the whole volume is meant; ``place`` is the directory, if there are several.
    """

    bundle: Digest
    volume: int
    frame: int | None
    reason: str
    blobs: tuple[Digest, ...]
    place: Path | None = None


@dataclass(frozen=True, slots=True)
class BundleCheck:
    """What verifying a bundle found: volumes that are not there, what is wrong with others, and which bytes are sound.

    ``bad`` are the blobs that are not whole here, ``good`` the bytes of each blob that are.
    """

    volumes: int
    frames: int
    size: int
    findings: tuple[Finding, ...]
    missing: tuple[int, ...]
    bad: frozenset[Digest]
    good: Mapping[Digest, Ranges]

    @property
    def sound(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.findings and not self.missing


def stored_size(bundle: OpenBundle) -> int:
    """Give the bytes of all volumes of a finished bundle, read from their signed tables alone.

    Raises ``DamagedFrame`` if it is not finished, or a volume is not there in its full length.
    """
    if bundle.missing:
        raise DamagedFrame(bundle.lack)
    if not bundle.finished:
        raise DamagedFrame("it was not read back to its end")
    size = 0
    for number in range(1, len(bundle.index.volumes) + 1):
        with open_volume(bundle, number) as volume:
            if volume.copies[0].excess:
                raise DamagedFrame(f"volume {number} has another length than its table says")
            size += volume.table.size
    return size


def verify_bundle(
    bundle: OpenBundle, progress: Progress, *, patches: Sequence[OpenBundle] = (), threads: int | None = None
) -> BundleCheck:
    """Check every copy of every volume of a bundle, and of the patches that mend it, past the system's cache.

    What is damaged is reported, not raised; see ``BundleCheck``.
    """
    sources = (bundle, *patches)
    total = sum(
        len(source.places_of(number)) * volume_length(members)
        for source in sources
        for number, members in enumerate(source.index.volumes, 1)
    )
    with progress.task("verifying the bundle", total, overall=True) as task:
        return _Check(sources, task, threads or default_threads()).run()


class _Check:
    """One run."""

    def __init__(self, sources: Sequence[OpenBundle], task: Task, threads: int) -> None:
        self._sources = sources
        self._index = sources[0].index
        self._task = task
        self._threads = threads
        self._named = len({place for source in sources for place in source.places}) > 1
        derived = (member for source in sources for member in source.index.volumes[0] if not member.is_blob)
        self._frontier = Frontier({**{member.digest: member.size for member in derived}, **self._index.sizes})
        self._findings: list[Finding] = []
        self._good = {blob: Ranges() for blob in self._index.sizes}
        self._unread: dict[Digest, list[_Where]] = {blob: [] for blob, size in self._index.sizes.items() if size}
        self._wrong: set[Digest] = set()
        self._frames = 0
        self._size = 0

    def run(self) -> BundleCheck:
        with ThreadPoolExecutor(self._threads) as pool:
            for source in self._sources:
                for number in range(1, len(source.index.volumes) + 1):
                    for place in source.places_of(number):
                        self._volume(pool, replace(source, places=(place,)), number)
        self._out_of_order()
        for blob in self._wrong:
            self._good[blob] = Ranges()
        sizes = self._index.sizes.items()
        return BundleCheck(
            volumes=len(self._index.volumes),
            frames=self._frames,
            size=self._size,
            findings=tuple(self._findings),
            missing=self._sources[0].missing,
            bad=frozenset(blob for blob, size in sizes if not self._good[blob].covers(0, size)),
            good=self._good,
        )

    def _volume(self, pool: ThreadPoolExecutor, source: OpenBundle, number: int) -> None:
        """Check one copy of a volume: ``source`` has only its place."""
        try:
            with open_volume(source, number, uncached=True) as volume:
                damaged = self._frames_of(pool, source, volume)
                for position, plan in enumerate(volume.plans):
                    # What has a damaged header or padding beside it is not received either.
                    if not damaged & {position, *beside(volume.plans, position, bare=True)}:
                        for where in _pieces(source, number, position, plan):
                            self._good[where.blob].add(where.offset, where.length)
                            if where.blob in self._unread:
                                self._unread[where.blob].append(where)
                if volume.copies[0].excess > 0:
                    self._found(source, number, None, f"{volume.copies[0].excess:,} bytes follow its last frame", ())
        except DamagedFrame as damage:
            members = source.index.volumes[number - 1]
            self._found(source, number, None, damage.reason, (member.digest for member in members if member.is_blob))

    def _frames_of(self, pool: ThreadPoolExecutor, source: OpenBundle, volume: OpenVolume) -> set[int]:
        """Check its frames, and give those that are damaged."""
        (copy,) = volume.copies

        def read(position: int) -> bytes | DamagedFrame:
            try:
                return copy.content(volume.plans[position], position, thorough=True)
            except DamagedFrame as damage:
                return damage

        damaged = set()
        positions = range(len(volume.plans))
        with contextlib.closing(ordered(pool, read, positions, ahead=self._threads + 1)) as results:
            for position, content in enumerate(results):
                plan = volume.plans[position]
                if isinstance(content, DamagedFrame):
                    damaged.add(position)
                    touched = (
                        (plan,)
                        if plan.pieces
                        else map(volume.plans.__getitem__, beside(volume.plans, position, bare=False))
                    )
                    blobs = (piece.digest for each in touched for piece in each.pieces if piece.member.is_blob)
                    self._found(source, volume.number, position + 1, content.reason, blobs)
                else:
                    for verdict in self._frontier.feed(plan, content, self._follows):
                        self._unread.pop(verdict.blob, None)
                        if not verdict.right:
                            self._is_wrong(source, volume.number, position, verdict.blob)
                self._frames += 1
                self._size += copy.table.frames[position].stored_length
                self._task.advance(plan.length)
        return damaged

    def _out_of_order(self) -> None:
        """Hash the blobs that are all there, but of which pieces came before those that precede them: as where a patch mends them."""
        unread = [blob for blob in self._unread if self._good[blob].covers(0, self._index.sizes[blob])]
        reader = _Again()
        fsio.allow_open_files(len({where.volume for blob in unread for where in self._unread[blob]}))
        with reader:
            for blob in unread:
                last = self._unread[blob][-1]
                try:
                    for where in sorted(self._unread[blob], key=lambda where: where.offset):
                        last, verdict = where, self._add(where, reader)
                        if verdict is not None:
                            if not verdict.right:
                                blamed = self._unread[blob][-1]  # of a patch, if one had a part in it
                                self._is_wrong(blamed.source, blamed.number, blamed.position, blob)
                            break
                except DamagedFrame as damage:  # it was sound a moment ago
                    self._wrong.add(blob)
                    self._found(last.source, last.number, last.position + 1, damage.reason, (blob,))

    def _add(self, where: "_Where", reader: "_Again") -> Verdict | None:
        begin = self._frontier.position(where.blob) - where.offset
        if not 0 <= begin < where.length:
            return None  # another copy of the same bytes
        with memoryview(reader.content(where)) as view:
            return self._frontier.advance(where.blob, view[where.start + begin : where.start + where.length])

    def _is_wrong(self, source: OpenBundle, number: int, position: int, blob: Digest) -> None:
        self._wrong.add(blob)
        reason = f"{self._index.called(blob)} has another digest than the index says"
        if source.digest != self._sources[0].digest:
            reason = f"with what this patch holds of it, {reason}"
        self._found(source, number, position + 1, reason, (blob,))

    def _follows(self, piece: Piece) -> bool:
        """Whether a piece can be hashed at once: what comes after a gap is hashed when that is filled."""
        return self._frontier.position(piece.digest) == piece.offset

    def _found(self, source: OpenBundle, number: int, frame: int | None, reason: str, blobs: Iterable[Digest]) -> None:
        """Note what is wrong, and the blobs of which a piece lies there."""
        place = source.places[0] if self._named else None
        self._findings.append(Finding(source.digest, number, frame, reason, tuple(dict.fromkeys(blobs)), place))


def _pieces(source: OpenBundle, number: int, position: int, plan: FramePlan) -> Iterator["_Where"]:
    start = 0
    for part in plan.parts:
        if isinstance(part, Piece) and part.member.is_blob:
            yield _Where(source, number, position, start, part.digest, part.offset, part.length)
        start += part.length


@dataclass(frozen=True)
class _Where:
    """Where bytes of a blob lie: in one copy of a volume, ``start`` bytes into the content of the frame at ``position`` (from 0)."""

    source: OpenBundle
    number: int
    position: int
    start: int
    blob: Digest
    offset: int
    length: int

    @property
    def volume(self) -> tuple[Path, int]:
        return self.source.places[0], self.number


class _Again:
    """Reads frames a second time. Volumes stay open, and the last frame stays in memory."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._volumes: dict[tuple[Path, int], OpenVolume] = {}
        self._last: tuple[tuple[Path, int], int, bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def content(self, where: _Where) -> bytes:
        """Give the content of a frame. Raises ``DamagedFrame``."""
        if self._last is None or self._last[:2] != (where.volume, where.position):
            if where.volume not in self._volumes:
                self._volumes[where.volume] = self._stack.enter_context(open_volume(where.source, where.number))
            self._last = where.volume, where.position, self._volumes[where.volume].content(where.position)
        return self._last[2]
