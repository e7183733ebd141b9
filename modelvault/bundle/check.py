"""Verifying a bundle where it lies: every frame, every header, every blob's digest. Nothing is written."""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault.artifact import Digest
from modelvault.bundle.content import Frontier
from modelvault.bundle.layout import Piece, beside, volume_length
from modelvault.bundle.pipeline import default_threads, ordered
from modelvault.bundle.ranges import Ranges
from modelvault.bundle.reader import Damage, OpenBundle, OpenVolume, open_volume
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

    Raises ``Damage`` if it is not finished, or a volume is not there in its full length.
    """
    if bundle.missing:
        raise Damage(bundle.lack)
    if not bundle.finished:
        raise Damage("it was not read back to its end")
    size = 0
    for number in range(1, len(bundle.index.volumes) + 1):
        with open_volume(bundle, number) as volume:
            if volume.copies[0].excess:
                raise Damage(f"volume {number} has another length than its table says")
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
        self._wrong: set[Digest] = set()
        self._frames = 0
        self._size = 0

    def run(self) -> BundleCheck:
        with ThreadPoolExecutor(self._threads) as pool:
            for source in self._sources:
                for number in range(1, len(source.index.volumes) + 1):
                    for place in source.places_of(number):
                        self._volume(pool, replace(source, places=(place,)), number)
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
                        for piece in plan.pieces:
                            if piece.member.is_blob:
                                self._good[piece.digest].add(piece.offset, piece.length)
                if volume.copies[0].excess > 0:
                    self._found(source, number, None, f"{volume.copies[0].excess:,} bytes follow its last frame", ())
        except Damage as damage:
            members = source.index.volumes[number - 1]
            self._found(source, number, None, damage.reason, [Piece(member, 0, member.size) for member in members])

    def _frames_of(self, pool: ThreadPoolExecutor, source: OpenBundle, volume: OpenVolume) -> set[int]:
        """Check its frames, and give those that are damaged."""
        (copy,) = volume.copies

        def read(position: int) -> bytes | Damage:
            try:
                return copy.content(volume.plans[position], position, thorough=True)
            except Damage as damage:
                return damage

        damaged = set()
        positions = range(len(volume.plans))
        with contextlib.closing(ordered(pool, read, positions, ahead=self._threads + 1)) as results:
            for position, content in enumerate(results):
                plan = volume.plans[position]
                if isinstance(content, Damage):
                    damaged.add(position)
                    touched = (
                        (plan,)
                        if plan.pieces
                        else map(volume.plans.__getitem__, beside(volume.plans, position, bare=False))
                    )
                    pieces = [piece for each in touched for piece in each.pieces]
                    self._found(source, volume.number, position + 1, content.reason, pieces)
                else:
                    for verdict in self._frontier.feed(plan, content, self._follows):
                        if not verdict.right:
                            self._wrong.add(verdict.blob)
                            wrong = [piece for piece in plan.pieces if piece.digest == verdict.blob]
                            reason = f"{self._index.called(verdict.blob)} has another digest than the index says"
                            self._found(source, volume.number, position + 1, reason, wrong)
                self._frames += 1
                self._size += copy.table.frames[position].stored_length
                self._task.advance(plan.length)
        return damaged

    def _follows(self, piece: Piece) -> bool:
        """Whether a piece can be hashed: of what comes after a gap, only its frames' digests are known."""
        return self._frontier.position(piece.digest) == piece.offset

    def _found(self, source: OpenBundle, number: int, frame: int | None, reason: str, pieces: Sequence[Piece]) -> None:
        blobs = tuple(dict.fromkeys(piece.digest for piece in pieces if piece.member.is_blob))
        self._findings.append(
            Finding(source.digest, number, frame, reason, blobs, source.places[0] if self._named else None)
        )
