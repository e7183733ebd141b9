"""GGUF files of real models' shapes whose weights are holes: as long as the real ones, and nothing on the disk.

llama.cpp maps them and reports what it would need; what they compute is nothing.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Q8_0, F32, F16, Q4_K = (
    gguf.GGMLQuantizationType.Q8_0,
    gguf.GGMLQuantizationType.F32,
    gguf.GGMLQuantizationType.F16,
    gguf.GGMLQuantizationType.Q4_K,
)


@dataclass(frozen=True)
class Spec:
    """A model to be made. ``keys`` are metadata without the architecture's name before them."""

    architecture: str
    layers: int
    embedding: int
    heads: int
    kv_heads: int
    head: int
    feed_forward: int
    vocabulary: int
    context: int = 8192
    keys: Mapping[str, Any] = field(default_factory=dict)
    kind: gguf.GGMLQuantizationType = Q8_0
    experts: int = 0
    tied: bool = False


LLAMA_8B = Spec("llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072)
LLAMA_70B = Spec("llama", 80, 8192, 64, 8, 128, 28672, 128256, 131072, kind=Q4_K)
MIXTRAL = Spec("llama", 4, 4096, 32, 8, 128, 14336, 32000, 32768, experts=8)
GEMMA2 = Spec("gemma2", 8, 4608, 32, 16, 128, 36864, 256000, 8192, {"attention.sliding_window": 4096}, tied=True)
GEMMA3 = Spec("gemma3", 13, 1152, 4, 1, 256, 6912, 262144, 32768, {"attention.sliding_window": 512}, tied=True)
QWEN2_3B = Spec("qwen2", 36, 2048, 16, 2, 128, 11008, 151936, 32768, tied=True)
DEEPSEEK2 = Spec(
    "deepseek2", 4, 2048, 16, 1, 192, 10944, 102400, 163840,
    {
        "attention.q_lora_rank": 1536, "attention.kv_lora_rank": 512, "attention.key_length": 576, "attention.value_length": 512,
        "attention.key_length_mla": 192, "attention.value_length_mla": 128, "leading_dense_block_count": 4,
        "expert_feed_forward_length": 1408, "expert_shared_count": 2, "expert_count": 64, "expert_used_count": 6,
        "expert_weights_scale": 1.0,
    },
)  # fmt: skip
MAMBA2 = Spec(
    "mamba2", 6, 768, 0, 0, 0, 0, 50288, 1 << 20,
    {"ssm.conv_kernel": 4, "ssm.inner_size": 1536, "ssm.state_size": 128, "ssm.time_step_rank": 24, "ssm.group_count": 1},
)  # fmt: skip


def make_shape(path: Path, spec: Spec) -> Path:
    """Write the header, and make the file as long as its tensors ask for."""
    writer = gguf.GGUFWriter(path, spec.architecture)
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_keys(writer, spec)
    _add_vocabulary(writer, spec.vocabulary)
    for name, shape, kind in _tensors(spec):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(
            name, shape[::-1], np.dtype(np.float32), math.prod(shape) // block * size, raw_dtype=kind
        ) if kind is F32 else _quantized(writer, name, shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    length = sum(-(-info.nbytes // 32) * 32 for table in writer.tensors for info in table.values())
    writer.close()
    with path.open("r+b") as file:
        file.seek(0, 2)
        file.truncate(-(-file.tell() // 32) * 32 + length)
    return path


def _quantized(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = (*shape[1:][::-1], shape[0] // block * size)
    writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=kind)


def _add_keys(writer: gguf.GGUFWriter, spec: Spec) -> None:
    name = spec.architecture
    numbers = {
        "context_length": spec.context,
        "embedding_length": spec.embedding,
        "block_count": spec.layers,
        "feed_forward_length": spec.feed_forward,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "vocab_size": spec.vocabulary,
        **({"expert_count": spec.experts, "expert_used_count": 2} if spec.experts else {}),
        **({"rope.dimension_count": 64 if name == "deepseek2" else spec.head} if spec.head else {}),
    }
    if spec.head:
        numbers |= {"attention.key_length": spec.head, "attention.value_length": spec.head}
    for key, value in {**numbers, **spec.keys}.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{name}.{key}", value)
    writer.add_float32(f"{name}.attention.layer_norm_rms_epsilon", 1e-5)


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{number}" for number in range(size)])
    writer.add_token_types([1] * size)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


Tensor = tuple[str, tuple[int, ...], gguf.GGMLQuantizationType]


def _tensors(spec: Spec) -> Iterator[Tensor]:
    """List the tensors, the fastest dimension first."""
    yield "token_embd.weight", (spec.embedding, spec.vocabulary), spec.kind
    yield "output_norm.weight", (spec.embedding,), F32
    if not spec.tied:
        yield "output.weight", (spec.embedding, spec.vocabulary), spec.kind
    for number in range(spec.layers):
        for name, shape, kind in _layer(spec):
            yield f"blk.{number}.{name}", shape, kind


def _layer(spec: Spec) -> Iterator[Tensor]:
    width, kind = spec.embedding, spec.kind
    if spec.architecture == "mamba2":
        yield from _mamba(spec)
        return
    yield "attn_norm.weight", (width,), F32
    if spec.architecture == "deepseek2":
        yield from _latent(spec)
    else:
        yield "attn_q.weight", (width, spec.heads * spec.head), kind
        yield "attn_k.weight", (width, spec.kv_heads * spec.head), kind
        yield "attn_v.weight", (width, spec.kv_heads * spec.head), kind
        yield "attn_output.weight", (spec.heads * spec.head, width), kind
    if spec.architecture == "qwen2":
        yield "attn_q.bias", (spec.heads * spec.head,), F32
        yield "attn_k.bias", (spec.kv_heads * spec.head,), F32
        yield "attn_v.bias", (spec.kv_heads * spec.head,), F32
    if spec.architecture == "gemma3":
        yield "attn_q_norm.weight", (spec.head,), F32
        yield "attn_k_norm.weight", (spec.head,), F32
    if spec.architecture.startswith("gemma"):
        yield "post_attention_norm.weight", (width,), F32
        yield "post_ffw_norm.weight", (width,), F32
    yield "ffn_norm.weight", (width,), F32
    if spec.experts:
        yield "ffn_gate_inp.weight", (width, spec.experts), F32
        yield "ffn_gate_exps.weight", (width, spec.feed_forward, spec.experts), kind
        yield "ffn_up_exps.weight", (width, spec.feed_forward, spec.experts), kind
        yield "ffn_down_exps.weight", (spec.feed_forward, width, spec.experts), kind
        return
    yield "ffn_gate.weight", (width, spec.feed_forward), kind
    yield "ffn_up.weight", (width, spec.feed_forward), kind
    yield "ffn_down.weight", (spec.feed_forward, width), kind


def _latent(spec: Spec) -> Iterator[Tensor]:
    keys, kind = spec.keys, spec.kind
    queries, rank = keys["attention.q_lora_rank"], keys["attention.kv_lora_rank"]
    key, value, rope = keys["attention.key_length_mla"], keys["attention.value_length_mla"], 64
    yield "attn_q_a_norm.weight", (queries,), F32
    yield "attn_kv_a_norm.weight", (rank,), F32
    yield "attn_q_a.weight", (spec.embedding, queries), kind
    yield "attn_q_b.weight", (queries, spec.heads * key), kind
    yield "attn_kv_a_mqa.weight", (spec.embedding, rank + rope), kind
    yield "attn_k_b.weight", (key - rope, rank, spec.heads), kind
    yield "attn_v_b.weight", (rank, value, spec.heads), kind
    yield "attn_output.weight", (spec.heads * value, spec.embedding), kind


def _mamba(spec: Spec) -> Iterator[Tensor]:
    keys, width = spec.keys, spec.embedding
    inner, state, heads = keys["ssm.inner_size"], keys["ssm.state_size"], keys["ssm.time_step_rank"]
    groups = keys["ssm.group_count"]
    mixed = inner + 2 * groups * state
    yield "attn_norm.weight", (width,), F32
    yield "ssm_in.weight", (width, inner + mixed + heads), spec.kind
    yield "ssm_conv1d.weight", (keys["ssm.conv_kernel"], mixed), F32
    yield "ssm_conv1d.bias", (mixed,), F32
    yield "ssm_dt.bias", (heads,), F32
    yield "ssm_a", (1, heads), F32
    yield "ssm_d", (1, heads), F32
    yield "ssm_norm.weight", (inner // groups, groups), F32
    yield "ssm_out.weight", (inner, width), spec.kind
