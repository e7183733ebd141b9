"""Taking over a file of this machine instead of copying it: a hard link, else a reflink; hashed once it is ours.

The link lies beside the data of a transfer, never in its place: data is written to, and a linked file is somebody else's, too. Nor is it
ever chowned. Hence the rule: a hard link only to what belongs to us already.
"""

import errno
import os
import stat
from pathlib import Path

from modelvault.errors import DigestMismatch
from modelvault.fsio import hash_file, reflink
from modelvault.progress import Progress
from modelvault.transfer.values import Fetched, Wanted

_NAME = "linked"
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


def take_over(wanted: Wanted, directory: Path, progress: Progress) -> Fetched | None:
    """Bring ``wanted.local`` into a transfer's directory without copying it; ``None`` where the system cannot.

    Raises ``DigestMismatch`` if it is not what was promised, and ``OSError`` if it cannot be read.
    """
    if wanted.local is None or wanted.digest is None:
        return None
    # A link to a blob would be a link to whatever that becomes.
    place, linked = wanted.local.resolve(strict=True), directory / _NAME
    linked.unlink(missing_ok=True)  # from a run that was killed
    # In a directory of somebody else's, a link could lead root to any file of root's own.
    ours = wanted.local.parent.stat().st_uid == os.geteuid()
    if not ((ours and _hard_link(place, linked)) or reflink(place, linked)):
        return None
    with progress.task(wanted.path, wanted.size) as task:
        actual = hash_file(linked, task.advance)
    if actual != wanted.digest:
        linked.unlink()
        raise DigestMismatch(
            f"{wanted.path}: {wanted.local} should have the digest {wanted.digest}, and has {actual}",
            hint="the file is damaged: bring a whole one there, and run the same command again",
            path=wanted.path,
            expected=str(wanted.digest),
            actual=str(actual),
        )
    return Fetched(wanted.path, linked, wanted.size, actual, received=0, reused=wanted.size, linked=True)


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
