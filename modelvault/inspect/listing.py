"""What can be said of a model from the names of its files alone, before any byte is pulled."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from modelvault.artifact import FileRole, file_role
from modelvault.errors import InvalidModelFile
from modelvault.formats.names import CONFIGS, has_tokenizer
from modelvault.formats.remote_code import is_code_alone
from modelvault.formats.shards import shard_sets
from modelvault.inspect.source import PICKLE_SUFFIXES, pickle_refused


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


def separate_folders(paths: Iterable[str]) -> tuple[str, ...]:
    """Name the folders below that have weights, if there are several and no weights beside them: those are models of their own.

    No engine looks for weights in several folders below.
    """
    weights = [path for path in paths if file_role(path) is FileRole.WEIGHT]
    below = sorted({path.partition("/")[0] for path in weights})
    return tuple(below) if len(below) > 1 and not any(top_level(weights)) else ()


def check_listing(paths: Sequence[str], *, allow_pickle: bool) -> None:
    """Judge a model by the names of its files, before any byte is pulled. Code that other models need may come without weights.

    Raises ``PolicyRefused`` that names pickle files unless ``allow_pickle``; ``InvalidModelFile`` with the rule ``no-weights``,
    ``missing-shard``, ``shard-number``, ``missing-config`` or ``missing-tokenizer``.
    """
    pickles = [path for path in paths if is_pickle_name(path)]
    if pickles and not allow_pickle:
        raise pickle_refused(pickles)
    safetensors = with_suffix(paths, ".safetensors")
    ggufs = with_suffix(paths, ".gguf")
    if not safetensors and not ggufs and not pickles and not is_code_alone(paths):
        raise InvalidModelFile(
            "the model",
            "no-weights",
            f"none of its {len(paths)} files holds weights that an engine loads (.gguf, .safetensors)",
            hint="check the repository, and --include and --exclude if you gave them; "
            "code that another model needs is taken without the rest: --include '*.py'",
        )
    check_shards(paths)
    if list(top_level(safetensors)):
        _check_companions(set(top_level(paths)))


def _check_companions(names: set[str]) -> None:
    """A safetensors repository needs its configuration and tokenizer; an adapter has those of its base model."""
    hint = "pull the whole repository, or fetch the file from the model's base repository"
    if not names & set(CONFIGS):
        raise InvalidModelFile(
            "config.json", "missing-config", "is missing: no engine loads safetensors without it", hint=hint
        )
    adapter = "adapter_config.json" in names and "config.json" not in names
    if not adapter and not has_tokenizer(names):
        raise InvalidModelFile(
            "tokenizer.json", "missing-tokenizer", "is missing, and so is any other tokenizer", hint=hint
        )
