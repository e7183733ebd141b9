"""The journal of a bundle under way. It lies in the vault: what it says about the drive, nobody with the drive can change.

```
<root>/<sha256 of bundle.json>/bundle.json   the index
<root>/<sha256 of bundle.json>/target        the directories on the drives, every one that was ever named, with a zero byte between two
<root>/<sha256 of bundle.json>/frames.jsonl  one line per event, in order:
    ["place", volume, directory]              the volume is begun there; it is not closed
    ["frame", volume, offset, stored_length, stored_sha256, length, sha256]   the volume's next frame was written
    ["reset", volume, count]                  only the first `count` frames of the volume still count; it is not closed
    ["closed", volume]                        its table was signed and synced: it is safe where it is
    ["finished", directory]                   the drive there has its sums: its closed volumes may be elsewhere with it now
    ["blob", digest]                          all of a blob was read, and its digest was right
    ["forget", digest]                        a blob turned out bad after all
<root>/<sha256 of bundle.json>.lock
```

In journals of earlier versions nothing has a place, and all lies in the one directory of ``target``. A line is one ``write``, so a killed process leaves at most its last line torn; that line is dropped.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.bundle import format as wire
from modelvault.bundle.index import MAX_INDEX, BundleRefused, BundleTooNew, Index
from modelvault.bundle.table import Frame

_INDEX = "bundle.json"
_TARGET = "target"
_FRAMES = "frames.jsonl"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A bundle that was begun and not finished: its index, where it was being written, its journal."""

    index: Index
    directories: tuple[Path, ...]
    journal: Path


def journal_path(root: Path, raw_index: bytes) -> Path:
    """Say where the journal of a bundle lies."""
    return root / Digest.of_bytes(raw_index).hex


def lock_path(root: Path, raw_index: bytes) -> Path:
    """Say which file to lock while writing a bundle."""
    return root / f"{Digest.of_bytes(raw_index).hex}.lock"


def find_unfinished(root: Path) -> tuple[Unfinished, ...]:
    """List the bundles under way, the newest sequence first."""
    found = []
    for journal in sorted(root.glob("*")) if root.is_dir() else ():
        try:
            raw = fsio.read_regular(journal / _INDEX, limit=MAX_INDEX)
            targets = _read_targets(journal)
        except (FileNotFoundError, NotADirectoryError):
            continue  # a lock file, or a journal that was cut short before anything was written
        try:
            index = wire.decode(raw)
        except (BundleRefused, BundleTooNew):
            continue  # begun by another version, which alone can go on with it; it must not keep us from writing others
        found.append(Unfinished(index, targets, journal))
    return tuple(sorted(found, key=lambda unfinished: unfinished.index.sequence, reverse=True))


def _read_targets(journal: Path) -> tuple[Path, ...]:
    data = fsio.read_regular(journal / _TARGET, limit=1 << 20)
    return tuple(Path(os.fsdecode(target)) for target in data.split(b"\0"))


class Journal:
    """The journal of one bundle. To add to it, open it in a ``with`` block, with the bundle's lock held."""

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self._path = path
        self._descriptor = -1
        self._frames: dict[int, list[Frame]] = {}
        self._places: dict[int, Path] = {}
        self._closed: set[int] = set()
        self._finished: set[int] = set()
        self._verified: set[Digest] = set()
        self._good = self._load()
        self._resumed = bool(self._frames)

    @property
    def resumed(self) -> bool:
        """Whether an earlier run had written any frame."""
        return self._resumed

    @property
    def begun(self) -> bool:
        """Whether this bundle was begun before."""
        return (self._path / _INDEX).exists()

    def begin(self, raw_index: bytes, targets: Sequence[Path]) -> None:
        """Note what is being written and where; done before a drive is touched."""
        self._path.mkdir(parents=True, exist_ok=True)
        earlier = _read_targets(self._path) if self.begun else ()
        both = dict.fromkeys((*earlier, *(target.absolute() for target in targets)))
        fsio.atomic_write(self._path / _TARGET, b"\0".join(map(os.fsencode, both)))
        if not self.begun:
            fsio.atomic_write(self._path / _INDEX, raw_index)

    def _load(self) -> int:
        """Read what an earlier run noted; give the bytes of it that are whole."""
        try:
            data = (self._path / _FRAMES).read_bytes()
        except FileNotFoundError:
            return 0
        good = 0
        for line in _whole_lines(data):
            try:
                self._apply(line)
            except (ValueError, TypeError, LookupError):
                break  # a power cut may leave foreign bytes within a line: it and what follows is written again
            good += len(line)
        return good

    def __enter__(self) -> Self:
        """Open for appending."""
        path = self._path / _FRAMES
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._descriptor, self._good)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; the journal stays."""
        os.close(self._descriptor)

    def frames(self, volume: int) -> tuple[Frame, ...]:
        """Give the frames of a volume that were written, in order."""
        return tuple(self._frames.get(volume, ()))

    def place(self, volume: int) -> Path | None:
        """Give the directory in which a volume was begun."""
        return self._places.get(volume)

    def closed(self, volume: int) -> bool:
        """Tell whether a volume was completed, and nothing speaks against it since."""
        return volume in self._closed

    def gone(self, volume: int, directories: Collection[Path]) -> bool:
        """Tell whether a closed volume lies on a drive that need not be in one of these directories."""
        return volume in self._closed and (volume in self._finished or self._places[volume] not in directories)

    def any_gone(self, directories: Collection[Path]) -> bool:
        """Tell whether that holds for any volume."""
        return any(self.gone(volume, directories) for volume in self._closed)

    def closed_in(self, directory: Path) -> tuple[int, ...]:
        """Give the closed volumes that lie in a directory, in ascending order."""
        return tuple(sorted(volume for volume in self._closed if self._places[volume] == directory))

    def finished(self, volume: int) -> bool:
        """Tell whether a volume lies on a drive that was finished."""
        return volume in self._finished

    def verified(self, blob: Digest) -> bool:
        """Tell whether all of a blob was read before and had its digest."""
        return blob in self._verified

    def add_frame(self, volume: int, frame: Frame) -> None:
        """Note the next frame of a volume."""
        row = [frame.offset, frame.stored_length, frame.stored_sha256, frame.length, frame.sha256]
        self._append(["frame", volume, *row])

    def begin_volume(self, volume: int, directory: Path) -> None:
        """Note where a volume is being written, if that is news."""
        if self._places.get(volume) != directory or volume in self._finished:
            self._append(["place", volume, str(directory)])

    def reopen(self, volume: int) -> None:
        """Note durably that a volume is not safe where it is after all."""
        self._append(["place", volume, str(self._places[volume])])
        self.sync()

    def close_volume(self, volume: int) -> None:
        """Note durably that a volume is complete, and safe on its drive."""
        if volume not in self._closed:
            self._append(["closed", volume])
        self.sync()

    def finish(self, directory: Path) -> None:
        """Note durably that the drive with this directory has its sums."""
        self._append(["finished", str(directory)])
        self.sync()

    def reset(self, volume: int, count: int) -> None:
        """Note that only the first ``count`` frames of a volume still count."""
        if len(self._frames.get(volume, ())) > count:
            self._append(["reset", volume, count])

    def add_blob(self, blob: Digest) -> None:
        """Note that a blob is what its digest says."""
        self._append(["blob", str(blob)])

    def forget_blob(self, blob: Digest) -> None:
        """Take that back."""
        self._append(["forget", str(blob)])

    def sync(self) -> None:
        """Make what was noted durable."""
        os.fsync(self._descriptor)

    def remove(self) -> None:
        """Delete the journal: the bundle is complete."""
        shutil.rmtree(self._path)
        fsio.fsync_directory(self._path.parent)

    def _append(self, event: list[Any]) -> None:
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        with fsio.no_space_at(self._path, needed=len(line)):
            if os.write(self._descriptor, line) != len(line):
                raise fsio.no_space(self._path, needed=len(line))
        self._apply(line)

    def _apply(self, line: bytes) -> None:
        kind, *values = json.loads(line)
        if kind == "frame":
            self._frames.setdefault(values[0], []).append(Frame(*values[1:]))
        elif kind == "place":
            self._places[values[0]] = Path(values[1])
            self._open(values[0])
        elif kind == "closed":
            self._closed.add(values[0])
        elif kind == "finished":
            self._finished.update(self.closed_in(Path(values[0])))
        elif kind == "reset":
            del self._frames[values[0]][values[1] :]
            self._open(values[0])
        elif kind == "blob":
            self._verified.add(Digest.parse(values[0]))
        else:
            self._verified.discard(Digest.parse(values[0]))

    def _open(self, volume: int) -> None:
        self._closed.discard(volume)
        self._finished.discard(volume)


def _whole_lines(data: bytes) -> Iterator[bytes]:
    """Yield lines up to the first that a crash left torn (no newline, or zeros after a power cut)."""
    for line in data.splitlines(keepends=True):
        if not line.startswith(b"[") or not line.endswith(b"]\n"):
            return
        yield line
