"""Memory in vLLM: it takes a share of each card, and gives what weights and profiling leave of it to the cache.

Source: ``vllm/v1/worker/gpu_worker.py``, ``vllm/v1/kv_cache_interface.py`` and ``vllm/engine/arg_utils.py`` of vLLM 0.32. The cache per
token is exact, and so are the weights on one card; activations, CUDA graphs and what the driver takes are estimates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modelvault.fit.cards import GIB, MIB, Device
from modelvault.fit.parts import Load, Part
from modelvault.fit.shape import Attention, Shape

UTILIZATION = 0.90
"""What the recipes give it of a card; its own default, 0.92, leaves less for others, and 0.95 runs out of memory under load."""
BLOCK = 16
"""Tokens of one block of the cache, on a graphics card."""
CACHE_BYTES = {"auto": 2, "f16": 2, "bf16": 2, "fp8": 1}
_LARGE_CARD = 70 * GIB  # from here on it works on more tokens and sequences at once (arg_utils.get_batch_defaults)
_DRIVER = 500 * MIB  # CUDA context and libraries
_NCCL = 400 * MIB
_GRAPHS = 600 * MIB

LEAST_CAPABILITY = {"awq": 7.5, "gptq": 7.5, "fp8": 7.5, "compressed-tensors": 7.0, "modelopt": 8.0, "mxfp4": 8.0}
"""By the method of the quantization; the least of all is 7.0."""
LEAST_OF_ALL = 7.0


@dataclass(frozen=True, slots=True)
class Run:
    """How the engine is started. ``batched`` tokens and ``sequences`` at once: by default what it chooses for the card."""

    context: int
    kv_type: str = "auto"
    utilization: float = UTILIZATION
    block: int = BLOCK
    batched: int | None = None
    sequences: int | None = None

    def batched_on(self, device: Device) -> int:
        """Give ``--max-num-batched-tokens``."""
        return self.batched or (8192 if _is_large(device) else 2048)

    def sequences_on(self, device: Device) -> int:
        """Give ``--max-num-seqs``."""
        return self.sequences or (1024 if _is_large(device) else 256)


def _is_large(device: Device) -> bool:
    return device.memory >= _LARGE_CARD and "a100" not in device.name.lower()


@dataclass(frozen=True, slots=True)
class Serving:
    """A model on ``parallel`` cards. ``cache`` is in bytes on each card, ``need`` what one sequence of the wanted length takes of it."""

    parallel: int
    loads: tuple[Load, ...]
    cache: int
    need: int
    tokens: int
    longest: int

    @property
    def fits(self) -> bool:
        """Whether one sequence of the wanted length has room."""
        return self.cache > 0 and self.cache >= self.need

    @property
    def concurrency(self) -> float | None:
        """How many such sequences have room at once; ``None`` where they take nothing, or it is not known what."""
        return max(self.cache, 0) / self.need if self.need else None

    def holds(self, users: int) -> bool:
        """Tell whether so many such sequences have room at once."""
        return self.fits and (self.concurrency is None or int(self.concurrency) >= users)


def layer_bytes(attention: Attention, tokens: int, run: Run, parallel: int = 1) -> int:
    """Give the bytes that one layer keeps of ``tokens`` tokens on each card, in whole blocks."""
    blocks = -(-tokens // run.block)
    if attention.latent:
        per_token = attention.key
    else:
        per_token = max(1, attention.heads // parallel) * (attention.key + attention.value)
    return blocks * run.block * per_token * CACHE_BYTES[run.kv_type]


def cache_tokens(shape: Shape, run: Run, cache: int, parallel: int = 1) -> int:
    """Give how many tokens have room in ``cache`` bytes on each card, in whole blocks, as vLLM reports it when it starts."""
    block = sum(layer_bytes(attention, run.block, run, parallel) for attention in shape.attentions)
    return max(cache, 0) // block * run.block if block else 0


def sequence_bytes(shape: Shape, run: Run, batched: int, parallel: int = 1) -> int:
    """Give what one sequence of ``run.context`` tokens takes on each card; a window keeps what it sees and what is on its way."""
    size = 0
    for attention in shape.attentions:
        seen = run.context if attention.window is None else min(attention.window - 1 + batched, run.context)
        size += layer_bytes(attention, seen, run, parallel)
    return size


def parallels(shape: Shape, cards: int) -> tuple[int, ...]:
    """List the numbers of cards that the model can be shared out to, the largest first: heads must divide."""
    shared = shape.key_value_heads
    return tuple(
        count
        for count in range(cards, 0, -1)
        if (not shape.heads or shape.heads % count == 0)
        and (not shared or shared % count == 0 or count % shared == 0)
    )  # fmt: skip


def serve(shape: Shape, run: Run, devices: Sequence[Device], parallel: int) -> Serving:
    """Lay a model out over the first ``parallel`` of equal cards; the smallest one counts."""
    device = min(devices[:parallel], key=lambda card: card.memory)
    budget = math.ceil(device.memory * run.utilization)
    batched = run.batched_on(device)
    parts = (
        Part("weights", -(-(shape.weights + shape.projector) // parallel), exact=parallel == 1),
        Part("activations", _activations(shape, run, device, parallel), exact=False),
        Part("CUDA graphs", _GRAPHS, exact=False),
        Part("driver", _DRIVER + (_NCCL if parallel > 1 else 0), exact=False),
    )
    cache = budget - sum(part.size for part in parts)
    need = sequence_bytes(shape, run, batched, parallel)
    tokens = cache_tokens(shape, run, cache, parallel)
    kept = Part("cache", max(cache, 0), exact=False)
    outside = Part("outside its share", device.memory - budget, exact=True)
    loads = tuple(Load(card.name, card.memory, (*parts, kept, outside)) for card in devices[:parallel])
    return Serving(parallel, loads, cache, need, tokens, _longest(shape, run, batched, parallel, cache))


def _longest(shape: Shape, run: Run, batched: int, parallel: int, cache: int) -> int:
    """Find the longest context of one sequence, in whole blocks."""
    low, high = 0, (shape.context or run.context) // run.block
    while low < high:
        middle = (low + high + 1) // 2
        longer = Run(middle * run.block, run.kv_type, run.utilization, run.block)
        if sequence_bytes(shape, longer, batched, parallel) <= cache:
            low = middle
        else:
            high = middle - 1
    return low * run.block


def _activations(shape: Shape, run: Run, device: Device, parallel: int) -> int:
    """Estimate the peak of the profiling run: the widest intermediate of a full batch, and the logits of all sequences."""
    width = 4 * shape.embedding + 3 * -(-shape.feed_forward // parallel)
    logits = run.sequences_on(device) * shape.vocabulary * 4 * 2
    return run.batched_on(device) * width * 2 + logits
