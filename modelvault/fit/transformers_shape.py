"""The shape of a model from ``config.json`` and the headers of its safetensors files, as vLLM and its kin read them.

Source: the configuration classes of transformers, and ``vllm/model_executor/models`` and ``vllm/config/model.py`` of vLLM 0.32.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelvault.artifact import TensorInfo
from modelvault.fit.shape import Attention, Layer, Shape

_LAYER = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d{1,4})\.")
_MAX_LAYERS = 1024
_MAX_FACTOR = 1024
_VISION = ("vision", "visual", "multi_modal", "mm_projector", "image_newline", "audio_tower")
_PATTERN = {"gemma2": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4}  # configurations from before layer_types
_WINDOW_EVERYWHERE = {"mistral", "phi3", "mixtral"}
_LATENT = "kv_lora_rank"
_IMPLIED: Mapping[str, Mapping[str, int]] = {
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096}
}
"""What transformers' configuration classes say where published files do not."""
_SCALED_ALREADY = {"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
"""Kinds of rotary embeddings whose ``max_position_embeddings`` has the factor in it (vllm/config/model.py)."""
_FLOAT32_HALVED = {"F32": 2}  # engines cast float32 weights to 16 bits unless told otherwise


def transformers_shape(config: Mapping[str, Any], tensors: Sequence[TensorInfo], quantization: str | None) -> Shape:
    """Give the shape; ``tensors`` are those of all files that an engine loads.

    What a configuration does not say, or an architecture does with keys that are not known here, is named in ``unknown``.
    """
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    reader = _Reader({**_IMPLIED.get(str(text.get("model_type")), {}), **text}, config)
    count = min(reader.integer("num_hidden_layers", "n_layer", "num_layers", "n_layers") or 0, _MAX_LAYERS)
    weights: dict[int, int] = {}
    first = last = projector = 0
    for tensor in tensors:
        size = tensor.size // _FLOAT32_HALVED.get(tensor.dtype, 1) if quantization is None else tensor.size
        if any(mark in tensor.name for mark in _VISION):
            projector += size
        elif (match := _LAYER.match(tensor.name)) and int(match[1]) < max(count, 1):
            weights[int(match[1])] = weights.get(int(match[1]), 0) + size
        elif "embed_tokens" in tensor.name or tensor.name.endswith(("wte.weight", "word_embeddings.weight")):
            first += size
        else:
            last += size
    attentions = [reader.layer(number) for number in range(count)]
    return Shape(
        architecture=reader.kind,
        layers=tuple(
            Layer(weights.get(number, 0), attention, state) for number, (attention, state) in enumerate(attentions)
        ),
        input_weights=first,
        output_weights=last,
        tied=not any(tensor.name.endswith("lm_head.weight") for tensor in tensors),
        embedding=reader.integer("hidden_size", "n_embd", "d_model") or 0,
        feed_forward=reader.integer("intermediate_size", "ffn_dim", "n_inner") or 0,
        heads=reader.integer("num_attention_heads", "n_head") or 0,
        vocabulary=reader.integer("vocab_size") or 0,
        context=reader.context,
        projector=projector,
        quantization=quantization,
        unknown=tuple(reader.unknown(count)),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the keys of a language model's configuration; ``outer`` is the whole file."""

    text: Mapping[str, Any]
    outer: Mapping[str, Any]

    @property
    def kind(self) -> str:
        named = self.outer.get("architectures")
        first = named[0] if isinstance(named, list) and named else self.text.get("model_type")
        return first if isinstance(first, str) else "unknown"

    @property
    def type(self) -> str:
        return str(self.text.get("model_type") or self.outer.get("model_type") or "")

    @property
    def context(self) -> int | None:
        """How many tokens the model was made for."""
        said = self.integer("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
        scaling = self.text.get("rope_scaling") or self.text.get("rope_parameters")
        if said is None or not isinstance(scaling, dict) or "gemma3" in self.type:
            return said
        factor = scaling.get("factor")
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if (
            kind in _SCALED_ALREADY
            or isinstance(factor, bool)
            or not isinstance(factor, int | float)
            or not 1 < factor < _MAX_FACTOR
        ):
            return said
        return int(said * factor)

    def integer(self, *keys: str) -> int | None:
        for key in keys:
            value = self.text.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def unknown(self, count: int) -> list[str]:
        missing = [] if count else ["the number of layers (config.json has no num_hidden_layers)"]
        if count and not self.integer("num_attention_heads", "n_head"):
            missing.append("the cache (config.json has no num_attention_heads)")
        if any(kind == "other" for kind in map(self._sort, range(count))):
            missing.append("the state of its layers without attention")
        return missing

    def _sort(self, number: int) -> str:
        """Tell full, windowed, linear and other layers apart."""
        kinds = self.text.get("layer_types") or self.text.get("layers_block_type")
        if isinstance(kinds, list) and number < len(kinds):
            said = str(kinds[number])
            if said in {"sliding_attention", "chunked_attention"}:
                return "windowed"
            if said in {"full_attention", "attention"}:
                return "full"
            return "linear" if said == "linear_attention" and self.integer("linear_num_key_heads") else "other"
        if self.type.startswith("qwen3_next") and self.integer("linear_num_key_heads"):
            return "full" if (number + 1) % (self.integer("full_attention_interval") or 4) == 0 else "linear"
        return "windowed" if self._windowed(number) else "full"

    def _windowed(self, number: int) -> bool:
        if not self.integer("sliding_window") or self.text.get("use_sliding_window") is False:
            return False
        if self.type.startswith("qwen2"):
            return number >= (self.integer("max_window_layers") or 0)
        every = self.integer("sliding_window_pattern") or _PATTERN.get(self.type)
        if every:
            return (number + 1) % every != 0
        return self.type in _WINDOW_EVERYWHERE

    def layer(self, number: int) -> tuple[Attention | None, int]:
        """Give the attention of a layer, or the elements of its recurrent state."""
        sort = self._sort(number)
        if sort == "linear":
            return None, self._linear_state()
        if sort == "other" or not (heads := self.integer("num_attention_heads", "n_head")):
            return None, 0
        window = self.integer("sliding_window", "attention_chunk_size") if sort == "windowed" else None
        if rank := self.integer(_LATENT):
            return Attention(1, rank + (self.integer("qk_rope_head_dim") or 0), 0, window, latent=True), 0
        width = self.integer("head_dim") or (self.integer("hidden_size", "n_embd", "d_model") or 0) // heads
        shared = self.integer("num_key_value_heads", "multi_query_group_num") or heads
        return Attention(shared, width, self.integer("v_head_dim") or width, window), 0

    def _linear_state(self) -> int:
        """Elements of a gated delta net's state: the convolution's last inputs, and a matrix per value head."""
        keys, values = self.integer("linear_num_key_heads") or 0, self.integer("linear_num_value_heads") or 0
        key, value = self.integer("linear_key_head_dim") or 0, self.integer("linear_value_head_dim") or 0
        kernel = self.integer("linear_conv_kernel_dim") or 1
        return (kernel - 1) * (2 * keys * key + values * value) + values * key * value
