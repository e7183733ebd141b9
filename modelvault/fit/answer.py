"""The answer to "does it fit?": a verdict, how it comes to that, and what would fit instead."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from modelvault.fit import llamacpp, vllm
from modelvault.fit.cards import GIB, Device, Kind
from modelvault.fit.parts import Load, Part
from modelvault.fit.shape import Shape

DEFAULT_CONTEXT = 8192
"""Tokens that an answer is about where the user names none, or the model's own context if that is shorter."""
_SYSTEM = 8 * GIB  # what a machine with unified memory, or without a card, keeps for everything else
_OF_UNIFIED = 0.75  # what macOS lets the GPU take until it is told otherwise
_CONTEXTS = (131072, 65536, 32768, 16384, 8192, 4096, 2048, 1024)
_MORE_CARDS = (2, 4, 8)
LIKE_VLLM = ("vllm", "sglang", "tgi")
"""Engines that take a share of each card for themselves, and load safetensors."""
KNOWN_ENGINES = ("llamacpp", "ollama", "textgen", *LIKE_VLLM)
_TITLES = {"vllm": "vLLM", "sglang": "SGLang", "tgi": "TGI"}
_NO_LONGER = {"vllm", "sglang"}
"""Engines that do not start with a longer context than the model's own."""


class Verdict(StrEnum):
    """How it ends."""

    FITS = "fits"
    PARTLY = "fits partly"
    NOT = "does not fit"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. ``context`` in tokens for each of ``users``; ``method`` is the quantization's method, of a model for vLLM.

    ``refused`` is the reason why the engine does not load that, ``quants`` the other quantizations that there are, with their bytes.
    """

    shape: Shape
    engine: str
    devices: tuple[Device, ...]
    context: int | None = None
    users: int = 1
    kv_type: str | None = None
    method: str | None = None
    refused: str | None = None
    quants: tuple[tuple[str, int], ...] = ()

    @property
    def tokens(self) -> int:
        """The context that the answer is about."""
        return self.context or min(DEFAULT_CONTEXT, self.shape.context or DEFAULT_CONTEXT)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer, with everything that a recipe needs.

    ``gpu_layers`` of ``all_layers`` are on the cards (llama.cpp); ``parallel`` cards work together and have room for ``concurrency``
    sequences of ``context`` tokens (vLLM); ``longest`` is the longest context that fits, in tokens.
    """

    verdict: Verdict
    headline: str
    context: int
    loads: tuple[Load, ...] = ()
    host: tuple[Part, ...] = ()
    gpu_layers: int | None = None
    all_layers: int | None = None
    parallel: int = 1
    concurrency: float | None = None
    tokens: int | None = None
    longest: int = 0
    instead: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def answer(question: Question) -> Answer:
    """Answer for llama.cpp and what runs it (``ollama``, ``textgen``), or for ``vllm`` and its kin."""
    found = _vllm(question) if question.engine in LIKE_VLLM else _llamacpp(question)
    notes = [*found.notes, *_notes(question)]
    return replace(found, notes=tuple(dict.fromkeys(notes)))


def usable(devices: Sequence[Device]) -> tuple[Device, ...]:
    """Leave a machine without a card of its own what it needs for everything else."""
    return tuple(
        replace(device, memory=max(device.memory - _SYSTEM, device.memory // 2))
        if device.kind is not Kind.GPU
        else device
        for device in devices
    )


def human(size: int) -> str:
    """Write bytes as people read memory, in GiB."""
    return f"{size / GIB:.1f} GiB"


# ── llama.cpp ──


def llamacpp_run(question: Question, context: int) -> llamacpp.Run:
    """Say how llama.cpp or Ollama would be started."""
    return llamacpp.Run(context, question.users, question.kv_type or "f16", all_logits=question.engine == "ollama")


def _cards(question: Question) -> tuple[Device, ...]:
    """Give what layers can be offloaded to; a processor alone has nothing of that kind."""
    return tuple(device for device in usable(question.devices) if device.kind is not Kind.CPU)


def _llamacpp(question: Question) -> Answer:
    shape, cards = question.shape, _cards(question)
    run = llamacpp_run(question, question.tokens)
    if not cards:
        return _processor(question, run)
    placement = llamacpp.best(shape, run, cards)
    longest = llamacpp.longest(shape, run, cards)
    name = _machines(question.devices)
    if placement.whole:
        verdict, headline = Verdict.FITS, f"fits on {name} with {question.tokens:,} tokens of context"
    elif placement.gpu_layers and cards[0].kind is Kind.GPU:
        verdict = Verdict.PARTLY
        headline = (
            f"does not fit whole on {name}: {placement.gpu_layers} of {placement.all_layers} layers do, "
            f"the rest needs {human(llamacpp.host_bytes(placement))} of main memory and is slow"
        )
    else:
        verdict, headline = Verdict.NOT, f"does not fit on {name}"
    shown = placement if placement.gpu_layers else llamacpp.place(shape, run, cards, len(shape.layers) + 1)
    if verdict is Verdict.NOT:
        shown = llamacpp.place(shape, run, cards, len(shape.layers) + 1)
    return Answer(
        verdict,
        headline,
        question.tokens,
        shown.loads,
        shown.host,
        placement.gpu_layers,
        placement.all_layers,
        longest=longest,
        instead=() if placement.whole else tuple(_instead(question)),
        notes=tuple(_unified(question, placement)),
    )


def _processor(question: Question, run: llamacpp.Run) -> Answer:
    (device,) = usable(question.devices)
    placement = llamacpp.place(question.shape, run, (), 0)
    size = llamacpp.host_bytes(placement)
    fits = size <= device.memory
    verb = "fits into" if fits else "does not fit into"
    headline = f"{verb} the main memory of {device.name}: it needs {human(size)} of {human(device.memory)}"
    loads = (Load(device.name, device.memory, placement.host),)
    return Answer(
        Verdict.FITS if fits else Verdict.NOT,
        headline,
        question.tokens,
        loads,
        gpu_layers=0,
        all_layers=placement.all_layers,
        instead=() if fits else tuple(_instead(question)),
    )


def _unified(question: Question, placement: llamacpp.Placement) -> Iterator[str]:
    for device, load in zip(question.devices, placement.loads, strict=False):
        if device.kind is Kind.UNIFIED and load.size > device.memory * _OF_UNIFIED and placement.whole:
            limit = (load.size >> 20) + 1024
            yield f"macOS lets the GPU take {human(int(device.memory * _OF_UNIFIED))}: `sudo sysctl iogpu.wired_limit_mb={limit}`"


# ── vLLM ──


def _vllm(question: Question) -> Answer:
    if reason := _why_not_vllm(question):
        instead = "a GGUF of the same model with llama.cpp or Ollama runs on any of these cards"
        return Answer(Verdict.REFUSED, reason, question.tokens, instead=(instead,))
    limit = question.shape.context
    if limit and question.tokens > limit and question.engine in _NO_LONGER:
        reason = f"{_TITLES[question.engine]} does not start with {question.tokens:,} tokens of context: the model was made for {limit:,}"
        return Answer(Verdict.REFUSED, reason, question.tokens, instead=(f"{limit:,} tokens of context",))
    kv_type = question.kv_type or "auto"
    run = vllm.Run(question.tokens, kv_type)
    parallel = vllm.parallels(question.shape, len(question.devices))[0]
    serving = vllm.serve(question.shape, run, question.devices, parallel)
    name = _machines(question.devices[:parallel])
    if serving.fits and serving.concurrency is None:
        verdict, headline = Verdict.FITS, f"fits on {name} with {question.tokens:,} tokens of context"
    elif serving.fits:
        at_once = int(serving.concurrency or 0)
        headline = f"fits on {name} with {question.tokens:,} tokens of context, {at_once} sequence{'s' if at_once != 1 else ''} of that length at once"
        verdict = Verdict.FITS if serving.holds(question.users) else Verdict.PARTLY
        if verdict is Verdict.PARTLY:
            headline += f", not {question.users}"
    elif serving.cache > 0 and serving.longest:
        verdict = Verdict.NOT
        headline = f"does not fit on {name} with {question.tokens:,} tokens of context: {serving.longest:,} at the most"
    else:
        verdict, headline = Verdict.NOT, f"does not fit on {name}: its weights leave no room for a cache"
    unused = len(question.devices) - parallel
    notes = (
        [f"{unused} of the cards stay unused: attention heads do not divide by {len(question.devices)}"]
        if unused
        else []
    )
    return Answer(
        verdict,
        headline,
        question.tokens,
        serving.loads,
        parallel=parallel,
        concurrency=serving.concurrency,
        tokens=serving.tokens,
        longest=serving.longest,
        instead=() if verdict is Verdict.FITS else tuple(_instead(question)),
        notes=tuple(notes),
    )


def _why_not_vllm(question: Question) -> str | None:
    method, title = question.method or "", _TITLES[question.engine]
    if question.refused:
        return question.refused
    if any(device.kind is not Kind.GPU for device in question.devices):
        return f"{title} is for graphics cards here"
    least = max(vllm.LEAST_CAPABILITY.get(method, 0), vllm.LEAST_OF_ALL)
    for device in question.devices:
        if device.capability is not None and device.capability < least:
            what = method.upper() if method in vllm.LEAST_CAPABILITY else title
            return f"{what} needs compute capability {least}, and {device.name} has {device.capability}"
    return None


# ── what would fit instead ──


def _instead(question: Question) -> Iterator[str]:
    yield from _other_quants(question)
    yield from _shorter(question)
    yield from _more_cards(question)


def _verdict(question: Question) -> Verdict:
    """Judge without looking for alternatives."""
    shape, devices = question.shape, question.devices
    if question.engine in LIKE_VLLM:
        run = vllm.Run(question.tokens, question.kv_type or "auto")
        serving = vllm.serve(shape, run, devices, vllm.parallels(shape, len(devices))[0])
        return Verdict.FITS if serving.holds(question.users) else Verdict.NOT
    run_here = llamacpp_run(question, question.tokens)
    cards = _cards(question)
    if not cards:
        (device,) = usable(devices)
        placement = llamacpp.place(shape, run_here, (), 0)
        return Verdict.FITS if llamacpp.host_bytes(placement) <= device.memory else Verdict.NOT
    return Verdict.FITS if llamacpp.place(shape, run_here, cards, len(shape.layers) + 1).fits else Verdict.NOT


def scaled(shape: Shape, size: int) -> Shape:
    """Give the shape of the same model in another quantization of ``size`` bytes: all weights shrink alike."""
    ratio = size / max(shape.weights, 1)
    layers = tuple(replace(layer, weights=int(layer.weights * ratio)) for layer in shape.layers)
    return replace(
        shape,
        layers=layers,
        input_weights=int(shape.input_weights * ratio),
        output_weights=int(shape.output_weights * ratio),
    )


def _other_quants(question: Question) -> Iterator[str]:
    """Name the largest other quantization that fits."""
    smaller = [(name, size) for name, size in question.quants if size < question.shape.weights]
    for name, size in sorted(smaller, key=lambda item: -item[1]):
        if _verdict(replace(question, shape=scaled(question.shape, size), quants=())) is Verdict.FITS:
            yield f"{name} ({human(size)})"
            return


def _shorter(question: Question) -> Iterator[str]:
    for tokens in _CONTEXTS:
        if tokens < question.tokens and _verdict(replace(question, context=tokens)) is Verdict.FITS:
            yield f"{tokens:,} tokens of context"
            break
    smaller = "fp8" if question.engine in LIKE_VLLM else "q8_0"
    kind = smaller if question.kv_type in {None, "auto", "f16"} else None
    if kind and _verdict(replace(question, kv_type=kind)) is Verdict.FITS:
        yield f"a cache of type {kind} (--kv-type {kind})"


def _more_cards(question: Question) -> Iterator[str]:
    first = question.devices[0]
    if first.kind is not Kind.GPU:
        return
    for count in _MORE_CARDS:
        devices = (first,) * count
        if count > len(question.devices) and _verdict(replace(question, devices=devices)) is Verdict.FITS:
            yield f"{count} cards of this kind"
            return


# ── words ──


def _machines(devices: Sequence[Device]) -> str:
    names = [device.name for device in devices]
    if len(set(names)) == 1:
        return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"
    return " + ".join(names)


_SERVES_FEW = 10


def _notes(question: Question) -> Iterator[str]:
    if question.shape.unknown:
        yield f"not known: {', '.join(question.shape.unknown)}; weights are exact, and the rest comes on top"
    if question.context and question.shape.context and question.context > question.shape.context:
        yield f"the model was made for {question.shape.context:,} tokens of context"
    if question.engine == "ollama" and question.users >= _SERVES_FEW:
        yield "Ollama queues requests beyond OLLAMA_NUM_PARALLEL; for ten users or more at once, vLLM serves them together"


# ── several models ──


def together(shapes: Sequence[tuple[str, Shape]], question: Question) -> tuple[tuple[str, Answer], ...]:
    """Put several models on the same cards: as many whole as possible, the smallest first; the rest gets what is left.

    ``question`` says everything but the shape. Only llama.cpp offloads in part.
    """
    left = list(question.devices)
    answers: dict[str, Answer] = {}
    for name, shape in sorted(shapes, key=lambda item: item[1].weights):
        one = _llamacpp(replace(question, shape=shape, devices=tuple(left)))
        answers[name] = one
        if one.gpu_layers or one.verdict is Verdict.FITS:
            left = [
                replace(device, memory=max(device.memory - load.size, 0))
                for device, load in zip(left, one.loads, strict=True)
            ]
    return tuple((name, answers[name]) for name, _ in shapes)
