"""Verifying a bundle where it lies: every frame, every header, every blob's digest. Nothing is written."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from modelvault.artifact import Digest
from modelvault.bundle.content import Frontier
from modelvault.bundle.layout import Piece, volume_length
from modelvault.bundle.pipeline import default_threads, ordered
from modelvault.bundle.reader import Damage, OpenBundle, OpenVolume, open_volume
from modelvault.progress import Progress, Task


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and the blobs of which a piece lies there.

    ``frame`` counts from 1 and is ``None`` where the whole volume is meant.
    """

    volume: int
    frame: int | None
    reason: str
    blobs: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class BundleCheck:
    """What verifying a bundle found: volumes that are not there, what is wrong with others, and the blobs that are not whole."""

    volumes: int
    frames: int
    size: int
    findings: tuple[Finding, ...]
    missing: tuple[int, ...]
    bad: frozenset[Digest]

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
            if volume.excess:
                raise Damage(f"volume {number} has another length than its table says")
            size += volume.table.size
    return size


def verify_bundle(bundle: OpenBundle, progress: Progress, *, threads: int | None = None) -> BundleCheck:
    """Check every volume. What is damaged is reported, not raised; see ``BundleCheck``."""
    total = sum(volume_length(members) for members in bundle.index.volumes)
    with progress.task("verifying the bundle", total, overall=True) as task:
        return _Check(bundle, task, threads or default_threads()).run()


class _Check:
    """One run."""

    def __init__(self, bundle: OpenBundle, task: Task, threads: int) -> None:
        self._bundle = bundle
        self._task = task
        self._threads = threads
        derived = {member.digest: member.size for member in bundle.index.volumes[0] if not member.is_blob}
        self._frontier = Frontier({**derived, **bundle.index.sizes})
        self._findings: list[Finding] = []
        self._missing = frozenset(bundle.missing)
        self._bad: set[Digest] = set()
        self._frames = 0
        self._size = 0

    def run(self) -> BundleCheck:
        volumes = range(1, len(self._bundle.index.volumes) + 1)
        with ThreadPoolExecutor(self._threads) as pool:
            for number in volumes:
                members = self._bundle.index.volumes[number - 1]
                if number in self._missing:
                    self._bad |= {member.digest for member in members if member.size}
                    continue
                try:
                    with open_volume(self._bundle, number) as volume:
                        self._volume(pool, volume)
                except Damage as damage:
                    self._found(number, None, damage.reason, [Piece(member, 0, member.size) for member in members])
        return BundleCheck(
            volumes=len(volumes),
            frames=self._frames,
            size=self._size,
            findings=tuple(self._findings),
            missing=self._bundle.missing,
            bad=frozenset(self._bad) & self._bundle.index.sizes.keys(),
        )

    def _volume(self, pool: ThreadPoolExecutor, volume: OpenVolume) -> None:
        def read(position: int) -> bytes | Damage:
            try:
                return volume.content(position, thorough=True)
            except Damage as damage:
                return damage

        positions = range(len(volume.plans))
        with contextlib.closing(ordered(pool, read, positions, ahead=self._threads + 1)) as results:
            for position, content in enumerate(results):
                plan = volume.plans[position]
                if isinstance(content, Damage):
                    self._found(volume.number, position + 1, content.reason, plan.pieces)
                else:
                    for verdict in self._frontier.feed(plan, content, self._whole):
                        if not verdict.right:
                            wrong = [piece for piece in plan.pieces if piece.digest == verdict.blob]
                            reason = f"{self._bundle.index.called(verdict.blob)} has another digest than the index says"
                            self._found(volume.number, position + 1, reason, wrong)
                self._frames += 1
                self._size += volume.table.frames[position].stored_length
                self._task.advance(plan.length)
        if volume.excess > 0:
            self._found(volume.number, None, f"{volume.excess:,} bytes follow its last frame", ())

    def _whole(self, piece: Piece) -> bool:
        return piece.digest not in self._bad

    def _found(self, number: int, frame: int | None, reason: str, pieces: "list[Piece] | tuple[Piece, ...]") -> None:
        blobs = tuple(dict.fromkeys(piece.digest for piece in pieces if piece.member.is_blob))
        self._findings.append(Finding(number, frame, reason, blobs))
        self._bad |= {piece.digest for piece in pieces if piece.length}
