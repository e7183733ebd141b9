"""Ollama's store as it lies on disk: the JSON of manifests and configs, which blobs are in use. Sources: Ollama 0.24.0.

Pure but for the functions at the end, which read a store.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from modelvault import fsio
from modelvault.artifact import Digest, Traits
from modelvault.engines.ground import in_the_way
from modelvault.formats.modelfile import LISTS, Modelfile, encode_parameter
from modelvault.formats.ollama import CONFIG_TYPE, LAYER_PREFIX, MANIFEST_TYPE, MAX_MANIFEST, blob_path, tags

_REFERENCE = re.compile(rb"sha256[:-]([0-9a-fA-F]{64})")
_GROUPS = ((10**9, 1, "B"), (10**6, 2, "M"), (10**3, 0, "K"))


@dataclass(frozen=True, slots=True)
class Layer:
    """One entry of a manifest. ``media`` is what follows ``application/vnd.ollama.image.``; ``data`` is ``None`` for a vault's blob."""

    media: str
    digest: Digest
    size: int
    data: bytes | None = None
    origin: str | None = None

    @classmethod
    def of(cls, media: str, data: bytes) -> Self:
        """Make a layer of bytes in memory."""
        return cls(media, Digest.of_bytes(data), len(data), data)

    @property
    def path(self) -> str:
        """Where the blob lies in the store."""
        return blob_path(self.digest)

    def descriptor(self) -> dict[str, Any]:
        """Give the manifest's entry, its keys in Ollama's order."""
        media = self.media if "/" in self.media else LAYER_PREFIX + self.media
        entry: dict[str, Any] = {"mediaType": media, "digest": str(self.digest), "size": self.size}
        return entry | ({"from": self.origin} if self.origin else {})


def go_json(document: object) -> bytes:
    """Encode as Go's ``json.Encoder`` does: compact, ``<``, ``>``, ``&`` and the two line separators escaped, a newline at the end."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8") + b"\n"


def text_layers(modelfile: Modelfile) -> list[Layer]:
    """Make the layers that a Modelfile asks for beside the model, in the order of ``ollama create``."""
    layers = [
        Layer.of(keyword.lower(), value.encode("utf-8"))
        for keyword in ("TEMPLATE", "SYSTEM")
        if (value := modelfile.last(keyword))
    ]
    layers += [Layer.of("license", text.encode("utf-8")) for text in modelfile.all("LICENSE")]
    if modelfile.parameters:
        layers.append(Layer.of("params", encode_parameters(modelfile)))
    if modelfile.messages:
        messages = [{"role": role, "content": content} for role, content in modelfile.messages]
        layers.append(Layer.of("messages", go_json(messages)))
    return layers


def encode_parameters(modelfile: Modelfile) -> bytes:
    """Write the params blob: keys sorted, floats in Go's shortest form, ``stop`` a list."""
    members = []
    for name, values in sorted(modelfile.parameters.items()):
        if name in LISTS:
            encoded = go_json(list(values)).decode("utf-8").rstrip("\n")
        else:
            encoded = encode_parameter(name, values[-1])
        members.append(f'"{name}":{encoded}')
    return ("{" + ",".join(members) + "}\n").encode("utf-8")


def config_layer(traits: Traits, modelfile: Modelfile, families: Sequence[str]) -> Layer:
    """Write the config blob; ``families`` are the architectures of the model's GGUF files. ``rootfs``, which 0.32.7 dropped and older releases do not read, is left out."""
    quantization = traits.quantization if traits.quantization and traits.quantization != "F32" else "unknown"
    config: dict[str, Any] = {
        "model_format": "gguf",
        "model_family": families[0],
        "model_families": list(families),
        "model_type": human_number(traits.parameters or 0),
        "file_type": quantization,
    }
    for keyword in ("RENDERER", "PARSER", "REQUIRES"):
        if value := modelfile.last(keyword):
            config[keyword.lower()] = value.removeprefix("v") if keyword == "REQUIRES" else value
    return Layer.of(CONFIG_TYPE, go_json(config | {"architecture": "amd64", "os": "linux"}))


def human_number(count: int) -> str:
    """Format a number of parameters as Ollama's ``format.HumanNumber`` does."""
    for unit, decimals, letter in _GROUPS:
        if count >= unit:
            number = count / unit
            return f"{number:.0f}{letter}" if number == int(number) else f"{number:.{decimals}f}{letter}"
    return str(count)


def encode_manifest(config: Layer, layers: Sequence[Layer]) -> bytes:
    """Write a manifest as Ollama does. ``ollama list`` shows the first twelve hex digits of its SHA-256."""
    return go_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.descriptor(),
            "layers": [layer.descriptor() for layer in layers],
        }
    )


def dangling_tags(directory: Path) -> list[Path]:
    """List the links to nothing where Ollama looks for manifests; each keeps it from listing any model. Raises ``OSError``."""
    return [path for path in tags(directory) if path.is_symlink() and not path.exists()]


def has_second_layout(directory: Path) -> bool:
    """Tell whether a release filled the store that keeps its manifests elsewhere, too (https://github.com/ollama/ollama/pull/15735)."""
    return (directory / "manifests-v2").is_dir()


def dangers(directory: Path) -> list[str]:
    """Say what in a store keeps Ollama from listing models that are whole. Raises ``OSError``."""
    found = []
    if has_second_layout(directory):
        found.append(f"{directory} has a manifests-v2 directory, which this version does not fill")
    found += [
        f"{path} is a link to nothing: Ollama lists no model at all as long as it is there"
        for path in dangling_tags(directory)
    ]
    return found


def read_manifest(path: Path) -> bytes:
    """Read a manifest, through a link too. Raises ``OSError``, and ``EngineRefused`` for what cannot be one."""
    try:
        return fsio.read_regular(path.resolve(), limit=MAX_MANIFEST)
    except (fsio.NotRegular, fsio.TooLarge) as error:
        raise in_the_way(path, "it is not a manifest") from error


def blobs_in_use(directory: Path) -> set[str]:
    """Collect the hex digests that any manifest of a store names.

    Everything that looks like a digest in any file below ``manifests*/`` counts, so that a layout or a layer type that we do not
    know never costs a blob. Raises as ``read_manifest`` does.
    """
    used: set[str] = set()
    for tree in sorted(directory.glob("manifests*")):
        for path in sorted(tree.rglob("*")):
            if not path.is_dir() and path.exists():
                used |= {match.decode().lower() for match in _REFERENCE.findall(read_manifest(path))}
    return used
