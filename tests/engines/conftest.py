"""Fixtures of the engines' tests."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from engine_cases import NAMES, Blobs, Case


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "vault")


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, blobs: Blobs, tmp_path: Path) -> Case:
    return Case(request.param, blobs, tmp_path / "engine" / "models")


@pytest.fixture
def ollama(blobs: Blobs, tmp_path: Path) -> Case:
    return Case("ollama", blobs, tmp_path / "engine" / "models")


@pytest.fixture
def vllm(blobs: Blobs, tmp_path: Path) -> Case:
    return Case("vllm", blobs, tmp_path / "engine" / "models")


@pytest.fixture
def folder(blobs: Blobs, tmp_path: Path) -> Case:
    return Case("folder", blobs, tmp_path / "engine" / "models")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with one MiB, less than a model."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    point = tmp_path / "small"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(point)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield point
    subprocess.run(["umount", str(point)], check=True)


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    """A file system that can share blocks between files, and has subvolumes."""
    yield from _mounted(tmp_path, "btrfs", "-q")


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Path]:
    """A file system that can share blocks between files."""
    yield from _mounted(tmp_path, "xfs", "-q", "-m", "reflink=1")


def _mounted(tmp_path: Path, kind: str, *options: str) -> Iterator[Path]:
    if os.geteuid() != 0 or which(f"mkfs.{kind}") is None:
        pytest.skip(f"needs root and mkfs.{kind} (scripts/setup-packages)")
    image, point = tmp_path / "image", tmp_path / kind
    with image.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run([f"mkfs.{kind}", *options, str(image)], check=True)
    point.mkdir()
    command = ["mount", "-o", "loop", str(image), str(point)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"{kind} cannot be mounted here: {mounted.stderr.strip()}")
    yield point
    subprocess.run(["umount", str(point)], check=True)
