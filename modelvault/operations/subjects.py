"""What ``verify`` is about: models of the vault, or one bundle."""

from collections.abc import Sequence
from pathlib import Path

from modelvault.artifact import ModelName, looks_like_path
from modelvault.errors import UsageProblem


def split_subjects(subjects: Sequence[str]) -> tuple[list[ModelName], list[Path]]:
    """Tell names of models from paths of a bundle, by the rule for all arguments. Raises ``UsageProblem`` for a mixture."""
    paths = [Path(subject).expanduser() for subject in subjects if looks_like_path(subject)]
    if paths and len(paths) != len(subjects):
        raise UsageProblem("models, or one bundle, are verified at a time", hint="run the command once for each")
    return ([], paths) if paths else ([ModelName(subject) for subject in subjects], [])
