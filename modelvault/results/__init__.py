"""The frozen results of the operations, and how any of them becomes plain JSON. One place renders them: ``cli/``."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from modelvault.artifact import Digest, ModelName

SCHEMA = "modelvault/1"
"""The version of the ``--json`` envelope and of every result in it."""


def plain(value: object) -> Any:
    """Turn a result into what ``json.dumps`` takes: dataclasses become objects, digests, names and paths text."""
    if isinstance(value, Digest | ModelName | Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value
