"""The files that hold a policy: what they may say, and where they lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from modelvault.config import parse_size
from modelvault.errors import UsageProblem
from modelvault.stricttoml import read_toml

FILE_NAME = "policy.toml"
MACHINE_FILE = Path("/etc/modelvault") / FILE_NAME
"""The machine's rules: whoever is not root cannot change them."""
NO_LICENSE = "unknown"
"""What stands for the license of a model that states none."""

_PAGE = "docs/reference/policy.md"

_Line = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z")]
_Globs = Annotated[tuple[_Line, ...], msgspec.Meta(min_length=1)]
_Source = Literal["hub", "ollama", "folder"]
_Format = Literal[
    "gguf", "safetensors", "onnx", "h5", "msgpack", "npz",
    "awq", "gptq", "fp8", "exl2", "exl3", "compressed-tensors", "modelopt", "mxfp4", "bitsandbytes",
]  # fmt: skip


class Licenses(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Globs over names of licenses: the only ones ``allow``ed, those ``deny``ed all the same, those that a person must ``accept``."""

    allow: _Globs | None = None
    deny: tuple[_Line, ...] = ()
    accept: tuple[_Line, ...] = ()


class Exemption(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A model to which a rule does not apply, and why; with ``commit`` only that state of it."""

    model: _Line
    why: _Line
    commit: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{40}\Z")] | None = None


class Pickle(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Whether pickles may come: ``never``, for the ``exceptions`` only, or wherever a scan finds nothing dangerous."""

    allow: Literal["never", "exceptions", "scanned"]
    exceptions: tuple[Exemption, ...] = ()


class RemoteCode(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Whether models may need code of their own: ``never``, for the ``exceptions`` only, or ``always``."""

    allow: Literal["never", "exceptions", "always"]
    exceptions: tuple[Exemption, ...] = ()


class Rules(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Everything that one file says. What it does not say, it does not judge."""

    sources: Annotated[tuple[_Source, ...], msgspec.Meta(min_length=1)] | None = None
    organizations: _Globs | None = None
    formats: Annotated[tuple[_Format, ...], msgspec.Meta(min_length=1)] | None = None
    largest_model: str | int | None = None
    licenses: Licenses = Licenses()
    pickle: Pickle | None = None
    remote_code: RemoteCode | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one file. ``largest`` is in bytes."""

    file: Path
    rules: Rules
    largest: int | None = None


def load_policies(root: Path, machine: Path = MACHINE_FILE) -> tuple[Policy, ...]:
    """Read the machine's policy and that of the vault in ``root``, as far as there are any.

    Raises ``UsageProblem`` naming the file and the key. A file that is there and cannot be read is an error: a policy never silently
    does not hold.
    """
    return tuple(_read(file) for file in (machine, root / FILE_NAME) if _is_there(file))


def _is_there(file: Path) -> bool:
    try:
        file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # a directory that may not be searched hides no rules
        raise UsageProblem(
            f"{file} cannot be read: {(error.strerror or str(error)).lower()}",
            hint="have the directory and the file made readable for everybody: the rules hold for all",
        ) from error
    return True


def _read(file: Path) -> Policy:
    rules = read_toml(file, Rules, page=_PAGE)
    for key, table in (("pickle", rules.pickle), ("remote_code", rules.remote_code)):
        if table is not None and table.exceptions and table.allow in {"never", "always"}:
            raise UsageProblem(
                f"{file}: {key}.exceptions: there are none where {key}.allow is {table.allow!r}",
                hint=f'write allow = "exceptions", or remove them; see {_PAGE}',
            )
    if rules.largest_model is None:
        return Policy(file, rules)
    try:
        return Policy(file, rules, parse_size(str(rules.largest_model)))
    except UsageProblem as error:
        raise UsageProblem(f"{file}: largest_model: {error.message}", hint=error.hint) from error
