"""Make small real models, the same bytes on every machine, for the demo, the tests and the benchmarks.

The small ones are Llamas that real engines load. They are built rather than trained: the embedding of each word matches the
output row of the word after it in ``SENTENCE``, so an engine completes any prompt with that sentence. The large ones have the same structure and random weights, written in bounded memory.

    python scripts/make_models.py gguf DIR              a GGUF repository
    python scripts/make_models.py split-gguf DIR        the same in shards
    python scripts/make_models.py awq DIR               an AWQ repository for vLLM
    python scripts/make_models.py safetensors DIR       an unquantized repository in shards, with an index
    python scripts/make_models.py large-gguf DIR --size 2000000000
    python scripts/make_models.py large-safetensors DIR --size 2000000000 --shards 4
"""

import argparse
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import quantize
from tiny_llama import (
    CHAT_TEMPLATE,
    SENTENCE,
    SMALL,
    Array,
    Shape,
    Vocabulary,
    large_shape,
    linears,
    make_vocabulary,
    tensor_shapes,
    tokenizer_files,
    weights,
)

__all__ = [
    "CHAT_TEMPLATE",
    "SENTENCE",
    "SMALL",
    "Shape",
    "make_awq",
    "make_gguf",
    "make_gguf_repository",
    "make_large_gguf",
    "make_large_safetensors",
    "make_sharded_safetensors",
    "make_split_gguf",
    "make_vocabulary",
    "quantize_awq",
    "write_safetensors",
]

_LICENSE = "apache-2.0"
_LICENSE_TEXT = "Licensed under the Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0\n"

# ── GGUF ──

_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def _gguf_name(name: str) -> str:
    if name in _GGUF_NAMES:
        return _GGUF_NAMES[name]
    _, _, layer, inner = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_GGUF_NAMES[inner]}.weight"


def _describe(writer: gguf.GGUFWriter, name: str, shape: Shape, file_type: gguf.LlamaFileType) -> None:
    """Write the metadata of the model itself."""
    writer.add_type("model")
    writer.add_name(name)
    writer.add_license(_LICENSE)
    writer.add_file_type(int(file_type))
    writer.add_quantization_version(2)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.key_value_heads)
    writer.add_rope_dimension_count(shape.head)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Write our own vocabulary."""
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    special = {vocabulary.begin, vocabulary.end}
    writer.add_vocab_size(vocabulary.size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([control if index in special else normal for index in range(vocabulary.size)])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    writer.add_bos_token_id(vocabulary.begin)
    writer.add_eos_token_id(vocabulary.end)
    writer.add_add_bos_token(value=False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _copy_vocabulary(writer: gguf.GGUFWriter, source: Path) -> int:
    """Copy the tokenizer's keys from a GGUF file; gives the number of tokens."""
    size = 0
    for key, kind, inner, value in _read_metadata(source):
        if key.startswith("tokenizer."):
            writer.add_key_value(key, value, kind, inner)
        if key == "tokenizer.ggml.tokens":
            size = len(value)
    writer.add_vocab_size(size)
    return size


_NUMBERS = {
    gguf.GGUFValueType.UINT8: "B",
    gguf.GGUFValueType.INT8: "b",
    gguf.GGUFValueType.UINT16: "H",
    gguf.GGUFValueType.INT16: "h",
    gguf.GGUFValueType.UINT32: "I",
    gguf.GGUFValueType.INT32: "i",
    gguf.GGUFValueType.FLOAT32: "f",
    gguf.GGUFValueType.BOOL: "?",
    gguf.GGUFValueType.UINT64: "Q",
    gguf.GGUFValueType.INT64: "q",
    gguf.GGUFValueType.FLOAT64: "d",
}


def _read_metadata(path: Path) -> Iterator[tuple[str, gguf.GGUFValueType, gguf.GGUFValueType | None, Any]]:
    """Read the metadata of a GGUF file that is known to be good; ``gguf.GGUFReader`` takes ten seconds for 128k tokens."""
    data = path.read_bytes()
    at = 16

    def number(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return value

    def text() -> bytes:
        nonlocal at
        length = number("Q")
        at += length
        return data[at - length : at]

    for _ in range(number("Q")):
        key, kind, inner = text().decode(), gguf.GGUFValueType(number("I")), None
        value: Any
        if kind == gguf.GGUFValueType.ARRAY:
            inner, length = gguf.GGUFValueType(number("I")), number("Q")
            value = [text() if inner == gguf.GGUFValueType.STRING else number(_NUMBERS[inner]) for _ in range(length)]
        else:
            value = text().decode() if kind == gguf.GGUFValueType.STRING else number(_NUMBERS[kind])
        yield key, kind, inner, value


def make_gguf(
    path: Path, *, name: str = "tiny", shape: Shape = SMALL, vocabulary: Path | None = None, seed: int = 0
) -> None:
    """Write a Llama with Q8_0 weights that llama.cpp loads and generates from.

    With ``vocabulary``, a GGUF file whose tokenizer is copied (a real one of 128k tokens makes a tiny model realistic), the
    weights are random and so is what the model says.
    """
    _write_gguf(gguf.GGUFWriter(path, "llama"), name=name, shape=shape, vocabulary=vocabulary, seed=seed)


def make_split_gguf(directory: Path, *, name: str = "tiny", shards: int = 3, seed: int = 0) -> list[Path]:
    """Write the same model in shards ``<name>-0000x-of-0000N.gguf``, as ``llama-gguf-split`` would; gives their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = 3 + SMALL.layers * (len(linears(SMALL)) + 2)
    writer = gguf.GGUFWriter(directory / f"{name}.gguf", "llama", split_max_tensors=-(-tensors // shards))
    _write_gguf(writer, name=name, shape=SMALL, vocabulary=None, seed=seed)
    return sorted(directory.glob(f"{name}-*-of-*.gguf"))


def _write_gguf(writer: gguf.GGUFWriter, *, name: str, shape: Shape, vocabulary: Path | None, seed: int) -> None:
    own = make_vocabulary()
    _describe(writer, name, shape, gguf.LlamaFileType.MOSTLY_Q8_0)
    if vocabulary is None:
        _add_vocabulary(writer, own)
    else:
        size = _copy_vocabulary(writer, vocabulary)
        own = replace(own, tokens=(*own.tokens, *(f"<{index}>" for index in range(own.size, size))))
    for tensor, values in weights(shape, own, seed):
        if values.ndim == 1:
            writer.add_tensor(_gguf_name(tensor), values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(_gguf_name(tensor), quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_gguf_repository(directory: Path, *, name: str = "tiny", seed: int = 0) -> None:
    """Write a folder as a Hub repository of GGUF files has it: one Q8_0 model, a model card, a license."""
    directory.mkdir(parents=True, exist_ok=True)
    make_gguf(directory / f"{name}-Q8_0.gguf", name=name, seed=seed)
    _write_card(directory, name, "gguf")


def make_large_gguf(path: Path, size: int, *, seed: int = 0) -> None:
    """Write a Llama of about ``size`` bytes (at least 1 MB) with random Q8_0 weights that do not compress."""
    shape = large_shape(size, bytes_per_weight=34 / 32)
    vocabulary = make_vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, path.stem, shape, gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_vocabulary(writer, vocabulary)
    plan = dict(tensor_shapes(shape, vocabulary.size))
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, size_of in plan.items():
        if len(size_of) == 1:
            writer.add_tensor_info(_gguf_name(name), size_of, np.dtype(np.float32), 4 * size_of[0])
        else:
            stored = (size_of[0], size_of[1] // 32 * 34)
            writer.add_tensor_info(_gguf_name(name), stored, np.dtype(np.uint8), stored[0] * stored[1], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.Generator(np.random.SFC64(seed))
    for size_of in plan.values():
        if len(size_of) == 1:
            writer.write_tensor_data(np.ones(size_of, np.float32))
        else:
            blocks = _random_bytes(random, size_of[0] * size_of[1] // 32 * 34).reshape(-1, 34)
            # The high byte of a block's float16 scale; a random one would make infinities.
            blocks[:, 1] = 0x18
            writer.write_tensor_data(blocks)
    writer.close()


def _random_bytes(random: np.random.Generator, length: int) -> npt.NDArray[np.uint8]:
    return random.integers(0, 1 << 64, -(-length // 8), np.uint64).view(np.uint8)[:length]


# ── safetensors ──


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor of a safetensors file: its data are made when they are written, so that large ones do not pile up."""

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Array]


_ITEM = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4}


def write_safetensors(path: Path, tensors: Mapping[str, TensorPlan]) -> None:
    """Write a safetensors file as the Hugging Face library lays it out, one tensor at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, plan in tensors.items():
        end = offset + _ITEM[plan.dtype] * int(np.prod(plan.shape, dtype=np.int64))
        header[name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the library aligns the data to eight bytes with spaces
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for plan in tensors.values():
            file.write(plan.make().tobytes())


def _plan(values: Array) -> TensorPlan:
    """Plan a float32 or int32 array: floats are stored as float16."""
    if values.dtype == np.int32:
        return TensorPlan("I32", values.shape, lambda: values)
    return TensorPlan("F16", values.shape, lambda: values.astype(np.float16))


def _pack(values: Array) -> Array:
    """Pack 4-bit integers, eight per int32 along the last axis, in the interleaved order of AutoAWQ's GEMM kernels."""
    ordered = values.reshape(*values.shape[:-1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].astype(np.uint32)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    packed: Array = np.bitwise_or.reduce(ordered << shifts, axis=-1).view(np.int32)
    return packed


def quantize_awq(weight: Array, group: int) -> dict[str, Array]:
    """Quantize ``(outputs, inputs)`` to 4 bits per group of inputs: ``qweight``, ``qzeros``, ``scales`` with inputs first."""
    outputs, inputs = weight.shape
    grouped = weight.T.reshape(inputs // group, group, outputs)
    lowest, highest = grouped.min(axis=1).clip(max=0), grouped.max(axis=1).clip(min=0)
    scales = ((highest - lowest) / 15).clip(min=1e-4).astype(np.float16).astype(np.float32)
    zeros = np.round(-lowest / scales).clip(0, 15)
    levels = np.round(grouped / scales[:, None]) + zeros[:, None]
    return {
        "qweight": _pack(levels.clip(0, 15).reshape(inputs, outputs)),
        "qzeros": _pack(zeros),
        "scales": scales,
    }


def _is_linear(name: str) -> bool:
    return "_proj." in name


def make_awq(directory: Path, *, name: str = "tiny-awq", group: int = 128, seed: int = 0) -> None:
    """Write an AWQ repository (4 bits, one safetensors file, no index) that vLLM loads and generates from."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = make_vocabulary()
    tensors: dict[str, TensorPlan] = {}
    for tensor, values in weights(SMALL, vocabulary, seed):
        if _is_linear(tensor):
            stem = tensor.removesuffix("weight")
            tensors |= {stem + part: _plan(array) for part, array in quantize_awq(values, group).items()}
        else:
            tensors[tensor] = _plan(values)
    write_safetensors(directory / "model.safetensors", tensors)
    _write_repository(directory, name, SMALL, quantization=_awq_config(group))


def make_sharded_safetensors(directory: Path, *, name: str = "tiny-f16", shards: int = 3, seed: int = 0) -> None:
    """Write an unquantized float16 repository in shards with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {tensor: _plan(values) for tensor, values in weights(SMALL, make_vocabulary(), seed)}
    _write_shards(directory, tensors, shards)
    _write_repository(directory, name, SMALL, quantization=None)


def make_large_safetensors(directory: Path, size: int, *, shards: int = 4, seed: int = 0) -> None:
    """Write an AWQ repository of about ``size`` bytes (at least 1 MB) with random weights that do not compress."""
    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = make_vocabulary()
    group = 128
    shape = large_shape(size, bytes_per_weight=0.5 + 2.5 / group)
    random = np.random.Generator(np.random.SFC64(seed))

    def integers(size_of: tuple[int, int]) -> TensorPlan:
        return TensorPlan("I32", size_of, lambda: _random_bytes(random, 4 * size_of[0] * size_of[1]))

    def floats(size_of: tuple[int, ...]) -> TensorPlan:
        return TensorPlan("F16", size_of, lambda: (1 + random.random(size_of, np.float32)).astype(np.float16) / 256)

    tensors: dict[str, TensorPlan] = {}
    for name, size_of in tensor_shapes(shape, vocabulary.size):
        if _is_linear(name):
            (outputs, inputs), stem = size_of, name.removesuffix("weight")
            tensors[stem + "qweight"] = integers((inputs, outputs // 8))
            tensors[stem + "qzeros"] = integers((inputs // group, outputs // 8))
            tensors[stem + "scales"] = floats((inputs // group, outputs))
        else:
            tensors[name] = floats(size_of)
    _write_shards(directory, tensors, shards)
    _write_repository(directory, directory.name, shape, quantization=_awq_config(group))


def _write_shards(directory: Path, tensors: Mapping[str, TensorPlan], shards: int) -> None:
    """Spread tensors over shards of about the same size, with ``model.safetensors.index.json``."""
    sizes = {name: _ITEM[plan.dtype] * int(np.prod(plan.shape, dtype=np.int64)) for name, plan in tensors.items()}
    total, done = sum(sizes.values()), 0
    places: dict[str, str] = {}
    for index, (name, size) in enumerate(sizes.items()):
        # Each shard gets at least one tensor, whatever the sizes are.
        shard = min(max(done * shards // total, shards - (len(sizes) - index)), shards - 1, index)
        places[name] = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        done += size
    for file in sorted(set(places.values())):
        write_safetensors(directory / file, {name: tensors[name] for name in tensors if places[name] == file})
    _write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _awq_config(group: int) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_card(directory: Path, name: str, kind: str) -> None:
    card = (
        f"---\nlicense: {_LICENSE}\ntags:\n- {kind}\n---\n\n# {name}\n\nA model for testing. It knows one sentence.\n"
    )
    (directory / "README.md").write_text(card, encoding="utf-8")
    (directory / "LICENSE").write_text(_LICENSE_TEXT, encoding="utf-8")


def _write_repository(directory: Path, name: str, shape: Shape, *, quantization: Mapping[str, Any] | None) -> None:
    """Write what a safetensors repository has besides weights: configuration, tokenizer, model card, license."""
    vocabulary = make_vocabulary()
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary.size,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": vocabulary.begin,
        "eos_token_id": vocabulary.end,
        "torch_dtype": "float16",
    }
    if quantization is not None:
        config["quantization_config"] = dict(quantization)
    _write_json(directory / "config.json", config)
    generation = {"bos_token_id": vocabulary.begin, "eos_token_id": vocabulary.end, "do_sample": False}
    _write_json(directory / "generation_config.json", generation)
    for file, content in tokenizer_files(vocabulary).items():
        _write_json(directory / file, content)
    _write_card(directory, name, "awq" if quantization else "safetensors")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("gguf", "split-gguf", "awq", "safetensors", "large-gguf", "large-safetensors")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--name", help="what the model is called; default: the directory's name")
    parser.add_argument("--size", type=int, default=512_000_000, help="bytes of a large model; default 512 MB")
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    directory: Path = options.directory
    name = options.name or directory.name
    directory.mkdir(parents=True, exist_ok=True)
    if options.kind == "gguf":
        make_gguf_repository(directory, name=name, seed=options.seed)
    elif options.kind == "split-gguf":
        make_split_gguf(directory, name=name, shards=options.shards, seed=options.seed)
    elif options.kind == "awq":
        make_awq(directory, name=name, seed=options.seed)
    elif options.kind == "safetensors":
        make_sharded_safetensors(directory, name=name, shards=options.shards, seed=options.seed)
    elif options.kind == "large-gguf":
        make_large_gguf(directory / f"{name}-Q8_0.gguf", options.size, seed=options.seed)
        _write_card(directory, name, "gguf")
    else:
        make_large_safetensors(directory, options.size, shards=options.shards, seed=options.seed)
    print(directory)


if __name__ == "__main__":
    main()
