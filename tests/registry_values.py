"""Models, reports and events for the registry's tests."""

import contextlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelvault.artifact import (
    ArraySummary,
    Digest,
    FileReport,
    FileSpec,
    Model,
    ModelName,
    Origin,
    Recipe,
    StoredModel,
    Traits,
)
from modelvault.modelpack import store_form
from modelvault.registry import Registry

TIME = "2026-01-31T12:00:00Z"
LATER = "2026-02-01T12:00:00Z"


@dataclass(frozen=True)
class Logged:
    """An event as a log would give it."""

    number: int
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    time: str = TIME


def stored(name: str = "org/tiny:Q4_K_M", *, weights: bytes = b"weights", recipe: Recipe | None = None) -> StoredModel:
    """A small model; equal ``weights`` give the same blob."""
    digest = Digest.of_bytes(weights)
    files = (
        FileSpec("model.gguf", len(weights), digest, digest),
        FileSpec("README.md", 3, Digest.of_bytes(b"hi\n"), Digest.parse("git-sha1:" + "a" * 40)),
    )
    traits = Traits("gguf", "llama", "Q4_K_M", 1_000, 4096)
    return store_form(
        Model(
            ModelName(name),
            Origin("hub", "org/tiny", "c" * 40),
            files,
            traits,
            "apache-2.0",
            recipe,
            "https://license.example/2.0",
        )
    )


def report() -> FileReport:
    """What the weight file of such a model says about itself, with every kind of value."""
    return FileReport(
        format="gguf",
        metadata={
            "general.name": "tiny",
            "llama.context_length": 4096,
            "big": 2**64 - 1,
            "llama.rope.freq_base": 10000.5,
            "tokenizer.ggml.add_bos_token": True,
            "nothing": None,
            "tokenizer.ggml.tokens": ArraySummary("string", 128_256, Digest.of_bytes(b"tokens")),
        },
        tensors=3,
        parameters=1_000,
        architecture="llama",
        quantization="Q4_K_M",
        warnings=("one tensor has no name",),
    )


def install_record(name: str = "tiny:latest", model: str = "org/tiny:Q4_K_M") -> dict[str, Any]:
    """An install's record, as an engine's adapter gives it."""
    return {
        "engine": "ollama",
        "directory": "/srv/ollama/models",
        "model": model,
        "manifest": "sha256:" + "1" * 64,
        "installed_name": name,
        "files": [{"path": "blobs/sha256-1", "size": 7}],
        "modelfile": "PARAMETER temperature 0.5\n",
    }


def applied(registry: Registry, *events: Logged) -> None:
    """Apply events that follow on each other, as the vault does."""
    with registry.history() as history:
        for event in events:
            history.apply(event)


def followed(registry: Registry, *events: Logged) -> int:
    """Have the registry follow a log of just these events; give how many of its own are no longer in there."""
    with registry.history() as history:
        return history.follow(lambda: events)


def mirrored(registry: Registry) -> list[tuple[int, str, dict[str, Any]]]:
    """The events that were applied: number, kind and data."""
    with contextlib.closing(sqlite3.connect(registry.path)) as connection:
        rows = connection.execute("SELECT number, kind, data FROM events ORDER BY number").fetchall()
    return [(number, kind, json.loads(data)) for number, kind, data in rows]
