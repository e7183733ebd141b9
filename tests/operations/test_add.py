"""What ``add`` refuses before it copies anything."""

from pathlib import Path

import pytest

from modelvault.artifact import ModelName
from modelvault.errors import UsageProblem
from modelvault.operations.add import AddRequest, add
from modelvault.progress import NoProgress
from modelvault.vault import Vault


@pytest.mark.parametrize("license_name", ["", "a\nb", "\udcff"])
def test_a_garbled_license_is_refused_up_front(license_name: str, tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if it is met only after a hundred gigabytes were copied, as an internal error."""
    with (
        Vault.open(tmp_path / "vault") as vault,
        pytest.raises(UsageProblem, match="not the name of a license"),
    ):
        add(vault, AddRequest(tiny_gguf, ModelName("model"), license_name), NoProgress())
    copied = [
        path for folder in ("blobs", "partial") for path in (tmp_path / "vault" / folder).rglob("*") if path.is_file()
    ]
    assert copied == []
