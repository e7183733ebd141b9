"""Results about the memory that models need, and the commands that start them."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PartLine:
    """One share of a device's memory, in bytes; ``exact`` or estimated."""

    name: str
    size: int
    exact: bool


@dataclass(frozen=True, slots=True)
class LoadLine:
    """What lies on one device; ``left`` of its ``memory`` is negative where it does not fit. Bytes."""

    device: str
    memory: int
    left: int
    parts: tuple[PartLine, ...]


@dataclass(frozen=True, slots=True)
class QuantLine:
    """One quantization of a repository, with the bytes of its weights and whether it fits."""

    name: str
    size: int
    verdict: str
    longest: int


@dataclass(frozen=True, slots=True)
class ContextLine:
    """What a context of ``tokens`` needs on all cards together, in bytes, and whether it fits."""

    tokens: int
    size: int
    fits: bool


@dataclass(frozen=True, slots=True)
class FitLine:
    """One model's answer. ``verdict``: ``fits``, ``fits partly``, ``does not fit`` or ``refused``; sizes in bytes, contexts in tokens.

    ``gpu_layers`` of ``all_layers`` are on the cards (llama.cpp); ``parallel`` cards share the model, and ``concurrency`` sequences of
    ``context`` tokens have room (vLLM). ``instead`` is what would fit.
    """

    model: str
    engine: str
    verdict: str
    headline: str
    weights: int
    context: int
    users: int
    longest: int
    loads: tuple[LoadLine, ...]
    host: tuple[PartLine, ...]
    gpu_layers: int | None
    all_layers: int | None
    parallel: int
    concurrency: float | None
    cache_tokens: int | None
    instead: tuple[str, ...]
    notes: tuple[str, ...]
    quants: tuple[QuantLine, ...] = ()
    contexts: tuple[ContextLine, ...] = ()


@dataclass(frozen=True, slots=True)
class FitResult:
    """What ``fit`` answers, for each model that was named."""

    gpus: tuple[str, ...]
    models: tuple[FitLine, ...]
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """One text of a recipe, with its file name; ``path`` is where it was written, if it was."""

    name: str
    text: str
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class RecipeResult:
    """How an engine is started with a model; ``headline`` says how it fits."""

    model: str
    engine: str
    headline: str
    files: tuple[RecipeFile, ...]
    warnings: tuple[str, ...] = field(default=())
