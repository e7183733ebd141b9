"""What is verified: names of models, or the paths of a bundle."""

from pathlib import Path

import pytest

from modelvault.artifact import ModelName
from modelvault.errors import UsageProblem
from modelvault.operations.subjects import split_subjects


def test_names_and_paths_are_told_apart() -> None:
    """Breaks if a bundle is looked for among the models, or a model on the disk."""
    assert split_subjects(["tiny", "org/name:Q4"]) == ([ModelName("tiny"), ModelName("org/name:Q4")], [])
    assert split_subjects(["./b", "a.mvbundle"]) == ([], [Path("b"), Path("a.mvbundle")])
    with pytest.raises(UsageProblem, match="at a time"):
        split_subjects(["tiny", "./b"])
