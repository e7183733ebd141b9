"""Ollama stores as release 0.24.0 writes them, made without it: manifests and blobs, byte for byte in its form."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelvault.ollama_name import OllamaName

TEMPLATE = b"{{ if .System }}<|system|>{{ .System }}<|end|>{{ end }}<|user|>{{ .Prompt }}<|end|>"
PARAMS = b'{"num_ctx":256,"num_gqa":8,"stop":["\\u003c|end|\\u003e","\\u003c|user|\\u003e"],"temperature":0.7}\n'
MESSAGES = b'[{"role":"user","content":"hi"},{"role":"assistant","content":"hello"}]\n'
TEXTS = (
    ("template", TEMPLATE),
    ("system", b"Answer briefly."),
    ("license", b"Free\n\nfor all.\n"),
    ("license", b"Or not"),
    ("params", PARAMS),
    ("messages", MESSAGES),
)
"""Layers that are texts. ``num_gqa`` is a parameter that Ollama knew once, and that no Modelfile may set today."""


def write_model(models: Path, name: str, layers: Sequence[tuple[str, bytes | Path]], **config: Any) -> str:
    """Write a model of these layers (kind, and bytes or a file) into a store; give the SHA-256 of its manifest."""
    described = [_blob(models, f"application/vnd.ollama.image.{kind}", content) for kind, content in layers]
    rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in described]}
    table = {"model_format": "gguf", "model_family": "llama", **config, "os": "linux", "rootfs": rootfs}
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": _blob(models, "application/vnd.docker.container.image.v1+json", _line(table)),
        "layers": described,
    }
    path = models / "manifests" / OllamaName.parse(name).path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_line(document))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _line(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _blob(models: Path, media: str, content: bytes | Path) -> dict[str, Any]:
    data = content if isinstance(content, bytes) else content.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    (models / "blobs").mkdir(parents=True, exist_ok=True)
    (models / "blobs" / f"sha256-{digest}").write_bytes(data)
    origin = {} if isinstance(content, bytes) else {"from": str(content)}
    return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data), **origin}


def snapshot_of(models: Path) -> dict[str, bytes]:
    """All manifests and blobs of a store, by path."""
    places = (models / "manifests", models / "blobs")
    return {
        str(path.relative_to(models)): path.read_bytes()
        for place in places
        for path in place.rglob("*")
        if path.is_file()
    }
