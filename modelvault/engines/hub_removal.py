"""Taking a model out of a hub cache: exactly what was placed, and nothing that another model uses."""

import os
from pathlib import Path

from modelvault.engines.base import InstalledFile, InstallRecord, LinkKind, Removal
from modelvault.engines.caretaker import Caretaker
from modelvault.engines.checks import is_changed, remove_empty
from modelvault.engines.ground import remove_file
from modelvault.engines.hub_cache import COMMIT, CacheLayout, hand_over, layout_of, read_reference
from modelvault.engines.marker import Marker, read_marker


def remove(record: InstallRecord) -> Removal:
    """Remove ``refs/main`` (or give it back its commit), our names, and blobs that no snapshot uses; under ``locked``."""
    directory = Path(record.directory)
    layout = layout_of(record)
    folder = directory / layout.folder
    marker = read_marker(directory / layout.marker)
    recorded = {file.path: file.link for file in record.files}
    # The marker lies where the engine's user can write: it may take files off the list, but put none on it.
    kinds = {path: marker.files.get(path, LinkKind.PRESENT) for path in recorded} if marker else recorded
    shared = hand_over(directory, layout, kinds)
    ours = [file for file in record.files if kinds[file.path] != LinkKind.PRESENT and file.path not in shared]
    removed, kept = [], []
    if any(file.path == layout.reference for file in ours):
        removed += _give_back_reference(directory, layout, marker)
    blob_of = {file.digest: file for file in record.files if file.path.startswith(f"{layout.folder}/blobs/")}
    for file in ours:
        if not file.path.startswith(f"{layout.snapshot}/"):
            continue
        path = directory / file.path
        if _is_edited(directory, file, blob_of.get(file.digest)):
            kept.append(str(path))
        elif remove_file(directory, file.path):
            removed.append(str(path))
        remove_empty(path.parent, folder / "snapshots")
    used = {path.readlink().name for path in folder.glob("snapshots/**/*") if path.is_symlink()}
    for file in ours:
        if file.path.startswith(f"{layout.folder}/blobs/") and Path(file.path).name not in used:
            removed += [str(directory / file.path)] if remove_file(directory, file.path) else []
    if marker:
        remove_file(directory, layout.marker)
        removed.append(str(directory / layout.marker))
    for name in ("refs", "snapshots", "blobs"):
        remove_empty(folder / name, directory)
    return Removal(tuple(removed), tuple(kept))


def _give_back_reference(directory: Path, layout: CacheLayout, marker: Marker | None) -> list[str]:
    """Have ``main`` name the commit that it named before us, or nothing, unless it moved on since; give what was removed."""
    path = directory / layout.reference
    if read_reference(path) != layout.commit:
        return []
    before = marker.before if marker else None
    # The marker could have been forged: only a commit is ever written for it.
    if before and COMMIT.fullmatch(before) and (directory / layout.folder / "snapshots" / before).is_dir():
        caretaker = Caretaker.keeping(directory, layout.reference)
        caretaker.write(path, before.encode(), via=directory / layout.folder)
        return []
    return [str(path)] if remove_file(directory, layout.reference) else []


def _is_edited(directory: Path, file: InstalledFile, blob: InstalledFile | None) -> bool:
    """Whether a name in a snapshot no longer leads to what was installed."""
    path = directory / file.path
    if blob is None or not path.is_symlink():
        return is_changed(path, file)
    leads = str(path.readlink()) == os.path.relpath(blob.path, Path(file.path).parent)
    return not leads or is_changed(directory / blob.path, blob)
