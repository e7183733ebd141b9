"""Ollama's store as it lies on disk: names, the JSON of manifests and configs, which blobs are in use. Sources: Ollama 0.24.0.

Pure but for the functions at the end, which read a store.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from modelvault import fsio
from modelvault.artifact import Digest, Traits
from modelvault.engines.ground import in_the_way
from modelvault.engines.modelfile import LISTS, Modelfile, encode_parameter
from modelvault.errors import UsageProblem

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_PREFIX = "application/vnd.ollama.image."
MAX_MANIFEST = 4 << 20
"""Bytes; a manifest with a layer for each of a thousand tensors has some 200 kB."""

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_REFERENCE = re.compile(rb"sha256[:-]([0-9a-fA-F]{64})")
_DEFAULT_HOST, _DEFAULT_NAMESPACE, _DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
_GROUPS = ((10**9, 1, "B"), (10**6, 2, "M"), (10**3, 0, "K"))


@dataclass(frozen=True, slots=True)
class OllamaName:
    """A fully qualified name in an Ollama store."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``[[host/]namespace/]model[:tag]``. Raises ``UsageProblem`` for what Ollama refuses, reserved tags among them."""
        rest, tag = text, _DEFAULT_TAG
        if text.rfind(":") > text.rfind("/"):
            rest, _, tag = text.rpartition(":")
        parts = rest.split("/")
        defaults = [_DEFAULT_HOST, _DEFAULT_NAMESPACE]
        if len(parts) > len(defaults) + 1:
            raise _bad_name(text, "it has more than three parts")
        host, namespace, model = [*defaults[: 3 - len(parts)], *parts]
        fits = _HOST.fullmatch(host) and _NAMESPACE.fullmatch(namespace) and _PART.fullmatch(model)
        if not fits or not _PART.fullmatch(tag):
            raise _bad_name(
                text, "a part is empty, too long (80 characters) or holds characters that Ollama does not take"
            )
        if tag.lower() in {"cloud", "local"} or tag.lower().endswith("-cloud"):
            raise _bad_name(text, f"Ollama keeps the tag {tag!r} for itself")
        return cls(host, namespace, model, tag)

    def __str__(self) -> str:
        """Give the shortest form, as ``ollama list`` does."""
        parts = [self.host, self.namespace, self.model]
        if self.host.lower() == _DEFAULT_HOST:
            parts = parts[1:] if self.namespace.lower() != _DEFAULT_NAMESPACE else parts[2:]
        return "/".join(parts) + f":{self.tag}"

    @property
    def path(self) -> str:
        """Where the manifest lies below ``manifests/``."""
        return f"{self.host}/{self.namespace}/{self.model}/{self.tag}"

    def folded_onto(self, existing: Iterable["OllamaName"]) -> "OllamaName":
        """Take the spelling that the store has already, part by part.

        Ollama's handlers fold each part onto *any* existing model's (``getExistingName``), in random order: two spellings of
        one part in a store make models come and go.
        """
        names = sorted(existing, key=lambda name: name.path)
        parts = {}
        for part in ("host", "namespace", "model", "tag"):
            mine = getattr(self, part)
            spelled = [getattr(name, part) for name in names if getattr(name, part).lower() == mine.lower()]
            parts[part] = mine if mine in spelled or not spelled else spelled[0]
        return replace(self, **parts)


def _bad_name(text: str, reason: str) -> UsageProblem:
    return UsageProblem(
        f"not a name that Ollama takes: {text[:120]!r}: {reason}", hint="choose one with --as, such as --as llama3.1:8b"
    )


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
        return f"blobs/sha256-{self.digest.hex}"

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


def existing_names(directory: Path) -> list[OllamaName]:
    """List the names of all models in a store. Raises ``OSError``."""
    return [OllamaName(*path.parts[-4:]) for path in _tags(directory) if not path.is_dir()]


def _tags(directory: Path) -> list[Path]:
    """List what lies where Ollama looks for manifests."""
    return sorted((directory / "manifests").glob("*/*/*/*"))


def dangers(directory: Path) -> list[str]:
    """Say what in a store keeps Ollama from listing models that are whole. Raises ``OSError``."""
    found = []
    if (directory / "manifests-v2").is_dir():
        found.append(f"{directory} has a manifests-v2 directory, which this version does not fill")
    found += [
        f"{path} is a link to nothing: Ollama lists no model at all as long as it is there"
        for path in _tags(directory)
        if path.is_symlink() and not path.exists()
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
