"""Installing into the Hugging Face hub's cache, from which several engines load by repository name: their common part.

The layout is that of huggingface_hub 2.4.0: ``models--org--name/{blobs/<etag>,snapshots/<commit>/<path>,refs/main}``. ``refs/main`` is
written last, so that the engine sees a whole model or none, and has no newline, which would make it unreadable.
"""

import os
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from modelvault import filesystem, fsio
from modelvault.artifact import Digest, FileSpec, Model
from modelvault.engines.base import (
    NOTHING_FRESH,
    InstalledFile,
    InstallPlan,
    InstallRecord,
    InstallRequest,
    LinkKind,
    PlannedFile,
    Removal,
    Surroundings,
    Target,
)
from modelvault.engines.caretaker import Caretaker
from modelvault.engines.checks import check_file, is_changed, remove_empty
from modelvault.engines.ground import locked, refusals, remove_file, staging, sweep
from modelvault.engines.hub_cache import (
    CacheLayout,
    Entry,
    can_symlink,
    check_repository,
    hand_over,
    installed_files,
    intend,
    layout_of,
    read_reference,
)
from modelvault.engines.marker import Marker, read_marker
from modelvault.engines.place import Placer, Wanted
from modelvault.errors import EngineRefused

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_SYMLINKS_ON = {0x4D44, 0x2011BAB0}  # statfs(2): FAT, exFAT


class HubEngine(ABC):
    """What the adapters share that fill a hub cache. They differ in where it lies, in what the engine can load, and in its command."""

    name: str
    title: str
    below = ""
    """Where the cache lies below the engine's directory, with a slash at the end."""
    refused: ClassVar[Mapping[str, str]]
    """Why quantizations that begin so cannot be loaded."""
    no_gguf: str | None = None
    """Why GGUF cannot be loaded, if so."""

    def __init__(self, surroundings: Surroundings) -> None:
        """Remember where to look."""
        self._around = surroundings

    # -- where ---------------------------------------------------------------------------------------------------------

    def detect(self) -> Target | None:
        """A cache alone does not tell which engine reads it: the user has to name it."""
        return None

    def default(self) -> Target:
        """``HF_HUB_CACHE``, else ``HF_HOME/hub``, else ``~/.cache/huggingface/hub``."""
        return Target(self.name, self._around.variable("HF_HUB_CACHE") or self.home() / "hub")

    def home(self) -> Path:
        """The hub client's home: ``HF_HOME``, else ``~/.cache/huggingface``."""
        cache = self._around.variable("XDG_CACHE_HOME") or self._around.home / ".cache"
        return self._around.variable("HF_HOME") or cache / "huggingface"

    # -- what ----------------------------------------------------------------------------------------------------------

    def accepts(self, model: Model) -> str | None:
        """These engines take safetensors with a ``config.json``, in most quantizations."""
        quantization = (model.traits.quantization or "").lower()
        for prefix, reason in self.refused.items():
            if quantization.startswith(prefix):
                return f"it is quantized as {model.traits.quantization}: {reason}"
        paths = {file.path for file in model.files}
        if not any(path.endswith(".safetensors") for path in paths):
            ggufs = [path for path in paths if path.lower().endswith(".gguf")]
            if len(ggufs) == 1 or (ggufs and self.no_gguf):
                return self.no_gguf
            if ggufs:
                return f"it has {len(ggufs)} GGUF files, and {self.title} takes one per model"
            return f"{self.title} takes safetensors files, and this model has none"
        if "config.json" not in paths:
            return f"it has no config.json, without which {self.title} does not know its architecture"
        return None

    def chosen(self, request: InstallRequest) -> tuple[FileSpec, ...]:
        """Choose the files that the engine shall find: all, unless some would mislead it."""
        return request.model.files

    def arguments(self, model: Model) -> tuple[str, ...]:  # noqa: ARG002 (most engines have none)
        """Give what the engine should be started with for this model."""
        return ()

    def _layout(self, request: InstallRequest) -> CacheLayout:
        model = request.model
        if reason := self.accepts(model):
            raise EngineRefused(
                f"{model.name}: {reason}", hint="install it with --engine ollama or --engine folder=DIR"
            )
        from_hub = model.origin.repository if model.origin.kind == "hub" else None
        repository = check_repository(request.name or from_hub or model.name.hub_id)
        commit = model.origin.commit or ""
        if not _COMMIT.fullmatch(commit):
            commit = request.stored.manifest.hex[:40]
        return CacheLayout(repository, commit, request.stored.manifest, self.below)

    def installed_name(self, request: InstallRequest) -> str:
        """Give the repository's name."""
        return self._layout(request).repository

    def plan(self, request: InstallRequest) -> InstallPlan:
        """Say what would be written; nothing on disk changes."""
        layout, directory = self._layout(request), request.target.directory
        marker = self._read_marker(directory, layout)
        placer = _placer(request, marker)
        symlinks = filesystem.file_system_type(directory) not in _NO_SYMLINKS_ON
        files: dict[Path, PlannedFile] = {}
        for entry in self._entries(request, layout, placer, hashed=False, symlinks=symlinks):
            wanted = Wanted.of(request, entry.file)
            blob, name = directory / entry.blob, directory / entry.name
            if not entry.direct:
                kind = entry.blob_kind or placer.predict(wanted, blob.parent)
                there = entry.blob_kind is not None
                files.setdefault(blob, PlannedFile(blob, entry.file.digest, entry.file.size, kind, there=there))
            kind = entry.name_kind or (placer.predict(wanted, name.parent) if entry.direct else LinkKind.SYMLINK)
            size, there = entry.file.size if entry.direct else 0, entry.name_kind is not None
            files[name] = PlannedFile(name, entry.file.digest, size, kind, there=there)
        before = read_reference(directory / layout.reference)
        kind = LinkKind.PRESENT if before == layout.commit else LinkKind.WRITE
        path = directory / layout.reference
        files[path] = PlannedFile(
            path, Digest.of_bytes(layout.commit.encode()), len(layout.commit), kind, there=before == layout.commit
        )
        warnings: tuple[str, ...] = ()
        if before not in {None, layout.commit}:
            warnings = (f"{layout.repository}: the cache's main branch moves from {before} to {layout.commit}",)
        return InstallPlan(self.name, directory, layout.repository, tuple(files.values()), warnings)

    def _entries(
        self, request: InstallRequest, layout: CacheLayout, placer: Placer, *, hashed: bool, symlinks: bool
    ) -> list[Entry]:
        """Say for every file what is there already. Raises ``EngineRefused`` if something else is in the way."""
        directory = request.target.directory
        entries = []
        for file in self.chosen(request):
            entry = layout.entry(file)
            wanted, name = Wanted.of(request, file), directory / entry.name
            linked = name.is_symlink() and str(name.readlink()) == entry.target
            if linked or (symlinks and not name.exists() and not name.is_symlink()):
                blob_kind = placer.standing(directory / entry.blob, wanted, entry.blob, hashed=hashed)
                name_kind = None
                if linked:
                    name_kind = LinkKind.SYMLINK if placer.was_placed(entry.name) else LinkKind.PRESENT
                entries.append(replace(entry, blob_kind=blob_kind, name_kind=name_kind))
                continue
            name_kind = placer.standing(name, wanted, entry.name, hashed=hashed)
            if name_kind is None and symlinks:
                blob_kind = placer.standing(directory / entry.blob, wanted, entry.blob, hashed=hashed)
                entries.append(replace(entry, blob_kind=blob_kind))
            else:
                entries.append(replace(entry, name_kind=name_kind, direct=True))
        return entries

    # -- doing ---------------------------------------------------------------------------------------------------------

    def install(self, request: InstallRequest) -> InstallRecord:
        """Place the marker, the blobs, the snapshot and, last, ``refs/main``."""
        layout, directory = self._layout(request), request.target.directory
        placer = Placer(request)
        placer.make_directories(directory)
        with refusals(directory), locked(directory):
            marker = self._read_marker(directory, layout)
            placer = _placer(request, marker)
            placer.make_directories(directory / layout.folder)
            with placer.on(directory / layout.folder) as folder:
                sweep(folder, below=True)
                symlinks = can_symlink(folder)
            filesystem.require_space(directory, self.plan(request).extra_bytes)
            entries = self._entries(request, layout, placer, hashed=True, symlinks=symlinks)
            before = read_reference(directory / layout.reference)
            intent = intend(request, layout, entries, marker, before)
            placer.write(directory / layout.marker, intent.encode())
            entries = _bring_blobs(request, placer, entries)
            entries = _bring_names(request, placer, layout, entries)
            files = installed_files(entries, intent)
            reference = layout.commit.encode()
            if before != layout.commit:
                placer.make_directories((directory / layout.reference).parent)
                placer.write(directory / layout.reference, reference, via=directory / layout.folder)
            kind = intent.files[layout.reference]
            files.append(InstalledFile(layout.reference, str(Digest.of_bytes(reference)), len(reference), kind))
            placer.write(
                directory / layout.marker, replace(intent, files={file.path: file.link for file in files}).encode()
            )
            record = InstallRecord(
                self.name,
                str(directory),
                str(request.model.name),
                str(request.stored.manifest),
                layout.repository,
                tuple(files),
                arguments=self.arguments(request.model),
            )
            previous = request.previous
            if previous and previous.installed_name == layout.repository and previous.manifest != record.manifest:
                self._remove(previous)
        return record

    def _read_marker(self, directory: Path, layout: CacheLayout) -> Marker | None:
        with refusals(directory):
            return read_marker(directory / layout.marker)

    # -- later ---------------------------------------------------------------------------------------------------------

    def verify(self, record: InstallRecord, fresh: Mapping[str, Path] = NOTHING_FRESH) -> list[str]:
        """Hash every blob once, look where every link points, and read ``refs/main``."""
        directory = Path(record.directory)
        blobs = {file.digest: directory / file.path for file in record.files if "/blobs/" in file.path}
        problems = []
        for file in record.files:
            path = directory / file.path
            if path.is_symlink() and "/snapshots/" in file.path and file.digest in blobs:
                same = path.exists() and path.resolve() == blobs[file.digest].resolve()
                problem = None if same else f"{path} does not lead to {blobs[file.digest]}"
            else:
                problem = check_file(path, file, fresh)
            if problem:
                problems.append(problem)
        return problems

    def uninstall(self, record: InstallRecord) -> Removal:
        """Remove ``refs/main`` (or give it back its commit), our names, and blobs that no snapshot uses.

        What was edited stays, through a link too.
        """
        directory = Path(record.directory)
        if not directory.is_dir():
            return Removal()
        with refusals(directory), locked(directory):
            return self._remove(record)

    def _remove(self, record: InstallRecord) -> Removal:
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

    @abstractmethod
    def recipe(self, record: InstallRecord) -> list[str]:
        """Give the line that starts the engine with the model, offline and quiet."""

    def cache_variable(self, record: InstallRecord) -> str:
        """Give the setting, with a space before it, that leads the engine to the cache if it does not look there by itself."""
        if str(self.default().directory) == record.directory:
            return ""
        return f" {'HF_HOME' if self.below else 'HF_HUB_CACHE'}={shlex.quote(record.directory)}"


def _give_back_reference(directory: Path, layout: CacheLayout, marker: Marker | None) -> list[str]:
    """Have ``main`` name the commit that it named before us, or nothing, unless it moved on since; give what was removed."""
    path = directory / layout.reference
    if read_reference(path) != layout.commit:
        return []
    before = marker.before if marker else None
    # The marker could have been forged: only a commit is ever written for it.
    if before and _COMMIT.fullmatch(before) and (directory / layout.folder / "snapshots" / before).is_dir():
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


def _placer(request: InstallRequest, marker: Marker | None) -> Placer:
    return Placer(request, claimed=marker.files if marker else None)


def _bring_blobs(request: InstallRequest, placer: Placer, entries: Iterable[Entry]) -> list[Entry]:
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


def _bring_names(request: InstallRequest, placer: Placer, layout: CacheLayout, entries: list[Entry]) -> list[Entry]:
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
