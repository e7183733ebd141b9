"""Weights in several files: ``<prefix>-00001-of-0000N.gguf`` or ``.safetensors``, counted from one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from modelvault.errors import InvalidModelFile

_SHARD = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.gguf|\.safetensors)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ShardSet:
    """A set ``<prefix>-00001-of-0000N<suffix>``, with the numbers that are there."""

    prefix: str
    suffix: str
    total: int
    numbers: tuple[int, ...]

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers that should be there and are not."""
        return tuple(sorted(set(range(1, self.total + 1)) - set(self.numbers)))

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are there, in order."""
        return tuple(self.file(number) for number in self.numbers)

    def file(self, number: int) -> str:
        """Give the name of one shard."""
        return f"{self.prefix}-{number:05d}-of-{self.total:05d}{self.suffix}"


def shard_sets(paths: Iterable[str]) -> list[ShardSet]:
    """Find the sets of shards among files. Raises ``InvalidModelFile`` (``shard-number``) for shard 0 or 4 of 3."""
    found: dict[tuple[str, str, int], list[int]] = {}
    for path in sorted(paths):
        if match := _SHARD.fullmatch(path):
            number, total = int(match["number"]), int(match["total"])
            if not 1 <= number <= total:
                raise InvalidModelFile(path, "shard-number", f"is called shard {number} of {total}")
            found.setdefault((match["prefix"], match["suffix"], total), []).append(number)
    return [ShardSet(prefix, suffix, total, tuple(numbers)) for (prefix, suffix, total), numbers in found.items()]
