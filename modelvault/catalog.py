"""The catalog: short names, each with a reviewed source and install recipe. One TOML file per entry in ``manifests/``.

The schema is strict: a key that nobody reads is an error, since a misspelled one would otherwise be a setting that silently does
not hold. It is documented in ``docs/reference/catalog.md``.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from modelvault.artifact import ModelName, Recipe
from modelvault.errors import UsageProblem

_SUGGESTIONS = 3
_LARGEST_ENTRY = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A short name with everything that ``pull`` and the engines need to know about it.

    ``include`` and ``exclude`` are globs over the source's paths; empty means the source's own choice. ``parameters`` is a label
    such as ``8.0B``, ``context`` the model's context length in tokens. ``verified`` is false until a person checked repository,
    license and files online.
    """

    name: ModelName
    title: str
    license: str
    gated: bool
    verified: bool
    repository: str
    revision: str | None
    quant: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    format: str
    parameters: str
    context: int
    recipe: Recipe


# What a file may say. Names and types are those of docs/reference/catalog.md.

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Label = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z")]  # one line
_Count = Annotated[int, msgspec.Meta(ge=1)]


class _Source(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    kind: Literal["hub"]
    repository: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96}\Z")]
    revision: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{40}\Z")] | None = None
    quant: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.-]+\Z")] | None = None
    include: tuple[_Label, ...] = ()
    exclude: tuple[_Label, ...] = ()


class _OllamaParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """The parameters that a Modelfile may set (Ollama's ``api.Options``), except ``stop``, which is a list."""

    num_ctx: _Count | None = None
    num_batch: _Count | None = None
    num_gpu: int | None = None
    num_thread: _Count | None = None
    num_keep: int | None = None
    num_predict: int | None = None
    seed: int | None = None
    top_k: int | None = None
    repeat_last_n: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    temperature: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class _Ollama(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: Annotated[
        str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})?\Z")
    ]
    template: _Text
    system: _Text | None = None
    stop: tuple[_Label, ...] = ()
    parameters: _OllamaParameters = _OllamaParameters()


class _Vllm(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    arguments: tuple[_Label, ...]


class _Entry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    title: _Label
    license: _Label
    gated: bool
    verified: bool
    format: Literal["gguf", "awq"]
    parameters: _Label
    context: _Count
    source: _Source
    ollama: _Ollama | None = None
    vllm: _Vllm | None = None


def load_catalog(directory: Path | None = None) -> Mapping[str, CatalogEntry]:
    """Read every ``*.toml`` of ``directory`` (default: the catalog that came with modelvault), by name in sorted order.

    Raises ``UsageProblem`` naming the file and the key for anything that the schema does not admit.
    """
    folder = directory if directory is not None else packaged_manifests()
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise UsageProblem(
            f"{folder} holds no catalog entries", hint="reinstall modelvault, or name the directory of the entries"
        )
    entries: dict[str, CatalogEntry] = {}
    folded: dict[str, Path] = {}
    for file in files:
        entry = read_entry(file)
        other = folded.setdefault(entry.name.text.casefold(), file)
        if other != file:
            raise UsageProblem(f"{file}: name: {entry.name} differs from the one of {other.name} only in case")
        entries[entry.name.text] = entry
    return dict(sorted(entries.items()))


def packaged_manifests() -> Path:
    """Find the catalog: inside the package when it was installed from a wheel, else at the top of the checkout."""
    package = Path(__file__).parent
    installed = package / "manifests"
    return installed if installed.is_dir() else package.parent / "manifests"


def find_entry(name: ModelName, catalog: Mapping[str, CatalogEntry]) -> CatalogEntry | None:
    """Look a name up, in whatever case it was typed."""
    exact = catalog.get(name.text)
    if exact is not None:
        return exact
    folded = name.text.casefold()
    return next((entry for key, entry in catalog.items() if key.casefold() == folded), None)


def suggest(name: ModelName, catalog: Mapping[str, CatalogEntry]) -> list[str]:
    """Give up to three names of the catalog that look like ``name``, the nearest first."""
    keys = {key.casefold(): key for key in catalog}
    near = difflib.get_close_matches(name.text.casefold(), keys, n=_SUGGESTIONS)
    return [keys[key] for key in near]


def read_entry(file: Path) -> CatalogEntry:
    """Read one entry. Raises ``UsageProblem`` naming the file and the key."""
    raw = _decode(file)
    if raw.name != file.stem:
        raise UsageProblem(f"{file}: name: {raw.name!r} is not the name of the file", hint=f"call it {raw.name}.toml")
    try:
        name = ModelName(raw.name)
    except UsageProblem as error:
        raise UsageProblem(f"{file}: name: {error.message}", hint=error.hint) from error
    if name.organization is not None or name.quant is not None:
        raise UsageProblem(f"{file}: name: {raw.name!r} is not a short name")
    _check_consistency(file, raw)
    return CatalogEntry(
        name=name,
        title=raw.title,
        license=raw.license,
        gated=raw.gated,
        verified=raw.verified,
        repository=raw.source.repository,
        revision=raw.source.revision,
        quant=raw.source.quant,
        include=raw.source.include,
        exclude=raw.source.exclude,
        format=raw.format,
        parameters=raw.parameters,
        context=raw.context,
        recipe=Recipe(
            ollama_name=raw.ollama.name if raw.ollama else None,
            modelfile=_modelfile(file, raw.ollama) if raw.ollama else None,
            vllm_arguments=raw.vllm.arguments if raw.vllm else (),
        ),
    )


def _decode(file: Path) -> _Entry:
    try:
        data = file.read_bytes()
        if len(data) > _LARGEST_ENTRY:
            raise UsageProblem(f"{file} is too large for a catalog entry")
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"{file} cannot be read: {error}") from error
    try:
        return msgspec.convert(tomllib.loads(text), _Entry)
    except tomllib.TOMLDecodeError as error:
        raise UsageProblem(f"{file}: not valid TOML: {_with_line(error, text)}") from error
    except msgspec.ValidationError as error:
        raise UsageProblem(
            f"{file}: {_key_first(error)}", hint="the keys are listed in docs/reference/catalog.md"
        ) from error


def _with_line(error: tomllib.TOMLDecodeError, text: str) -> str:
    """Quote the line that the parser stopped at: for a key that is there twice, tomllib does not say which."""
    lines = text.splitlines()
    position = re.search(r"at line (\d+)", str(error))
    number = int(position.group(1)) if position else 0
    return f"{error}: {lines[number - 1].strip()!r}" if 0 < number <= len(lines) else str(error)


def _key_first(error: msgspec.ValidationError) -> str:
    """Turn ``Expected `int` - at `$.ollama.parameters.num_ctx``` into ``ollama.parameters.num_ctx: Expected `int```."""
    message, _, path = str(error).partition(" - at ")
    key = path.strip("`").removeprefix("$").lstrip(".")
    return f"{key}: {message}" if key else message


def _check_consistency(file: Path, raw: _Entry) -> None:
    if raw.format == "gguf" and (raw.ollama is None or raw.source.quant is None):
        raise UsageProblem(f"{file}: format: a GGUF entry needs the table ollama and the key source.quant")
    if raw.format != "gguf" and (raw.vllm is None or raw.ollama is not None):
        raise UsageProblem(f"{file}: format: an entry of format {raw.format} needs the table vllm, and no table ollama")


def _modelfile(file: Path, ollama: _Ollama) -> str:
    """Write the Modelfile, without FROM."""
    lines = [f"TEMPLATE {_quoted(file, 'ollama.template', ollama.template)}"]
    if ollama.system is not None:
        lines.append(f"SYSTEM {_quoted(file, 'ollama.system', ollama.system)}")
    lines += [f"PARAMETER {key} {value}" for key, value in msgspec.to_builtins(ollama.parameters).items()]
    for stop in ollama.stop:
        if '"' in stop:
            raise UsageProblem(f"{file}: ollama.stop: a Modelfile cannot hold a quote in a stop sequence: {stop!r}")
        lines.append(f'PARAMETER stop "{stop}"')
    return "\n".join(lines) + "\n"


def _quoted(file: Path, key: str, text: str) -> str:
    # A Modelfile knows no escapes: three quotes end the value wherever they stand.
    if '"""' in text or text.endswith('"'):
        raise UsageProblem(f"{file}: {key}: a Modelfile cannot hold three quotes in a row, or one at the end of a text")
    return f'"""{text}"""'
