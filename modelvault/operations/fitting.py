"""Whether models fit into the cards that they are meant for: before their weights are on their way, and where they are installed."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from modelvault.artifact import ModelName
from modelvault.engines.sglang import SglangEngine
from modelvault.engines.tgi import TgiEngine
from modelvault.engines.vllm import VllmEngine
from modelvault.errors import ModelvaultError, PolicyRefused, UsageProblem
from modelvault.fit import llamacpp, vllm
from modelvault.fit.answer import KNOWN_ENGINES, LIKE_VLLM, Answer, Question, Verdict, answer, scaled
from modelvault.fit.cards import Device
from modelvault.fit.detect import detect_gpus, devices_of
from modelvault.formats.quantizations import UNQUANTIZED
from modelvault.operations.shapes import Described, described_model, described_remote
from modelvault.operations.upstream import Upstream
from modelvault.progress import Progress
from modelvault.sources import Snapshot, Source
from modelvault.sources.selection import Wish, quantizations
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class Room:
    """The cards that a model is meant for, as ``--gpu`` of ``fit`` writes them. ``context`` in tokens; ``force``: pull what does not fit, too."""

    gpus: tuple[str, ...]
    context: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Fitting:
    """Answers about one repository. A header is some megabytes to read, so that only those are read that are asked for."""

    snapshot: Snapshot
    source: Source
    room: Room
    devices: tuple[Device, ...]
    progress: Progress
    known: dict[Wish, Described] = field(default_factory=dict)

    @classmethod
    def of(cls, snapshot: Snapshot, source: Source, room: Room, progress: Progress) -> "Fitting":
        """Read what cards there are. Raises ``UsageProblem`` for one that is not known."""
        return cls(snapshot, source, room, devices_of(room.gpus), progress)

    def best_quantization(self, wish: Wish) -> str:
        """Give the best quantization that fits whole: the largest, an unquantized one only where there is no other.

        Raises ``UsageProblem`` where there are none to choose from, ``PolicyRefused`` (17) where none fits.
        """
        found = quantizations(self.snapshot.files, wish)
        if not found:
            raise UsageProblem(
                f"--quant auto: {self.snapshot.repository} has no GGUF quantizations to choose from",
                hint="leave it away: with --fit alone, what does not fit is refused",
            )
        # The header of one tells the shape of all; sizes then say which others are worth reading.
        smallest = self._described(replace(wish, quant=found[0].name))
        for one in sorted(found, key=lambda one: (one.quant in UNQUANTIZED, -one.size)):
            estimate = replace(smallest, shape=scaled(smallest.shape, one.size))
            if self._fits(estimate) and self._fits(self._described(replace(wish, quant=one.name))):
                return one.name
        if self.room.force:
            return found[0].name
        reply = self._answer(smallest)
        raise refusal(f"no quantization of {self.snapshot.repository} fits; {found[0].name}", reply, _FORCED)

    def require(self, upstream: Upstream) -> str:
        """Say in a line how the model fits. Raises ``PolicyRefused`` (17) with what would fit instead, unless it is to be pulled all the same."""
        reply = self._answer(self._described(upstream.wish))
        if reply.verdict is not Verdict.FITS and not self.room.force:
            raise refusal(str(upstream.name), reply, _FORCED)
        return reply.headline

    def _described(self, wish: Wish) -> Described:
        if wish not in self.known:
            name = self.snapshot.repository
            self.known[wish] = described_remote(name, self.snapshot, wish, self.source, self.progress)
        return self.known[wish]

    def _fits(self, described: Described) -> bool:
        return self._answer(described).verdict is Verdict.FITS

    def _answer(self, described: Described) -> Answer:
        return answer(question_about(described, self.devices, self.room.context))


_FORCED = "pulls it all the same"


def unheld(vault: Vault, names: Iterable[str]) -> Iterator[str]:
    """Warn of models of the vault that the cards of this machine cannot hold or run. What cannot be told is no warning."""
    wanted = tuple(names)
    try:
        devices = detect_gpus() if wanted else ()
    except ModelvaultError:
        return  # no cards, or none that can be asked
    for name in wanted:
        with contextlib.suppress(ModelvaultError, OSError):
            reply = answer(question_about(described_model(vault, ModelName(name)), devices))
            if reply.verdict is not Verdict.FITS:
                yield f"{reply.headline if reply.verdict is Verdict.REFUSED else f'{name} {reply.headline}'}: `modelvault fit {name}` tells more"


_REFUSED: Mapping[str, Mapping[str, str]] = {
    "vllm": VllmEngine.refused,
    "sglang": SglangEngine.refused,
    "tgi": TgiEngine.refused,
}
"""Quantizations that an engine does not load, with its reason."""


def question_about(
    described: Described,
    devices: Sequence[Device],
    context: int | None = None,
    *,
    engine: str | None = None,
    users: int = 1,
    kv_type: str | None = None,
) -> Question:
    """Ask about a model on an engine, by default llama.cpp for GGUF, else vLLM. Raises ``UsageProblem`` for what no answer is known to."""
    engine = engine or ("llamacpp" if described.gguf else "vllm")
    if engine not in KNOWN_ENGINES:
        raise UsageProblem(
            f"what a model takes in {engine} is not known here", hint=f"--engine is one of: {', '.join(KNOWN_ENGINES)}"
        )
    types = vllm.CACHE_BYTES if engine in LIKE_VLLM else llamacpp.CACHE_TYPES
    if kv_type and kv_type not in types:
        raise UsageProblem(
            f"--kv-type {kv_type}: {engine} has no such cache", hint=f"one of: {', '.join(sorted(types))}"
        )
    return Question(
        described.shape,
        engine,
        tuple(devices),
        context,
        users,
        kv_type,
        described.method,
        _REFUSED.get(engine, {}).get(described.method or ""),
        tuple(described.quants.items()),
    )


def refusal(what: str, reply: Answer, forced: str) -> PolicyRefused:
    """Build the error for a model that does not fit, with what would; ``forced`` says what --force does."""
    told = f"what would fit: {'; '.join(reply.instead)}" if reply.instead else "a smaller model or quantization would"
    message = reply.headline if reply.verdict is Verdict.REFUSED else f"{what} {reply.headline}"
    return PolicyRefused(message, hint=f"{told}; --force {forced}", instead=list(reply.instead))
