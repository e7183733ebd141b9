"""Decoding JSON that anybody may have written: strict, and bounded in memory before a single object is made."""

import json
from typing import Any, NoReturn

_STRUCTURE = 2_000_000
"""No document may have more brackets, commas and colons: each can become a Python object of some 50 to 100 bytes."""


def decode_object(data: bytes) -> dict[str, Any]:
    """Decode UTF-8 JSON that must be an object: no duplicate keys, no NaN, no lone surrogates, no excess of structure.

    Raises ``ValueError`` that says what is wrong.
    """
    if sum(data.count(mark) for mark in (b"{", b"[", b",", b":")) > _STRUCTURE:
        raise ValueError("the JSON has too many elements")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if b"\\u" in data:
            # A lone surrogate could not be stored, printed or hashed later.
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("the JSON is not an object")  # noqa: TRY004 (a wrong document, not a wrong argument)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the key {key[:120]!r} appears twice")
        table[key] = value
    return table


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
