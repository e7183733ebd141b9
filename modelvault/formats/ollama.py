"""A model as Ollama's stores and registries have it: a manifest and layers. Sources: Ollama 0.24.0.

In the vault every layer is a file of the model, and so are the config and the manifest itself, byte for byte: from them the engine
makes the very model again. The manifest's SHA-256 is the model's commit, by which the engine finds it among the files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelvault.artifact import Algorithm, Digest, SourceFile
from modelvault.ollama_name import OllamaName
from modelvault.strictjson import decode_object

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_PREFIX = "application/vnd.ollama.image."
MAX_MANIFEST = 4 << 20
"""Bytes; a manifest with a layer for each of a thousand tensors has some 200 kB."""

MANIFEST_FILE = "ollama/manifest.json"
CONFIG_FILE = "ollama/config.json"
_FILES = {
    "model": "model.gguf",
    "projector": "mmproj.gguf",
    "adapter": "adapter.gguf",
    "draft": "draft.gguf",
    "license": "LICENSE",
    "template": "ollama/template",
    "system": "ollama/system",
    "params": "ollama/params.json",
    "messages": "ollama/messages.json",
}
"""What the layers of each kind are called as files. No name of the model's own: one manifest, one model, under whatever name."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob that a manifest names. ``kind`` is what follows ``application/vnd.ollama.image.``, else the whole media type."""

    kind: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class OllamaManifest:
    """What a manifest names: the config, and the layers in their order."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    def kinds(self) -> set[str]:
        """Say which kinds of layers there are."""
        return {layer.kind for layer in self.layers}

    def files(self) -> Mapping[str, Descriptor]:
        """Give every blob the path that it has within a model of the vault; a second license is ``LICENSE-2``."""
        files = {CONFIG_FILE: self.config}
        seen: dict[str, int] = {}
        for layer in self.layers:
            stem, dot, suffix = _FILES.get(layer.kind, "ollama/layer").partition(".")
            seen[stem] = number = seen.get(stem, 0) + 1
            files[stem + (f"-{number}" if number > 1 else "") + dot + suffix] = layer
        return files


def decode_manifest(data: bytes) -> OllamaManifest:
    """Read a manifest, trusting nothing. Raises ``ValueError`` for what is none."""
    document = decode_object(data)
    config, layers = document.get("config"), document.get("layers")
    if document.get("schemaVersion") != 2 or not isinstance(layers, list):  # noqa: PLR2004 (the format's own number)
        raise ValueError("it is not a manifest of version 2")
    return OllamaManifest(_descriptor(config), tuple(_descriptor(layer) for layer in layers))


def listed_files(manifest: OllamaManifest, commit: str, size: int) -> tuple[SourceFile, ...]:
    """List the files of a model, sorted by path: all blobs, and the manifest itself, of ``size`` bytes, whose SHA-256 is ``commit``."""
    files = [SourceFile(path, layer.size, layer.digest) for path, layer in manifest.files().items()]
    files.append(SourceFile(MANIFEST_FILE, size, Digest.sha256(commit)))
    return tuple(sorted(files, key=lambda file: file.path))


def _descriptor(entry: Any) -> Descriptor:
    table = entry if isinstance(entry, dict) else {}
    media, digest, size = table.get("mediaType"), table.get("digest"), table.get("size")
    if not isinstance(media, str) or not isinstance(digest, str) or type(size) is not int or not 0 <= size < 1 << 63:
        raise ValueError("one of its layers has no type, digest or size")
    parsed = Digest.parse(digest)
    if parsed.algorithm is not Algorithm.SHA256:
        raise ValueError(f"a layer's digest is {digest}")
    return Descriptor(media.removeprefix(LAYER_PREFIX), parsed, size)


def existing_names(directory: Path) -> list[OllamaName]:
    """List the names of all models in a store. Raises ``OSError``."""
    return [OllamaName(*path.parts[-4:]) for path in tags(directory) if not path.is_dir()]


def tags(directory: Path) -> list[Path]:
    """List what lies where Ollama looks for manifests."""
    return sorted((directory / "manifests").glob("*/*/*/*"))


def blob_path(digest: Digest) -> str:
    """Say where a blob lies in a store."""
    return f"blobs/sha256-{digest.hex}"
