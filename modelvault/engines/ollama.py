"""Ollama: blobs and a manifest written straight into a models directory; no server, no copy, the digest kept.

``ollama create`` would do, but needs a running server, doubles the disk space and, from 0.30.0 to 0.34.0, rewrites the GGUF. What is
written here is what ``create`` of 0.24.0 writes; a running server sees it at once.
"""

import shlex
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from modelvault import filesystem
from modelvault.artifact import Digest, Model
from modelvault.engines import ollama_store as store
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
from modelvault.engines.checks import check_file, check_files, remove_empty
from modelvault.engines.gguf_merge import Merge, write_merged
from modelvault.engines.ground import in_the_way, locked, refusals, remove_file, sweep
from modelvault.engines.ollama_home import default_models, find_models
from modelvault.engines.ollama_layout import UNKNOWN, Layout, lay_out, name_for, refusal
from modelvault.engines.ollama_original import lay_out_original
from modelvault.engines.place import Placer, Wanted
from modelvault.errors import EngineRefused


class OllamaEngine:
    """The adapter for Ollama."""

    name = "ollama"

    def __init__(self, surroundings: Surroundings) -> None:
        """Remember where to look."""
        self._around = surroundings

    # -- where ---------------------------------------------------------------------------------------------------------

    def detect(self) -> Target | None:
        """Look for the Ollama of this machine, once; see ``ollama_home``."""
        return self._found

    @cached_property
    def _found(self) -> Target | None:
        directory = find_models(self._around)
        return Target(self.name, directory) if directory else None

    def default(self) -> Target:
        """Ollama's own default: ``~/.ollama/models``."""
        return Target(self.name, default_models(self._around))

    # -- what ----------------------------------------------------------------------------------------------------------

    def accepts(self, model: Model) -> str | None:
        """Ollama serves one GGUF model, whole or in shards, with a projector and an adapter if there are."""
        return refusal(model)

    def plugin_for(self, model: Model) -> str | None:  # noqa: ARG002
        """Nothing."""
        return None

    def needs(self, request: InstallRequest) -> Mapping[str, tuple[str, ...]]:  # noqa: ARG002
        """Nothing: a GGUF file has no code."""
        return {}

    def installed_name(self, request: InstallRequest) -> str:
        """Give the name for ``ollama run``, spelled as the store has it."""
        return str(name_for(request))

    def plan(self, request: InstallRequest) -> InstallPlan:
        """Say what would be written; nothing on disk changes. Shards are read if the store may have what they make together."""
        return self._plan(request, _laid_out(request))

    def _plan(self, request: InstallRequest, layout: Layout) -> InstallPlan:
        directory = request.target.directory
        placer = Placer(request)
        files = []
        for layer in layout.blobs:
            path = directory / layer.path
            if layer.digest in layout.files:
                wanted = Wanted.of(request, layout.files[layer.digest])
                standing = placer.standing(path, wanted, layer.path, hashed=False)
                there, kind = standing is not None, standing or placer.predict(wanted, path.parent)
            else:
                there = path.exists() and path.stat().st_size == layer.size
                made = LinkKind.MERGE if layer.data is None else LinkKind.WRITE
                kind = LinkKind.PRESENT if there else made
            digest = None if layer.digest == UNKNOWN else layer.digest
            files.append(PlannedFile(path, digest, layer.size, kind, there=there))
        needed = self._manifest_needed(request, layout)
        kind = LinkKind.WRITE if needed else LinkKind.PRESENT
        path = directory / layout.manifest_path
        files.append(PlannedFile(path, layout.manifest_digest, layout.manifest_size, kind, there=not needed))
        return InstallPlan(self.name, directory, str(layout.name), tuple(files), layout.warnings)

    def _manifest_needed(self, request: InstallRequest, layout: Layout) -> bool:
        """Tell whether the manifest has to be written. Raises ``EngineRefused`` if another model has the name."""
        path = request.target.directory / layout.manifest_path
        with refusals(path):
            if not path.exists():
                return True
            current = store.read_manifest(path)
        if Digest.of_bytes(current) == layout.manifest_digest:
            return False
        before = request.previous.files if request.previous else ()
        digest = str(Digest.of_bytes(current))
        if not any(file.path == layout.manifest_path and file.digest == digest for file in before):
            raise EngineRefused(
                f"Ollama has another model named {layout.name} already",
                hint=f"choose another name with --as, or remove it with: ollama rm {layout.name}",
                path=str(path),
            )
        return True

    # -- doing ---------------------------------------------------------------------------------------------------------

    def install(self, request: InstallRequest) -> InstallRecord:
        """Place blobs, then the manifest, then look whether Ollama pruned a blob in between."""
        layout, directory = _laid_out(request), request.target.directory
        placer = Placer(request)
        self._manifest_needed(request, layout)
        manifest_path = directory / layout.manifest_path
        for needed in (directory / "blobs", manifest_path.parent):
            placer.make_directories(needed)
        with refusals(directory), locked(directory):
            for place in (directory, directory / "blobs"):
                with placer.on(place) as here:
                    sweep(here)
            filesystem.require_space(directory, self._plan(request, layout).extra_bytes)
            files = []
            if layout.merge is not None:
                layout, merged = self._place_merged(placer, request, layout, layout.merge)
                files.append(merged)
            files += [self._place(placer, request, layout, layer) for layer in layout.blobs[len(files) :]]
            manifest = self._place_manifest(placer, request, layout)
            for file in files:
                if not (directory / file.path).exists():
                    raise EngineRefused(
                        f"{directory / file.path} was removed while the model was being installed",
                        hint="Ollama prunes when it starts: run the same command again",
                    )
            files.append(manifest)
            record = InstallRecord(
                self.name,
                str(directory),
                str(request.model.name),
                str(request.stored.manifest),
                str(layout.name),
                tuple(files),
                layout.source(directory),
            )
            if request.previous is not None and request.previous.installed_name == record.installed_name:
                self._remove(request.previous, keep={file.path for file in files})
        return record

    def _place_merged(
        self, placer: Placer, request: InstallRequest, layout: Layout, merge: Merge
    ) -> tuple[Layout, InstalledFile]:
        """Join the shards, unless the store has what they make; give the layout with the digest that it has."""
        directory, layer = request.target.directory, layout.layers[0]
        if layer.digest != UNKNOWN and self._is_right(placer, request, layer):
            placer.refresh(directory / layer.path)
            kind = LinkKind.MERGE if placer.was_placed(layer.path) else LinkKind.PRESENT
            return layout, InstalledFile(layer.path, str(layer.digest), layer.size, kind)

        def fill(temporary: Path) -> str:
            nonlocal layout
            layout = layout.merged(write_merged(merge, temporary, request.on_bytes))
            path = directory / layout.layers[0].path
            if path.exists() and not placer.was_placed(layout.layers[0].path):
                raise in_the_way(path, f"expected {merge.size:,} bytes, found {path.stat().st_size:,}")
            return path.name

        placer.make(directory / "blobs", fill)
        layer = layout.layers[0]
        return layout, InstalledFile(layer.path, str(layer.digest), layer.size, LinkKind.MERGE)

    def _place_manifest(self, placer: Placer, request: InstallRequest, layout: Layout) -> InstalledFile:
        """Write the manifest, unless it is there."""
        kind, directory = LinkKind.WRITE, request.target.directory
        if self._manifest_needed(request, layout):
            # Listing reads every file in the tree: the temporary one must lie outside.
            placer.write(directory / layout.manifest_path, layout.manifest, via=directory)
        elif layout.kept is not None and not placer.was_placed(layout.manifest_path):
            # It may be the very one that the model was taken from. Of ours nobody else writes the same bytes.
            kind = LinkKind.PRESENT
        return InstalledFile(layout.manifest_path, str(layout.manifest_digest), layout.manifest_size, kind)

    def _is_right(self, placer: Placer, request: InstallRequest, layer: store.Layer) -> bool:
        """Tell whether a blob that is made here is there. Raises ``EngineRefused`` for somebody else's in its place."""
        path = request.target.directory / layer.path
        problem = check_file(
            path, InstalledFile(layer.path, str(layer.digest), layer.size, LinkKind.WRITE), NOTHING_FRESH
        )
        if problem and path.exists():
            if not placer.was_placed(layer.path):
                raise in_the_way(path, f"its content is not {layer.digest}")
            request.on_changed(layer.path)
        return problem is None

    def _place(self, placer: Placer, request: InstallRequest, layout: Layout, layer: store.Layer) -> InstalledFile:
        path = request.target.directory / layer.path
        if layer.data is not None:
            if self._is_right(placer, request, layer):
                placer.refresh(path)
            else:
                placer.write(path, layer.data)
            return InstalledFile(layer.path, str(layer.digest), layer.size, LinkKind.WRITE)
        wanted = Wanted.of(request, layout.files[layer.digest])
        kind = placer.standing(path, wanted, layer.path, hashed=True)
        if kind is None:
            kind = placer.bring(wanted, path)
        else:
            placer.refresh(path)
        return InstalledFile(layer.path, str(layer.digest), layer.size, kind)

    # -- later ---------------------------------------------------------------------------------------------------------

    def verify(self, record: InstallRecord, fresh: Mapping[str, Path] = NOTHING_FRESH) -> list[str]:
        """Hash every blob and compare the manifest."""
        return check_files(record, fresh)

    def uninstall(self, record: InstallRecord) -> Removal:
        """Remove the manifest if it is still ours, then the blobs that no other manifest names, as ``ollama rm`` does."""
        directory = Path(record.directory)
        if not directory.is_dir():
            return Removal()
        with refusals(directory), locked(directory):
            return Removal(tuple(self._remove(record, keep=set())))

    def _remove(self, record: InstallRecord, *, keep: set[str]) -> list[str]:
        directory = Path(record.directory)
        manifests = [
            file
            for file in record.files
            if file.path.startswith("manifests/") and file.path not in keep and file.link != LinkKind.PRESENT
        ]
        removed = []
        # Somebody else's manifest that cannot be read is met before anything is removed.
        store.blobs_in_use(directory)
        for file in manifests:
            path = directory / file.path
            if path.exists() and Digest.of_bytes(store.read_manifest(path)) == Digest.parse(file.digest):
                remove_file(directory, file.path)
                removed.append(str(path))
                remove_empty(path.parent, directory / "manifests")
        in_use = store.blobs_in_use(directory)
        for file in record.files:
            path = directory / file.path
            if (
                file.path.startswith("blobs/")
                and file.path not in keep
                and path.name.removeprefix("sha256-") not in in_use
                and remove_file(directory, file.path)
            ):
                removed.append(str(path))
        return removed

    def recipe(self, record: InstallRecord) -> list[str]:
        """``ollama run``, after a server that uses this directory if it is not the one that is found by itself."""
        target = self.detect() or self.default()
        run = shlex.join(["ollama", "run", record.installed_name])
        if str(target.directory) == record.directory:
            return [run]
        return [f"OLLAMA_MODELS={shlex.quote(record.directory)} ollama serve", run]


def _laid_out(request: InstallRequest) -> Layout:
    """Lay a model out as Ollama had it, if it came from there; else as ``ollama create`` would make it."""
    return lay_out_original(request) or lay_out(request)
