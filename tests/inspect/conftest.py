"""Small real models, made once for all tests of inspection."""

import os
from pathlib import Path

import make_models
import pytest


@pytest.fixture(scope="session")
def real_vocabularies() -> list[Path]:
    """The vocabulary-only files of the llama.cpp project."""
    folder = Path(os.environ.get("MODELVAULT_TEST_DATA", "../shared/data")) / "gguf"
    files = sorted(folder.glob("*.gguf"))
    if not files:
        reason = f"no GGUF files in {folder}; set MODELVAULT_TEST_DATA to the folder of test data"
        if os.environ.get("MODELVAULT_REQUIRE_ENGINES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return files


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of repositories: gguf, split, awq, sharded. Tests copy what they change."""
    root = tmp_path_factory.mktemp("models")
    make_models.make_gguf_repository(root / "gguf")
    make_models.make_split_gguf(root / "split")
    make_models.make_awq(root / "awq")
    make_models.make_sharded_safetensors(root / "sharded")
    return root
