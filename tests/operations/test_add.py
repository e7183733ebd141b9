"""What ``add`` refuses before it copies anything."""

from pathlib import Path

import pytest

from modelvault.artifact import ModelName
from modelvault.errors import UsageProblem
from modelvault.operations.add import AddRequest


@pytest.mark.parametrize("license_name", ["", "a\nb", "\udcff"])
def test_a_garbled_license_is_refused_up_front(license_name: str) -> None:
    """Breaks if it is met only after a hundred gigabytes were copied, as an internal error."""
    with pytest.raises(UsageProblem, match="license"):
        AddRequest(Path("model.gguf"), ModelName("model"), license_name)
