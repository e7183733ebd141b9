"""What the memory of one device goes to, part by part."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One share of a device's memory, in bytes; ``exact``: read from the files or computed as the engine does, not estimated."""

    name: str
    size: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Load:
    """What lies on one device of ``memory`` bytes. ``reserved``: what the engine never uses of it."""

    device: str
    memory: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """All parts together."""
        return total(self.parts)

    @property
    def left(self) -> int:
        """What is free then; negative where it does not fit."""
        return self.memory - self.size


def total(parts: Iterable[Part]) -> int:
    """Sum parts up."""
    return sum(part.size for part in parts)
