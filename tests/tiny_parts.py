"""A projector and an adapter for the small model of ``make_models``, made so that what they do can be read in its answer."""

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from make_models import SMALL, make_vocabulary
from tiny_llama import weights

WIDTH, PATCH, SIDE, LAYERS = 64, 14, 28, 2
SEEN = "model"
"""The word that the projector makes of any image: the model then goes on as after this word of its sentence."""
AFTER_SEEN = " crossed the gap and its digest"
STUCK = "vault"
"""The word that the adapter makes follow on any word outside the sentence, such as itself."""

Array = npt.NDArray[np.float32]


def _embedding() -> Array:
    name, values = next(iter(weights(SMALL, make_vocabulary(), 0)))
    assert name == "model.embed_tokens.weight"
    found: Array = values
    return found


def _token(word: str) -> int:
    return make_vocabulary().tokens.index("Ġ" + word)


def make_adapter(path: Path) -> None:
    """Write a LoRA of rank one on the output, with which the model says nothing but ``STUCK``."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    asked = np.zeros((1, SMALL.hidden), np.float32)
    # The half of the embedding that all words outside the sentence share.
    asked[0, : SMALL.hidden // 2] = 8 * _embedding()[0, : SMALL.hidden // 2]
    answered = np.zeros((make_vocabulary().size, 1), np.float32)
    answered[_token(STUCK)] = 1
    writer.add_tensor("output.weight.lora_a", asked)
    writer.add_tensor("output.weight.lora_b", answered)
    _write(writer)


def make_projector(path: Path) -> None:
    """Write a small CLIP with a projection as LLaVA has it, which puts out the embedding of ``SEEN`` for every part of any image."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", val=True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", val=True)
    numbers = {
        "image_size": SIDE,
        "patch_size": PATCH,
        "embedding_length": WIDTH,
        "feed_forward_length": 2 * WIDTH,
        "projection_dim": SMALL.hidden,
        "block_count": LAYERS,
        "attention.head_count": 4,
    }
    for key, number in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5, 0.5, 0.5])
    random = np.random.default_rng(1)

    def matrix(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, np.float32) * np.float32(0.02))
        writer.add_tensor(f"{name}.bias", np.zeros(shape[0], np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(WIDTH, np.float32))

    writer.add_tensor("v.class_embd", np.zeros(WIDTH, np.float32))
    writer.add_tensor(
        "v.patch_embd.weight", (random.standard_normal((WIDTH, 3, PATCH, PATCH)) * 0.02).astype(np.float16)
    )
    writer.add_tensor("v.position_embd.weight", np.zeros(((SIDE // PATCH) ** 2 + 1, WIDTH), np.float32))
    norm("v.pre_ln")
    norm("v.post_ln")
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            matrix(f"v.blk.{layer}.{part}", WIDTH, WIDTH)
        matrix(f"v.blk.{layer}.ffn_up", 2 * WIDTH, WIDTH)
        matrix(f"v.blk.{layer}.ffn_down", WIDTH, 2 * WIDTH)
        norm(f"v.blk.{layer}.ln1")
        norm(f"v.blk.{layer}.ln2")
    matrix("mm.0", SMALL.hidden, WIDTH)
    writer.add_tensor("mm.2.weight", np.zeros((SMALL.hidden, SMALL.hidden), np.float32))
    writer.add_tensor("mm.2.bias", _embedding()[_token(SEEN)])
    _write(writer)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
