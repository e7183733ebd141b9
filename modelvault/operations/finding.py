"""Where bundles lie: what a path means, and where drives are usually mounted."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from modelvault.bundle.index import INDEX_FILE, SUFFIX
from modelvault.errors import UsageProblem

_MOUNT_POINTS = ("/media", "/run/media", "/mnt", "/Volumes")
_NOT_MOUNTED = {"swap", "LVM2_member", "crypto_LUKS", "linux_raid_member"}
_DEPTH = 3  # /run/media/<user>/<drive>/<bundle>


def is_bundle(path: Path) -> bool:
    """Whether a directory is a bundle: by its name or by its index."""
    try:
        return path.is_dir() and (path.name.endswith(SUFFIX) or (path / INDEX_FILE).exists())
    except OSError:
        return False  # not ours to read, as lost+found: named by path it gives its own error


def bundles_in(path: Path) -> list[Path]:
    """Give the bundle at ``path`` or the bundles directly in it. Raises ``UsageProblem`` if there is none."""
    if is_bundle(path):
        return [path]
    found = sorted(entry for entry in path.iterdir() if is_bundle(entry)) if path.is_dir() else []
    if not found:
        raise UsageProblem(
            f"there is no bundle at {path}",
            hint=f"name a directory that ends in {SUFFIX}, or the drive that holds one",
            path=str(path),
        )
    return found


def find_bundles(paths: Iterable[Path]) -> list[Path]:
    """Find the bundles that are meant: one for each path, or the only one on the mounted drives.

    Raises ``UsageProblem`` (exit 2) that lists them where a choice has to be made, or says how to mount a drive.
    """
    paths = list(paths)
    if not paths:
        found = sorted({bundle for point in _MOUNT_POINTS for bundle in _below(Path(point), _DEPTH)})
        if not found:
            raise UsageProblem("no bundle was found on the mounted drives", hint=_mount_hint())
        return [_only(found)]
    return list(dict.fromkeys(_only(bundles_in(path)) for path in paths))


def _only(found: list[Path]) -> Path:
    if len(found) > 1:
        raise UsageProblem(
            "several bundles were found",
            hint="name the one that is meant: " + ", ".join(map(str, found)),
            bundles=[str(path) for path in found],
        )
    return found[0]


def _below(directory: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(directory.iterdir())
    except OSError:
        return  # not there, not ours to read, or a drive that is failing: named by path it gives its own error
    for entry in entries:
        try:
            if entry.is_symlink() or not entry.is_dir():
                continue
        except OSError:
            continue  # a mount that is gone or not ours: as above
        if is_bundle(entry):
            yield entry
        elif depth > 1:
            yield from _below(entry, depth - 1)


def _mount_hint() -> str:
    """Name the partitions that are not mounted, with the command that mounts them."""
    mount = "udisksctl mount -b {}" if shutil.which("udisksctl") else "mount -o ro {} /mnt"
    commands = [mount.format(device) for device in _unmounted()]
    advice = "name the path: modelvault import PATH"
    return f"mount the drive first ({' or '.join(commands)}), or {advice}" if commands else advice


def _unmounted() -> list[str]:
    program = shutil.which("lsblk")
    if program is None:
        return []
    try:
        listing = subprocess.run(
            [program, "--json", "--paths", "--output", "NAME,TYPE,FSTYPE,MOUNTPOINT"],
            capture_output=True,
            timeout=10,
            check=True,
        )
        devices = json.loads(listing.stdout)["blockdevices"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return []  # only a hint depends on it
    found: list[str] = []
    while devices:
        device = devices.pop()
        devices += device.get("children", [])
        if device.get("fstype") and device["fstype"] not in _NOT_MOUNTED and not device.get("mountpoint"):
            found.append(device["name"])
    return sorted(found)
