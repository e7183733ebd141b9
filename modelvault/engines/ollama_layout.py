"""What an install into Ollama will write: the name, the layers, the manifest. Nothing on disk changes here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault.artifact import Digest, FileSpec, Model
from modelvault.engines import ollama_store as store
from modelvault.engines.base import InstallRequest
from modelvault.engines.chat_templates import Family, recognize
from modelvault.engines.gguf_merge import Merge, digest_of, plan_merge, read_header
from modelvault.engines.gguf_parts import Parts, base_name, choose_parts, gguf_files
from modelvault.engines.ground import refusals
from modelvault.engines.place import Wanted, check_source
from modelvault.errors import EngineRefused, InvalidModelFile, UsageProblem
from modelvault.formats.modelfile import Modelfile, parse, render
from modelvault.formats.ollama import existing_names
from modelvault.ollama_name import OllamaName

UNKNOWN = Digest.sha256("0" * 64)
"""Stands for the digest of a merged file that was not made yet."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What is to be written. ``files`` are the layers that are files of the vault; ``merge`` makes the first layer, if it is none.

    There is no ``merge`` for shards that are still to be received. ``kept`` is a manifest that the model brings.
    """

    name: OllamaName
    modelfile: Modelfile
    files: Mapping[Digest, FileSpec]
    layers: tuple[store.Layer, ...]
    config: store.Layer
    merge: Merge | None
    warnings: tuple[str, ...]
    kept: Wanted | None = None

    @property
    def manifest(self) -> bytes:
        """The manifest's bytes. Raises ``DigestMismatch`` where the vault lacks the one that is kept."""
        if self.kept is not None:
            check_source(self.kept)
            return self.kept.source.read_bytes()
        return store.encode_manifest(self.config, self.layers)

    @property
    def manifest_digest(self) -> Digest:
        """The manifest's SHA-256, known even of one that is still to be received."""
        return self.kept.file.digest if self.kept is not None else Digest.of_bytes(self.manifest)

    @property
    def manifest_size(self) -> int:
        """The manifest's length in bytes."""
        return self.kept.file.size if self.kept is not None else len(self.manifest)

    @property
    def manifest_path(self) -> str:
        """Where the manifest lies in the store."""
        return f"manifests/{self.name.path}"

    @property
    def blobs(self) -> tuple[store.Layer, ...]:
        """Every blob once, the model first: two licenses may have the same text."""
        return tuple({layer.digest: layer for layer in (*self.layers, self.config)}.values())

    def merged(self, digest: Digest) -> "Layout":
        """Give the first layer the digest that it turned out to have."""
        return replace(self, layers=(replace(self.layers[0], digest=digest), *self.layers[1:]))

    def source(self, directory: Path) -> str:
        """Write the Modelfile from which ``ollama create`` would make the same model."""
        paths = {layer.media: str(directory / layer.path) for layer in self.layers if layer.data is None}
        entries = (
            replace(entry, value=paths["adapter"]) if entry.keyword == "ADAPTER" else entry
            for entry in self.modelfile.instructions
        )
        text = render(Modelfile(tuple(entries)), paths["model"])
        return text + (f"FROM {paths['projector']}\n" if "projector" in paths else "")


def refusal(model: Model) -> str | None:
    """Give the reason why Ollama cannot serve a model, or ``None``."""
    try:
        choose_parts(model, parse((model.recipe and model.recipe.modelfile) or ""))
    except (EngineRefused, UsageProblem) as error:
        return error.message
    return None


def name_for(request: InstallRequest) -> OllamaName:
    """Give the name for ``ollama run``, spelled as the store has it. Raises ``UsageProblem`` for one that Ollama would not take."""
    directory = request.target.directory
    with refusals(directory):
        name = OllamaName.parse(request.name or _default_name(request.model))
        return name.folded_onto(existing_names(directory))


def lay_out(request: InstallRequest) -> Layout:
    """Decide on everything. Raises ``EngineRefused``, ``UsageProblem``, and ``InvalidModelFile`` for shards that do not fit."""
    model = request.model
    text = request.modelfile
    if text is None:
        text = model.recipe.modelfile if model.recipe else None
    modelfile = parse(text or "")
    if modelfile.all("DRAFT"):
        raise UsageProblem("the modelfile's DRAFT is not supported", hint="draft models cannot be installed yet")
    try:
        parts = choose_parts(model, modelfile)
    except EngineRefused as error:
        raise EngineRefused(f"{model.name}: {error.message}", hint=_refusal_hint(model)) from error
    family = _family(request, parts, modelfile)
    warnings = _warnings(request, parts, modelfile, family)
    if family is not None:
        modelfile = family.added_to(modelfile)
    merge = _merge(request, parts)
    weights = _weights(request, parts, merge)
    others = {"projector": parts.projector, "adapter": parts.adapter}
    beside = [_file_layer(media, file) for media, file in others.items() if file is not None]
    architecture = model.traits.architecture or "unknown"
    families = [architecture, *({"projector": "clip"}.get(layer.media, architecture) for layer in beside)]
    return Layout(
        name_for(request),
        modelfile,
        {file.digest: file for file in (parts.weights[0], *others.values()) if file is not None},
        (weights, *beside, *store.text_layers(modelfile)),
        store.config_layer(model.traits, modelfile, families),
        merge,
        warnings,
    )


def _file_layer(media: str, file: FileSpec) -> store.Layer:
    return store.Layer(media, file.digest, file.size, origin=base_name(file))


def _merge(request: InstallRequest, parts: Parts) -> Merge | None:
    """Plan to join shards, if there are some and all of them are in the vault."""
    shards = [Wanted.of(request, file) for file in parts.weights]
    if len(shards) == 1 or not all(shard.source.exists() for shard in shards):
        return None
    with refusals(request.target.directory):
        return plan_merge(shards)


def _weights(request: InstallRequest, parts: Parts, merge: Merge | None) -> store.Layer:
    """Make the layer of the weights; for shards its digest is often ``UNKNOWN`` yet, and the size a little too large."""
    if len(parts.weights) == 1:
        return _file_layer("model", parts.weights[0])
    origin = re.sub(r"-\d{5}-of-\d{5}(?=\.gguf$)", "", base_name(parts.weights[0]))
    if merge is None:
        return store.Layer("model", UNKNOWN, sum(file.size for file in parts.weights), origin=origin)
    return store.Layer("model", _merged_digest(request, merge), merge.size, origin=origin)


def _merged_digest(request: InstallRequest, merge: Merge) -> Digest:
    """Find out which digest the merged file will have, where it may be there already; else ``UNKNOWN``."""
    before, directory = request.previous, request.target.directory
    if before is not None and before.manifest == str(request.stored.manifest):
        for file in before.files:
            if file.path.startswith("blobs/") and file.size == merge.size:
                return Digest.parse(file.digest)
    with refusals(directory):
        if any(path.stat().st_size == merge.size for path in (directory / "blobs").glob("sha256-*") if path.is_file()):
            return digest_of(merge, request.on_bytes)
    return UNKNOWN


def _family(request: InstallRequest, parts: Parts, modelfile: Modelfile) -> Family | None:
    """Find the chat family of a model whose Modelfile says nothing of how it is talked to."""
    weights = Wanted.of(request, parts.weights[0])
    if any(modelfile.last(keyword) is not None for keyword in ("TEMPLATE", "RENDERER")) or not weights.source.exists():
        return None
    try:
        with refusals(request.target.directory):
            return recognize(read_header(weights).text("tokenizer.chat_template") or "")
    except InvalidModelFile:
        return None  # what else is wrong with the file is not for the choice of a template to say


def _warnings(request: InstallRequest, parts: Parts, modelfile: Modelfile, family: Family | None) -> tuple[str, ...]:
    name, directory = request.model.name, request.target.directory
    warnings = []
    if modelfile.last("FROM") is not None:
        warnings.append(f"{name}: the modelfile's FROM is ignored: the model in the vault is used")
    if modelfile.deprecated:
        warnings.append(f"{name}: Ollama no longer has these parameters: {', '.join(modelfile.deprecated)}")
    if family is not None:
        warnings.append(
            f"{name}: no TEMPLATE given: it gets modelvault's for {family.title}, the family of the file's own chat template"
        )
    elif modelfile.last("TEMPLATE") is None and request.blob_path(parts.weights[0].digest).exists():
        warnings.append(f"{name}: no TEMPLATE given: Ollama before 0.30 passes prompts to the model as they are typed")
    if parts.unused:
        warnings.append(
            f"{name}: left out, since Ollama has no use for them: {', '.join(file.path for file in parts.unused)}"
        )
    with refusals(directory):
        return (*warnings, *store.dangers(directory))


def _refusal_hint(model: Model) -> str:
    if not gguf_files(model):
        return "install it with --engine vllm or --engine folder=DIR"
    return "pull one quantization, all of its parts (name:QUANT or --include), or install with --engine folder=DIR"


def _default_name(model: Model) -> str:
    """The catalog entry's name, else lower-case ``repo:quant``."""
    if model.recipe and model.recipe.ollama_name:
        return model.recipe.ollama_name
    quantization = model.name.quant or model.traits.quantization
    if not quantization or quantization.lower() == "unknown" or not re.fullmatch(r"[A-Za-z0-9_.-]+", quantization):
        return model.name.repository.lower()
    return f"{model.name.repository}:{quantization}".lower()
