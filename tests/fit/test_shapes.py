"""Shapes from configurations and headers that say less than there is, or what cannot be."""

from typing import Any

import pytest

from modelvault.fit.gguf_shape import gguf_shape
from modelvault.fit.transformers_shape import transformers_shape
from modelvault.formats.gguf import GgufHeader

GEMMA_3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}
"""As it was published: without heads, for which the reader's code has the numbers."""


def test_what_a_configuration_leaves_to_the_code() -> None:
    """Breaks if the cache of a model that everybody uses is not known, and it then fits nowhere or everywhere."""
    shape = transformers_shape(GEMMA_3_4B, [], None)
    assert shape.unknown == ()
    assert {(attention.heads, attention.key) for attention in shape.attentions} == {(4, 256)}
    assert sum(attention.window is None for attention in shape.attentions) == 34 // 6


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (None, 4096),
        ({"type": "linear", "factor": 4.0}, 16384),
        ({"rope_type": "dynamic", "factor": 2}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "llama3", "factor": 8.0}, 4096),
        ({"rope_type": "linear", "factor": float("inf")}, 4096),
        ({"rope_type": "linear", "factor": "4"}, 4096),
        ("linear", 4096),
    ],
)
def test_stretched_contexts(scaling: object, context: int) -> None:
    """Breaks if a context is refused that vLLM serves, or promised that it refuses."""
    config = {"model_type": "llama", "max_position_embeddings": 4096, "num_hidden_layers": 1, "rope_scaling": scaling}
    assert transformers_shape(config, [], None).context == context


def test_numbers_that_are_none() -> None:
    """Breaks if a hostile header ends a command as a defect of ours, or keeps it busy."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.block_count": 1 << 30,
        "llama.attention.key_length": 64,
    }
    arrays = {
        "llama.attention.head_count": (float("nan"), float("inf"), -3, 8),
        "llama.attention.head_count_kv": (1.5,),
    }
    shape = gguf_shape([GgufHeader(3, 32, metadata, arrays, (), 0)])
    assert (shape.heads, len(shape.layers) <= 1024) == (8, True)
