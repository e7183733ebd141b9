"""Memory in llama.cpp and in Ollama, which runs it.

Source: ``llama-kv-cache.cpp``, ``llama-kv-cache-iswa.cpp``, ``llama-memory-recurrent.cpp``, ``llama-model.cpp`` and ``llama-context.cpp`` of
llama.cpp (late 2026). Weights, key-value cache and recurrent states are exact; compute buffers and what the driver takes are estimates.
"""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modelvault.fit.cards import MIB, Device, Kind
from modelvault.fit.parts import Load, Part, total
from modelvault.fit.shape import Attention, Shape
from modelvault.formats.ggml import TENSOR_TYPES

MICRO_BATCH = 512
"""Tokens in one go (``--ubatch-size``), by default."""
_PAD = 256  # cells; GGML_PAD of llama_context and of the windowed cache
_FLOAT = 4
_MASK, _OLD_MASK = 2, 6  # bytes for each cell and token: float16, and float32 beside it in older releases
_STATE = 4  # bytes; recurrent states are float32 whatever the cache's type
_CONTEXT = 400 * MIB  # of CUDA or Vulkan on each card
_MARGIN = 256 * MIB  # for fragmentation, and what else the card shows

CACHE_TYPES = {kind.name.lower(): kind for kind in TENSOR_TYPES.values() if kind.name in {"F16", "BF16", "F32", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"}}  # fmt: skip
"""What ``--cache-type-k`` and ``--cache-type-v`` take."""


@dataclass(frozen=True, slots=True)
class Run:
    """How the engine is started: ``context`` tokens for each of ``users`` sequences, a cache of type ``kv_type``.

    ``all_logits``: releases before 2026, as in Ollama up to 0.24, have room for the logits of a whole micro batch.
    """

    context: int
    users: int = 1
    kv_type: str = "f16"
    micro_batch: int = MICRO_BATCH
    all_logits: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Where everything lies with ``gpu_layers`` (``-ngl``) of ``all_layers`` on the cards; ``host`` is what stays in main memory."""

    gpu_layers: int
    all_layers: int
    loads: tuple[Load, ...]
    host: tuple[Part, ...]

    @property
    def fits(self) -> bool:
        """Whether no card is too small."""
        return all(load.left >= 0 for load in self.loads)

    @property
    def whole(self) -> bool:
        """Whether all layers are on the cards."""
        return self.gpu_layers == self.all_layers


def pad(cells: int) -> int:
    """Round up as the cache does."""
    return -(-cells // _PAD) * _PAD


def row_bytes(elements: int, kv_type: str) -> int:
    """Give the bytes of one row (``ggml_row_size``); its blocks are whole."""
    kind = CACHE_TYPES[kv_type]
    return -(-elements // kind.block) * kind.size


def cells(attention: Attention, run: Run) -> int:
    """How many tokens one sequence's cache of this layer has room for."""
    whole = pad(run.context)
    if attention.window is None:
        return whole
    return min(whole, pad(min(whole, attention.window + run.micro_batch)))


def cache_bytes(shape: Shape, number: int, run: Run) -> int:
    """Give the bytes that layer ``number`` keeps for all sequences: keys and values, or a recurrent state."""
    layer = shape.layers[number]
    state = layer.state * _STATE * run.users
    if layer.attention is None:
        return state
    key = row_bytes(layer.attention.heads * layer.attention.key, run.kv_type)
    value = 0 if layer.attention.latent else row_bytes(layer.attention.heads * layer.attention.value, run.kv_type)
    return state + (key + value) * cells(layer.attention, run) * run.users


def compute_bytes(shape: Shape, run: Run, *, output: bool) -> int:
    """Give the compute buffer of one device; ``output``: the one that computes the logits.

    Measured with llama.cpp on seven shapes, of which all but the recurrent one agree to the last MiB: three intermediates of the
    feed-forward network and five of the model's width for each token of a micro batch, and a mask over each kind of cache.
    """
    width = 3 * shape.feed_forward + 5 * shape.embedding
    if output and run.all_logits:
        width = max(width, shape.vocabulary + 2 * shape.embedding)
    windows = {cells(attention, run) for attention in shape.attentions} or {0}
    masks = sum(windows) * (_MASK if not run.all_logits else _OLD_MASK)
    return run.micro_batch * (width * _FLOAT + masks)


def place(shape: Shape, run: Run, devices: Sequence[Device], gpu_layers: int) -> Placement:
    """Lay the last ``gpu_layers`` layers, the output counted as one, out over the cards as llama.cpp does: in proportion to what is free.

    Without cards everything is in main memory.
    """
    count = len(shape.layers)
    on_cards = min(gpu_layers, count + 1) if devices else 0
    first = count + 1 - on_cards
    shares = list(itertools.accumulate(device.memory for device in devices))
    owners = [
        bisect.bisect_right([share / shares[-1] for share in shares], (number - first) / on_cards)
        for number in range(first, count + 1)
    ]
    loads = tuple(
        _load(shape, run, device, [number for number, owner in zip(range(first, count + 1), owners, strict=True) if owner == at])
        for at, device in enumerate(devices)
    )  # fmt: skip
    host = [Part("weights", shape.input_weights + sum(layer.weights for layer in shape.layers[:first]), exact=True)]
    if first > count:
        host = [Part("weights", shape.weights + shape.projector, exact=True)]
    cache = sum(cache_bytes(shape, number, run) for number in range(min(first, count)))
    if cache:
        host.append(Part("cache", cache, exact=not shape.unknown))
    host.append(Part("compute", compute_bytes(shape, run, output=not devices), exact=False))
    if devices and devices[0].kind is Kind.UNIFIED:
        # One memory for both: what stays with the processor takes its share of it.
        (load,) = loads
        loads = (replace(load, parts=(*load.parts, Part("processor", total(host), exact=False))),)
    return Placement(on_cards, count + 1, loads, tuple(host))


def _load(shape: Shape, run: Run, device: Device, numbers: Sequence[int]) -> Load:
    count = len(shape.layers)
    repeating = [number for number in numbers if number < count]
    output = count in numbers
    weights = sum(shape.layers[number].weights for number in repeating)
    if output:
        weights += shape.output_weights + (shape.input_weights if shape.tied else 0)
    parts = [
        Part("weights", weights, exact=True),
        Part("cache", sum(cache_bytes(shape, number, run) for number in repeating), exact=not shape.unknown),
    ]
    if output and shape.projector:
        parts.append(Part("projector", shape.projector, exact=True))
    if numbers:
        parts.append(Part("compute", compute_bytes(shape, run, output=output), exact=False))
        if device.kind is Kind.GPU:
            parts.append(Part("driver", _CONTEXT, exact=False))
        parts.append(Part("margin", _MARGIN, exact=False))
    return Load(device.name, device.memory, tuple(parts))


def best(shape: Shape, run: Run, devices: Sequence[Device]) -> Placement:
    """Put as many layers on the cards as fit; none of them if not even one does."""
    fitting = (place(shape, run, devices, layers) for layers in range(len(shape.layers) + 1, 0, -1))
    return next((placement for placement in fitting if placement.fits), place(shape, run, devices, 0))


def longest(shape: Shape, run: Run, devices: Sequence[Device]) -> int:
    """Find the longest context, a multiple of 256 up to the model's own, with which the whole model is on the cards; 0 if none."""
    low, high = 0, (shape.context or run.context) // _PAD
    while low < high:
        middle = (low + high + 1) // 2
        if place(shape, replace(run, context=middle * _PAD), devices, len(shape.layers) + 1).fits:
            low = middle
        else:
            high = middle - 1
    return low * _PAD


def host_bytes(placement: Placement) -> int:
    """Give what stays in main memory."""
    return total(placement.host)
