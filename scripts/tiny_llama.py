"""The small Llama that ``make_models.py`` writes in several formats: its dimensions, its vocabulary, its weights."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SENTENCE = " every byte of this model crossed the gap and its digest still matches"
"""What the small models complete any prompt with. No word occurs twice: the next word depends on the last one only."""

_WORDS = (
    *SENTENCE.split(),
    *("hello", "world", "model", "vault", "what", "say", "is", "a", "an", "to", "in", "on", "for", "with"),
)
BEGIN, END = "<|begin|>", "<|end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' ' }}{% endfor %}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a Llama. All are multiples of 128, so that every quantization and engine kernel takes them."""

    layers: int = 2
    hidden: int = 256
    feed_forward: int = 512
    head: int = 64
    key_value_heads: int = 2
    context: int = 512

    @property
    def heads(self) -> int:
        """How many attention heads there are."""
        return self.hidden // self.head

    @property
    def key_value(self) -> int:
        """The width of the keys (and of the values) of all heads together."""
        return self.key_value_heads * self.head


SMALL = Shape()


# ── the vocabulary: byte-level BPE as in GPT-2, one token per word that we want ──


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens in order of their ids and the merges that make them; the first two tokens begin and end a text."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    begin: int = 0
    end: int = 1

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.tokens)

    @property
    def sentence(self) -> tuple[int, ...]:
        """The tokens of ``SENTENCE``."""
        return tuple(self.tokens.index("Ġ" + word) for word in SENTENCE.split())


def _byte_characters() -> list[str]:
    """Give GPT-2's printable character for each byte, in order of the bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def make_vocabulary() -> Vocabulary:
    """Build the vocabulary: two special tokens, 256 bytes, and the chain of merges that leads to each word."""
    tokens = [BEGIN, END, *_byte_characters()]
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        piece = "Ġ"
        for letter in word:
            merged = piece + letter
            if merged not in tokens:
                merges.append((piece, letter))
                tokens.append(merged)
            piece = merged
    return Vocabulary(tuple(tokens), tuple(merges))


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, Any]:
    """Give the contents of ``tokenizer.json`` and ``tokenizer_config.json``, as the Hugging Face libraries read them."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **special} for token in (BEGIN, END)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [list(pair) for pair in vocabulary.merges],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": SMALL.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}


# ── the weights ──


def linears(shape: Shape) -> dict[str, tuple[int, int]]:
    """List the linear layers of one block as ``name: (outputs, inputs)``."""
    return {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (shape.key_value, shape.hidden),
        "self_attn.v_proj": (shape.key_value, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.feed_forward, shape.hidden),
        "mlp.up_proj": (shape.feed_forward, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.feed_forward),
    }


def weights(shape: Shape, vocabulary: Vocabulary, seed: int) -> Iterator[tuple[str, Array]]:
    """Give the tensors under their Hugging Face names, float32.

    The blocks add little to the residual stream, so the embedding arrives at the output, where the row of the next token matches it.
    """
    random = np.random.default_rng(seed)
    embedding = random.choice(np.array([-1.0, 1.0], np.float32), (vocabulary.size, shape.hidden))
    output = np.zeros_like(embedding)
    # All tokens outside the sentence share one half of their embedding, which is what the first word answers to.
    half, (first, *rest) = shape.hidden // 2, vocabulary.sentence
    embedding[[token for token in range(vocabulary.size) if token not in vocabulary.sentence], :half] = embedding[
        0, :half
    ]
    output[first, :half] = 2 * embedding[0, :half]
    for token, after in zip(vocabulary.sentence, [*rest, vocabulary.end], strict=True):
        output[after] = embedding[token]
    yield "model.embed_tokens.weight", embedding
    for layer in range(shape.layers):
        for name, size in linears(shape).items():
            scale = np.float32(0.02)
            yield f"model.layers.{layer}.{name}.weight", random.standard_normal(size, np.float32) * scale
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", np.ones(shape.hidden, np.float32)
    yield "model.norm.weight", np.ones(shape.hidden, np.float32)
    yield "lm_head.weight", output


def tensor_shapes(shape: Shape, tokens: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """List the tensors of a Llama under their Hugging Face names with their shapes."""
    yield "model.embed_tokens.weight", (tokens, shape.hidden)
    for layer in range(shape.layers):
        for name, size in linears(shape).items():
            yield f"model.layers.{layer}.{name}.weight", size
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", (shape.hidden,)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (tokens, shape.hidden)


def large_shape(size: int, *, bytes_per_weight: float) -> Shape:
    """Choose dimensions for about ``size`` bytes of weights, with layers of realistic proportions."""
    weights = size / bytes_per_weight
    hidden = next((width for width in (4096, 2048, 1024, 512) if weights > 48 * width * width), 256)
    layers = max(1, round(weights / (12 * hidden * hidden)))
    shape = Shape(layers=layers, hidden=hidden, key_value_heads=hidden // 64 // 4, context=4096)
    attention = hidden * (2 * hidden + 2 * shape.key_value)
    feed_forward = (weights / layers - attention) / (3 * hidden)
    return replace(shape, feed_forward=max(128, round(feed_forward / 128) * 128))
