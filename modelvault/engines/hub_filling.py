"""Bringing the blobs and the names of a model into a hub cache."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from modelvault import fsio
from modelvault.engines.base import InstallRequest, LinkKind
from modelvault.engines.ground import staging
from modelvault.engines.hub_cache import CacheLayout, Entry
from modelvault.engines.marker import Marker
from modelvault.engines.place import Placer, Wanted


def placer_for(request: InstallRequest, marker: Marker | None) -> Placer:
    """Make a placer that goes by the marker, which knows more than a record after a crash."""
    return Placer(request, claimed=marker.files if marker else None)


def bring_blobs(request: InstallRequest, placer: Placer, entries: Iterable[Entry]) -> list[Entry]:
    """Bring the blobs that are not there yet; give the entries with how each got there."""
    brought: dict[str, LinkKind] = {}
    done = []
    for entry in entries:
        if entry.direct or entry.blob_kind is not None:
            done.append(entry)
            continue
        path = request.target.directory / entry.blob
        if entry.blob not in brought:  # two files of a model may have the same content, hence the same blob
            placer.make_directories(path.parent)
            brought[entry.blob] = placer.bring(Wanted.of(request, entry.file), path)
        done.append(replace(entry, blob_kind=brought[entry.blob]))
    return done


def bring_names(request: InstallRequest, placer: Placer, layout: CacheLayout, entries: list[Entry]) -> list[Entry]:
    """Fill the snapshot: beside the tree and renamed in if there is none yet, else file by file."""
    folder, snapshot = request.target.directory / layout.folder, request.target.directory / layout.snapshot
    if snapshot.is_dir():
        return [_bring_name(request, placer, entry, (snapshot, folder)) for entry in entries]
    with staging(folder) as fresh:
        placer.make_directories(fresh)
        done = [_bring_name(request, placer, entry, (fresh, folder)) for entry in entries]
        placer.make_directories(snapshot.parent)
        with placer.on(folder) as here, placer.on(snapshot.parent) as there:
            (here / fresh.name).rename(there / snapshot.name)
            fsio.fsync_directory(there)
    return done


def _bring_name(request: InstallRequest, placer: Placer, entry: Entry, places: tuple[Path, Path]) -> Entry:
    """Give one file its name below ``places[0]``; ``places[1]`` is where temporary links may lie, out of the engine's sight."""
    if entry.name_kind is not None:
        return entry
    root, via = places
    path = root / entry.file.path
    placer.make_directories(path.parent)
    if entry.direct:
        return replace(entry, name_kind=placer.bring(Wanted.of(request, entry.file), path))
    placer.symlink(entry.target, path, via=via)
    return replace(entry, name_kind=LinkKind.SYMLINK)
