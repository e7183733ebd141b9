"""``modelvault.toml``: the models that a project wants. Written by people; documented in ``docs/reference/project.md``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from modelvault.artifact import ModelName
from modelvault.errors import UsageProblem
from modelvault.stricttoml import read_toml

PROJECT_FILE = "modelvault.toml"
_PAGE = "docs/reference/project.md"
_Word = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x20\x7f]+\Z")]
_Glob = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z")]


class _Model(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: _Word
    quant: _Word | None = None
    revision: _Word | None = None
    include: tuple[_Glob, ...] = ()
    exclude: tuple[_Glob, ...] = ()


class _Project(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: Annotated[tuple[_Model, ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class WantedModel:
    """One model, as the project asks for it: what ``pull`` takes on the command line."""

    name: ModelName
    quant: str | None = None
    revision: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Name it as ``pull`` does."""
        return f"{self.name}:{self.quant}" if self.quant and self.name.quant is None else str(self.name)


@dataclass(frozen=True, slots=True)
class Project:
    """A project's file and what it says, in its order."""

    file: Path
    models: tuple[WantedModel, ...]

    @property
    def lock(self) -> Path:
        """The lock file beside it: ``modelvault.toml`` has ``modelvault.lock``."""
        return self.file.with_suffix(".lock")


def read_project(file: Path) -> Project:
    """Read a project's file. Raises ``UsageProblem`` naming the file and the key."""
    if not file.exists():
        raise UsageProblem(
            f"there is no {file}",
            hint='write one, as `[[model]]` and below it `name = "org/name"`, or name another with --file',
            path=str(file),
        )
    raw = read_toml(file, _Project, page=_PAGE)
    models = tuple(_wanted(file, raw))
    seen: dict[str, int] = {}
    for number, model in enumerate(models):
        other = seen.setdefault(str(model).casefold(), number)
        if other != number:
            raise UsageProblem(
                f"{file}: model[{number}].name: {model} is wanted by model[{other}] already",
                hint="say it once: a vault holds one revision under one name",
            )
    return Project(file, models)


def _wanted(file: Path, raw: _Project) -> Iterator[WantedModel]:
    for number, model in enumerate(raw.model):
        key = f"{file}: model[{number}]"
        try:
            name = ModelName(model.name)
        except UsageProblem as error:
            raise UsageProblem(f"{key}.name: {error.message}", hint=error.hint) from error
        if model.quant and name.quant and model.quant.upper() != name.quant.upper():
            raise UsageProblem(
                f"{key}.quant: {model.quant} contradicts the name {name}", hint="say it in one of the two places"
            )
        yield WantedModel(name, model.quant, model.revision, model.include, model.exclude)
