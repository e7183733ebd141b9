"""The shape of a model from its GGUF headers, with the rules that llama.cpp has for each architecture.

Source: ``llama-hparams.cpp``, ``llama-model.cpp`` and ``src/models/*.cpp`` of llama.cpp (late 2026). Keys are those of the GGUF
specification; what an architecture does beside them is in the tables below.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modelvault.fit.shape import Attention, Layer, Shape
from modelvault.formats.gguf import GgufHeader

_LAYER = re.compile(r"blk\.(\d{1,4})\.")
_MAX_LAYERS = 1024

# Every n-th layer looks at everything, the others through a window; ``True``: the first of each n rather than the last.
_PATTERNS = {
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "exaone-moe": (4, False),
    "exaone4": (4, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "laguna": (4, True),
    "llama4": (4, False),
    "mellum": (4, False),
    "muse-glimmer": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
_PATTERN_IN_FILE = {"gemma4", "granite_swa", "maple", "mimo2", "spark2_5", "step35"}
_WINDOW_UNLESS_SAID = {"exaone-moe": 128, "exaone4": 4096, "gemma2": 4096}
_WINDOW_ALWAYS = {"llama4": 8192, "smallthinker": 4096}
_EXAONE4_WINDOWED_LAYERS = 64  # only the 32B has windows

_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
_LINEAR_BUT_EVERY_NTH = {"qwen3next", "qwen35", "qwen35moe"}
_LINEAR_WITHOUT_HEADS = {"granitehybrid", "jamba", "kimi-linear", "lfm2", "lfm2moe", "plamo2"}
_NEMOTRON = {"nemotron_h", "nemotron_h_moe"}
_BOTH = {"falcon-h1"}
_WITHOUT_CACHE = {
    *("bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert"),
    *("gemma-embedding", "dream", "llada", "llada-moe", "rnd1", "clip", "t5encoder"),
}
_PLAIN = frozenset(
    [
        "apertus",
        "arcee",
        "arctic",
        "baichuan",
        "bailingmoe",
        "bailingmoe2",
        "bitnet",
        "bloom",
        "chameleon",
        "chatglm",
        "codeshell",
        "cogvlm",
        "command-r",
        "dbrx",
        "deci",
        "deepseek",
        "deepseek2",
        "deepseek2-ocr",
        "dots1",
        "ernie4_5",
        "ernie4_5-moe",
        "exaone",
        "falcon",
        "gemma",
        "glm4",
        "glm4moe",
        "gpt2",
        "gptj",
        "gptneox",
        "granite",
        "granitemoe",
        "grok",
        "grovemoe",
        "hunyuan-dense",
        "hunyuan-moe",
        "hunyuan_vl",
        "internlm2",
        "jais",
        "jais2",
        "llama",
        "llama-embed",
        "maincoder",
        "minicpm",
        "minicpm3",
        "minimax-m2",
        "mistral3",
        "mistral4",
        "mpt",
        "nemotron",
        "olmo",
        "olmoe",
        "openelm",
        "orion",
        "paddleocr",
        "pangu-embedded",
        "phi2",
        "phi3",
        "phimoe",
        "plamo",
        "plm",
        "qwen",
        "qwen2",
        "qwen2moe",
        "qwen2vl",
        "qwen3",
        "qwen3moe",
        "qwen3vl",
        "qwen3vlmoe",
        "refact",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder",
        "starcoder2",
        "xverse",
    ]
)
"""Architectures whose layers all attend alike, as their keys say."""

_KNOWN = (
    _PLAIN
    | _PATTERNS.keys()
    | _PATTERN_IN_FILE
    | _RECURRENT
    | _LINEAR_BUT_EVERY_NTH
    | _LINEAR_WITHOUT_HEADS
    | _NEMOTRON
    | _BOTH
    | _WITHOUT_CACHE
)
_SHARED_CACHE_FROM = {"gemma3n": 20}  # layers from here on use the cache of earlier ones


def gguf_shape(headers: Sequence[GgufHeader], *, projector: int = 0) -> Shape:
    """Give the shape of a model from the headers of its file, or of all its shards in order; ``projector`` in bytes.

    Of an architecture that is not known here, the weights are exact, and the rest is named in ``unknown``.
    """
    reader = _Reader(headers[0])
    weights, first, last = _weights(headers)
    count = min(reader.integer("block_count") or max(weights, default=-1) + 1, _MAX_LAYERS)
    # The blocks that predict further tokens are loaded only for speculation.
    own = count - (reader.integer("nextn_predict_layers") or 0)
    known = reader.architecture in _KNOWN
    layers = tuple(
        replace(reader.layer(number) if known and number < own else Layer(0), weights=weights.get(number, 0))
        for number in range(count)
    )
    names = {tensor.name for header in headers for tensor in header.tensors}
    return Shape(
        architecture=reader.architecture,
        layers=layers,
        input_weights=first,
        output_weights=last,
        tied="output.weight" not in names,
        embedding=reader.integer("embedding_length") or 0,
        feed_forward=reader.feed_forward(count),
        heads=max(reader.per_layer("attention.head_count", count), default=0),
        vocabulary=_vocabulary(headers),
        context=headers[0].context_length,
        projector=projector,
        quantization=headers[0].quantization,
        unknown=() if known else (f"the cache of the architecture {reader.architecture}",),
    )


def _weights(headers: Sequence[GgufHeader]) -> tuple[dict[int, int], int, int]:
    """Give the bytes of each repeating layer, of the token embeddings, and of the rest."""
    layers: dict[int, int] = {}
    first = last = 0
    for header in headers:
        for tensor in header.tensors:
            if match := _LAYER.match(tensor.name):
                layers[int(match[1])] = layers.get(int(match[1]), 0) + tensor.size
            elif tensor.name.startswith(("token_embd", "per_layer_token_embd", "token_types", "position_embd")):
                first += tensor.size
            else:
                last += tensor.size
    return layers, first, last


def _vocabulary(headers: Sequence[GgufHeader]) -> int:
    shapes = [tensor.shape for header in headers for tensor in header.tensors if tensor.name == "token_embd.weight"]
    return shapes[0][-1] if shapes else 0


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the keys of one architecture."""

    header: GgufHeader

    @property
    def architecture(self) -> str:
        return self.header.architecture or "unknown"

    def integer(self, key: str) -> int | None:
        return self.header.integer(f"{self.architecture}.{key}")

    def per_layer(self, key: str, count: int) -> list[int]:
        """Give a value for each layer, where the file has one for all or an array."""
        array = self.header.arrays.get(f"{self.architecture}.{key}")
        if array is not None:
            whole = [value if isinstance(value, int) and value > 0 else 0 for value in array[:count]]
            return [*whole, *[0] * (count - len(whole))]
        one = self.integer(key)
        return [] if one is None else [one] * count

    def _at(self, key: str, number: int) -> int | None:
        values = self.per_layer(key, number + 1)
        return values[number] if values else None

    def feed_forward(self, count: int) -> int:
        """Give the width of the widest feed-forward network, that of all experts which work on a token together."""
        dense = max(self.per_layer("feed_forward_length", count), default=0)
        used = max(self.per_layer("expert_used_count", count), default=0)
        expert = max(self.per_layer("expert_feed_forward_length", count), default=0) or dense
        # A recurrent layer has no such network; what it computes is about as wide as two of its inner states.
        return max(dense, used * expert, 2 * (self.integer("ssm.inner_size") or 0))

    def layer(self, number: int) -> Layer:
        name = self.architecture
        if name in _BOTH:
            return Layer(0, self._attention(number), self._state())
        if name in _RECURRENT or self._is_linear(number):
            return Layer(0, state=self._state())
        keeps_nothing = name in _WITHOUT_CACHE or self._shares_cache(number)
        return Layer(0, None if keeps_nothing else self._attention(number))

    def _is_linear(self, number: int) -> bool:
        if self.architecture in _LINEAR_BUT_EVERY_NTH:
            said = self.header.arrays.get(f"{self.architecture}.attention.recurrent_layers")
            if said is not None:
                return number < len(said) and bool(said[number])
            return (number + 1) % (self.integer("full_attention_interval") or 4) != 0
        without_heads = self.architecture in _LINEAR_WITHOUT_HEADS | _NEMOTRON
        return without_heads and not self._at("attention.head_count_kv", number) and not self._only_feeds(number)

    def _only_feeds(self, number: int) -> bool:
        """Tell Nemotron's layers that only feed forward from the others: they keep nothing."""
        return self.architecture in _NEMOTRON and bool(self._at("feed_forward_length", number))

    def _shares_cache(self, number: int) -> bool:
        """Tell the layers that keep nothing of their own."""
        if self._only_feeds(number):
            return True
        if (shared := self.integer("attention.shared_kv_layers")) and self.architecture == "gemma4":
            return number >= (self.integer("block_count") or 0) - shared
        return number >= _SHARED_CACHE_FROM.get(self.architecture, _MAX_LAYERS)

    def _attention(self, number: int) -> Attention:
        heads = self._at("attention.head_count", number) or 0
        shared = self._at("attention.head_count_kv", number)
        whole = max(self.per_layer("attention.head_count", number + 1), default=0)
        common = (self.integer("embedding_length") or 0) // whole if whole else 0
        key, value = self.integer("attention.key_length") or common, self.integer("attention.value_length") or common
        window = self._window(number)
        if window is not None:
            key = self.integer("attention.key_length_swa") or key
            value = self.integer("attention.value_length_swa") or value
        latent = bool(self.integer("attention.key_length_mla"))
        return Attention(heads if shared is None else shared, key, value, window, latent)

    def _window(self, number: int) -> int | None:
        name = self.architecture
        said = self.integer("attention.sliding_window")
        window = _WINDOW_ALWAYS.get(name) or said or _WINDOW_UNLESS_SAID.get(name)
        if name == "llama4" and said == 0:
            window = None
        if name == "exaone4" and self.integer("block_count") != _EXAONE4_WINDOWED_LAYERS:
            window = None
        if not window or not (name in _PATTERNS or name in _PATTERN_IN_FILE or name in {"lfm2", "lfm2moe"}):
            return None
        if name.startswith("lfm2"):
            return window
        marks = self.header.arrays.get(f"{name}.attention.sliding_window_pattern")
        if marks is not None:
            return window if number < len(marks) and marks[number] else None
        every, first = _PATTERNS.get(name, (1, False))
        every = self.integer("attention.sliding_window_pattern") or every
        everything = number % every == 0 if first else number % every == every - 1
        return None if everything else window

    def _state(self) -> int:
        """Elements of a recurrent layer's state (``n_embd_r`` and ``n_embd_s`` of llama-hparams.cpp)."""
        width = self.integer("embedding_length") or 0
        if head := self.integer("wkv.head_size"):
            return width * ((self.integer("token_shift_count") or 2) + head)
        if cached := self.integer("shortconv.l_cache"):
            return width * (cached - 1)
        kernel = self.integer("ssm.conv_kernel") or 0
        if head := self.integer("kda.head_dim"):
            heads = self._at("attention.head_count", 0) or 0
            return 3 * (kernel - 1 if kernel else 3) * heads * head + head * head * heads
        inner, state = self.integer("ssm.inner_size") or 0, self.integer("ssm.state_size") or 0
        groups = self.integer("ssm.group_count") or 0
        return max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner
