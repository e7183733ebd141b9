"""What a plan would write to which file systems, and what stands against it."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from modelvault import filesystem
from modelvault.results.installs import DiskLine, EngineStep


def writes(steps: Iterable[EngineStep]) -> list[tuple[Path, int]]:
    """Say how many bytes the steps would write below which directories; a link counts none, nor does what lies behind an address."""
    return [
        (Path(step.directory), step.extra_bytes)
        for step in steps
        if not step.already and step.directory.startswith("/")
    ]


def disks(written: Iterable[tuple[Path, int]]) -> tuple[DiskLine, ...]:
    """Sum up by file system what would be written below each directory."""
    found: dict[int, DiskLine] = {}
    for path, size in written:
        device = filesystem.existing_parent(path).stat().st_dev
        disk = found.get(device) or DiskLine(path, 0, filesystem.free_space(path))
        found[device] = replace(disk, needed=disk.needed + size)
    return tuple(found.values())


def obstacles(planned: Iterable[DiskLine]) -> list[str]:
    """Warn of file systems that are too small for what would be written, or mounted read-only."""
    warnings = []
    for disk in planned:
        if disk.needed > disk.free:
            warnings.append(
                f"the file system of {disk.path} has {disk.free:,} bytes free, and {disk.needed:,} are needed"
            )
        if os.statvfs(filesystem.existing_parent(disk.path)).f_flag & os.ST_RDONLY:
            warnings.append(f"the file system of {disk.path} is mounted read-only")
    return warnings
