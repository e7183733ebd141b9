"""Reading TOML that people write by hand: a schema in which nothing is passed over, and errors that name the file and the key.

A key that nobody reads is an error, since a misspelled one would otherwise be a setting that silently does not hold.
"""

import re
import tomllib
from pathlib import Path
from typing import TypeVar

import msgspec

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
        raise UsageProblem(f"{file}: {_key_first(error)}", hint=f"the keys are listed in {page}") from error


def _with_line(error: tomllib.TOMLDecodeError, text: str) -> str:
    """Quote the line that the parser stopped at: for a key that is there twice, tomllib does not say which."""
    lines = text.splitlines()
    position = re.search(r"at line (\d+)", str(error))
    number = int(position.group(1)) if position else len(lines)  # at the end of the document
    return f"{error}: {lines[number - 1].strip()!r}" if 0 < number <= len(lines) else str(error)


def _key_first(error: msgspec.ValidationError) -> str:
    """Turn ``Expected `int` - at `$.ollama.parameters.num_ctx``` into ``ollama.parameters.num_ctx: Expected `int```."""
    message, _, path = str(error).partition(" - at ")
    key = path.strip("`").removeprefix("$").lstrip(".")
    return f"{key}: {message}" if key else message
