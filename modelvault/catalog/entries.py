"""Catalog entries: what a file of the catalog means. A file describes one model; each of its formats has a short name of its own."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import msgspec

from modelvault.artifact import ModelName
from modelvault.catalog.schema import FORMATS, Entry, Exl2, Gguf, Ollama, Source
from modelvault.errors import UsageProblem
from modelvault.formats.quantizations import nominal_bits
from modelvault.stricttoml import read_toml

_PAGE = "docs/reference/catalog.md"
_SCALE = {"M": 10**6, "B": 10**9, "T": 10**12}
_TITLES = {"gguf": "GGUF", "safetensors": "unquantized", "awq": "AWQ", "gptq": "GPTQ", "fp8": "FP8", "exl2": "EXL2"}
_USUAL_BITS = 5.0  # for a quantization that nothing is known of

# Formats whose linear layers have 4 or 8 bits keep embeddings in 16: the smaller the model, the more these weigh. Bits per weight
# of what publishers offer, by the number of weights up to which they hold.
_FOUR_BIT = ((2e9, 8.0), (12e9, 5.9), (50e9, 4.9), (float("inf"), 4.55))
_EIGHT_BIT = ((2e9, 11.0), (12e9, 9.2), (50e9, 8.6), (float("inf"), 8.3))


@dataclass(frozen=True, slots=True)
class OllamaRecipe:
    """How Ollama serves a model. Its template is ``template``, or that of a chat ``family``; ``stop`` empty: the family's."""

    name: str
    family: str | None
    template: str | None
    system: str | None
    stop: tuple[str, ...]
    parameters: Mapping[str, int | float]

    def modelfile(self, template: str, stop: Sequence[str]) -> str:
        """Write the Modelfile, without FROM, with this template and these words at which a turn ends."""
        lines = [f'TEMPLATE """{template}"""']
        if self.system is not None:
            lines.append(f'SYSTEM """{self.system}"""')
        lines += [f"PARAMETER {key} {value}" for key, value in self.parameters.items()]
        lines += [f'PARAMETER stop "{word}"' for word in stop]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A short name with everything that ``pull`` and the engines need to know about it: a model in one format.

    ``model`` is the name of the file that it comes from, shared by all formats of the model. ``include`` and ``exclude`` are globs over
    the source's paths; empty means the source's own choice. ``parameters`` is a label such as ``8.0B``, ``context`` the model's
    context length in tokens, ``languages`` codes of ISO 639. ``size`` is an estimate of the weights, in bytes. ``acceptance``
    says that the license asks whoever uses the model to accept it; ``verified`` is false until a person checked repository, license and files online.
    """

    name: ModelName
    model: str
    title: str
    license: str
    gated: bool
    verified: bool
    acceptance: bool
    languages: tuple[str, ...]
    repository: str
    revision: str | None
    quant: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    format: str
    parameters: str
    context: int
    size: int
    ollama: OllamaRecipe | None
    vllm_arguments: tuple[str, ...]
    file: Path


def read_entries(file: Path) -> tuple[CatalogEntry, ...]:
    """Read the model of a file in each of its formats, the one that goes by the plain name first. ``UsageProblem`` names file and key."""
    raw = read_toml(file, Entry, page=_PAGE)
    if raw.name != file.stem:
        raise UsageProblem(f"{file}: name: {raw.name!r} is not the name of the file", hint=f"call it {raw.name}.toml")
    sources = [(form, source) for form in FORMATS if (source := getattr(raw, form)) is not None]
    _check(file, raw, dict(sources))
    return tuple(_entry(file, raw, form, source, plain=not at) for at, (form, source) in enumerate(sources))


def _entry(file: Path, raw: Entry, form: str, source: Source, *, plain: bool) -> CatalogEntry:
    quant = source.quant if isinstance(source, Gguf) else None
    return CatalogEntry(
        name=_short_name(file, raw.name if plain else f"{raw.name}-{form}"),
        model=raw.name,
        title=f"{raw.title}, {_TITLES[form]}" + (f" {quant}" if quant else ""),
        license=raw.license,
        gated=raw.gated if source.gated is None else source.gated,
        verified=raw.verified,
        acceptance=raw.acceptance,
        languages=raw.languages,
        repository=source.repository,
        revision=source.revision,
        quant=quant,
        include=source.include,
        exclude=source.exclude,
        format=form,
        parameters=raw.parameters,
        context=raw.context,
        size=_estimate(raw.parameters, form, source),
        ollama=_ollama(file, raw) if form == "gguf" else None,
        vllm_arguments=raw.vllm.arguments if raw.vllm and form not in {"gguf", "exl2"} else (),
        file=file,
    )


def _short_name(file: Path, text: str) -> ModelName:
    try:
        name = ModelName(text)
    except UsageProblem as error:
        raise UsageProblem(f"{file}: name: {error.message}", hint=error.hint) from error
    if name.organization is not None or name.quant is not None:
        raise UsageProblem(f"{file}: name: {text!r} is not a short name", hint="it has no slash and no colon")
    return name


def _check(file: Path, raw: Entry, sources: Mapping[str, Source]) -> None:
    """Compare what belongs together: formats and the recipes of the engines that take them."""
    hint = f"see {_PAGE}"
    if not sources:
        raise UsageProblem(f"{file}: no format: it needs one of the tables {', '.join(FORMATS)}", hint=hint)
    if ("gguf" in sources) != (raw.ollama is not None):
        raise UsageProblem(f"{file}: ollama: the table belongs to a table gguf, and a table gguf needs it", hint=hint)
    if bool(sources.keys() - {"gguf", "exl2"}) != (raw.vllm is not None):
        formats = ", ".join(form for form in FORMATS if form not in {"gguf", "exl2"})
        raise UsageProblem(f"{file}: vllm: the table belongs to one of {formats}, and these need it", hint=hint)


def _ollama(file: Path, raw: Entry) -> OllamaRecipe:
    given = raw.ollama or Ollama()
    if (given.family is None) == (given.template is None):
        raise UsageProblem(f"{file}: ollama.family: there must be either a family or a template", hint=f"see {_PAGE}")
    for key, text in (("template", given.template), ("system", given.system)):
        # A Modelfile knows no escapes: three quotes end the value wherever they stand.
        if text is not None and ('"""' in text or text.endswith('"')):
            raise UsageProblem(
                f"{file}: ollama.{key}: a Modelfile cannot hold three quotes in a row, or one at the end of a text",
                hint="write it in another way",
            )
    for word in given.stop:
        if '"' in word:
            raise UsageProblem(
                f"{file}: ollama.stop: a Modelfile cannot hold a quote in a stop sequence: {word!r}",
                hint="leave it away",
            )
    return OllamaRecipe(
        name=given.name or raw.name,
        family=given.family,
        template=given.template,
        system=given.system,
        stop=given.stop,
        parameters=msgspec.to_builtins(given.parameters),
    )


def weights(label: str) -> int:
    """Read a number of weights: ``8.0B``, ``494M``."""
    return int(Decimal(label[:-1]) * _SCALE[label[-1]])


def _estimate(label: str, form: str, source: Source) -> int:
    """Estimate the bytes of the weights. The true ones are known when the source has listed its files."""
    count = weights(label)
    if isinstance(source, Gguf):
        bits = nominal_bits(source.quant.upper()) or _USUAL_BITS
    elif isinstance(source, Exl2):
        bits = source.bits
    elif form == "safetensors":
        bits = 16.0
    else:
        bits = next(bits for most, bits in (_EIGHT_BIT if form == "fp8" else _FOUR_BIT) if count <= most)
    return int(count * bits / 8)


def in_order(names: Sequence[str]) -> list[str]:
    """Sort names as people count: ``x-7b`` before ``x-14b``."""
    return sorted(names, key=lambda name: (list(_pieces(name.casefold())), name))


def _pieces(name: str) -> Iterator[tuple[bool, float, str]]:
    for piece in re.findall(r"\d+(?:\.\d+)?|[^\d]+", name):
        yield (False, float(piece), "") if piece[0].isdigit() else (True, 0.0, piece)
