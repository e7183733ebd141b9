"""What tests of faults share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from large_model import LARGE, SIZE
from make_models import make_large_gguf


@pytest.fixture(scope="package")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with one GGUF that takes a while. Nobody writes there."""
    folder = tmp_path_factory.mktemp("large")
    make_large_gguf(folder / LARGE, SIZE)
    yield folder
    shutil.rmtree(folder)
