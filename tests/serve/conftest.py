"""One hub that the tests of ``serve`` read from, and a shelf that they may damage."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_hub import FolderShelf, Hub, fill, serving


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that the tests only read from."""
    shelf = FolderShelf(tmp_path_factory.mktemp("shelf"))
    files = fill(shelf)
    with serving(shelf) as server:
        yield Hub(server.url, shelf, files)


@pytest.fixture
def shelf(tmp_path: Path) -> FolderShelf:
    """An empty shelf that a test may damage."""
    folder = tmp_path / "blobs"
    folder.mkdir()
    return FolderShelf(folder)
