"""Several hubs that offer the same repositories, as one source: the first that answers counts, the others stand in for it.

What the first one lists is what is wanted, digests included. Another takes over only after it has listed the same commit with the
same files; one that lists other digests for them is an error, and not a reason to ask a third.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from modelvault.artifact import SourceFile
from modelvault.errors import ModelvaultError, SourceUnavailable, Transient
from modelvault.sources import Snapshot, Source, require_same_content

_FAILURES = 3  # failures of a file in a row after which the next one is tried
PATIENCE = 60.0
"""Seconds that nobody waits for who has another one to ask."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """One of them, and what it is called in messages: its address."""

    name: str
    source: Source


class MirroredSource:
    """A ``Source`` over others, in the order of preference."""

    def __init__(self, mirrors: Sequence[Mirror], log: Callable[[str], None]) -> None:
        """Take at least one; ``log`` is told whenever another one takes over."""
        self._mirrors = tuple(mirrors)
        self._log = log
        self._change = threading.Lock()
        self._current = 0
        self._failures: Counter[str] = Counter()
        self._wanted: set[str] = set()

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        """List the files as the first one that answers does. Raises what the last one said where none does."""
        for number, mirror in enumerate(self._mirrors):
            try:
                snapshot = mirror.source.snapshot(repository, revision)
            except SourceUnavailable as error:
                if number + 1 == len(self._mirrors):
                    raise
                self._log(f"{error.message}; asking {self._mirrors[number + 1].name}")
            else:
                self._current = number
                return snapshot
        raise AssertionError("the last one returns or raises")

    def open_range(
        self, snapshot: Snapshot, file: SourceFile, start: int, stop: int
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Open a range at the one in use; after some failures in a row, ``Transient`` leads the next attempt to another."""
        with self._change:
            number = self._current
            self._wanted.add(file.path)
        stream = self._mirrors[number].source.open_range(snapshot, file, start, stop)
        return _Watched(
            stream, lambda error: self._failed(number, snapshot, file, error), lambda: self._succeeded(file)
        )

    def close(self) -> None:
        """Close all of them."""
        for mirror in self._mirrors:
            mirror.source.close()

    def _succeeded(self, file: SourceFile) -> None:
        if self._failures[file.path]:
            self._failures[file.path] = 0

    def _failed(
        self, number: int, snapshot: Snapshot, file: SourceFile, error: SourceUnavailable | Transient
    ) -> Exception:
        """Say what to raise: the failure itself, or that the next attempt meets another one."""
        with self._change:
            if number != self._current:
                return Transient("another endpoint has taken over")
            self._failures[file.path] += 1
            soon = isinstance(error, Transient) and (error.retry_after or 0.0) < PATIENCE
            if soon and self._failures[file.path] < _FAILURES:
                return error
            failing = self._mirrors[number].name
            count = len(self._mirrors)
            for other in ((number + step) % count for step in range(1, count)):
                mirror = self._mirrors[other]
                self._log(f"{failing}: {_reason(error)}; going on with {mirror.name}")
                try:
                    _require_same(snapshot, mirror, self._wanted)
                except SourceUnavailable as refusal:
                    self._log(refusal.message)
                except ModelvaultError as mismatch:
                    return mismatch
                else:
                    self._current = other
                    self._failures.clear()
                    return Transient(f"{failing} fails")
            return error


def _reason(error: SourceUnavailable | Transient) -> str:
    return error.reason if isinstance(error, Transient) else error.message


def _require_same(snapshot: Snapshot, mirror: Mirror, wanted: Collection[str]) -> None:
    """Raise ``SourceUnavailable`` where a mirror lacks the commit or a ``wanted`` file, ``DigestMismatch`` where it lists another content."""
    listed = {file.path: file for file in mirror.source.snapshot(snapshot.repository, snapshot.commit).files}
    for file in snapshot.files:
        other = listed.get(file.path)
        if other is None and file.path not in wanted:
            continue  # a machine that has one quantization of many does for that one
        if other is None:
            raise SourceUnavailable(
                f"{mirror.name} lacks {file.path} of {snapshot.repository}", hint="is its copy complete?"
            )
        require_same_content(
            other,
            file,
            f"{mirror.name} lists another {file.path} for {snapshot.repository} at {snapshot.commit}",
            hint="the endpoints disagree about the same commit: find out which is right, and leave the other out",
        )


class _Watched:
    """A range of one mirror, whose failures are told."""

    def __init__(
        self,
        stream: AbstractContextManager[Iterator[bytes]],
        failed: Callable[[SourceUnavailable | Transient], Exception],
        succeeded: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._failed = failed
        self._succeeded = succeeded
        self._aborted = False

    def __enter__(self) -> Iterator[bytes]:
        with self._telling():
            return self._chunks(self._stream.__enter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._stream.__exit__(kind, error, trace)

    def abort(self) -> None:
        """Wake a read that waits, as ``transfer.Abortable`` asks; what cannot be woken ends by itself."""
        self._aborted = True
        abort = getattr(self._stream, "abort", None)
        if abort is not None:
            abort()

    def _chunks(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        with self._telling():
            for chunk in chunks:
                self._succeeded()
                yield chunk

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (SourceUnavailable, Transient) as error:
            told = error if self._aborted else self._failed(error)
            if told is error:
                raise
            raise told from error
