"""Decoding the untrusted JSON of a model: strict, and bounded in memory before a single object is made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from modelvault.errors import InvalidModelFile
from modelvault.inspect.source import open_file, refuse_empty, refuse_impostors

_STRUCTURE = 2_000_000
"""No document may have more brackets, commas and colons: each can become a Python object of some 50 to 100 bytes."""


def parse_object(data: bytes, name: str, rule: str) -> dict[str, Any]:
    """Decode JSON that must be an object: no duplicate keys, no NaN, no lone surrogates, no excess of structure.

    Raises ``InvalidModelFile`` with ``rule``.
    """
    try:
        if sum(data.count(mark) for mark in (b"{", b"[", b",", b":")) > _STRUCTURE:
            raise ValueError("it has too many elements")
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if b"\\u" in data:
            # A lone surrogate could not be stored, printed or hashed later.
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise InvalidModelFile(name, rule, "the JSON is nested too deeply") from error
    except ValueError as error:
        raise InvalidModelFile(name, rule, f"not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidModelFile(name, rule, "the JSON is not an object")
    return document


def read_object(path: Path, name: str, *, rule: str, limit: int) -> dict[str, Any]:
    """Read and decode a whole JSON file of at most ``limit`` bytes. Raises ``InvalidModelFile`` and ``OSError``."""
    with open_file(path, name) as (file, size):
        if size > limit:
            raise InvalidModelFile(name, rule, f"has {size:,} bytes, more than the {limit:,} that are allowed")
        data = read_all(file.read, size)
    refuse_empty(data, name)
    refuse_impostors(data[:1024], name)
    return parse_object(data, name, rule)


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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:120]!r} appears twice")
    return table


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
