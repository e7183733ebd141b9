"""What a transfer is asked for, how it may go about it, and what it hands back."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from modelvault.artifact import Digest

RangeOpener = Callable[[int, int], AbstractContextManager[Iterator[bytes]]]
"""Opens the bytes ``start`` to ``stop`` (exclusive). May raise ``Transient``, ``RangesIgnored`` or ``ModelvaultError``."""


class Nearby(contextlib.nullcontext[Iterator[bytes]]):
    """A range of a file of this machine: no limit of the network's rate is meant for it, and nothing of it was received."""


@runtime_checkable
class Abortable(Protocol):
    """A context manager of a ``RangeOpener`` that another thread can wake from a blocked read."""

    def abort(self) -> None:
        """Make a pending read fail soon. Called from another thread, at most once, possibly after the end."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file to fetch. ``digest`` is what the source promises; ``identity`` tells files without a promise apart.

    Where ``digest`` is ``None``, ``identity`` has to name the repository and the commit: bytes of another file would
    be taken for a part of this one otherwise. ``model`` is noted beside the data, for those who look what is under way.
    ``local`` is a file of this machine that should be it: with a promised SHA-256 it is linked, where that can be, and not fetched. Is it
    ``local_only``, then ``open`` reads the very same file; else it stands in for a source that has the file, too.
    """

    path: str
    size: int
    digest: Digest | None
    open: RangeOpener
    identity: str = ""
    model: str = ""
    local: Path | None = None
    local_only: bool = False

    @property
    def key(self) -> str:
        """The name of the directory in ``partial/``: the same content has the same key, wherever it comes from."""
        if self.digest is not None:
            return str(self.digest).replace(":", "-")
        about = f"{self.identity}\0{self.path}\0{self.size}"
        return "unpromised-" + hashlib.sha256(about.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file, whole and verified, in ``data``. ``received`` are bytes of this run, ``reused`` those that were on this machine.

    Several paths of the same content share one ``data``: publish it once. The first of them carries ``received``. What is ``linked``
    shares its bytes on the disk with a file elsewhere.
    """

    path: str
    data: Path
    size: int
    sha256: Digest
    received: int
    reused: int
    linked: bool = False


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """How a transfer may behave.

    ``limit_rate`` is in bytes a second over all connections; ``attempts`` bounds the failures in a row that bring not one
    byte; ``backoff`` and ``backoff_limit`` are the first and the longest pause between them and ``patience`` the longest
    that a server may ask for; ``lock_wait`` is how long to wait for another process. All of these are in seconds.
    """

    connections: int = 8
    limit_rate: int | None = None
    attempts: int = 8
    backoff: float = 0.5
    backoff_limit: float = 30.0
    patience: float = 600.0
    lock_wait: float = 10.0
