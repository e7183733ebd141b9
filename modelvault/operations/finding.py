"""Where bundles lie: what a path means, and where drives are usually mounted."""

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.bundle.index import INDEX_FILE, MAX_INDEX, SUFFIX
from modelvault.errors import ModelvaultError, UsageProblem

_MOUNT_POINTS = ("/media", "/run/media", "/mnt", "/Volumes")
_NOT_MOUNTED = {"swap", "LVM2_member", "crypto_LUKS", "linux_raid_member"}
_DEPTH = 3  # /run/media/<user>/<drive>/<bundle>


def is_bundle(path: Path) -> bool:
    """Whether a directory that was named is a bundle: by its name or by its index."""
    try:
        return path.is_dir() and (path.name.endswith(SUFFIX) or (path / INDEX_FILE).exists())
    except OSError:
        return False  # not ours to read, as lost+found: named by path it gives its own error


def _met(path: Path) -> bool:
    """Whether what was met in a search is a bundle: not by its name alone, nor by way of a link."""
    try:
        return is_bundle(path) and not path.is_symlink() and any(path.iterdir())
    except OSError:
        return True  # it gives its own error when it is opened


def bundles_in(path: Path) -> list[Path]:
    """Give the bundle at ``path`` or the bundles directly in it. Raises ``UsageProblem`` if there is none."""
    if is_bundle(path):
        return [path]
    found = bundles_below(path) if path.is_dir() else []
    if not found:
        raise UsageProblem(
            f"there is no bundle at {path}",
            hint=f"name a directory that ends in {SUFFIX}, or the drive that holds one",
            path=str(path),
        )
    return found


def bundles_below(directory: Path) -> list[Path]:
    """Give the bundles directly in a directory, as on a drive."""
    return sorted(entry for entry in directory.iterdir() if _met(entry))


@dataclass(frozen=True, slots=True)
class Found:
    """A bundle, or a part of one; ``named`` by the user, rather than met on a drive."""

    path: Path
    named: bool


def find_bundles(paths: Iterable[Path]) -> list[Found]:
    """Find all bundles at the given paths, else on the mounted drives; one on several drives is there several times.

    Raises ``UsageProblem`` (exit 2) that says how to mount a drive where there is none.
    """
    paths = list(paths)
    if not paths:
        found = sorted({bundle for point in _MOUNT_POINTS for bundle in _below(Path(point), _DEPTH)})
        if not found:
            raise UsageProblem(f"no bundle was found below {', '.join(_MOUNT_POINTS)}", hint=_mount_hint())
        return [Found(bundle, named=False) for bundle in found]
    met = {bundle: Found(bundle, named=bundle == path) for path in paths for bundle in bundles_in(path)}
    return list(met.values())


def several(paths: Iterable[Path]) -> UsageProblem:
    """Build the error for bundles between which only a person can choose."""
    listed = list(map(str, paths))
    return UsageProblem(
        "several bundles were found", hint="name the one that is meant: " + ", ".join(listed), bundles=listed
    )


def find_one(paths: Iterable[Path]) -> list[Path]:
    """Find one bundle, wherever a part of it lies, and the patches that were named with it.

    Raises ``UsageProblem`` (exit 2) that lists them where a drive holds several.
    """
    found = find_bundles(paths)
    met = [one.path for one in found if not one.named]
    if len({_identity(path) for path in met}) > 1:
        raise several(met)
    return [one.path for one in found]


def _identity(path: Path) -> Digest | Path:
    try:
        return Digest.of_bytes(fsio.read_regular(path / INDEX_FILE, limit=MAX_INDEX))
    except (OSError, ModelvaultError):
        return path  # whatever is wrong with it is said when it is opened


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
        if _met(entry):
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
