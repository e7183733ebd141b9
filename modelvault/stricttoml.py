"""Reading TOML that people write by hand: a schema in which nothing is passed over, and errors that name the file and the key.

A key that nobody reads is an error, since a misspelled one would otherwise be a setting that silently does not hold.
"""

import re
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import inspect

from modelvault.errors import UsageProblem

LARGEST = 1 << 20
"""Bytes that such a file may have."""

_T = TypeVar("_T", bound=msgspec.Struct)


def read_toml(file: Path, kind: type[_T], *, page: str) -> _T:
    """Read a file as ``kind``, whose structs forbid unknown fields; ``page`` documents its keys.

    Raises ``UsageProblem`` naming the file and the key.
    """
    try:
        data = file.read_bytes()
        if len(data) > LARGEST:
            raise UsageProblem(f"{file} is too large: it may have {LARGEST:,} bytes", hint=f"see {page}")
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"{file} cannot be read: {error}", hint="correct the file or remove it") from error
    try:
        return msgspec.convert(tomllib.loads(text), kind)
    except tomllib.TOMLDecodeError as error:
        raise UsageProblem(f"{file}: not valid TOML: {_with_line(error, text)}", hint=f"see {page}") from error
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        key = path.strip("`").removeprefix("$")
        said = f"{key.lstrip('.')}: {message}" if key else message
        hint = f"the keys are described in {page} of the documentation"
        if missing := re.fullmatch(r"Object missing required field `(\w+)`", message):
            wanted = f"{key.lstrip('.')}.{missing[1]}".lstrip(".")
            said = f"{wanted} is missing"
            hint = f"{_example(kind, wanted)}; {hint}"
        if "unknown field" in message and (keys := _keys_at(kind, key)):
            hint = f"the keys there are {', '.join(keys)}; see {page}"
        raise UsageProblem(f"{file}: {said}", hint=hint) from error


def _example(kind: type[msgspec.Struct], path: str) -> str:
    """Say how a key that is missing is written: as a list of tables, or with a value."""
    table, _, last = path.rpartition(".")
    keys = _keys_at(kind, path)
    if keys:
        return f"write [[{path}]], and below it some of: {', '.join(keys)}"
    return f"write `{last} = …`" + (f" in {table}" if table else "")


def _with_line(error: tomllib.TOMLDecodeError, text: str) -> str:
    """Quote the line that the parser stopped at: for a key that is there twice, tomllib does not say which."""
    lines = text.splitlines()
    position = re.search(r"at line (\d+)", str(error))
    number = int(position.group(1)) if position else len(lines)  # at the end of the document
    return f"{error}: {lines[number - 1].strip()!r}" if 0 < number <= len(lines) else str(error)


def _keys_at(kind: type[msgspec.Struct], path: str) -> list[str]:
    """Give the keys that the table at ``path`` may have, which msgspec writes as ``.pickle.exceptions[0]``; none where that is no table."""
    where: inspect.Type = inspect.type_info(kind)
    for name in (*re.findall(r"\w+", path), None):
        if isinstance(where, inspect.UnionType):  # a table, or none
            where = next(one for one in where.types if not isinstance(one, inspect.NoneType))
        if isinstance(where, inspect.StructType) and name is not None:
            where = next(field.type for field in where.fields if field.encode_name == name)
        elif isinstance(where, inspect.ListType | inspect.VarTupleType):
            where = where.item_type
        elif isinstance(where, inspect.DictType):
            where = where.value_type
    return [field.encode_name for field in where.fields] if isinstance(where, inspect.StructType) else []
