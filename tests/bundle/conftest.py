"""Bundles to test on."""

import shutil
from pathlib import Path

import pytest
from bundle_world import World, small_world

from modelvault.bundle.written import Written


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Written]:
    """A world and its bundle; nobody may change them."""
    world = small_world(tmp_path_factory.mktemp("bundle"))
    return world, world.write(world.plan())


@pytest.fixture
def bundle(pristine: tuple[World, Written], tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return shutil.copytree(pristine[1].directory, tmp_path / pristine[1].directory.name)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of one's own, not yet bundled."""
    return small_world(tmp_path)
