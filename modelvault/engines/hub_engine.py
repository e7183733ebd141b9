"""Installing into the Hugging Face hub's cache, from which several engines load by repository name: their common part.

The layout is that of huggingface_hub 2.4.0: ``models--org--name/{blobs/<etag>,snapshots/<commit>/<path>,refs/main}``. ``refs/main`` is
written last, so that the engine sees a whole model or none, and has no newline, which would make it unreadable.
"""

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from modelvault import filesystem
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
from modelvault.engines.checks import check_file
from modelvault.engines.gguf_parts import gguf_files, served_gguf
from modelvault.engines.ground import locked, refusals, sweep
from modelvault.engines.hub_cache import (
    COMMIT,
    CacheLayout,
    Entry,
    can_symlink,
    check_repository,
    installed_files,
    intend,
    read_reference,
)
from modelvault.engines.hub_filling import bring_blobs, bring_names, placer_for
from modelvault.engines.hub_removal import remove
from modelvault.engines.marker import Marker, read_marker
from modelvault.engines.place import Placer, Wanted
from modelvault.engines.remote_code import ALLOW_CODE, MODULES, code_warnings, holds_code, lost_code, needed_code
from modelvault.engines.weights import indexed, top_weights, why_not_whole
from modelvault.errors import EngineRefused
from modelvault.formats.remote_code import is_code_alone

_NO_SYMLINKS_ON = {0x4D44, 0x2011BAB0}  # statfs(2): FAT, exFAT


class HubEngine(ABC):
    """What the adapters share that fill a hub cache. They differ in where it lies, in what the engine can load, and in its command."""

    name: str
    title: str
    below = ""
    """Where the cache lies below the engine's directory, with a slash at the end."""
    refused: ClassVar[Mapping[str, str]]
    """Why quantizations that begin so cannot be loaded."""
    takes_vllm_arguments = False
    """Whether the recipe's flags for vLLM are for this engine."""

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
        """These engines take safetensors with a ``config.json``, in most quantizations; and the code that such models need."""
        quantization = (model.traits.quantization or "").lower()
        for prefix, reason in self.refused.items():
            if quantization.startswith(prefix):
                return f"it is quantized as {model.traits.quantization}: {reason}"
        if is_code_alone([file.path for file in model.files]):
            return None
        if top_weights(model):
            known = self.knows_architecture(model)
            unknown = f"it has no config.json, without which {self.title} does not know its architecture"
            return why_not_whole(model) if known else unknown
        if gguf_files(model):
            return self.why_not_gguf(model)
        if any(file.path.endswith(".safetensors") for file in model.files):
            return f"its weights lie in folders, and {self.title} looks for them beside config.json"
        return f"{self.title} takes safetensors files, and this model has none"

    @abstractmethod
    def why_not_gguf(self, model: Model) -> str | None:
        """Give the reason why the engine cannot load a GGUF model; ``None`` if it can."""

    def knows_architecture(self, model: Model) -> bool:
        """Tell whether the file is there that says what the weights are."""
        return any(file.path == "config.json" for file in model.files)

    def plugin_for(self, model: Model) -> str | None:  # noqa: ARG002 (most engines need none)
        """Name what has to be installed beside the engine for this model."""
        return None

    def notes(self, request: InstallRequest) -> tuple[str, ...]:  # noqa: ARG002 (most engines have none)
        """Say what else the user should know before the engine is started."""
        return ()

    def chosen(self, request: InstallRequest) -> tuple[FileSpec, ...]:
        """Choose the files that the engine shall find: all but a second copy of the weights, which vLLM would take for the only one.

        Raises ``EngineRefused`` where weights that the index names are not there.
        """
        indexed(request)
        doubles = {path for path in top_weights(request.model) if path.startswith("consolidated")}
        if len(doubles) == len(top_weights(request.model)):
            return request.model.files
        return tuple(file for file in request.model.files if file.path not in doubles)

    def arguments(self, request: InstallRequest) -> tuple[str, ...]:
        """Give what the engine should be started with for this model."""
        recipe = request.model.recipe
        own = recipe.vllm_arguments if recipe and self.takes_vllm_arguments else ()
        code = needed_code(request, self._layout(request).repository)
        return (*own, ALLOW_CODE) if code.runs and ALLOW_CODE not in own else own

    def needs(self, request: InstallRequest) -> Mapping[str, tuple[str, ...]]:
        """Name the repositories whose code the engine would look for in the same cache, and not find; with its files."""
        layout, directory = self._layout(request), request.target.directory
        others = needed_code(request, layout.repository).others
        return {other: files for other, files in others.items() if not holds_code(directory, self.below, other, files)}

    def _layout(self, request: InstallRequest) -> CacheLayout:
        model = request.model
        if reason := self.accepts(model):
            other = "ollama, --engine llamacpp=DIR" if gguf_files(model) else "ollama"
            raise EngineRefused(
                f"{model.name}: {reason}", hint=f"install it with --engine {other} or --engine folder=DIR"
            )
        from_hub = model.origin.repository if model.origin.kind == "hub" else None
        repository = check_repository(request.name or from_hub or model.name.hub_id)
        commit = model.origin.commit or ""
        if not COMMIT.fullmatch(commit):
            commit = request.stored.manifest.hex[:40]
        return CacheLayout(repository, commit, request.stored.manifest, self.below)

    def installed_name(self, request: InstallRequest) -> str:
        """Give the repository's name."""
        return self._layout(request).repository

    def plan(self, request: InstallRequest) -> InstallPlan:
        """Say what would be written; nothing on disk changes."""
        layout, directory = self._layout(request), request.target.directory
        marker = self._read_marker(directory, layout)
        placer = placer_for(request, marker)
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
        return InstallPlan(
            self.name, directory, layout.repository, tuple(files.values()), self._warnings(request, layout, before)
        )

    def _warnings(self, request: InstallRequest, layout: CacheLayout, before: str | None) -> tuple[str, ...]:
        warnings = []
        if before not in {None, layout.commit}:
            warnings.append(f"{layout.repository}: the cache's main branch moves from {before} to {layout.commit}")
        if plugin := self.plugin_for(request.model):
            warnings.append(f"{request.model.name}: {self.title} loads it only with {plugin} installed")
        warnings += self.notes(request)
        return (*warnings, *code_warnings(request, needed_code(request, layout.repository), self.title))

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
            placer = placer_for(request, marker)
            placer.make_directories(directory / layout.folder)
            with placer.on(directory / layout.folder) as folder:
                sweep(folder, below=True)
                symlinks = can_symlink(folder)
            filesystem.require_space(directory, self.plan(request).extra_bytes)
            entries = self._entries(request, layout, placer, hashed=True, symlinks=symlinks)
            before = read_reference(directory / layout.reference)
            intent = intend(request, layout, entries, marker, before)
            placer.write(directory / layout.marker, intent.encode())
            entries = bring_blobs(request, placer, entries)
            entries = bring_names(request, placer, layout, entries)
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
                arguments=self.arguments(request),
            )
            previous = request.previous
            if previous and previous.installed_name == layout.repository and previous.manifest != record.manifest:
                remove(previous)
        return record

    def _read_marker(self, directory: Path, layout: CacheLayout) -> Marker | None:
        with refusals(directory):
            return read_marker(directory / layout.marker)

    # -- later ---------------------------------------------------------------------------------------------------------

    def verify(self, record: InstallRecord, fresh: Mapping[str, Path] = NOTHING_FRESH) -> list[str]:
        """Hash every blob once, look where every link points, read ``refs/main``, and look for the code of other repositories."""
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
        return problems + lost_code(record, self.below)

    def uninstall(self, record: InstallRecord) -> Removal:
        """Remove ``refs/main`` (or give it back its commit), our names, and blobs that no snapshot uses.

        What was edited stays, through a link too.
        """
        directory = Path(record.directory)
        if not directory.is_dir():
            return Removal()
        with refusals(directory), locked(directory):
            return remove(record)

    @abstractmethod
    def recipe(self, record: InstallRecord) -> list[str]:
        """Give the line that starts the engine with the model, offline and quiet."""

    def settings(self, record: InstallRecord) -> str:
        """Give the variables, each with a space before it, that lead the engine to the cache, and its code to where it is copied.

        The latter is where it is by default, named so that it is seen: for a service whose home is not its own it has to be another.
        """
        found = ""
        if str(self.default().directory) != record.directory:
            found = f" {'HF_HOME' if self.below else 'HF_HUB_CACHE'}={shlex.quote(record.directory)}"
        return found + (MODULES if ALLOW_CODE in record.arguments else "")


def gguf_path(record: InstallRecord) -> str | None:
    """Give the path of the GGUF file that an engine is to load from a hub cache, if the model has one and no safetensors."""
    names = [file.path for file in record.files if "/snapshots/" in file.path]
    if any(name.endswith(".safetensors") for name in names):
        return None
    found = served_gguf(names)
    return str(Path(record.directory, found)) if found else None


def has_weights(record: InstallRecord) -> bool:
    """Tell whether a record is of a model, and not of the code of one."""
    return any(file.path.endswith((".safetensors", ".gguf")) for file in record.files)
