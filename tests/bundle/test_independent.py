"""The specification, checked by a reader that shares no code with modelvault."""

import subprocess
import sys
from pathlib import Path

from bundle_world import World, flip

from modelvault.bundle.written import Written

READER = Path(__file__).with_name("independent_reader.py")


def read(bundle: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    out.mkdir()
    command = [sys.executable, "-I", str(READER), str(bundle), str(bundle / "sender.pub"), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_specification_is_enough(pristine: tuple[World, Written], tmp_path: Path) -> None:
    """A reader written from the specification restores every blob of a bundle that modelvault wrote."""
    world, written = pristine
    ran = read(written.directory, tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {blob.digest.hex for blob in world.plan().blobs}


def test_it_would_notice(bundle: Path, tmp_path: Path) -> None:
    """The second reader is no rubber stamp: a flipped bit stops it."""
    flip(bundle / "volume-0001.tar.zst")
    ran = read(bundle, tmp_path / "out")
    assert ran.returncode != 0
    assert "damaged" in ran.stderr
