"""The vault's event log: ``events.jsonl``, append-only, synced, each line chained to the last by hash.

A line is an event once its newline is on the disk. The chain shows that a line was changed, taken out or put in; whoever may write
the file can also rewrite all of it, so the log proves order and completeness among honest processes, not against the administrator.
Format: ``docs/formats/vault.md``. Standard library only.
"""

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelvault.errors import ModelvaultError, UsageProblem
from modelvault.filesystem import no_space_at
from modelvault.fsio import fsync_directory, read_exactly, write_all
from modelvault.locks import FileLock

FIRST_PREVIOUS = "0" * 64
"""What the first line names as the digest of the line before it."""

RECOVERED = "recovered"
"""The kind of the event that takes the place of a line that a crash cut short."""

MAX_LINE = 16 << 20
"""No line is longer than this many bytes."""

_KEYS = {"n", "time", "kind", "data", "previous"}
_TAIL = 64 << 10  # bytes read first when looking for the last line; then twice as many, and so on
_TORN_KEPT = 64 << 10  # bytes of a torn line that its replacement keeps


class EventLogDamaged(ModelvaultError):
    """A line of the event log is not what was written: it cannot be read, or the chain breaks there."""

    slug = "event-log-damaged"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to the vault. ``time`` is UTC, as ``2026-01-31T12:00:00.000Z``."""

    number: int
    time: str
    kind: str
    data: Mapping[str, Any]


def utc_now() -> datetime:
    """Tell the time, in UTC."""
    return datetime.now(UTC)


def encode_event(event: Event, previous: str) -> bytes:
    """Write an event as one line without its newline; pure ASCII, so that names that are not UTF-8 survive as escapes.

    Raises ``TypeError`` or ``ValueError`` for data that JSON cannot hold, and ``UsageProblem`` for a line above ``MAX_LINE``.
    """
    line = json.dumps(
        {"n": event.number, "time": event.time, "kind": event.kind, "data": dict(event.data), "previous": previous},
        separators=(",", ":"),
        allow_nan=False,
    ).encode("ascii")
    if len(line) > MAX_LINE:
        raise UsageProblem(f"an event of {len(line):,} bytes is more than the {MAX_LINE:,} that a line may have")
    return line


def decode_event(line: bytes) -> tuple[Event, str]:
    """Read one line (without its newline): the event and the digest it names as its predecessor's. ``ValueError`` if it is none."""
    if len(line) > MAX_LINE:
        raise ValueError("the line is too long")
    try:
        table = json.loads(line)
    except RecursionError as error:
        raise ValueError("the line is nested too deeply") from error
    if not isinstance(table, dict) or set(table) != _KEYS:
        raise ValueError(f"not an object with the keys {', '.join(sorted(_KEYS))}")
    number, time, kind, data, previous = (table[key] for key in ("n", "time", "kind", "data", "previous"))
    typed = (
        isinstance(number, int)
        and not isinstance(number, bool)
        and isinstance(time, str)
        and isinstance(kind, str)
        and isinstance(data, dict)
        and isinstance(previous, str)
    )
    if not typed:
        raise ValueError("a key holds a value of the wrong type")
    return Event(number, time, kind, data), previous


def line_digest(line: bytes) -> str:
    """Give what the next line must name as ``previous``: the SHA-256 of the line without its newline, as hex."""
    return hashlib.sha256(line).hexdigest()


@dataclass(frozen=True, slots=True)
class _End:
    """Where the log ends: its last whole event, that line's digest, and what lies after the last newline."""

    event: Event | None
    digest: str
    length: int  # bytes up to and including the last newline
    torn: bytes


def _torn(piece: bytes) -> dict[str, Any]:
    """Describe a line that a crash cut short."""
    return {
        "bytes": len(piece),
        "sha256": hashlib.sha256(piece).hexdigest(),
        "content": base64.b64encode(piece[:_TORN_KEPT]).decode("ascii"),
    }


class EventLog:
    """The event log of one vault. Safe to use from several processes; readers need no lock."""

    def __init__(self, path: Path, *, wait: float = 10.0, clock: Callable[[], datetime] = utc_now) -> None:
        """Name the file, which need not exist; ``wait`` is how many seconds ``append`` waits for another process."""
        self._path = path
        self._wait = wait
        self._clock = clock

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def now(self) -> str:
        """Tell the time, as an event does."""
        return self._clock().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def append(self, kind: str, data: Mapping[str, Any]) -> Event:
        """Add an event and return it once it is durable. ``data`` must be what JSON can hold.

        A line that a crash cut short is first replaced by an event of the kind ``recovered``, which keeps its first 64 KiB. Raises
        ``VaultLocked``, ``NoSpace`` (the log is then as before), and ``EventLogDamaged`` if the last line is not an event.
        """
        with FileLock(self._path, wait=self._wait, what=f"the event log {self._path}"):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                end = self._end(descriptor)
                if end.torn:
                    _, end = self._write(descriptor, end, RECOVERED, _torn(end.torn))
                event, _ = self._write(descriptor, end, kind, data)
                return event
            finally:
                os.close(descriptor)

    def _write(self, descriptor: int, end: _End, kind: str, data: Mapping[str, Any]) -> tuple[Event, _End]:
        """Put one line after ``end``, over what is torn there; give the event and the new end."""
        event = Event(1 if end.event is None else end.event.number + 1, self.now(), kind, data)
        line = encode_event(event, end.digest)
        length = end.length + len(line) + 1
        with no_space_at(self._path.parent):
            try:
                write_all(descriptor, line + b"\n", end.length)
                os.ftruncate(descriptor, length)
                os.fsync(descriptor)
            except OSError:
                # Nobody was told of this event: take back what a full disk let through. Should that fail too, the next
                # append recovers.
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, end.length)
                raise
        if end.event is None:
            fsync_directory(self._path.parent)
        return event, _End(event, line_digest(line), length, b"")

    def _end(self, descriptor: int) -> _End:
        """Find the last whole line without reading the lines before it."""
        size = os.fstat(descriptor).st_size
        tail, start, step = b"", size, _TAIL
        while start > 0 and tail.count(b"\n") < 2:  # noqa: PLR2004 (one ends the last line, one the line before it)
            if len(tail) > 2 * MAX_LINE:
                raise self._damaged(None, "the last line is too long")
            step = min(2 * step, start)
            start -= step
            tail = read_exactly(descriptor, start, step) + tail
        whole, newline, torn = tail.rpartition(b"\n")
        if not newline:
            return _End(None, FIRST_PREVIOUS, 0, torn)
        line = whole.rpartition(b"\n")[2]
        try:
            event, _ = decode_event(line)
        except ValueError as error:
            raise self._damaged(None, str(error)) from error
        return _End(event, line_digest(line), size - len(torn), torn)

    def _damaged(self, number: int | None, detail: str) -> EventLogDamaged:
        where = "the last line" if number is None else f"line {number}"
        return EventLogDamaged(
            f"{self._path}: {where} is damaged: {detail}",
            hint="restore the file from a copy, or move it away: imports then ask for --allow-older once",
            path=str(self._path),
            line=number,
        )

    def read(self) -> Iterator[Event]:
        """Give all events in order, the chain verified up to each. A log that does not exist has none.

        Raises ``EventLogDamaged`` with the line (counted from 1). What lies after the last newline is not yet an event and is
        passed over: another process may be writing it.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        previous = FIRST_PREVIOUS
        with file:
            number = 0
            while line := file.readline(MAX_LINE + 2):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) > MAX_LINE:
                        raise self._damaged(number, "it is too long")
                    return
                line = line[:-1]
                try:
                    event, named = decode_event(line)
                except ValueError as error:
                    raise self._damaged(number, str(error)) from error
                if named != previous:
                    raise self._damaged(number, "it does not follow from the line before it")
                if event.number != number:
                    raise self._damaged(number, f"it is numbered {event.number}")
                previous = line_digest(line)
                yield event

    def last(self) -> Event | None:
        """Give the newest event, reading only the end of the log; the chain is not verified."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return self._end(descriptor).event
        finally:
            os.close(descriptor)

    def high_water(self) -> dict[tuple[str, str], int]:
        """Give the newest sequence that was completely imported, per signing key and label."""
        marks: dict[tuple[str, str], int] = {}
        for event in self.read():
            if event.kind != "bundle-imported" or event.data.get("key") is None:
                continue
            try:
                mark = (str(event.data["key"]), str(event.data["label"]))
                marks[mark] = max(int(event.data["sequence"]), marks.get(mark, 0))
            except (KeyError, TypeError, ValueError) as error:
                raise self._damaged(event.number, f"an import without key, label and sequence: {error}") from error
        return marks

    def imported_indexes(self) -> frozenset[str]:
        """Give the digests, in hex, of all indexes that were ever completely imported."""
        return frozenset(str(event.data.get("index")) for event in self.read() if event.kind == "bundle-imported")

    def imported(self, key: str | None, label: str, sequence: int) -> frozenset[str]:
        """Give the digests, in hex, of the indexes that were completely imported under this key, label and sequence."""
        wanted = (key, label, sequence)
        return frozenset(
            str(event.data.get("index"))
            for event in self.read()
            if event.kind == "bundle-imported" and tuple(map(event.data.get, ("key", "label", "sequence"))) == wanted
        )
