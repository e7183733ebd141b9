"""The journal of a bundle under way. It lies in the vault: what it says about the drive, nobody with the drive can change.

```
<root>/<sha256 of bundle.json>/bundle.json   the index
<root>/<sha256 of bundle.json>/target        the directories on the drives, every one that was ever named, with a zero byte between two
<root>/<sha256 of bundle.json>/key           the fingerprint of the key that signs it
<root>/<sha256 of bundle.json>/frames.jsonl  one line per event, in order:
    ["drive", id, directory]                  a drive is here, mounted so; it has no sums (any more)
    ["place", volume, id]                     the volume is begun on that drive; it is not closed
    ["frame", volume, offset, stored_length, stored_sha256, length, sha256]   the volume's next frame was written
    ["reset", volume, count]                  only the first `count` frames of the volume still count; it is not closed
    ["closed", volume]                        its table was signed and synced: it is safe where it is
    ["finished", id, [volumes], compared]     the drive has sums over these volumes, and was read back if `compared`
    ["blob", digest]                          all of a blob was read, and its digest was right
    ["forget", digest]                        a blob turned out bad after all
<root>/<sha256 of bundle.json>.lock
```

A drive is told by the random id that lies in the bundle's directory on it (``drive.ID_FILE``): the same path may be another drive, and
another path the same one. A line is one ``write``, so a killed process leaves at most its last line torn; that line is dropped.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelvault import filesystem, fsio
from modelvault.artifact import Digest
from modelvault.bundle import format as wire
from modelvault.bundle.index import MAX_INDEX, BundleRefused, BundleTooNew, Index
from modelvault.bundle.table import Frame
from modelvault.errors import ModelvaultError, UsageProblem

_INDEX = "bundle.json"
_TARGET = "target"
_KEY = "key"
_FRAMES = "frames.jsonl"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A bundle that was begun and not finished: its index, where it was being written, its journal, the fingerprint of its key."""

    index: Index
    directories: tuple[Path, ...]
    journal: Path
    key: str


@dataclass(frozen=True, slots=True)
class Noted:
    """What the journal has of a volume: the id of its drive, whether it was completed there, its bytes."""

    drive: str | None
    closed: bool
    length: int


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
            targets, key = _read_targets(journal), _read_key(journal)
        except (FileNotFoundError, NotADirectoryError):
            continue  # a lock file, or a journal that was cut short before anything was written
        try:
            index = wire.decode(raw)
        except (BundleRefused, BundleTooNew):
            continue  # begun by another version, which alone can go on with it; it must not keep us from writing others
        found.append(Unfinished(index, targets, journal, key))
    return tuple(sorted(found, key=lambda unfinished: unfinished.index.sequence, reverse=True))


def _read_targets(journal: Path) -> tuple[Path, ...]:
    data = fsio.read_regular(journal / _TARGET, limit=1 << 20)
    return tuple(Path(os.fsdecode(target)) for target in data.split(b"\0"))


def _read_key(journal: Path) -> str:
    return fsio.read_regular(journal / _KEY, limit=1 << 10).decode()


class Journal:
    """The journal of one bundle. To add to it, open it in a ``with`` block, with the bundle's lock held."""

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self._path = path
        self._descriptor = -1
        self._frames: dict[int, list[Frame]] = {}
        self._drives: dict[str, Path] = {}
        self._places: dict[int, str] = {}
        self._closed: set[int] = set()
        self._finished: dict[int, bool] = {}
        self._verified: set[Digest] = set()
        self._good = self._load()

    @property
    def begun(self) -> bool:
        """Whether this bundle was begun before."""
        return (self._path / _INDEX).exists()

    def require_key(self, fingerprint: str) -> None:
        """Raise ``UsageProblem`` if this bundle was begun with another key: what it signed would not go with what this one signs."""
        if self.begun and (key := _read_key(self._path)) != fingerprint:
            raise UsageProblem(
                f"this bundle was begun with another key, {key}",
                hint="go on with it by naming that key with --key (`modelvault keys show` lists them); "
                "or begin another one, with another --sequence or --label",
                key=key,
            )

    def begin(self, raw_index: bytes, targets: Sequence[Path], key: str) -> None:
        """Note what is being written, where, and with the key of which fingerprint; done before a drive is touched."""
        self._path.mkdir(parents=True, exist_ok=True)
        earlier = _read_targets(self._path) if self.begun else ()
        both = dict.fromkeys((*earlier, *(target.absolute() for target in targets)))
        fsio.atomic_write(self._path / _TARGET, b"\0".join(map(os.fsencode, both)))
        if not self.begun:
            fsio.atomic_write(self._path / _KEY, key.encode())
            fsio.atomic_write(self._path / _INDEX, raw_index)

    def _load(self) -> int:
        """Read what an earlier run noted; give the bytes of it that are whole."""
        if not self.begun:
            return 0
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

    def knows(self, drive: str) -> bool:
        """Tell whether a drive of this id was given to this bundle."""
        return drive in self._drives

    def directory(self, drive: str) -> Path:
        """Give the bundle's directory on a drive, as it was mounted last."""
        return self._drives[drive]

    def noted(self, volume: int) -> Noted:
        """Give where a volume was begun and how far it came."""
        frames = self._frames.get(volume)
        return Noted(self._places.get(volume), volume in self._closed, frames[-1].end if frames else 0)

    def closed(self, volume: int) -> bool:
        """Tell whether a volume was completed, and nothing speaks against it since."""
        return volume in self._closed

    def closed_on(self, drive: str) -> tuple[int, ...]:
        """Give the closed volumes that lie on a drive, in ascending order."""
        return tuple(sorted(volume for volume in self._closed if self._places[volume] == drive))

    def finished(self, volume: int) -> bool:
        """Tell whether the drive that a volume lies on has its sums."""
        return volume in self._finished

    def compared(self, volume: int) -> bool:
        """Tell whether a volume was read back before that."""
        return self._finished.get(volume, False)

    def verified(self, blob: Digest) -> bool:
        """Tell whether all of a blob was read before and had its digest."""
        return blob in self._verified

    def add_frame(self, volume: int, frame: Frame) -> None:
        """Note the next frame of a volume."""
        row = [frame.offset, frame.stored_length, frame.stored_sha256, frame.length, frame.sha256]
        self._append(["frame", volume, *row])

    def meet(self, drive: str, directory: Path) -> None:
        """Note durably that a drive is here, and about to be written to: its sums do not count any more."""
        self._append(["drive", drive, str(directory)])
        self.sync()

    def begin_volume(self, volume: int, drive: str) -> None:
        """Note where a volume is being written, if that is news."""
        if self._places.get(volume) != drive:
            self._append(["place", volume, drive])

    def reopen(self, volume: int) -> None:
        """Note durably that a volume is not safe where it is after all."""
        self._append(["place", volume, self._places[volume]])
        self.sync()

    def close_volume(self, volume: int) -> None:
        """Note durably that a volume is complete, and safe on its drive."""
        if volume not in self._closed:
            self._append(["closed", volume])
        self.sync()

    def finish(self, drive: str, volumes: Sequence[int], *, compared: bool) -> None:
        """Note durably that a drive has sums over these volumes."""
        self._append(["finished", drive, list(volumes), compared])
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
        with self._faults():
            os.fsync(self._descriptor)

    def remove(self) -> None:
        """Delete the journal: the bundle is complete."""
        (self._path / _INDEX).unlink()  # first: what a crash leaves of the rest says nothing without it
        shutil.rmtree(self._path)
        fsio.fsync_directory(self._path.parent)

    def _append(self, event: list[Any]) -> None:
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        with self._faults():
            if os.write(self._descriptor, line) != len(line):
                raise filesystem.no_space(self._path, needed=len(line))
        self._apply(line)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Give what is wrong with the vault's disk its name: it happens amid writing to a drive, which has no part in it."""
        try:
            with filesystem.no_space_at(self._path):
                yield
        except OSError as error:
            raise ModelvaultError(
                f"cannot write the journal in the vault, {self._path}: {(error.strerror or str(error)).lower()}",
                hint="check the disk that the vault is on, then run the same command again: it goes on where it stopped",
                path=str(self._path),
            ) from error

    def _apply(self, line: bytes) -> None:
        kind, *values = json.loads(line)
        if kind == "frame":
            self._frames.setdefault(values[0], []).append(Frame(*values[1:]))
        elif kind == "drive":
            self._drives[values[0]] = Path(values[1])
            for volume in self.closed_on(values[0]):
                self._finished.pop(volume, None)
        elif kind == "place":
            self.directory(values[1])  # of a drive that was met
            self._places[values[0]] = values[1]
            self._open(values[0])
        elif kind == "closed":
            self._closed.add(values[0])
        elif kind == "finished":
            drive, volumes, compared = values
            self._finished.update(dict.fromkeys(set(volumes).intersection(self.closed_on(drive)), compared))
        elif kind == "reset":
            del self._frames[values[0]][values[1] :]
            self._open(values[0])
        elif kind == "blob":
            self._verified.add(Digest.parse(values[0]))
        else:
            self._verified.discard(Digest.parse(values[0]))

    def _open(self, volume: int) -> None:
        self._closed.discard(volume)
        self._finished.pop(volume, None)


def _whole_lines(data: bytes) -> Iterator[bytes]:
    """Yield lines up to the first that a crash left torn (no newline, or zeros after a power cut)."""
    for line in data.splitlines(keepends=True):
        if not line.startswith(b"[") or not line.endswith(b"]\n"):
            return
        yield line
