"""``modelvault fit``."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from modelvault.cli import completion
from modelvault.cli.help import whole_number
from modelvault.cli.run import Json, run
from modelvault.cli.tables import table

if TYPE_CHECKING:
    from modelvault.progress import Progress
    from modelvault.results.fit import FitLine, FitResult, LoadLine

_GIB = 1 << 30
_BAR = 36  # characters of the longest bar
_MANY = 1000

Gpu = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu",
        metavar="SPEC",
        help="24GiB, 2x32GiB, a100-80, 2x4090, mac-64, cpu-64 or auto. Repeatable; else the cards of this machine.",
    ),
]


def fit(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|ORG/NAME|FILE...",
            help="Names of the vault, the catalog or the Hub, or paths.",
            autocompletion=completion.catalog,
        ),
    ],
    gpu: Gpu = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="ENGINE", help="llamacpp, ollama, textgen, vllm, sglang or tgi; else by the format."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(metavar="TOKENS", parser=whole_number(256, 1 << 24), help="8192 by default.")
    ] = None,
    users: Annotated[
        int | None,
        typer.Option(metavar="N", parser=whole_number(1, 10_000), help="Conversations at once; 1 by default."),
    ] = None,
    kv_type: Annotated[
        str | None, typer.Option("--kv-type", metavar="TYPE", help="Of the cache: f16, q8_0, fp8 and so on.")
    ] = None,
    quant: Annotated[str | None, typer.Option(metavar="QUANT", help="Which GGUF of a repository.")] = None,
    all_quants: Annotated[bool, typer.Option("--all-quants", help="Compare all GGUFs of the repository.")] = False,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="Another hub or a mirror.")] = None,
    as_json: Json = False,
) -> None:
    """Say whether a model fits before it is pulled.

    Computed from the headers of its files; of a model that is still at the Hub, their first megabytes are read.

    \b
    Examples:
      modelvault fit llama-3.1-70b --gpu 24GiB
      modelvault fit qwen2.5-72b-awq --gpu a100-80 --context 16384 --users 8
      modelvault fit ./a.gguf ./b.gguf --gpu 6GiB
    """
    from modelvault.config import default_home
    from modelvault.operations.fit import FitRequest, fit
    from modelvault.vault import Vault

    def work(progress: "Progress") -> "FitResult":
        request = FitRequest(
            tuple(models), tuple(gpu or ()), engine, context, users or 1, kv_type, quant, all_quants, endpoint
        )
        with Vault.prospective(default_home(), log=progress.log) as vault:
            return fit(vault, request, progress)

    run("fit", as_json, work, lines)


def lines(result: "FitResult") -> Iterator[str]:
    """Answer first, then how it comes to that, then what would fit instead."""
    for number, line in enumerate(result.models):
        if number:
            yield ""
        yield f"{line.model}: {line.headline}"
        if line.loads:
            yield ""
            yield from _sum(line)
        yield from _quants(line)
        yield from _chart(line)
        if line.instead:
            yield ""
            yield "what would fit instead:"
            yield from (f"  {other}" for other in line.instead)
        for note in line.notes:
            yield f"note: {note}"


def gib(size: int) -> str:
    """Write memory as cards have it."""
    return f"{size / _GIB:.2f} GiB"


def _sum(line: "FitLine") -> Iterator[str]:
    rows = []
    for load, count in _alike(line.loads):
        name = load.device if count == 1 else f"each of {count} {load.device}"
        for part in load.parts:
            rows.append((name, part.name, gib(part.size), "exact" if part.exact else "estimated"))
            name = ""
        rows.append(("", "left" if load.left >= 0 else "too much", gib(abs(load.left)), f"of {gib(load.memory)}"))
    if line.host and line.gpu_layers:
        rows += [
            ("main memory" if number == 0 else "", part.name, gib(part.size), "exact" if part.exact else "estimated")
            for number, part in enumerate(line.host)
        ]
    yield from table(("where", "what", "size", ""), rows, right=(2,))


def _alike(loads: "Sequence[LoadLine]") -> "list[tuple[LoadLine, int]]":
    """Join cards that hold the same to the MiB."""
    found: list[tuple[LoadLine, int]] = []
    for load in loads:
        if found and _rounded(found[-1][0]) == _rounded(load):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((load, 1))
    return found


def _rounded(load: "LoadLine") -> list[tuple[str, int]]:
    return [(load.device, load.memory), *((part.name, part.size >> 20) for part in load.parts)]


def _quants(line: "FitLine") -> Iterator[str]:
    if not line.quants:
        return
    rows = [(quant.name, gib(quant.size), quant.verdict, f"{quant.longest:,}") for quant in line.quants]
    yield ""
    yield from table(("quantization", "weights", "", "longest context"), rows, right=(1, 3))


def _chart(line: "FitLine") -> Iterator[str]:
    if len(line.contexts) < 2:  # noqa: PLR2004 (one bar compares with nothing)
        return
    most = max(context.size for context in line.contexts)
    yield ""
    yield "memory by length of context:"
    for context in line.contexts:
        bar = ("█" if context.fits else "░") * max(round(_BAR * context.size / most), 1)
        label = f"{context.tokens // 1024}k" if context.tokens >= _MANY else str(context.tokens)
        yield f"  {label:>5} {gib(context.size):>11} {bar}{'' if context.fits else ' does not fit'}"
