"""Decoding the untrusted JSON of a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelvault.errors import InvalidModelFile
from modelvault.inspect.source import open_file, refuse_empty, refuse_impostors
from modelvault.strictjson import decode_object


def parse_object(data: bytes, name: str, rule: str) -> dict[str, Any]:
    """Decode JSON that must be an object, strictly. Raises ``InvalidModelFile`` with ``rule``."""
    try:
        return decode_object(data)
    except ValueError as error:
        raise InvalidModelFile(name, rule, str(error)) from error


def read_object(path: Path, name: str, *, rule: str, limit: int) -> dict[str, Any]:
    """Read and decode a whole JSON file of at most ``limit`` bytes. Raises ``InvalidModelFile`` and ``OSError``."""
    return parse_object(read_document(path, name, rule=rule, limit=limit), name, rule)


def read_document(path: Path, name: str, *, rule: str, limit: int) -> bytes:
    """Read a whole small file of at most ``limit`` bytes. Raises ``InvalidModelFile`` and ``OSError``."""
    with open_file(path, name) as (file, size):
        if size > limit:
            raise InvalidModelFile(name, rule, f"has {size:,} bytes, more than the {limit:,} that are allowed")
        data = read_all(file.read, size)
    refuse_empty(data, name)
    refuse_impostors(data[:1024], name)
    return data


def read_all(read: Any, length: int) -> bytes:
    """Read ``length`` bytes from an unbuffered file, which may give them in pieces; fewer only at its end."""
    pieces = []
    while length and (piece := read(length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def section(document: Mapping[str, Any], key: str, name: str, rule: str) -> Mapping[str, Any] | None:
    """Give the object under ``key``; ``None`` where it is absent or null. Raises ``InvalidModelFile`` for anything else."""
    value = document.get(key)
    if value is not None and not isinstance(value, dict):
        raise InvalidModelFile(name, rule, f"{key} is not an object")
    return value
