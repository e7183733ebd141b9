"""``modelvault.lock``: the commit and the digests that a project's models had when they were pulled.

JSON, the same bytes for the same content: no time stamps, no machine, no mirror in it. Documented in ``docs/reference/project.md``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from modelvault import fsio, strictjson
from modelvault.artifact import Digest, ModelName, check_relative_path
from modelvault.errors import UsageProblem
from modelvault.project.wanted import WantedModel

_LARGEST = 64 << 20  # bytes: 100,000 files of a repository, several times over


@dataclass(frozen=True, slots=True, order=True)
class LockedFile:
    """One file: path within the model, size in bytes, SHA-256."""

    path: str
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class LockedModel:
    """What a wanted model is: the name it has in the vault, its source and commit, and every file."""

    wanted: WantedModel
    name: ModelName
    source: str
    repository: str
    commit: str
    files: tuple[LockedFile, ...]

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Lock:
    """All that is locked, by what is wanted: an entry counts only as long as the project asks for exactly that."""

    models: Mapping[WantedModel, LockedModel] = field(default_factory=dict)

    def only(self, wanted: Sequence[WantedModel]) -> "Lock":
        """Leave away what the project does not ask for any more."""
        return Lock({model: self.models[model] for model in wanted if model in self.models})

    def having(self, model: LockedModel) -> "Lock":
        """Give a lock with one model more, or another."""
        return Lock({**self.models, model.wanted: model})


# What the file holds.

_Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z")]


class _Wanted(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    quant: _Text | None
    revision: _Text | None
    include: tuple[_Text, ...]
    exclude: tuple[_Text, ...]


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    path: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: str


class _Model(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    wanted: _Wanted
    source: _Text
    repository: _Text
    commit: _Text
    files: Annotated[tuple[_File, ...], msgspec.Meta(min_length=1)]


class _Lock(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: Literal["modelvault.lock/1"]
    models: tuple[_Model, ...]


def encode_lock(lock: Lock) -> bytes:
    """Write a lock: models by the name they have in the vault, files by their path."""
    wire = _Lock(
        "modelvault.lock/1", tuple(_to_wire(model) for model in sorted(lock.models.values(), key=lambda m: m.name.text))
    )
    return (json.dumps(msgspec.to_builtins(wire), indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def decode_lock(data: bytes) -> Lock:
    """Read a lock. Raises ``ValueError`` that says what is wrong."""
    try:
        wire = msgspec.convert(strictjson.decode_object(data), _Lock)
        return Lock({model.wanted: model for model in map(_from_wire, wire.models)})
    except (msgspec.ValidationError, UsageProblem) as error:
        raise ValueError(str(error)) from error


def read_lock(file: Path) -> Lock:
    """Read a lock file; none is an empty lock. Raises ``UsageProblem`` that names the file."""
    if not file.exists():
        return Lock()
    try:
        return decode_lock(fsio.read_regular(file, limit=_LARGEST))
    except (ValueError, OSError) as error:
        raise UsageProblem(
            f"{file} cannot be read: {error}",
            hint="take it from version control again, or have it written anew: modelvault pull --all --update",
            path=str(file),
        ) from error


def write_lock(file: Path, lock: Lock) -> bool:
    """Write a lock file, unless it says the same already; tell whether it was written."""
    data = encode_lock(lock)
    if file.exists() and file.read_bytes() == data:
        return False
    fsio.atomic_write(file, data)
    return True


def _to_wire(model: LockedModel) -> _Model:
    wanted = model.wanted
    return _Model(
        name=model.name.text,
        wanted=_Wanted(wanted.name.text, wanted.quant, wanted.revision, wanted.include, wanted.exclude),
        source=model.source,
        repository=model.repository,
        commit=model.commit,
        files=tuple(_File(file.path, file.size, file.digest.hex) for file in sorted(model.files)),
    )


def _from_wire(wire: _Model) -> LockedModel:
    wanted = wire.wanted
    return LockedModel(
        wanted=WantedModel(ModelName(wanted.name), wanted.quant, wanted.revision, wanted.include, wanted.exclude),
        name=ModelName(wire.name),
        source=wire.source,
        repository=wire.repository,
        commit=wire.commit,
        files=tuple(
            LockedFile(check_relative_path(file.path), file.size, Digest.sha256(file.sha256)) for file in wire.files
        ),
    )
