"""Processes that are killed, drives that are full or vanish: the next run goes on, and nothing is lost."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_world import MIB, Log, World, contents
from machines import small_disk

from modelvault.artifact import Digest
from modelvault.bundle.check import verify_bundle
from modelvault.bundle.drive import DriveFailed
from modelvault.bundle.drives import worst_case
from modelvault.bundle.format import encode
from modelvault.bundle.reader import open_bundle
from modelvault.bundle.receive import receive
from modelvault.bundle.written import Written
from modelvault.errors import NoSpace
from modelvault.progress import NoTask

SCRIPT = Path(__file__).with_name("run_once.py")
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def run(*arguments: str | Path, kill_after: int | None = None, tear: int | None = None) -> list[str]:
    """Run the script; kill it after so many lines if asked to. Gives the lines."""
    environment = os.environ | ({"TEAR": str(tear)} if tear else {})
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.rstrip())
            if len(lines) == kill_after:
                os.kill(process.pid, signal.SIGKILL)
        code = process.wait(60)
    if kill_after is None and tear is None:
        assert code == 0, lines
    else:
        assert code in {-signal.SIGKILL, 0}
    return lines


def test_write_killed(world: World, tmp_path: Path) -> None:
    """SIGKILL at random moments, in the middle of a frame too: with the sequence pinned the bytes are those of a quiet run."""
    index = world.plan()
    quiet = contents(world.write(index, drive=tmp_path / "quiet").directory)
    raw = tmp_path / "bundle.json"
    raw.write_bytes(encode(index))
    vault = world.root / "vault"
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for moment in (1, chance.randrange(2, 6)):
        run("write", raw, vault, world.drive, kill_after=moment)
    run("write", raw, vault, world.drive, tear=chance.randrange(1, 4))
    lines = run("write", raw, vault, world.drive)
    assert not [line for line in lines if line.startswith("log")], seed
    assert contents(world.drive / index.directory_name) == quiet, seed


def test_receive_killed(pristine: tuple[World, Written], tmp_path: Path) -> None:
    """SIGKILL at random moments: what was taken is not read from the drive again, and every blob is right in the end."""
    world, written = pristine
    arguments = ("receive", written.directory, world.root / "vault", tmp_path / "staging")
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    run(*arguments, tear=chance.randrange(1, 3))
    run(*arguments, kill_after=chance.randrange(4, 7))
    *_, last = run(*arguments)
    _, read, _, resumed, _, failed = last.split()
    bundle = world.open(written)
    assert int(failed) == 0
    assert int(read) + int(resumed) == bundle.index.size
    assert int(resumed) > 0, seed
    for blob in bundle.index.blobs:
        assert Digest.of_bytes((tmp_path / "staging" / blob.digest.hex).read_bytes()) == blob.digest, seed


class _Filling(Log):
    """Fills a disk up once the first frame is on it."""

    def __init__(self, ballast: Path) -> None:
        super().__init__()
        self.ballast = ballast

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> NoTask:
        return _FillingTask(self.ballast)


class _FillingTask(NoTask):
    def __init__(self, ballast: Path) -> None:
        self.ballast = ballast

    def advance(self, amount: int) -> None:
        if not self.ballast.exists():
            free = shutil.disk_usage(self.ballast.parent).free
            self.ballast.write_bytes(os.urandom(free - 3 * MIB))


@pytest.mark.root
@NEEDS_ROOT
def test_full_drive(world: World, tmp_path: Path) -> None:
    """A drive that fills up: exit 15, says how much is missing; after space was made the same command finishes."""
    index = world.plan()
    with small_disk(tmp_path / "image", tmp_path / "mount", 32 * MIB) as mount:
        ballast = mount / "ballast"
        with pytest.raises(NoSpace) as caught:
            world.write(index, drive=mount, log=_Filling(ballast))
        assert caught.value.exit_code == 15
        assert caught.value.data["missing"] > MIB
        with pytest.raises(NoSpace):
            world.write(index, drive=mount)
        ballast.unlink()
        log = Log()
        written = world.write(index, drive=mount, log=log)
        assert written.resumed > 0
        assert log.lines == []
        assert verify_bundle(world.open(written), Log()).sound
        quiet = world.write(index, drive=tmp_path / "quiet")
        assert contents(written.directory) == contents(quiet.directory)


@pytest.mark.root
@NEEDS_ROOT
def test_too_small_a_drive(world: World, tmp_path: Path) -> None:
    """Breaks if a drive is filled for hours before it is said that it is too small, or what lies there is counted twice."""
    index = world.plan()
    with small_disk(tmp_path / "image", tmp_path / "mount", 32 * MIB) as mount:
        before = set(mount.iterdir())
        ballast = mount / "ballast"
        ballast.write_bytes(os.urandom(20 * MIB))
        with pytest.raises(NoSpace) as caught:
            world.write(index, drive=mount)
        assert set(mount.iterdir()) == before | {ballast}
        free = shutil.disk_usage(mount).free
        content = sum(map(worst_case, index.volumes))
        assert caught.value.data["missing"] == content - free
        ballast.unlink()
        written = world.write(index, drive=mount)
        # Room for half a second copy, which is not needed where the first one lies.
        ballast.write_bytes(os.urandom(shutil.disk_usage(mount).free - content // 2))
        assert world.write(index, drive=mount).stored == written.stored


@pytest.mark.root
@NEEDS_ROOT
def test_full_disk_on_the_other_side(pristine: tuple[World, Written], tmp_path: Path) -> None:
    """The vault's disk is full while receiving: exit 15 with what is missing; what arrived is kept."""
    world, written = pristine
    bundle = world.open(written)
    with small_disk(tmp_path / "image", tmp_path / "mount", 32 * MIB) as mount:
        ballast = mount / "ballast"
        ballast.write_bytes(os.urandom(20 * MIB))
        with pytest.raises(NoSpace) as caught:
            receive(bundle, bundle.index.sizes.keys(), mount / "staging", Log())
        assert caught.value.data["missing"] > MIB
        ballast.unlink()
        assert receive(bundle, bundle.index.sizes.keys(), mount / "staging", Log()).failed == {}


@pytest.mark.root
@NEEDS_ROOT
def test_read_only_drive(world: World, tmp_path: Path) -> None:
    """A read-only drive is named as such; reading from one works."""
    index = world.plan()
    with small_disk(tmp_path / "image", tmp_path / "mount", 48 * MIB) as mount:
        written = world.write(index, drive=mount)
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        with pytest.raises(DriveFailed, match="read-only"):
            world.write(world.plan(sequence=8), drive=mount)
        bundle = open_bundle(written.directory, world.keys.verify)
        assert receive(bundle, bundle.index.sizes.keys(), tmp_path / "staging", Log()).failed == {}
