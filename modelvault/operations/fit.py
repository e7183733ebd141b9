"""``fit``: whether models fit into what the user has, before a byte of their weights is pulled."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault.artifact import ModelName, looks_like_path
from modelvault.errors import UsageProblem
from modelvault.fit import llamacpp, vllm
from modelvault.fit.answer import LIKE_VLLM, Answer, Question, Verdict, answer, llamacpp_run, scaled, together
from modelvault.fit.cards import Device, Kind
from modelvault.fit.detect import devices_of
from modelvault.fit.parts import Part, total
from modelvault.operations.catalog import the_catalog
from modelvault.operations.fitting import question_about
from modelvault.operations.shapes import Described, described_file, described_model, described_remote
from modelvault.operations.upstream import open_source, resolve
from modelvault.progress import Progress
from modelvault.results.fit import ContextLine, FitLine, FitResult, LoadLine, PartLine, QuantLine
from modelvault.sources.selection import Wish
from modelvault.vault import Vault

_CHART = (2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True, slots=True)
class FitRequest:
    """What is asked: ``subjects`` are names of the vault, the catalog or the Hub, or paths. ``context`` in tokens for each of ``users``."""

    subjects: tuple[str, ...]
    gpus: tuple[str, ...]
    engine: str | None = None
    context: int | None = None
    users: int = 1
    kv_type: str | None = None
    quant: str | None = None
    all_quants: bool = False
    endpoint: str | None = None


def fit(vault: Vault, request: FitRequest, progress: Progress) -> FitResult:
    """Answer for each model, or for several together on the same cards.

    Raises ``UsageProblem`` for cards that are not known and sizes without sense, ``SourceUnavailable``, ``InvalidModelFile``.
    """
    devices = devices_of(request.gpus)
    found = [describe(vault, subject, request, progress) for subject in request.subjects]
    questions = [_question(request, devices, described) for described in found]
    if len(found) > 1:
        if any(question.engine in LIKE_VLLM for question in questions):
            raise UsageProblem(
                "several models share a card with llama.cpp or Ollama, and vLLM takes a share of it for each",
                hint="ask for each alone, with a --gpu of the share that it gets",
            )
        answers = together([(one.name, one.shape) for one in found], questions[0])
        lines = [
            _line(one, question, reply) for one, question, (_, reply) in zip(found, questions, answers, strict=True)
        ]
    else:
        lines = [_alone(found[0], questions[0], request)]
    return FitResult(tuple(device.name for device in devices), tuple(lines))


def describe(vault: Vault, subject: str, request: FitRequest, progress: Progress) -> Described:
    """Find a model: a path, a name of the vault, else of the catalog or the Hub, of which headers are read."""
    if looks_like_path(subject):
        return described_file(Path(subject).expanduser())
    name = ModelName(subject)
    if vault.store.exists and any(entry.name == name for entry in vault.store.entries()):
        return described_model(vault, name)
    upstream = resolve(name, Wish(request.quant), None, the_catalog(vault.config))
    with contextlib.closing(open_source(upstream, request.endpoint, vault.config, progress.log)) as source:
        progress.log(f"looking up {upstream.repository}")
        snapshot = source.snapshot(upstream.repository, upstream.revision)
        return described_remote(str(upstream.name), snapshot, upstream.wish, source, progress)


def _question(request: FitRequest, devices: tuple[Device, ...], described: Described) -> Question:
    question = question_about(
        described, devices, request.context, engine=request.engine, users=request.users, kv_type=request.kv_type
    )
    engine = question.engine
    if described.gguf and engine in LIKE_VLLM:
        raise UsageProblem(
            f"{engine} is asked for safetensors here", hint="leave --engine away, or name llamacpp or ollama"
        )
    if not described.gguf and engine not in LIKE_VLLM:
        raise UsageProblem(
            f"{engine} takes GGUF, and {described.name} is safetensors", hint="leave --engine away, or name vllm"
        )
    return question


def _alone(described: Described, question: Question, request: FitRequest) -> FitLine:
    line = _line(described, question, answer(question))
    if request.all_quants and not question.quants:
        raise UsageProblem(
            f"{described.name} has no other quantizations to compare",
            hint="--all-quants is for GGUF repositories of the Hub",
        )
    quants = tuple(_quants(question)) if request.all_quants else ()
    return replace(line, quants=quants, contexts=tuple(_contexts(question)))


def _quants(question: Question) -> Iterator[QuantLine]:
    for name, size in question.quants:
        reply = answer(replace(question, shape=scaled(question.shape, size), quants=()))
        yield QuantLine(name, size, reply.verdict.value, reply.longest)


def _contexts(question: Question) -> Iterator[ContextLine]:
    """Give what rises with the context, as far as the model was made for."""
    limit = question.shape.context or _CHART[-1]
    for tokens in (tokens for tokens in _CHART if tokens <= limit):
        reply = answer(replace(question, context=tokens, quants=()))
        if reply.verdict is Verdict.REFUSED:
            return
        yield ContextLine(tokens, needed(question, tokens), reply.verdict is Verdict.FITS)


def needed(question: Question, tokens: int) -> int:
    """Give the bytes that the whole model needs with this context: on all cards together, or in main memory."""
    if question.engine in LIKE_VLLM:
        run = vllm.Run(tokens, question.kv_type or "auto")
        parallel = vllm.parallels(question.shape, len(question.devices))[0]
        serving = vllm.serve(question.shape, run, question.devices, parallel)
        fixed = sum(part.size for part in serving.loads[0].parts if part.name not in {"cache", "outside its share"})
        return (fixed + serving.need * question.users) * parallel
    run_here = llamacpp_run(question, tokens)
    cards = () if question.devices[0].kind is Kind.CPU else question.devices
    placement = llamacpp.place(question.shape, run_here, cards, len(question.shape.layers) + 1)
    return sum(load.size for load in placement.loads) if cards else total(placement.host)


def _line(described: Described, question: Question, reply: Answer) -> FitLine:
    return FitLine(
        model=described.name,
        engine=question.engine,
        verdict=reply.verdict.value,
        headline=reply.headline,
        weights=question.shape.weights + question.shape.projector,
        context=reply.context,
        users=question.users,
        longest=reply.longest,
        loads=tuple(
            LoadLine(load.device, load.memory, load.left, tuple(map(_part, load.parts))) for load in reply.loads
        ),
        host=tuple(map(_part, reply.host)),
        gpu_layers=reply.gpu_layers,
        all_layers=reply.all_layers,
        parallel=reply.parallel,
        concurrency=reply.concurrency,
        cache_tokens=reply.tokens,
        instead=reply.instead,
        notes=reply.notes,
    )


def _part(part: Part) -> PartLine:
    return PartLine(part.name, part.size, part.exact)
