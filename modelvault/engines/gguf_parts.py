"""Which GGUF files of a model are its weights, which its projector and which an adapter. By their names alone: pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from modelvault.artifact import FileSpec, Model
from modelvault.errors import EngineRefused, UsageProblem
from modelvault.formats import gguf_names
from modelvault.formats.gguf_names import models_among, projector_among
from modelvault.formats.modelfile import Modelfile

_SHARD = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a model goes into a layer each. ``weights``: one file, or all shards in order; ``unused`` files could be another layer."""

    weights: tuple[FileSpec, ...]
    projector: FileSpec | None = None
    adapter: FileSpec | None = None
    unused: tuple[FileSpec, ...] = ()


def gguf_files(model: Model) -> list[FileSpec]:
    """Give the model's GGUF files."""
    return [file for file in model.files if file.path.lower().endswith(".gguf")]


def choose_parts(model: Model, modelfile: Modelfile, who: str = "Ollama") -> Parts:
    """Sort a model's GGUF files for the engine ``who``. Raises ``EngineRefused`` with the reason alone as its message; ``UsageProblem`` for a wrong ADAPTER.

    Which is what follows from their names (``formats.gguf_names``), and an adapter from the Modelfile's ADAPTER.
    """
    files = gguf_files(model)
    if not files:
        raise EngineRefused(f"{who} takes GGUF files, and this model has none")
    adapter = _adapter(model, modelfile)
    rest = [file for file in files if file != adapter]
    by_path = {file.path: file for file in rest}
    weights = [by_path[path] for path in models_among(tuple(by_path))]
    chosen = projector_among(tuple(by_path))
    projector = by_path[chosen] if chosen else None
    unused = [file for file in rest if file not in weights and file != projector]
    return Parts(_whole(weights, who), projector, adapter, tuple(unused))


def why_not_gguf(model: Model, who: str) -> str | None:
    """Give the reason why llama.cpp, or ``who`` serves with it, cannot load a model from one directory; ``None`` if it can."""
    try:
        choose_parts(model, Modelfile(), who)
    except EngineRefused as error:
        return error.message
    return None


def loaded_files(model: Model) -> tuple[FileSpec, ...]:
    """Give the files that llama.cpp needs of a model, the first shard first and the projector last; none if there is no GGUF."""
    if not gguf_files(model):
        return ()
    parts = choose_parts(model, Modelfile())
    return (*parts.weights, parts.projector) if parts.projector else parts.weights


def served_gguf(paths: Iterable[str]) -> str | None:
    """Choose from the files of an install the one that an engine is to be told: the first shard of the model."""
    # By their own names: directories above them are the model's and the machine's.
    by_name = {PurePosixPath(path).name: path for path in sorted(paths, reverse=True)}
    models = models_among(sorted(by_name))
    return by_name[models[0]] if models else None


def served_projector(paths: Iterable[str]) -> str | None:
    """Choose from the files of an install the projector, if there is one."""
    by_name = {PurePosixPath(path).name: path for path in sorted(paths, reverse=True)}
    projector = projector_among(sorted(by_name))
    return by_name[projector] if projector else None


def is_projector(file: FileSpec) -> bool:
    """Tell a projector by its name, as llama.cpp does."""
    return gguf_names.is_projector(file.path)


def is_draft(file: FileSpec) -> bool:
    """Tell by its name whether a file is a draft model, which llama.cpp takes for the one beside it."""
    return gguf_names.is_draft(file.path)


def base_name(file: FileSpec) -> str:
    """Give a file's name without its directories."""
    return PurePosixPath(file.path).name


def _whole(files: Sequence[FileSpec], who: str) -> tuple[FileSpec, ...]:
    """Give the one file that there is, or all shards of the one set."""
    if not files:
        raise EngineRefused("its GGUF files are a projector or an adapter, without the model that they belong to")
    sets: dict[tuple[str, int], dict[int, FileSpec]] = {}
    for file in files:
        match = _SHARD.fullmatch(file.path)
        found = (match["prefix"], int(match["count"]), int(match["number"])) if match else (file.path, 1, 1)
        sets.setdefault(found[:2], {})[found[2]] = file
    if len(sets) > 1:
        names = ", ".join(file.path for file in files[:4])
        raise EngineRefused(f"it has {len(sets)} models in its {len(files)} GGUF files ({names}), and {who} takes one")
    (((_, count), shards),) = sets.items()
    if sorted(shards) != list(range(1, count + 1)):
        raise EngineRefused(f"its GGUF is split into {count} files, of which {count - len(shards)} are not here")
    return tuple(shards[number] for number in sorted(shards))


def _adapter(model: Model, modelfile: Modelfile) -> FileSpec | None:
    """Find the file of the model that ADAPTER names, by its path or its last part."""
    named = modelfile.all("ADAPTER")
    if not named:
        return None
    if len(named) > 1:
        raise UsageProblem("the modelfile has several ADAPTERs", hint="Ollama takes one adapter per model")
    path = PurePosixPath(named[0].removeprefix("@"))
    files = gguf_files(model)
    found = [file for file in files if PurePosixPath(file.path) == path] or [
        file for file in files if base_name(file) == path.name
    ]
    if len(found) != 1:
        raise UsageProblem(
            f"the modelfile's ADAPTER {named[0][:120]} is no GGUF file of {model.name}",
            hint="an adapter is a GGUF file that was added or pulled with the model; name it as `modelvault show` does",
        )
    return found[0]
