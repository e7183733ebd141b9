"""Taking over a file of this machine instead of copying it: a hard link, else a reflink; hashed once it is ours.

The link lies beside the data of a transfer, never in its place: data is written to, and a linked file is somebody else's, too. Nor is it
ever chowned. Hence the rule: a hard link only to what belongs to us already.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from modelvault.artifact import Algorithm
from modelvault.errors import DigestMismatch, SourceUnavailable, Transient
from modelvault.fsio import CANNOT_LINK, hash_file, open_file_range, reflink
from modelvault.progress import Progress
from modelvault.transfer.values import Fetched, Nearby, RangeOpener, Wanted

_NAME = "linked"
_CANNOT_LINK = CANNOT_LINK | {errno.EACCES}  # what another program made us unable to reach, it may let us read


def take_over(wanted: Wanted, directory: Path, progress: Progress) -> Fetched | Wanted:
    """Bring ``wanted.local`` into a transfer's directory without copying it; where that cannot be, say what is to be fetched, and from where.

    Raises ``DigestMismatch`` if it is all there is, and not what was promised.
    """
    if wanted.local is None or wanted.digest is None or wanted.digest.algorithm is not Algorithm.SHA256:
        return wanted
    try:
        place = wanted.local.resolve(strict=True)  # a link to a blob would be a link to whatever that becomes
        linked = _linked(place, wanted.local, directory / _NAME)
        if linked is None and wanted.local_only:
            return wanted
        with progress.task(wanted.path, wanted.size) as task:
            actual = hash_file(linked or place, task.advance)
    except OSError as error:
        if wanted.local_only:
            raise
        progress.log(f"{wanted.local} cannot be used: {error.strerror}")
        return wanted
    if actual == wanted.digest:
        if linked is not None:
            return Fetched(wanted.path, linked, wanted.size, actual, received=0, reused=wanted.size, linked=True)
        return replace(wanted, open=_Copy(place, wanted.open).open)
    if linked is not None:
        linked.unlink()
    if not wanted.local_only:
        progress.log(f"{wanted.local} is damaged, and not used: its content has the digest {actual}")
        return wanted
    raise DigestMismatch(
        f"{wanted.path}: {wanted.local} should have the digest {wanted.digest}, and has {actual}",
        hint="the file is damaged: bring a whole one there, and run the same command again",
        path=wanted.path,
        expected=str(wanted.digest),
        actual=str(actual),
    )


class _Copy:
    """A whole copy that is read instead of the source, as long as it can be."""

    def __init__(self, place: Path, source: RangeOpener) -> None:
        self._place = place
        self._source = source
        self._gone = False

    def open(self, start: int, stop: int) -> AbstractContextManager[Iterator[bytes]]:
        """Open a range of the copy; of the source, once the copy has failed."""
        return self._source(start, stop) if self._gone else Nearby(self._chunks(start, stop))

    def _chunks(self, start: int, stop: int) -> Iterator[bytes]:
        try:
            with open_file_range(self._place, str(self._place), start, stop) as chunks:
                yield from chunks
        except (OSError, SourceUnavailable) as error:
            self._gone = True
            raise Transient(f"{self._place} cannot be read any more") from error


def _linked(place: Path, named: Path, linked: Path) -> Path | None:
    linked.unlink(missing_ok=True)  # from a run that was killed
    # In a directory of somebody else's, a link could lead root to any file of root's own.
    ours = named.parent.stat().st_uid == os.geteuid()
    return linked if (ours and _hard_link(place, linked)) or reflink(place, linked) else None


def _hard_link(place: Path, linked: Path) -> bool:
    status = place.stat()
    if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
        return False
    try:
        os.link(place, linked, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    # It may have been exchanged between two of our steps: what counts is what we hold now.
    status = linked.lstat()
    if status.st_uid == os.geteuid() and stat.S_ISREG(status.st_mode):
        return True
    linked.unlink()
    return False
