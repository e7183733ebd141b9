"""Ollama: blobs and a manifest written straight into a models directory; no server, no copy, the digest kept.

``ollama create`` would do, but needs a running server, doubles the disk space and, from 0.30 on, rewrites the GGUF. What is
written here is what ``create`` of 0.24.0 writes; a running server sees it at once.
"""

import pwd
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from modelvault import fsio
from modelvault.artifact import Digest, FileSpec, Model
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
from modelvault.engines.ground import in_the_way, locked, refusals, remove_file, sweep
from modelvault.engines.modelfile import Modelfile, parse, render
from modelvault.engines.place import Placer, Wanted
from modelvault.errors import EngineRefused, UsageProblem

_SHARD = re.compile(r".*-\d{5}-of-(?P<count>\d{5})\.gguf")
_NOT_YET = {"ADAPTER": "adapters", "DRAFT": "draft models"}
_SYSTEMCTL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Layout:
    """What an install will write: pure, but for the names that the store has already."""

    name: store.OllamaName
    gguf: FileSpec
    modelfile: Modelfile
    config: store.Layer
    layers: tuple[store.Layer, ...]
    manifest: bytes
    warnings: tuple[str, ...]

    @property
    def manifest_path(self) -> str:
        return f"manifests/{self.name.path}"

    @property
    def blobs(self) -> tuple[store.Layer, ...]:
        """Every blob once, the model first: two licenses may have the same text."""
        return tuple({layer.digest: layer for layer in (*self.layers, self.config)}.values())


class OllamaEngine:
    """The adapter for Ollama."""

    name = "ollama"

    def __init__(self, surroundings: Surroundings) -> None:
        """Remember where to look."""
        self._around = surroundings

    # -- where ---------------------------------------------------------------------------------------------------------

    def detect(self) -> Target | None:
        """Look at ``OLLAMA_MODELS``, the systemd unit, the service's home, the user's home and the PATH, in this order; once."""
        return self._found

    @cached_property
    def _found(self) -> Target | None:
        directory = self._around.variable("OLLAMA_MODELS") or self._from_systemd()
        if directory is None:
            directory = next((path for path in self._usual() if _is_directory(path)), None)
        if directory is None and self._around.program("ollama"):
            directory = self._usual()[-1]
        return Target(self.name, directory) if directory else None

    def default(self) -> Target:
        """Ollama's own default: ``~/.ollama/models``."""
        return Target(self.name, self._usual()[-1])

    def _usual(self) -> tuple[Path, Path]:
        return (
            self._around.root / "usr/share/ollama/.ollama/models",
            self._around.home / ".ollama/models",
        )

    def _from_systemd(self) -> Path | None:
        systemctl = self._around.program("systemctl")
        if systemctl is None:
            return None
        command = [systemctl, "show", "ollama", "--property=LoadState,User,Environment"]
        try:
            shown = subprocess.run(command, capture_output=True, text=True, timeout=_SYSTEMCTL_SECONDS, check=True)
            table = dict(line.partition("=")[::2] for line in shown.stdout.splitlines())
            variables = dict(word.partition("=")[::2] for word in shlex.split(table.get("Environment", "")))
            if table.get("LoadState") != "loaded":
                return None
            if models := variables.get("OLLAMA_MODELS"):
                return Path(models)
            home = variables.get("HOME") or pwd.getpwnam(table.get("User") or "root").pw_dir
            return Path(home) / ".ollama/models"
        except (OSError, ValueError, KeyError, subprocess.SubprocessError):
            # Without systemd as the init system the command exists but fails; then the usual directories decide.
            return None

    # -- what ----------------------------------------------------------------------------------------------------------

    def accepts(self, model: Model) -> str | None:
        """Ollama serves one GGUF file per model."""
        files = _gguf_files(model)
        if not files:
            return "Ollama takes GGUF files, and this model has none"
        shards = [_SHARD.fullmatch(PurePosixPath(file.path).name) for file in files]
        if any(shard and shard["count"] != "00001" for shard in shards):
            return "the GGUF is split into several files, of which Ollama would use only the last"
        if len(files) > 1:
            names = ", ".join(file.path for file in files[:4])
            return f"it has {len(files)} GGUF files ({names}), and Ollama takes one per model"
        return None

    def _prepare(self, request: InstallRequest) -> _Layout:
        model, directory = request.model, request.target.directory
        if reason := self.accepts(model):
            raise EngineRefused(f"{model.name}: {reason}", hint=_refusal_hint(model))
        text = request.modelfile
        if text is None:
            text = model.recipe.modelfile if model.recipe else None
        modelfile = parse(text or "")
        for keyword, what in _NOT_YET.items():
            if modelfile.all(keyword):
                raise UsageProblem(
                    f"the modelfile's {keyword} is not supported", hint=f"{what} cannot be installed yet"
                )
        (gguf,) = _gguf_files(model)
        with refusals(directory):
            name = store.OllamaName.parse(request.name or _default_name(model))
            name = name.folded_onto(store.existing_names(directory))
        config = store.config_layer(model.traits, modelfile)
        layers = (
            store.Layer("model", gguf.digest, gguf.size, origin=PurePosixPath(gguf.path).name),
            *store.text_layers(modelfile),
        )
        manifest = store.encode_manifest(config, layers)
        return _Layout(name, gguf, modelfile, config, layers, manifest, _warnings(model, modelfile, directory))

    def installed_name(self, request: InstallRequest) -> str:
        """Give the name for ``ollama run``, spelled as the store has it."""
        return str(self._prepare(request).name)

    def plan(self, request: InstallRequest) -> InstallPlan:
        """Say what would be written; nothing on disk changes."""
        layout, directory = self._prepare(request), request.target.directory
        placer = Placer(request)
        files = []
        for layer in layout.blobs:
            path = directory / _blob_path(layer)
            there = path.exists()
            if layer.data is not None:
                kind = LinkKind.PRESENT if there else LinkKind.WRITE
            else:
                wanted = Wanted.of(request, layout.gguf)
                standing = placer.standing(path, wanted, _blob_path(layer), hashed=False)
                there, kind = standing is not None, standing or placer.predict(wanted, path.parent)
            files.append(PlannedFile(path, layer.digest, layer.size, kind, there=there))
        needed = self._manifest_needed(request, layout)
        kind = LinkKind.WRITE if needed else LinkKind.PRESENT
        path, digest = directory / layout.manifest_path, Digest.of_bytes(layout.manifest)
        files.append(PlannedFile(path, digest, len(layout.manifest), kind, there=not needed))
        return InstallPlan(self.name, directory, str(layout.name), tuple(files), layout.warnings)

    def _manifest_needed(self, request: InstallRequest, layout: _Layout) -> bool:
        """Tell whether the manifest has to be written. Raises ``EngineRefused`` if another model has the name."""
        path = request.target.directory / layout.manifest_path
        with refusals(path):
            if not path.exists():
                return True
            current = store.read_manifest(path)
        if current == layout.manifest:
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
        layout, directory = self._prepare(request), request.target.directory
        placer = Placer(request)
        write_manifest = self._manifest_needed(request, layout)
        manifest_path = directory / layout.manifest_path
        for needed in (directory / "blobs", manifest_path.parent):
            placer.make_directories(needed)
        with refusals(directory), locked(directory):
            for place in (directory, directory / "blobs"):
                with placer.on(place) as here:
                    sweep(here)
            fsio.require_space(directory, self.plan(request).extra_bytes)
            files = [self._place(placer, request, layout, layer) for layer in layout.blobs]
            if write_manifest:
                # Listing reads every file in the tree: the temporary one must lie outside.
                placer.write(manifest_path, layout.manifest, via=directory)
            for file in files:
                if not (directory / file.path).exists():
                    raise EngineRefused(
                        f"{directory / file.path} was removed while the model was being installed",
                        hint="Ollama prunes when it starts: run the same command again",
                    )
            digest = str(Digest.of_bytes(layout.manifest))
            files.append(InstalledFile(layout.manifest_path, digest, len(layout.manifest), LinkKind.WRITE))
            record = InstallRecord(
                self.name,
                str(directory),
                str(request.model.name),
                str(request.stored.manifest),
                str(layout.name),
                tuple(files),
                render(layout.modelfile, str(directory / _blob_path(layout.layers[0]))),
            )
            if request.previous is not None and request.previous.installed_name == record.installed_name:
                self._remove(request.previous, keep={file.path for file in files})
        return record

    def _place(self, placer: Placer, request: InstallRequest, layout: _Layout, layer: store.Layer) -> InstalledFile:
        relative = _blob_path(layer)
        path = request.target.directory / relative
        if layer.data is not None:
            installed = InstalledFile(relative, str(layer.digest), layer.size, LinkKind.WRITE)
            problem = check_file(path, installed, NOTHING_FRESH)
            if problem and path.exists():
                if not placer.was_placed(relative):
                    raise in_the_way(path, f"its content is not {layer.digest}")
                request.on_changed(relative)
            if problem:
                placer.write(path, layer.data)
            return installed
        wanted = Wanted.of(request, layout.gguf)
        kind = placer.standing(path, wanted, relative, hashed=True)
        if kind is None:
            kind = placer.bring(wanted, path)
        else:
            placer.refresh(path)
        return InstalledFile(relative, str(layer.digest), layer.size, kind)

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
        manifests = [file for file in record.files if file.path.startswith("manifests/") and file.path not in keep]
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

    def next_steps(self, record: InstallRecord) -> list[str]:
        """``ollama run``, after a server that uses this directory if it is not the one that is found by itself."""
        target = self.detect() or self.default()
        run = shlex.join(["ollama", "run", record.installed_name])
        if str(target.directory) == record.directory:
            return [run]
        return [f"OLLAMA_MODELS={shlex.quote(record.directory)} ollama serve", run]


def _gguf_files(model: Model) -> list[FileSpec]:
    return [file for file in model.files if file.path.lower().endswith(".gguf")]


def _refusal_hint(model: Model) -> str:
    files = _gguf_files(model)
    if not files:
        return "install it with --engine vllm or --engine folder=DIR"
    if len(files) > 1:
        return "pull one quantization in one file (name:QUANT or --include), or install with --engine folder=DIR"
    return "pull the model as one file, or install it with --engine folder=DIR"


def _default_name(model: Model) -> str:
    """The catalog entry's name, else lower-case ``repo:quant``."""
    if model.recipe and model.recipe.ollama_name:
        return model.recipe.ollama_name
    quantization = model.name.quant or model.traits.quantization
    if not quantization or quantization.lower() == "unknown" or not re.fullmatch(r"[A-Za-z0-9_.-]+", quantization):
        return model.name.repository.lower()
    return f"{model.name.repository}:{quantization}".lower()


def _warnings(model: Model, modelfile: Modelfile, directory: Path) -> tuple[str, ...]:
    warnings = []
    if modelfile.last("FROM") is not None:
        warnings.append(f"{model.name}: the modelfile's FROM is ignored: the model in the vault is used")
    if modelfile.last("TEMPLATE") is None:
        warnings.append(
            f"{model.name}: no TEMPLATE given: Ollama before 0.30 passes prompts to the model as they are typed"
        )
    if (directory / "manifests-v2").is_dir():
        warnings.append(f"{directory} has a manifests-v2 directory, which this version does not fill")
    return tuple(warnings)


def _blob_path(layer: store.Layer) -> str:
    return f"blobs/sha256-{layer.digest.hex}"


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError:  # another user's home: not ours to find
        return False
