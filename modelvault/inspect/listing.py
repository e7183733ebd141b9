"""What can be said of a model from the names of its files alone, before any byte is pulled."""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from modelvault.errors import InvalidModelFile
from modelvault.inspect.source import PICKLE_SUFFIXES, pickle_refused

_SHARD = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.gguf|\.safetensors)", re.DOTALL)

_CONFIGS = ("config.json", "params.json", "adapter_config.json")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model*",
    "tokenizer_model*",
    "tekken.json",
    "*.tiktoken",
    "tiktoken.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece*.model",
)


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


def check_shards(paths: Iterable[str]) -> None:
    """Raise ``InvalidModelFile`` (``missing-shard``) unless every set of shards is complete."""
    for shards in shard_sets(paths):
        if missing := shards.missing:
            shown = ", ".join(map(str, missing[:8])) + (" …" if missing[8:] else "")
            detail = f"is missing: {len(missing)} of {shards.total} shards are not there ({shown})"
            hint = "pull the whole set: no engine loads part of it, and some do not notice"
            raise InvalidModelFile(shards.file(missing[0]), "missing-shard", detail, hint=hint)


def is_pickle_name(path: str) -> bool:
    """Tell from its name whether a file holds Python pickles."""
    return PurePosixPath(path).suffix.lower() in PICKLE_SUFFIXES


def with_suffix(paths: Iterable[str], suffix: str) -> list[str]:
    """Give the files that end in ``suffix``, sorted."""
    return sorted(path for path in paths if path.lower().endswith(suffix))


def top_level(paths: Iterable[str]) -> Iterator[str]:
    """Give the files outside any folder: engines look for weights and configuration only there."""
    return (path for path in paths if "/" not in path)


def check_listing(paths: Sequence[str], *, allow_pickle: bool) -> None:
    """Judge a model by the names of its files, before any byte is pulled.

    Raises ``PolicyRefused`` that names pickle files unless ``allow_pickle``; ``InvalidModelFile`` with the rule ``no-weights``,
    ``missing-shard``, ``shard-number``, ``missing-config`` or ``missing-tokenizer``.
    """
    pickles = [path for path in paths if is_pickle_name(path)]
    if pickles and not allow_pickle:
        raise pickle_refused(pickles)
    safetensors = with_suffix(paths, ".safetensors")
    ggufs = with_suffix(paths, ".gguf")
    if not safetensors and not ggufs and not pickles:
        raise InvalidModelFile(
            "the model",
            "no-weights",
            f"none of its {len(paths)} files holds weights that an engine loads (.gguf, .safetensors)",
            hint="check the repository, and --include and --exclude if you gave them",
        )
    check_shards(paths)
    if list(top_level(safetensors)):
        _check_companions(set(top_level(paths)))


def _check_companions(names: set[str]) -> None:
    """A safetensors repository needs its configuration and tokenizer; an adapter has those of its base model."""
    hint = "pull the whole repository, or fetch the file from the model's base repository"
    if not names & set(_CONFIGS):
        raise InvalidModelFile(
            "config.json", "missing-config", "is missing: no engine loads safetensors without it", hint=hint
        )
    adapter = "adapter_config.json" in names and "config.json" not in names
    if not adapter and not any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in _TOKENIZERS):
        raise InvalidModelFile(
            "tokenizer.json", "missing-tokenizer", "is missing, and so is any other tokenizer", hint=hint
        )
