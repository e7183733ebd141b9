"""The drives of a bundle, as ``bundle`` is asked for them, plans with them and reports on them."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelvault.bundle import drive
from modelvault.bundle.drives import Drive, assign, check, lacking, measure, probe, survey, worst_case
from modelvault.bundle.index import Index, name_volumes, table_name, volume_name
from modelvault.bundle.journal import Journal
from modelvault.bundle.layout import volume_length
from modelvault.bundle.written import Written, WrittenDrive
from modelvault.errors import UsageProblem
from modelvault.results.bundles import BundleDrive
from modelvault.vault import Vault


def places(vault: Vault, named: Sequence[Path], *, swap: bool) -> tuple[Path, ...]:
    """Make what the user named absolute. Raises ``UsageProblem`` for what is no directory, lies in the vault, or was named twice."""
    example = "name the drive: modelvault bundle --to /media/ssd"
    found = tuple(path.absolute() for path in named)
    for path in found:
        if not path.is_dir():
            raise UsageProblem(f"{path} is not a directory", hint="mount the drive, or make the directory first")
        if path.resolve().is_relative_to(vault.root.resolve()):
            raise UsageProblem(f"{path} lies within the vault", hint=example)
    if not found:
        raise UsageProblem("there is no drive to write to", hint=example)
    if len({(path.stat().st_dev, path.stat().st_ino) for path in found}) < len(found):
        raise UsageProblem("the same directory is named twice with --to", hint="name each drive once")
    if swap and len(found) > 1:
        raise UsageProblem(
            "--swap goes with one --to", hint="name the one place where the drives will be mounted in turn"
        )
    return found


def warnings(vault: Vault, named: Sequence[Path]) -> tuple[str, ...]:
    """Warn of directories on the file system that the vault is on: a drive that was not mounted looks like that."""
    own = vault.root.stat().st_dev
    return tuple(
        f"{path} is on the same file system as the vault: is the drive mounted?"
        for path in named
        if _device(path) == own
    )


def _device(path: Path) -> int | None:
    """Tell the file system of a drive; ``None`` if the drive is gone, and with it what it was mounted at."""
    try:
        return path.stat().st_dev
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class DrivePlan:
    """What writing would do to the drives. ``seconds`` is an estimate, ``None`` where nothing could be measured."""

    drives: tuple[BundleDrive, ...]
    free: int
    seconds: float | None
    warnings: tuple[str, ...]


def plan_drives(
    vault: Vault, named: Sequence[Path], index: Index, journal: Journal, *, read_back: bool, swap: bool
) -> DrivePlan:
    """Plan which drive takes which volume, and measure how fast the drives are with a file that is removed again.

    Raises what ``check`` raises for a drive that cannot take the bundle's files.
    """
    found = [probe(path) for path in named]
    for one in found:
        check(one, max(map(worst_case, index.volumes)))
    directories = [path / index.directory_name for path in named]
    wanted = survey(index, journal, directories)
    assigned = assign(wanted, found)
    lengths = [volume_length(members) for members in index.volumes]
    drives = []
    seconds: float | None = 0.0
    for one, directory, volumes in zip(found, directories, assigned.volumes, strict=True):
        size = sum(lengths[volume.number - 1] for volume in volumes)
        drives.append(_planned(one, directory, tuple(volume.number for volume in volumes), size))
        to_write = sum(min(volume.size, lengths[volume.number - 1]) for volume in volumes)
        speed = measure(one.path) if volumes else None
        if speed is not None and seconds is not None:
            seconds += to_write / speed.write + (size / speed.read if read_back else 0.0)
        elif volumes:
            seconds = None
    lack = lacking(wanted, found)
    if lack is None:
        missing: tuple[str, ...] = ()
    elif swap:
        missing = (f"{name_volumes([volume.number for volume in assigned.left_over])} go to the next drives",)
    else:
        missing = (lack.message,)
    return DrivePlan(
        drives=tuple(drives),
        free=sum({one.device: one.free for one in found}.values()),
        seconds=seconds if lack is None else None,
        warnings=(*warnings(vault, named), *missing),
    )


def _planned(found: Drive, directory: Path, volumes: tuple[int, ...], size: int) -> BundleDrive:
    return BundleDrive(
        path=found.path,
        directory=directory,
        file_system=found.kind,
        free=found.free,
        volumes=volumes,
        size=size,
        here=True,
        finished=False,
        read_back=False,
        problem=None,
    )


def drive_results(written: Written) -> tuple[BundleDrive, ...]:
    """Report on the drives of a bundle that was written."""
    return tuple(map(_reported, written.drives))


def _reported(written: WrittenDrive) -> BundleDrive:
    place = written.directory.parent
    found = None
    if written.here:
        with contextlib.suppress(OSError):  # pulled out once it was finished: what was written counts
            found = probe(place)
    return BundleDrive(
        path=place,
        directory=written.directory,
        file_system=found.kind if found else None,
        free=found.free if found else None,
        volumes=written.volumes,
        size=written.stored,
        here=written.here,
        finished=written.finished,
        read_back=written.read_back,
        problem=written.problem,
    )


def drive_warnings(written: Written) -> tuple[str, ...]:
    """Warn of drives that hold volumes and were not finished or not looked at, and of those that failed before they held any."""
    wanted = tuple(
        f"{one.problem or _lacks(one)}: it has {name_volumes(one.volumes)}, without sums and not read back"
        for one in written.drives
        if one.volumes and not one.finished
    )
    useless = (f"{one.problem}; it is not needed" for one in written.drives if one.problem and not one.volumes)
    elsewhere = (
        f"{name_volumes(one.volumes)} lie{'s' if len(one.volumes) == 1 else ''} on the drive that was at {one.directory.parent}:"
        " it is not here, and was not looked at again"
        for one in written.drives
        if one.earlier and one.finished
    )
    return (*wanted, *useless, *elsewhere)


def _lacks(one: WrittenDrive) -> str:
    place = one.directory.parent
    return f"{place} has no room left" if one.here else f"the drive that was at {place} is not here"


def lying_there(index: Index, directories: Sequence[Path]) -> tuple[WrittenDrive, ...]:
    """Tell which drive has which volumes of a finished bundle."""
    left = set(range(1, len(index.volumes) + 1))
    drives = []
    for directory in directories:
        volumes = tuple(number for number in sorted(left) if drive.exists(directory / table_name(number)))
        left -= set(volumes)
        stored = sum(drive.length(directory / volume_name(number)) for number in volumes)
        drives.append(WrittenDrive(directory, volumes, stored, here=True, finished=True, read_back=False))
    return tuple(drives)
