"""Advisory locks on files, which end with the process that holds them."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from modelvault.errors import VaultLocked

_WORTH_A_WORD = 1.0  # seconds: a wait that a user would wonder about


class FileLock:
    """An advisory lock on a file, for a ``with`` block; it goes when the process dies, however it dies."""

    def __init__(
        self,
        path: Path,
        *,
        shared: bool = False,
        wait: float = 0.0,
        what: str | None = None,
        on_wait: Callable[[str], object] | None = None,
    ) -> None:
        """Prepare the lock; ``wait`` is how many seconds to try before ``VaultLocked`` is raised.

        ``on_wait`` is told once, after a second, what is waited for.
        """
        self._path = path
        self._operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._wait = wait
        self._what = what or str(path)
        self._on_wait = on_wait
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Take the lock; raises ``VaultLocked`` when another process keeps it."""
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        begun = time.monotonic()
        while True:
            try:
                fcntl.flock(self._descriptor, self._operation | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                    self._close()
                    raise
            else:
                if self._still_there():
                    return self
                # The file was removed while we waited for it: whoever comes next would lock another one.
                self._close()
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                continue
            waited = time.monotonic() - begun
            if self._on_wait is not None and waited >= _WORTH_A_WORD:
                self._on_wait(f"waiting for another modelvault that uses {self._what}")
                self._on_wait = None
            if waited >= self._wait:
                self._close()
                raise VaultLocked(
                    f"{self._what} is in use by another modelvault process",
                    hint="wait for it to end, or end it, and run the same command again",
                    path=str(self._path),
                )
            time.sleep(0.05)

    def _still_there(self) -> bool:
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._descriptor))

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    def __exit__(self, *_: object) -> None:
        """Let go."""
        self._close()


@contextlib.contextmanager
def locked_directory(
    path: Path, *, wait: float, what: str, on_wait: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Make a directory and hold the lock in it, though another process may remove both when it is done with them.

    Raises ``VaultLocked`` after ``wait`` seconds; ``on_wait`` is told before that what is waited for.
    """
    with contextlib.ExitStack() as stack:
        while True:
            path.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(path / "lock", wait=wait, what=what, on_wait=on_wait))
            except FileNotFoundError:
                continue  # it was removed between two of our steps
            break
        yield
