"""The sequences that a vault gives to its bundles."""

import time
from pathlib import Path

import pytest

from modelvault.config import Config
from modelvault.operations.sequences import reserve_sequence
from modelvault.vault import Vault


def test_two_bundles_in_one_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if two commands that begin at once give different content the same key, label and sequence: sites refuse the second."""
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    with Vault.open(tmp_path / "vault", config=Config()) as vault:
        signer = vault.keys.new("default")
        # Neither is written or under way yet when the other asks.
        assert [reserve_sequence(vault, "models", signer) for _ in range(3)] == [1000, 1001, 1002]
        assert reserve_sequence(vault, "other", signer) == 1000
