"""What writing a bundle is told, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelvault.artifact import Digest
from modelvault.bundle.content import BlobReader
from modelvault.bundle.index import Index, Signer


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How to write.

    ``directories`` are the bundle's own, one on each drive (``index.directory_name`` in the place the user named), to be filled in this
    order; ``journals`` is a directory in the vault that is kept between runs. ``swap`` asks the user for another drive in the place of
    the one that is full, and comes back when it is there; it goes with one directory.
    """

    directories: tuple[Path, ...]
    journals: Path
    read_back: bool = True
    threads: int | None = None
    swap: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written. ``raw`` are the bytes of ``bundle.json``."""

    index: Index
    raw: bytes
    options: WriteOptions
    blobs: BlobReader
    signer: Signer


@dataclass(frozen=True, slots=True)
class WrittenDrive:
    """What lies on one drive: which volumes, and their bytes.

    ``here`` is false for a drive of an ``earlier`` run that was not named in this one, and for one that was taken out. ``finished`` says
    that it has its sums, ``read_back`` that it was compared as well; ``problem`` why it was given up.
    """

    directory: Path
    volumes: tuple[int, ...]
    stored: int
    here: bool
    finished: bool
    read_back: bool
    problem: str | None = None
    earlier: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """A bundle all volumes of which are written; ``directory`` is the one on its first drive.

    ``content`` are bytes of tar, ``stored`` the bytes of all volumes on the drives, ``resumed`` the bytes of content that an
    earlier run had written; the times are in seconds.
    """

    directory: Path
    index: Digest
    volumes: int
    content: int
    stored: int
    resumed: int
    read_back: bool
    write_seconds: float
    read_back_seconds: float
    drives: tuple[WrittenDrive, ...]

    @property
    def finished(self) -> bool:
        """Whether every volume lies on a drive that has its sums."""
        finished = {number for drive in self.drives if drive.finished for number in drive.volumes}
        return len(finished) == self.volumes
