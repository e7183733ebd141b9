"""Each formula against values that were computed by hand."""

from dataclasses import replace

import pytest
from known_shapes import GB, dense, llama_70b

from modelvault.errors import UsageProblem
from modelvault.fit import llamacpp, vllm
from modelvault.fit.cards import GIB, MIB, Device, Kind, parse_gpus
from modelvault.fit.shape import Attention, Layer

FULL, WINDOWED, LATENT = (
    Attention(8, 128, 128),
    Attention(8, 128, 128, window=1024),
    Attention(1, 576, 512, latent=True),
)


@pytest.mark.parametrize(
    ("attention", "run", "cells"),
    [
        (FULL, llamacpp.Run(4096), 4096),
        (FULL, llamacpp.Run(4097), 4352),  # whole multiples of 256
        (WINDOWED, llamacpp.Run(4096), 1536),  # 1024 + 512 tokens of a micro batch
        (WINDOWED, llamacpp.Run(1024), 1024),  # never more than the context
        (replace(WINDOWED, window=1000), llamacpp.Run(4096), 1536),  # 1512, padded
    ],
)
def test_cells(attention: Attention, run: llamacpp.Run, cells: int) -> None:
    """Windowed layers are most of Gemma's: taken for full ones, its cache seems eight times as large."""
    assert llamacpp.cells(attention, run) == cells


@pytest.mark.parametrize(
    ("layer", "run", "size"),
    [
        (Layer(0, FULL), llamacpp.Run(4096), 2 * 8 * 128 * 2 * 4096),
        (Layer(0, FULL), llamacpp.Run(4096, users=3), 3 * 2 * 8 * 128 * 2 * 4096),
        (Layer(0, FULL), llamacpp.Run(4096, kv_type="q8_0"), 2 * (1024 // 32 * 34) * 4096),
        (Layer(0, LATENT), llamacpp.Run(4096), 576 * 2 * 4096),  # no values beside the compressed row
        (Layer(0, state=1000), llamacpp.Run(4096, users=2), 1000 * 4 * 2),  # float32, however long the context
        (Layer(0), llamacpp.Run(4096), 0),
    ],
)
def test_cache(layer: Layer, run: llamacpp.Run, size: int) -> None:
    """The sum of a layer's keys, values and states."""
    shape = replace(llama_70b(40), layers=(layer,))
    assert llamacpp.cache_bytes(shape, 0, run) == size


def test_llama_70b_has_320_kib_a_token() -> None:
    """The popular rule, 0.1 GB a token and sequence, is wrong by a factor of 300."""
    shape = llama_70b(42.5)
    per_token = sum(llamacpp.cache_bytes(shape, number, llamacpp.Run(256)) for number in range(80)) / 256
    assert per_token == 80 * 8 * 128 * 2 * 2 == 327_680
    assert vllm.sequence_bytes(shape, vllm.Run(4096), 2048) == 327_680 * 4096


def test_layers_go_to_the_card_from_the_end() -> None:
    """llama.cpp counts the output as the last layer and offloads it first; embeddings stay where they are."""
    shape = dense(4, 1024, (8, 8), 2048, 1000, 1 * GB)
    (card,) = parse_gpus(["24GiB"])
    one = llamacpp.place(shape, llamacpp.Run(1024), [card], 1)
    assert one.loads[0].parts[0].size == shape.output_weights
    two = llamacpp.place(shape, llamacpp.Run(1024), [card], 2)
    assert two.loads[0].parts[0].size == shape.output_weights + shape.layers[3].weights
    assert two.host[0].size == shape.input_weights + sum(layer.weights for layer in shape.layers[:3])
    whole = llamacpp.place(shape, llamacpp.Run(1024), [card], 5)
    assert whole.loads[0].parts[0].size == shape.weights - shape.input_weights
    tied = llamacpp.place(replace(shape, tied=True), llamacpp.Run(1024), [card], 5)
    assert tied.loads[0].parts[0].size == shape.weights  # a copy of the embeddings computes the logits


def test_two_cards_share_in_proportion() -> None:
    """A card that gets more than it holds stops a load that the sum of both allowed."""
    shape = dense(12, 1024, (8, 8), 2048, 1000, 6 * GB)
    placement = llamacpp.place(shape, llamacpp.Run(1024), parse_gpus(["8GiB", "4GiB"]), 13)
    first, second = (load.parts[0].size for load in placement.loads)
    # Of 13 units two thirds: nine layers on the first; three and the output on the second.
    assert first == 9 * shape.layers[0].weights
    assert second == 3 * shape.layers[0].weights + shape.output_weights


@pytest.mark.parametrize(("cards", "expected"), [(8, 8), (7, 4), (6, 4), (5, 4), (4, 4), (3, 2), (2, 2), (1, 1)])
def test_tensor_parallel_divides_the_heads(cards: int, expected: int) -> None:
    """vLLM refuses to start where 64 heads do not divide."""
    assert vllm.parallels(llama_70b(40), cards)[0] == expected


def test_tensor_parallel_with_few_heads() -> None:
    """Qwen2.5 7B has 28 heads and 4 for keys and values: 7 cards would do for one and not for the other."""
    shape = dense(28, 3584, (28, 4), 18944, 152064, 15 * GB)
    assert [vllm.parallels(shape, cards)[0] for cards in (2, 3, 4, 7, 8)] == [2, 2, 4, 4, 4]


def test_vllm_shares_heads_but_not_latents() -> None:
    """Two cards keep half of the heads each; a compressed row is on both."""
    run = vllm.Run(4096)
    assert vllm.layer_bytes(FULL, 4096, run, 2) * 2 == vllm.layer_bytes(FULL, 4096, run)
    assert vllm.layer_bytes(LATENT, 4096, run, 2) == vllm.layer_bytes(LATENT, 4096, run) == 4096 * 576 * 2
    assert vllm.layer_bytes(FULL, 4096, run, 16) == 4096 * 256 * 2  # never less than one head
    assert vllm.layer_bytes(FULL, 1, run) == 16 * 8 * 256 * 2  # whole blocks
    windowed = replace(llama_70b(40), layers=(Layer(0, WINDOWED),))
    assert vllm.sequence_bytes(windowed, vllm.Run(8192), 2048) == 3072 * 8 * 256 * 2  # 1023 + 2048, in blocks


@pytest.mark.parametrize(
    ("spec", "memory", "kind", "count"),
    [
        ("24GiB", 24 * GIB, Kind.GPU, 1),
        ("24G", 24 * GIB, Kind.GPU, 1),
        ("24GB", 24 * GB, Kind.GPU, 1),
        ("2x32GiB", 32 * GIB, Kind.GPU, 2),
        ("2 x 32 gib", 32 * GIB, Kind.GPU, 2),
        ("1.5GiB", 3 * GIB // 2, Kind.GPU, 1),
        ("4090", 24564 * MIB, Kind.GPU, 1),
        ("RTX 4090", 24564 * MIB, Kind.GPU, 1),
        ("NVIDIA GeForce RTX 4090", 24564 * MIB, Kind.GPU, 1),
        ("4xa100", 81920 * MIB, Kind.GPU, 4),
        ("a100-80gb", 81920 * MIB, Kind.GPU, 1),
        ("Tesla T4", 15360 * MIB, Kind.GPU, 1),
        ("mac-64", 64 * GIB, Kind.UNIFIED, 1),
        ("cpu-128", 128 * GIB, Kind.CPU, 1),
    ],
)
def test_specs(spec: str, memory: int, kind: Kind, count: int) -> None:
    """What people write on the box, in a shop or in nvidia-smi."""
    devices = parse_gpus([spec])
    assert len(devices) == count
    assert {(device.memory, device.kind) for device in devices} == {(memory, kind)}


@pytest.mark.parametrize(
    "specs",
    [["rtx9999"], ["0x24GiB"], ["65x24GiB"], ["1MiB"], ["9999999GiB"], [""], ["24"], ["mac-64", "24GiB"], ["2xcpu-64"]],
)
def test_nonsense_is_refused(specs: list[str]) -> None:
    """A slip of the finger must not become an answer."""
    with pytest.raises(UsageProblem):
        parse_gpus(specs)


def test_unknown_cards_suggest_the_nearest() -> None:
    """``a100-90`` is a slip."""
    with pytest.raises(UsageProblem) as caught:
        parse_gpus(["a100-90"])
    assert "a100-80" in (caught.value.hint or "")


def test_a_device_needs_no_capability() -> None:
    """Of a plain size nothing is known but the size; it refuses nothing."""
    assert Device("24GiB", 24 * GIB).capability is None
