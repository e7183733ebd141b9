"""A plain directory per model, ``DIR/<name>/`` with the files under their own names: for any engine that takes a path."""

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest, Model, ModelName
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
from modelvault.engines.ground import exchange, in_the_way, locked, refusals, remove_file, staging, sweep
from modelvault.engines.marker import Marker, read_marker
from modelvault.engines.place import Placer, Wanted
from modelvault.errors import EngineRefused

MARKER = ".modelvault.json"


class FolderEngine:
    """The adapter for everything that has no adapter of its own."""

    name = "folder"

    def detect(self) -> Target | None:
        """A folder cannot be detected."""
        return None

    def default(self) -> Target | None:
        """There is no usual folder: the user has to say."""
        return None

    def accepts(self, model: Model) -> str | None:
        """Any model, unless one of its files has the name of our marker."""
        if any(file.path == MARKER for file in model.files):
            return f"one of its files is called {MARKER}"
        return None

    def installed_name(self, request: InstallRequest) -> str:
        """Give the directory's name."""
        return self._root(request).name

    def plan(self, request: InstallRequest) -> InstallPlan:
        """Say what would be written; nothing on disk changes."""
        root = self._root(request)
        standing = self._standing(request, hashed=False) or {}
        placer = Placer(request)
        files = [
            PlannedFile(
                root / file.path,
                file.digest,
                file.size,
                standing.get(file.path) or placer.predict(Wanted.of(request, file), root),
                there=file.path in standing,
            )
            for file in request.model.files
        ]
        if len(standing) < len(files):
            data = _marker(request, {str(file.path): file.link for file in files}).encode()
            files.append(PlannedFile(root / MARKER, Digest.of_bytes(data), len(data), LinkKind.WRITE))
        return InstallPlan(self.name, request.target.directory, root.name, tuple(files))

    def install(self, request: InstallRequest) -> InstallRecord:
        """Fill a directory beside the final one, then give it its name in one step; or bring what lacks in one of this very model."""
        directory, root = request.target.directory, self._root(request)
        placer = Placer(request)
        placer.make_directories(directory)
        with refusals(directory), locked(directory):
            sweep(directory)
            if root.is_dir() and not root.is_symlink():
                with placer.on(root) as here:
                    sweep(here, below=True)
            fsio.require_space(directory, self.plan(request).extra_bytes)
            standing = self._standing(request, hashed=True)
            if standing is None:
                kinds = self._fill(request, placer, root)
            elif len(standing) < len(request.model.files):
                kinds = self._mend(request, placer, root, standing)
            else:
                kinds = standing
        files = tuple(
            InstalledFile(f"{root.name}/{file.path}", str(file.digest), file.size, kinds[file.path])
            for file in request.model.files
        )
        return InstallRecord(
            engine=self.name,
            directory=str(directory),
            model=str(request.model.name),
            manifest=str(request.stored.manifest),
            installed_name=root.name,
            files=files,
        )

    def _mend(
        self, request: InstallRequest, placer: Placer, root: Path, standing: dict[str, LinkKind]
    ) -> dict[str, LinkKind]:
        """Bring what is missing or wrong in a directory of this very model, each file in one step."""
        kinds = standing | _bring(request, placer, root, but=standing)
        placer.write(root / MARKER, _marker(request, kinds).encode())
        return kinds

    def _fill(self, request: InstallRequest, placer: Placer, root: Path) -> dict[str, LinkKind]:
        with staging(root.parent) as fresh:
            placer.make_directories(fresh)
            kinds = _bring(request, placer, fresh)
            placer.write(fresh / MARKER, _marker(request, kinds).encode())
            if root.exists():
                exchange(fresh, root)
                sweep(root.parent)
            else:
                fresh.rename(root)
        fsio.fsync_directory(root.parent)
        return kinds

    def _root(self, request: InstallRequest) -> Path:
        if reason := self.accepts(request.model):
            raise EngineRefused(f"{request.model.name}: {reason}")
        name = ModelName(request.name) if request.name else request.model.name
        return request.target.directory / name.file_name

    def _standing(self, request: InstallRequest, *, hashed: bool) -> dict[str, LinkKind] | None:
        """Say which files are in place already, and how they got there; ``None`` if the whole directory is to be made or replaced.

        Raises ``EngineRefused`` if the directory holds what is neither ours nor the same.
        """
        root = self._root(request)
        with refusals(root):
            if not root.exists() and not root.is_symlink():
                return None
            if not root.is_dir():
                raise in_the_way(root, "it is not a directory")
            marker = read_marker(root / MARKER)
            claimed = marker.files if marker else {}
            placer = Placer(request, claimed=claimed)
            found = {}
            for file in request.model.files:
                kind = placer.standing(root / file.path, Wanted.of(request, file), file.path, hashed=hashed)
                if kind is not None:
                    found[file.path] = kind
            whole = len(found) == len(request.model.files)
            if marker.manifest == request.stored.manifest if marker else whole:
                return found
            foreign = next((path for path in _files_below(root) if path not in {*claimed, MARKER}), None)
            if foreign is not None:
                raise in_the_way(root / foreign, "the directory holds files that are not of this model")
            return None

    def verify(self, record: InstallRecord, fresh: Mapping[str, Path] = NOTHING_FRESH) -> list[str]:
        """Hash every file."""
        return check_files(record, fresh)

    def uninstall(self, record: InstallRecord) -> Removal:
        """Remove the files that we placed and nobody changed, and the directories that are empty then."""
        directory = Path(record.directory)
        root = directory / record.installed_name
        if not root.is_dir():
            return Removal()
        if root.is_symlink():
            raise in_the_way(root, "it is a link, and not the directory that was installed")
        removed, kept = [], []
        with refusals(root), locked(directory):
            marker = read_marker(root / MARKER)
            if marker is not None and str(marker.manifest) != record.manifest:
                return Removal()
            for file in record.files:
                path = directory / file.path
                kinds = marker.files if marker is not None else {}
                kind = kinds.get(path.relative_to(root).as_posix(), LinkKind.PRESENT if marker else file.link)
                if kind == LinkKind.PRESENT:
                    continue
                if is_changed(path, file):
                    kept.append(str(path))
                elif remove_file(directory, file.path):
                    removed.append(str(path))
                remove_empty(path.parent, directory)
            if remove_file(directory, f"{root.name}/{MARKER}"):
                removed.append(str(root / MARKER))
            remove_empty(root, directory)
        return Removal(tuple(removed), tuple(kept))

    def next_steps(self, record: InstallRecord) -> list[str]:
        """Name the usual command for what lies there: llama.cpp for GGUF, else vLLM by path."""
        root = Path(record.directory) / record.installed_name
        gguf = sorted(file.path for file in record.files if file.path.lower().endswith(".gguf"))
        if gguf:
            return [shlex.join(["llama-server", "--offline", "--model", str(Path(record.directory) / gguf[0])])]
        served = shlex.join(["vllm", "serve", str(root), "--served-model-name", record.model])
        return [f"HF_HUB_OFFLINE=1 {served}"]


def _bring(request: InstallRequest, placer: Placer, root: Path, *, but: Collection[str] = ()) -> dict[str, LinkKind]:
    """Bring the model's files into ``root``, ``but`` for those that are there."""
    kinds = {}
    for file in request.model.files:
        if file.path not in but:
            placer.make_directories((root / file.path).parent)
            kinds[file.path] = placer.bring(Wanted.of(request, file), root / file.path)
    return kinds


def _marker(request: InstallRequest, kinds: Mapping[str, str]) -> Marker:
    return Marker(str(request.model.name), request.stored.manifest, dict(kinds))


def _files_below(root: Path) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_symlink() or not path.is_dir()
    )
