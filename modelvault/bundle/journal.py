"""The journal of a bundle under way. It lies in the vault: what it says about the drive, nobody with the drive can change.

```
<root>/<sha256 of bundle.json>/bundle.json   the index
<root>/<sha256 of bundle.json>/target        the directory on the drive
<root>/<sha256 of bundle.json>/frames.jsonl  one line per event, in order:
    ["frame", volume, offset, stored_length, stored_sha256, length, sha256]   the volume's next frame was written
    ["reset", volume, count]                  only the first `count` frames of the volume still count
    ["blob", digest]                          all of a blob was read, and its digest was right
    ["forget", digest]                        a blob turned out bad after all
<root>/<sha256 of bundle.json>.lock
```

A line is one ``write``, so a killed process leaves at most its last line torn; that line is dropped.
"""

import json
import os
import shutil
from collections.abc import Iterator
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
    directory: Path
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
            target = fsio.read_regular(journal / _TARGET, limit=1 << 16)
        except (FileNotFoundError, NotADirectoryError):
            continue  # a lock file, or a journal that was cut short before anything was written
        try:
            index = wire.decode(raw)
        except (BundleRefused, BundleTooNew):
            continue  # begun by another version, which alone can go on with it; it must not keep us from writing others
        found.append(Unfinished(index, Path(os.fsdecode(target)), journal))
    return tuple(sorted(found, key=lambda unfinished: unfinished.index.sequence, reverse=True))


class Journal:
    """The open journal of one bundle, for a ``with`` block."""

    def __init__(self, path: Path) -> None:
        """Prepare; nothing is read yet."""
        self._path = path
        self._descriptor = -1
        self._frames: dict[int, list[Frame]] = {}
        self._verified: set[Digest] = set()
        self._resumed = False

    @property
    def resumed(self) -> bool:
        """Whether an earlier run had written any frame."""
        return self._resumed

    @property
    def begun(self) -> bool:
        """Whether this bundle was begun before."""
        return (self._path / _INDEX).exists()

    def begin(self, raw_index: bytes, target: Path) -> None:
        """Note what is being written and where; done before the drive is touched."""
        self._path.mkdir(parents=True, exist_ok=True)
        fsio.atomic_write(self._path / _TARGET, os.fsencode(target.absolute()))
        if not self.begun:
            fsio.atomic_write(self._path / _INDEX, raw_index)

    def __enter__(self) -> Self:
        """Read what is there and open for appending."""
        path = self._path / _FRAMES
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            data = fsio.read_exactly(descriptor, 0, os.fstat(descriptor).st_size)
            good = 0
            for line in _whole_lines(data):
                try:
                    self._apply(line)
                except (ValueError, TypeError, LookupError):
                    break  # a power cut may leave foreign bytes within a line: it and what follows is written again
                good += len(line)
            os.ftruncate(descriptor, good)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._resumed = bool(self._frames)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; the journal stays."""
        os.close(self._descriptor)

    def frames(self, volume: int) -> tuple[Frame, ...]:
        """Give the frames of a volume that were written, in order."""
        return tuple(self._frames.get(volume, ()))

    def verified(self, blob: Digest) -> bool:
        """Tell whether all of a blob was read before and had its digest."""
        return blob in self._verified

    def add_frame(self, volume: int, frame: Frame) -> None:
        """Note the next frame of a volume."""
        row = [frame.offset, frame.stored_length, frame.stored_sha256, frame.length, frame.sha256]
        self._append(["frame", volume, *row])

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
        elif kind == "reset":
            del self._frames[values[0]][values[1] :]
        elif kind == "blob":
            self._verified.add(Digest.parse(values[0]))
        else:
            self._verified.discard(Digest.parse(values[0]))


def _whole_lines(data: bytes) -> Iterator[bytes]:
    """Yield lines up to the first that a crash left torn (no newline, or zeros after a power cut)."""
    for line in data.splitlines(keepends=True):
        if not line.startswith(b"[") or not line.endswith(b"]\n"):
            return
        yield line
