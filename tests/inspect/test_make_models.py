"""The models that demo, tests and benchmarks live on: the same on every machine, and real."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_models
import numpy as np
import pytest
import tokenizers
from make_models import SENTENCE
from real_engines import llama_generate

from modelvault.inspect import inspect_model


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir()}


def test_same_bytes_again(models: Path, tmp_path: Path) -> None:
    """If it fails, digests in tests and tables change from run to run."""
    make_models.make_gguf_repository(tmp_path / "gguf")
    make_models.make_awq(tmp_path / "awq")
    assert digests(tmp_path / "gguf") == digests(models / "gguf")
    assert digests(tmp_path / "awq") == digests(models / "awq")
    make_models.make_gguf(tmp_path / "other.gguf", seed=1)
    assert (tmp_path / "other.gguf").read_bytes() != (models / "gguf" / "tiny-Q8_0.gguf").read_bytes()


def test_tokenizer_knows_the_sentence(models: Path) -> None:
    """If it fails, the sentence is not one token per word, and no engine completes it."""
    tokenizer: Any = tokenizers.Tokenizer.from_file(str(models / "awq" / "tokenizer.json"))
    ids = tokenizer.encode(SENTENCE).ids
    assert tuple(ids) == make_models.make_vocabulary().sentence
    assert tokenizer.decode(ids) == SENTENCE
    assert tokenizer.decode(tokenizer.encode("Grüße, 世界!").ids) == "Grüße, 世界!"


def test_awq_packing_can_be_undone() -> None:
    """If it fails, the AWQ weights are not those that were quantized."""
    weight = np.random.default_rng(0).standard_normal((64, 256), np.float32)
    parts = make_models.quantize_awq(weight, 128)

    def unpack(packed: Any) -> Any:
        order = [0, 4, 1, 5, 2, 6, 3, 7]  # undoes AutoAWQ's interleaving
        nibbles = (packed.view(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
        return nibbles[..., order].reshape(packed.shape[0], -1).astype(np.float32)

    scales, zeros = np.repeat(parts["scales"], 128, 0), np.repeat(unpack(parts["qzeros"]), 128, 0)
    restored = (unpack(parts["qweight"]) - zeros) * scales
    assert np.abs(restored - weight.T).max() <= scales.max()


@pytest.mark.parametrize("size", [2_000_000, 30_000_000])
def test_large_models_are_sound_and_of_the_size_asked_for(tmp_path: Path, size: int) -> None:
    """If it fails, benchmarks and transfer tests run on files that are invalid or of another size."""
    make_models.make_large_gguf(tmp_path / "large.gguf", size)
    assert abs((tmp_path / "large.gguf").stat().st_size / size - 1) < 0.2
    assert inspect_model(files(tmp_path)).traits.quantization == "Q8_0"
    folder = tmp_path / "large"
    make_models.make_large_safetensors(folder, size, shards=2)
    assert abs(sum(path.stat().st_size for path in folder.glob("*.safetensors")) / size - 1) < 0.2
    found = inspect_model(files(folder))
    assert found.traits.quantization == "AWQ 4-bit g128"
    assert found.warnings == ()


def test_command_line(tmp_path: Path) -> None:
    """If it fails, the demo cannot make its models."""
    script = Path(make_models.__file__)
    for kind in ("gguf", "split-gguf", "awq", "safetensors"):
        folder = tmp_path / kind
        done = subprocess.run([sys.executable, script, kind, folder], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == str(folder)
        assert inspect_model(files(folder)).warnings == ()


def test_a_real_vocabulary_is_copied(real_vocabularies: list[Path], tmp_path: Path) -> None:
    """If it fails, tiny models with the tokenizer of a real one have another tokenizer."""
    source = min(real_vocabularies, key=lambda path: path.stat().st_size)
    path = tmp_path / "tiny.gguf"
    make_models.make_gguf(path, vocabulary=source)
    copied = inspect_model({"tiny.gguf": path}).reports["tiny.gguf"].metadata
    original = inspect_model({"vocab.gguf": source}).reports["vocab.gguf"].metadata
    keys = [key for key in original if key.startswith("tokenizer.")]
    assert keys
    assert [copied[key] for key in keys] == [original[key] for key in keys]


@pytest.mark.engine
@pytest.mark.parametrize("name", ["gguf/tiny-Q8_0.gguf", "split/tiny-00001-of-00003.gguf"])
def test_llama_cpp_says_the_sentence(models: Path, name: str) -> None:
    """If it fails, the GGUF models are valid for us only, and the real llama.cpp does not run them."""
    assert llama_generate(models / name, "hello", tokens=24) == SENTENCE
