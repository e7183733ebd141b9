"""Choosing drives: what each can take, which volume goes where, how long it will take.

Planning (``parse_mounts``, ``check``, ``find``, ``assign``) takes values and gives values; ``probe``, ``survey`` and ``measure`` look at
the drives.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelvault import filesystem, fsio
from modelvault.bundle import drive
from modelvault.bundle.index import Index, Member, name_volumes, volume_name
from modelvault.bundle.journal import Journal, Noted
from modelvault.bundle.layout import volume_length
from modelvault.errors import NoSpace, UsageProblem

MAX_FAT = (4 << 30) - 1
"""The largest file that FAT32 takes, in bytes."""

_FAT = {"vfat", "msdos"}
_MOUNTS = Path("/proc/self/mountinfo")
_MEASURED = 64 << 20  # bytes that are written to see how fast a drive is
_PATIENCE = 2.0  # seconds after which a slow drive has told enough
_PIECE = 8 << 20


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system: where, and of which type, as ``vfat``."""

    point: Path
    kind: str


@dataclass(frozen=True, slots=True)
class Drive:
    """A place that the user named to write to, as it was found.

    ``device`` tells file systems apart (``st_dev``): places on the same one share its ``free`` bytes. ``kind`` is the type of the
    file system and ``mount`` where it is mounted, ``None`` where the system cannot say (macOS).
    """

    path: Path
    device: int
    free: int
    kind: str | None
    read_only: bool
    mount: Path | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is still to come of a volume: at most ``size`` bytes where it is now, ``whole`` if it is begun anew.

    ``on`` is the number of the drive (from 0) that it lies on, ``None`` if it lies on none. ``gone`` marks one that is safe on a drive
    which is not here: nothing is to come of it.
    """

    number: int
    size: int
    whole: int
    on: int | None = None
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Lying:
    """What a drive has of a volume: so many bytes. ``id`` is the drive's, ``None`` for one that the journal does not know."""

    id: str | None
    length: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which drive (from 0) takes which volumes, and the volumes for which no drive has room."""

    volumes: tuple[tuple[Wanted, ...], ...]
    left_over: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a drive is, in bytes a second."""

    write: float
    read: float


# ── planning ──


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """Read ``/proc/self/mountinfo`` (proc(5)). Lines that are none are passed over."""
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")[0]
        if separator and len(fields) > 4 and kind:  # noqa: PLR2004 (the fifth is the mount point)
            mounts.append(Mount(Path(_unescaped(fields[4])), kind))
    return tuple(mounts)


def _unescaped(field: str) -> str:
    """Undo the octal escapes that the kernel writes for blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)


def mount_at(path: Path, mounts: Iterable[Mount]) -> Mount | None:
    """Give the mount that a path without links lies on: the longest mount point, the last of equal ones."""
    found = None
    for mount in mounts:
        if path.is_relative_to(mount.point) and (found is None or len(mount.point.parts) >= len(found.point.parts)):
            found = mount
    return found


def worst_case(members: Sequence[Member]) -> int:
    """Give the most bytes that a volume takes on a drive: nothing of it compresses, and its table and the clusters count too."""
    length = volume_length(members)
    return length + (length >> 10) + (512 << 10)


def check(found: Drive, largest: int) -> None:
    """Refuse a drive that cannot take files of ``largest`` bytes: ``UsageProblem``, or ``DriveFailed`` if it takes none at all."""
    if found.read_only:
        raise drive.DriveFailed(
            f"cannot write to {found.path}: it is mounted read-only",
            hint="is there a switch on the drive? `mount -o remount,rw` mounts it to be written; or name another drive",
            path=str(found.path),
        )
    if found.kind in _FAT and largest > MAX_FAT:
        raise UsageProblem(
            f"the file system of {found.path} ({found.kind}) takes files of at most 4 GiB, and volumes may become larger",
            hint="choose smaller volumes: --volume-size 2GiB",
        )


def find(noted: Noted, here: Sequence[Lying]) -> tuple[int | None, bool]:
    """Decide on which drive that is here (from 0) a volume is gone on with, if on any; and whether it is safe on one that is not here.

    What counts as its drive is the id that was noted, not what is mounted in the same place. A complete volume that lies nowhere in full
    is safe if that drive is not here. If it is, the volume is written again; and so it is where a drive that nobody knows has a part of
    it, as that may be its drive. Whatever is found is compared before anything is signed.
    """
    own = next((at for at, one in enumerate(here) if one.id is not None and one.id == noted.drive), None)
    some = [at for at, one in enumerate(here) if one.length]
    whole = [at for at in some if noted.closed and here[at].length == noted.length]
    if noted.closed and own is None and not whole and all(here[at].id is not None for at in some):
        return None, True
    found = whole or some
    return own if own in found else next(iter(found), None), False


def assign(wanted: Sequence[Wanted], found: Sequence[Drive]) -> Assignment:
    """Put each volume on the drive that it lies on, else on the first with room for it."""
    free = {drive.device: drive.free for drive in found}
    volumes: list[list[Wanted]] = [[] for _ in found]
    left_over = []
    for volume in wanted:
        if volume.gone:
            continue
        on = volume.on
        needed = volume.size
        if on is None or free[found[on].device] < needed:
            needed = volume.whole
            on = next((number for number, drive in enumerate(found) if free[drive.device] >= needed), None)
        if on is None:
            left_over.append(volume)
        else:
            free[found[on].device] -= needed
            volumes[on].append(volume)
    return Assignment(tuple(map(tuple, volumes)), tuple(left_over))


def lacking(wanted: Sequence[Wanted], found: Sequence[Drive]) -> NoSpace | None:
    """Build the error for drives that cannot take all of a bundle together; ``None`` if they can."""
    left_over = assign(wanted, found).left_over
    if not left_over:
        return None
    needed = sum(volume.size for volume in wanted)
    if len(found) == 1:
        error = filesystem.no_space(found[0].path, needed=needed)
        error.hint = f"{error.hint}; or name more drives (--to A --to B), or change them in one place (--swap)"
        return error
    free = sum({drive.device: drive.free for drive in found}.values())
    # Where the sum would do, what is left on each drive is too little for a whole volume.
    missing = needed - free if needed > free else sum(volume.whole for volume in left_over)
    names = " and ".join(str(drive.path) for drive in found)
    detail = f"{missing:,} bytes are missing ({needed:,} needed, {free:,} free)"
    hint = "name one more drive with --to, or free some space and run the same command again"
    if needed <= free:
        detail = (
            f"a volume lies whole on one drive, and none has {max(volume.whole for volume in left_over):,} bytes left"
        )
        hint = f"write smaller volumes, as --volume-size 1GiB, or {hint}"
    return NoSpace(
        f"no space for {name_volumes([volume.number for volume in left_over])} on {names}: {detail}",
        hint=hint,
        needed=needed,
        free=free,
        missing=missing,
    )


# ── looking ──


def probe(path: Path) -> Drive:
    """Look at a directory that the user named, and at the file system below it. Raises ``OSError``."""
    system = os.statvfs(path)
    mounts = ""
    with contextlib.suppress(FileNotFoundError):  # macOS has none
        mounts = _MOUNTS.read_text("utf-8", "surrogateescape")
    mount = mount_at(path.resolve(), parse_mounts(mounts))
    return Drive(
        path=path,
        device=path.stat().st_dev,
        free=filesystem.free_space(path),
        kind=mount.kind if mount else None,
        read_only=bool(system.f_flag & os.ST_RDONLY),
        mount=mount.point if mount else None,
    )


def known_ids(journal: Journal, directories: Iterable[Path]) -> tuple[str | None, ...]:
    """Read the ids of drives. One that the journal does not know counts as none, and so does a copy of one on a second drive."""
    found: list[str | None] = []
    for directory in directories:
        name = drive.read_id(directory)
        found.append(name if name is not None and journal.knows(name) and name not in found else None)
    return tuple(found)


def survey(index: Index, journal: Journal, directories: Sequence[Path]) -> tuple[Wanted, ...]:
    """Tell for each volume on which of the drives it lies, and how much of it is still to come."""
    ids = known_ids(journal, directories)
    wanted = []
    for number, members in enumerate(index.volumes, 1):
        noted, whole = journal.noted(number), worst_case(members)
        here = [
            Lying(name, drive.length(path / volume_name(number))) for name, path in zip(ids, directories, strict=True)
        ]
        on, gone = find(noted, here)
        if on is None:
            size = 0 if gone else whole
        else:
            complete = noted.closed and here[on].length == noted.length
            size = 0 if complete else max(whole - here[on].length, 0)
        wanted.append(Wanted(number, size, whole, on, gone))
    return tuple(wanted)


def measure(directory: Path) -> Speed | None:
    """Write at most 64 MiB to see how fast a drive is, and read them back; nothing stays. ``None`` if there is no room for that."""
    size = min(_MEASURED, filesystem.free_space(directory) // 2) // _PIECE * _PIECE
    if not size:
        return None
    piece = os.urandom(_PIECE)
    path = fsio.temporary_beside(directory / "speed")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        path.unlink()  # a killed process leaves nothing
        written, begun = 0, time.monotonic()
        while written < size and time.monotonic() - begun < _PATIENCE:
            fsio.write_all(descriptor, piece, written)
            os.fsync(descriptor)
            written += _PIECE
        writing = time.monotonic() - begun
        fsio.forget_cached(descriptor)
        begun = time.monotonic()
        for offset in range(0, written, _PIECE):
            fsio.read_exactly(descriptor, offset, _PIECE)
        reading = time.monotonic() - begun
    finally:
        os.close(descriptor)
    return Speed(written / max(writing, 1e-6), written / max(reading, 1e-6))
