"""Work on frames in parallel, results in order, with a bounded number of frames in memory; syncing in the background."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

from modelvault import fsio

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

MAX_THREADS = 4
"""More would not be faster than the digest of a single blob, and each holds a frame (33 MB) in memory."""


def default_threads() -> int:
    """Give as many threads as there are cores for us, at most ``MAX_THREADS``."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available, MAX_THREADS))


def ordered(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Iterable[_Item], *, ahead: int
) -> Generator[_Result]:
    """Map ``function`` over ``items`` in the pool and yield results in order, at most ``ahead`` begun before they are taken.

    An exception comes out in place of its item's result. Close the generator (``contextlib.closing``) to drop what is pending.
    """
    pending: deque[Future[_Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


_SYNC_EVERY = 64 << 20  # bytes; keeps the disk busy while we compute, and the last sync short
_PENDING = 3  # syncs under way or waiting; more would let the progress run ahead of the medium


class BackgroundSync:
    """Has files written to the medium in the background, so that dirty pages never pile up. For a ``with`` block.

    What was synced leaves the system's cache: models that run on this machine need theirs in it, and ours may be larger than it is.

    An error of the medium is told once, to whoever syncs first: so it is kept and raised here, by the next call or at the end.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._bytes = 0

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Wait for what is under way. Raises ``OSError`` if it failed, unless another exception is on its way."""
        self._pool.shutdown(wait=True)
        if kind is None:
            self._settle(0)

    def wrote(self, path: Path, count: int) -> None:
        """Count bytes written to ``path``; every so many, sync it. Waits while too many syncs are under way."""
        self._bytes += count
        if self._bytes >= _SYNC_EVERY:
            self.finish(path)
            self._settle(_PENDING)

    def finish(self, path: Path) -> None:
        """Sync a file that is complete; done for certain when the ``with`` block ends without an exception."""
        self._bytes = 0
        self._pending.append(self._pool.submit(_sync, path))

    def _settle(self, leave: int) -> None:
        while len(self._pending) > leave:
            self._pending.popleft().result()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        fsio.forget_cached(descriptor)
    finally:
        os.close(descriptor)
