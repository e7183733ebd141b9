"""A directory per model, with the files under their own names: what the adapters share whose engines take a path."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelvault import filesystem, fsio
from modelvault.artifact import Digest, FileSpec, Model, ModelName
from modelvault.engines.base import (
    NOTHING_FRESH,
    InstalledFile,
    InstallPlan,
    InstallRecord,
    InstallRequest,
    LinkKind,
    PlannedFile,
    Removal,
    Target,
)
from modelvault.engines.checks import check_files, is_changed, remove_empty
from modelvault.engines.gguf_parts import gguf_files
from modelvault.engines.ground import exchange, in_the_way, locked, refusals, remove_file, staging, sweep
from modelvault.engines.marker import Marker, read_marker
from modelvault.engines.place import Placer, Wanted
from modelvault.engines.remote_code import code_warnings, needed_code
from modelvault.engines.weights import indexed, why_not_whole
from modelvault.errors import EngineRefused

MARKER = ".modelvault.json"


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where one file goes: ``path`` relative to the engine's directory; ``key`` is its name within the model's, and in the marker.

    A file ``beside`` the model's directory has a name that only we give, and its path for a key.
    """

    file: FileSpec
    path: str
    key: str

    @property
    def beside(self) -> bool:
        return self.path == self.key


@dataclass(frozen=True, slots=True)
class _Standing:
    """Which files are in place, by path, and how they got there; ``anew``: the model's directory is to be made or replaced."""

    found: Mapping[str, LinkKind]
    anew: bool


class PlainEngine(ABC):
    """Fills ``DIR/<name>/``, beside its place and in one step. Adapters differ in what they take, which files, and in the command."""

    name: str
    below = ""
    """Where the models' directories lie below the engine's own, with a slash at the end."""
    keeps: frozenset[str] = frozenset()
    """Files of the user's that a new version of a model takes over."""
    runs_code = False
    """Whether the engine is built on transformers, and may run code that the model names."""

    # -- what adapters say ---------------------------------------------------------------------------------------------

    def detect(self) -> Target | None:
        """A directory of models does not tell who reads it: the user has to say."""
        return None

    def default(self) -> Target | None:
        """There is no usual directory."""
        return None

    def accepts(self, model: Model) -> str | None:
        """Any model that is whole, unless one of its files has the name of our marker."""
        return f"one of its files is called {MARKER}" if MARKER in self.inside(model) else why_not_whole(model)

    def check(self, request: InstallRequest) -> None:
        """Look into the files that are here. Raises ``EngineRefused`` for what the engine could not load."""
        indexed(request)

    def inside(self, model: Model) -> Mapping[str, FileSpec]:
        """Name the files of the model's directory: all of them, unless the engine wants fewer or other names."""
        return {file.path: file for file in model.files}

    def beside(self, model: Model, name: str) -> Mapping[str, FileSpec]:  # noqa: ARG002 (most engines have none)
        """Name the files that the engine wants elsewhere, by path below its directory; ``name`` is the model's directory's."""
        return {}

    def arguments(self, request: InstallRequest) -> tuple[str, ...]:  # noqa: ARG002 (most engines have none)
        """Give what the engine should be started with for this model."""
        return ()

    def warnings(self, request: InstallRequest) -> tuple[str, ...]:
        """Say what the user should know before the engine is started."""
        plugin = self.plugin_for(request.model)
        plugins = (f"{request.model.name}: {self.name} loads it only with {plugin} installed",) if plugin else ()
        if not self.runs_code or gguf_files(request.model):
            return plugins
        needs = needed_code(request)
        elsewhere = (
            f"{request.model.name}: the code of {other} is looked for in the hub's cache, not here: install {other} with "
            "--engine vllm, too, and start the engine with that HF_HUB_CACHE"
            for other in needs.others
        )
        return (*plugins, *code_warnings(request, needs, "the engine"), *elsewhere)

    def needs(self, request: InstallRequest) -> Mapping[str, tuple[str, ...]]:  # noqa: ARG002
        """Nothing: such a directory holds one model, and what lies elsewhere is not for us to place."""
        return {}

    def plugin_for(self, model: Model) -> str | None:  # noqa: ARG002
        """Nothing."""
        return None

    @abstractmethod
    def recipe(self, record: InstallRecord) -> list[str]:
        """Give the shell lines that start the engine with the model."""

    # -- planning ------------------------------------------------------------------------------------------------------

    def installed_name(self, request: InstallRequest) -> str:
        """Give the directory's name."""
        return self._root(request).name

    def root_of(self, record: InstallRecord) -> Path:
        """Find the model's directory."""
        return Path(record.directory, self.below, record.installed_name)

    def paths(self, record: InstallRecord) -> list[str]:
        """Give the full paths of an install's files."""
        return [str(Path(record.directory, file.path)) for file in record.files]

    def plan(self, request: InstallRequest) -> InstallPlan:
        """Say what would be written; nothing on disk changes."""
        root, directory = self._root(request), request.target.directory
        slots = self._slots(request)
        standing = self._standing(request, slots, hashed=False)
        placer = Placer(request)
        kinds = {
            slot.path: standing.found.get(slot.path)
            or placer.predict(Wanted.of(request, slot.file), (directory / slot.path).parent)
            for slot in slots
        }
        files = [
            PlannedFile(
                directory / slot.path,
                slot.file.digest,
                slot.file.size,
                kinds[slot.path],
                there=slot.path in standing.found,
            )
            for slot in slots
        ]
        if len(standing.found) < len(files):
            data = _marker(request, slots, kinds).encode()
            files.append(PlannedFile(root / MARKER, Digest.of_bytes(data), len(data), LinkKind.WRITE))
        return InstallPlan(self.name, directory, root.name, tuple(files), self.warnings(request))

    def _root(self, request: InstallRequest) -> Path:
        if reason := self.accepts(request.model):
            raise EngineRefused(f"{request.model.name}: {reason}", hint="install it with --engine folder=DIR")
        self.check(request)
        name = ModelName(request.name) if request.name else request.model.name
        return request.target.directory / self.below / name.file_name

    def _slots(self, request: InstallRequest) -> list[_Slot]:
        name, model = self._root(request).name, request.model
        slots = [_Slot(file, f"{self.below}{name}/{key}", key) for key, file in self.inside(model).items()]
        return slots + [_Slot(file, path, path) for path, file in self.beside(model, name).items()]

    def _standing(self, request: InstallRequest, slots: list[_Slot], *, hashed: bool) -> _Standing:
        """Look what is there. Raises ``EngineRefused`` if that is neither ours nor the same."""
        root, directory = self._root(request), request.target.directory
        with refusals(root):
            there = root.exists() or root.is_symlink()
            if there and not root.is_dir():
                raise in_the_way(root, "it is not a directory")
            marker = read_marker(root / MARKER) if there else None
            claimed = marker.files if marker else {}
            placer = Placer(request, claimed=claimed)
            found = {}
            for slot in slots:
                wanted = Wanted.of(request, slot.file)
                kind = placer.standing(directory / slot.path, wanted, slot.key, hashed=hashed)
                if kind is LinkKind.PRESENT and slot.beside:
                    kind = (
                        LinkKind.COPY
                    )  # nobody else gives this name: an install was killed before it wrote the marker
                if kind is not None:
                    found[slot.path] = kind
            whole = all(slot.path in found or slot.beside for slot in slots)
            if there and (marker.manifest == request.stored.manifest if marker else whole):
                return _Standing(found, anew=False)
            known = {*claimed, *self.keeps, MARKER}
            foreign = next((path for path in _files_below(root) if path not in known), None)
            if foreign is not None:
                raise in_the_way(root / foreign, "the directory holds files that are not of this model")
            return _Standing(
                {slot.path: found[slot.path] for slot in slots if slot.beside and slot.path in found}, anew=True
            )

    # -- doing ---------------------------------------------------------------------------------------------------------

    def install(self, request: InstallRequest) -> InstallRecord:
        """Fill a directory beside the final one, then give it its name in one step; or bring what lacks in one of this very model."""
        directory, root = request.target.directory, self._root(request)
        slots = self._slots(request)
        placer = Placer(request)
        placer.make_directories(root.parent)
        with refusals(directory), locked(directory):
            for place in {directory, root.parent, *((directory / slot.path).parent for slot in slots if slot.beside)}:
                if place.is_dir():
                    with placer.on(place) as here:
                        sweep(here)
            if root.is_dir() and not root.is_symlink():
                with placer.on(root) as here:
                    sweep(here, below=True)
            filesystem.require_space(directory, self.plan(request).extra_bytes)
            standing = self._standing(request, slots, hashed=True)
            kinds = dict(standing.found)
            missing = [slot for slot in slots if slot.path not in kinds and (slot.beside or not standing.anew)]
            kinds |= _bring(request, placer, {directory / slot.path: slot for slot in missing})
            if standing.anew:
                kinds |= self._fill(request, placer, slots, kinds)
            elif missing:
                placer.write(root / MARKER, _marker(request, slots, kinds).encode())
            self._drop(request, slots)
        return InstallRecord(
            engine=self.name,
            directory=str(directory),
            model=str(request.model.name),
            manifest=str(request.stored.manifest),
            installed_name=root.name,
            files=tuple(
                InstalledFile(slot.path, str(slot.file.digest), slot.file.size, kinds[slot.path]) for slot in slots
            ),
            arguments=self.arguments(request),
        )

    def _fill(
        self, request: InstallRequest, placer: Placer, slots: list[_Slot], kinds: Mapping[str, LinkKind]
    ) -> dict[str, LinkKind]:
        """Make the model's directory out of the engine's sight, or a new version of it, and give it its name."""
        directory, root = request.target.directory, self._root(request)
        # llama.cpp looks into every directory of models, text-generation-webui even below those.
        aside = directory if directory.stat().st_dev == root.parent.stat().st_dev else root.parent
        with staging(aside) as stage, placer.on(root.parent) as there:
            fresh, final = stage / root.name, there / root.name
            placer.make_directories(fresh)
            brought = _bring(request, placer, {fresh / slot.key: slot for slot in slots if not slot.beside})
            for kept in (name for name in self.keeps if (root / name).exists() and not (fresh / name).exists()):
                (fresh / kept).hardlink_to(root / kept)
            placer.write(fresh / MARKER, _marker(request, slots, {**kinds, **brought}).encode())
            if root.exists():
                exchange(fresh, final)
                sweep(there)
            else:
                fresh.rename(final)
            fsio.fsync_directory(there)
        with placer.on(aside) as here:
            sweep(here)
        return brought

    def _drop(self, request: InstallRequest, slots: list[_Slot]) -> None:
        """Remove what an earlier version had beside its directory, and this one has not."""
        directory, inside = request.target.directory, f"{self.below}{self._root(request).name}/"
        kept = {slot.path for slot in slots}
        for file in request.previous.files if request.previous else ():
            ours = file.link != LinkKind.PRESENT and not file.path.startswith(inside) and file.path not in kept
            if ours and not is_changed(directory / file.path, file):
                remove_file(directory, file.path)

    # -- later ---------------------------------------------------------------------------------------------------------

    def verify(self, record: InstallRecord, fresh: Mapping[str, Path] = NOTHING_FRESH) -> list[str]:
        """Hash every file, and look whether the directory is still of this version."""
        root = self.root_of(record)
        problems = check_files(record, fresh)
        try:
            with refusals(root):
                marker = read_marker(root / MARKER)
        except EngineRefused as error:
            return [*problems, error.message]
        if marker is not None and str(marker.manifest) != record.manifest:
            problems.append(f"{root} is of another version by now, whose manifest is {marker.manifest}")
        return problems

    def uninstall(self, record: InstallRecord) -> Removal:
        """Remove the files that we placed and nobody changed, and the directories that are empty then."""
        directory, root = Path(record.directory), self.root_of(record)
        if root.is_symlink():
            raise in_the_way(root, "it is a link, and not the directory that was installed")
        if not directory.is_dir():
            return Removal()
        removed, kept = [], []
        with refusals(root), locked(directory):
            marker = read_marker(root / MARKER) if root.is_dir() else None
            if marker is not None and str(marker.manifest) != record.manifest:
                return Removal()
            for file in record.files:
                path = directory / file.path
                key = path.relative_to(root).as_posix() if path.is_relative_to(root) else file.path
                # The marker lies where the engine's user can write: it may take files off the list, but put none on it.
                if (marker.files.get(key, LinkKind.PRESENT) if marker else file.link) == LinkKind.PRESENT:
                    continue
                if is_changed(path, file):
                    kept.append(str(path))
                elif remove_file(directory, file.path):
                    removed.append(str(path))
                remove_empty(path.parent, root.parent)
            if remove_file(root.parent, f"{root.name}/{MARKER}"):
                removed.append(str(root / MARKER))
            remove_empty(root, root.parent)
        return Removal(tuple(removed), tuple(kept))


def why_not_transformers(model: Model, who: str, needed: tuple[str, ...] = ("config.json",)) -> str | None:
    """Give the reason why ``who`` cannot load a model as transformers lays it out; ``None`` if it can."""
    paths = {file.path for file in model.files}
    if not any(path.endswith(".safetensors") for path in paths):
        return f"{who} takes safetensors files here, and this model has none"
    missing = next((name for name in needed if name not in paths), None)
    return f"it has no {missing}, without which {who} does not load it" if missing else None


def _bring(request: InstallRequest, placer: Placer, slots: Mapping[Path, _Slot]) -> dict[str, LinkKind]:
    """Bring files to the given paths; give how, by the path that each will have in the end."""
    kinds = {}
    for path, slot in slots.items():
        placer.make_directories(path.parent)
        kinds[slot.path] = placer.bring(Wanted.of(request, slot.file), path)
    return kinds


def _marker(request: InstallRequest, slots: list[_Slot], kinds: Mapping[str, LinkKind]) -> Marker:
    return Marker(
        str(request.model.name), request.stored.manifest, {slot.key: kinds[slot.path].value for slot in slots}
    )


def _files_below(root: Path) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_symlink() or not path.is_dir()
    )
