"""A GGUF model that engines load, as a vault of the engines' tests holds it: in one file and in shards."""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from engine_cases import MODELFILE, Blobs, Case
from make_models import make_gguf, make_split_gguf

from modelvault.artifact import Recipe, StoredModel, Traits

TRAITS = Traits("gguf", "llama", "Q8_0", 134_515_008)


def tiny_model(blobs: Blobs, where: Path, **changes: Any) -> StoredModel:
    """Store a model in one file, with the traits that its header has; ``changes`` are fields of ``Model``."""
    path = where / "tiny-Q8_0.gguf"
    make_gguf(path)
    parameters = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(path).tensors)
    fields = {"traits": Traits("gguf", "llama", "Q8_0", parameters)} | changes
    return blobs.model("org/tiny:Q8_0", {path.name: path.read_bytes()}, **fields)


def split_model(blobs: Blobs, where: Path, *, shards: int = 3, seed: int = 0) -> StoredModel:
    """Store a model in shards."""
    paths = make_split_gguf(where, shards=shards, seed=seed)
    content = {path.name: path.read_bytes() for path in paths}
    return blobs.model("org/tiny:Q8_0", content, traits=TRAITS)


def whole_model(where: Path) -> Path:
    """Write the same model in one file."""
    path = where / "whole.gguf"
    make_gguf(path)
    return path


@functools.cache
def small_shards() -> dict[str, bytes]:
    """Make two shards of a few numbers, which no engine could load."""
    with tempfile.TemporaryDirectory() as place:
        writer = gguf.GGUFWriter(Path(place) / "tiny.gguf", "llama", split_max_tensors=2)
        for number in range(3):
            writer.add_tensor(f"blk.{number}.weight", np.arange(33, dtype=np.float32) + number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return {path.name: path.read_bytes() for path in sorted(Path(place).iterdir())}


@dataclass(frozen=True)
class SplitCase(Case):
    """Ollama's adapter with a model in shards."""

    def stored(self, name: str = "org/tiny:Q8_0", *, weights: bytes | None = None, **changes: Any) -> StoredModel:
        """Store the shards."""
        assert weights is None
        fields = {"traits": TRAITS, "recipe": Recipe(modelfile=MODELFILE)} | changes
        return self.blobs.model(name, small_shards(), **fields)
