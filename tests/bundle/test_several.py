"""Several drives: they fill up, go away and come back, and nothing of the bundle is lost or counted twice."""

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_world import MIB, Log, World, contents, flip, small_world
from machines import small_disk

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.bundle.check import stored_size, verify_bundle
from modelvault.bundle.drive import DriveFailed, failed
from modelvault.bundle.format import encode
from modelvault.bundle.index import Index, Span
from modelvault.bundle.journal import Journal, find_unfinished
from modelvault.bundle.plan import PlanOptions, plan_patch
from modelvault.bundle.readback import DriveLostData
from modelvault.bundle.reader import OpenBundle, open_bundle
from modelvault.bundle.target import Target
from modelvault.bundle.volume import VolumeWriter, WrittenVolume
from modelvault.bundle.writer import write_bundle
from modelvault.bundle.written import WriteOptions, Written
from modelvault.errors import DigestMismatch, ModelvaultError, NoSpace, UsageProblem
from modelvault.filesystem import no_space
from modelvault.keys import Signer
from modelvault.progress import NoTask, Progress

SCRIPT = Path(__file__).with_name("run_once.py")


@pytest.fixture
def index(tmp_path: Path, world: World) -> Index:
    """Six volumes of 2 MiB and what it takes to write them."""
    return world.plan(volume_size=2 * MIB)


@pytest.fixture
def quiet(world: World, index: Index, tmp_path: Path) -> dict[str, str]:
    """The files of the same bundle on one drive, written undisturbed."""
    return contents(world.write(index, drive=tmp_path / "quiet").directory)


def write(
    world: World,
    index: Index,
    *drives: Path,
    log: Log | None = None,
    swap: Callable[[str], None] | None = None,
    read_back: bool = True,
) -> Written:
    """Write onto these drives; whatever happened before, what is said to be finished is there."""
    directories = tuple(drive / index.directory_name for drive in drives)
    options = WriteOptions(directories, world.journals, read_back, threads=2, swap=swap)
    written = write_bundle(index, options, world.blob_path, world.signer, log or Log())
    assert sorted(number for volumes in numbers(written) for number in volumes) == list(range(1, written.volumes + 1))
    if written.finished:
        check_nothing_is_lost(world, index)
    return written


def check_nothing_is_lost(world: World, index: Index) -> None:
    """Every volume of a finished bundle lies somewhere in full length, on a drive with sums."""
    sums = world.root.rglob(f"{index.directory_name}/SHA256SUMS")
    places = tuple(path.parent for path in sums if path.parent.parent.name != "quiet")
    bundle = replace(open_bundle(places[0], world.keys.verify), places=places)
    assert stored_size(bundle) > 0


def numbers(written: Written) -> list[tuple[int, ...]]:
    """Which volumes lie on which drive."""
    return [drive.volumes for drive in written.drives]


def together(world: World, index: Index, *drives: Path) -> OpenBundle:
    """Open a bundle that lies on several drives."""
    directories = tuple(drive / index.directory_name for drive in drives)
    first = open_bundle(directories[0], world.keys.verify)
    return OpenBundle(first.index, first.digest, first.signer, directories, first.verify)


def check_drives(world: World, index: Index, quiet: dict[str, str], *drives: Path) -> None:
    """Each drive's files are those of a bundle on one drive, its sums are right and signed, and together they are all of it."""
    found: dict[str, str] = {}
    for drive in drives:
        directory = drive / index.directory_name
        subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=directory, check=True)
        listed = {line.split()[1] for line in (directory / "SHA256SUMS").read_text().splitlines()}
        here = contents(directory)
        here.pop("drive-id", None)  # of one that was not here at the end
        assert listed == here.keys() - {"SHA256SUMS", "SHA256SUMS.sig"}
        world.keys.verify((directory / "SHA256SUMS.sig").read_bytes(), (directory / "SHA256SUMS").read_bytes())
        for name in listed:
            assert quiet[name] == here[name], name
        assert not {name for name in found.keys() & listed if name.startswith("volume")}, "a volume lies there twice"
        found |= here
    assert found.keys() == quiet.keys()
    assert verify_bundle(together(world, index, *drives), Log()).sound


class Hook(Log):
    """Does something once, after so many frames."""

    def __init__(self, frames: int, action: Callable[[], object]) -> None:
        super().__init__()
        self.frames = frames
        self.action = action

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> NoTask:
        return _HookTask(self)


class _HookTask(NoTask):
    def __init__(self, hook: Hook) -> None:
        self.hook = hook

    def advance(self, amount: int) -> None:
        if amount > 0:
            self.hook.frames -= 1
            if self.hook.frames == 0:
                self.hook.action()


class Stop(Exception):
    """Breaks a run off."""


def stop() -> None:
    """Break the run off."""
    raise Stop


@contextlib.contextmanager
def two_disks(tmp_path: Path, *sizes: int) -> Iterator[list[Path]]:
    """Mount small file systems, of so many MiB."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(small_disk(tmp_path / f"image-{number}", tmp_path / f"disk-{number}", size * MIB))
            for number, size in enumerate(sizes)
        ]


def leave(disk: Path, free: int) -> Path:
    """Fill a disk up until so many bytes are free."""
    ballast = disk / "ballast"
    ballast.write_bytes(os.urandom(max(shutil.disk_usage(disk).free - free, 0)))
    return ballast


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_one_fills_and_the_other_takes_the_rest(
    world: World, index: Index, quiet: dict[str, str], tmp_path: Path
) -> None:
    """Breaks if a volume is torn between drives, or the bundle is another one than on one drive."""
    with two_disks(tmp_path, 24, 24) as (a, b):
        leave(a, 6 * MIB)
        log = Log()
        written = write(world, index, a, b, log=log)
        on_a, on_b = numbers(written)
        assert 1 in on_a
        assert len(on_b) > 1
        assert sorted((*on_a, *on_b)) == list(range(1, len(index.volumes) + 1))
        assert written.finished
        assert written.read_back
        assert log.lines == []
        assert find_unfinished(world.journals) == ()
        check_drives(world, index, quiet, a, b)


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_together_too_small(world: World, index: Index, tmp_path: Path) -> None:
    """Breaks if drives are filled for hours before it is said that even together they are too small."""
    with two_disks(tmp_path, 24, 24) as (a, b):
        leave(a, 5 * MIB)
        leave(b, 3 * MIB)
        with pytest.raises(NoSpace) as caught:
            write(world, index, a, b)
        assert str(a) in caught.value.message
        assert caught.value.data["missing"] > MIB
        assert not list(a.glob("*.mvbundle"))
        assert not list(b.glob("*.mvbundle"))


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_full_before_the_first_volume(world: World, index: Index, quiet: dict[str, str], tmp_path: Path) -> None:
    """Breaks if a drive that is full already stops the others, or is left with half a document on it."""
    with two_disks(tmp_path, 24, 24) as (a, b):
        leave(a, 0)
        written = write(world, index, a, b)
        assert numbers(written) == [(), tuple(range(1, len(index.volumes) + 1))]
        assert not list(a.glob("*.mvbundle"))
        check_drives(world, index, quiet, b)


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_something_else_fills_the_drive_meanwhile(
    world: World, index: Index, quiet: dict[str, str], tmp_path: Path
) -> None:
    """Breaks if a volume for which the room is gone in its middle is not begun again elsewhere, or its half stays."""
    with two_disks(tmp_path, 24, 24) as (a, b):
        written = write(world, index, a, b, log=Hook(4, lambda: leave(a, 1 << 16)))
        on_a, on_b = numbers(written)
        assert on_a
        assert on_b
        check_drives(world, index, quiet, a, b)


def test_full_and_then_gone(
    world: World, index: Index, quiet: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a drive that goes away right after it was full ends the bundle though another one is here."""
    a, b = tmp_path / "a", tmp_path / "b"
    real = VolumeWriter.write

    def write_volume(self: VolumeWriter) -> WrittenVolume:
        if (a / index.directory_name / "volume-0002.json").exists() and a.exists() and not away.exists():
            a.rename(away)
            raise no_space(a / index.directory_name, needed=1)
        return real(self)

    away = tmp_path / "away"
    monkeypatch.setattr(VolumeWriter, "write", write_volume)
    written = write(world, index, a, b)
    assert [drive.volumes[0] for drive in written.drives] == [3, 1]
    assert not written.finished
    assert write(world, index, away, b).finished
    check_drives(world, index, quiet, away, b)


class Greedy(Log):
    """Takes all room of a disk, and whatever becomes free, with each frame."""

    def __init__(self, disk: Path) -> None:
        super().__init__()
        self.file = disk / "greedy"

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> NoTask:
        return _GreedyTask(self.file)


class _GreedyTask(NoTask):
    def __init__(self, file: Path) -> None:
        self.file = file

    def advance(self, amount: int) -> None:
        with contextlib.suppress(OSError), self.file.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_a_drive_that_could_take_nothing(world: World, index: Index, quiet: dict[str, str], tmp_path: Path) -> None:
    """Breaks if papers without sums stay on a drive that was filled meanwhile: they look like a bundle that is not finished."""
    with two_disks(tmp_path, 24, 24) as (a, b):
        written = write(world, index, a, b, log=Greedy(a))
        assert numbers(written) == [(), tuple(range(1, len(index.volumes) + 1))]
        assert written.directory.parent == b
        assert not list(a.glob("*.mvbundle"))
        check_drives(world, index, quiet, b)


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_unplugged(world: World, index: Index, quiet: dict[str, str], tmp_path: Path) -> None:
    """Breaks if a drive that goes away takes the bundle with it, its room below the mount point is filled, or it cannot come back."""
    with small_disk(tmp_path / "image-b", tmp_path / "b", 24 * MIB) as b:
        a, image = tmp_path / "a", tmp_path / "image-a"
        with contextlib.ExitStack() as stack:
            stack.enter_context(small_disk(image, a, 24 * MIB))
            kept = stack.enter_context(image.open("r+b"))

            def unplug() -> None:
                os.link(image, tmp_path / "kept")
                subprocess.run(["umount", "-l", str(a)], check=True)
                subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(a)], check=True)

            log = Hook(5, unplug)
            written = write(world, index, a, b, log=log)
            assert not list(a.iterdir()), "something was written below the mount point"
            kept.close()
        lost = next(drive for drive in written.drives if drive.problem)
        safe = numbers(written)[written.drives.index(lost)]
        assert lost.directory.parent == a
        assert safe
        assert "safe" in (lost.problem or "")
        assert any("writing goes on without it" in line for line in log.lines)
        assert not written.finished
        assert not (b / index.directory_name / f"volume-{safe[0]:04d}.tar.zst").exists()
        # Only the other one is here: what is safe on the first is not written again.
        again = write(world, index, b)
        assert again.resumed > 0
        assert not again.finished
        gone = next(drive for drive in again.drives if not drive.here)
        assert gone.volumes == safe
        # It is back: it gets what it lacks, and nothing is under way any more.
        subprocess.run(["mount", "-o", "loop", str(tmp_path / "kept"), str(a)], check=True)
        try:
            assert write(world, index, a, b).finished
            assert find_unfinished(world.journals) == ()
            check_drives(world, index, quiet, a, b)
        finally:
            subprocess.run(["umount", str(a)], check=True)


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_the_device_dies(world: World, index: Index, quiet: dict[str, str], tmp_path: Path) -> None:
    """Breaks if errors of a dying drive are not told as such: they may come late, with the sync."""
    with two_disks(tmp_path, 24, 24) as (a, b):
        image = tmp_path / "image-0"
        (device,) = subprocess.check_output(["findmnt", "-no", "SOURCE", str(a)], text=True).split()

        def die() -> None:
            """Let what comes after the first MiB of the device fail."""
            os.truncate(image, MIB)
            subprocess.run(["losetup", "--set-capacity", device], check=True)

        written = write(world, index, a, b, log=Hook(5, die))
        problems = [drive for drive in written.drives if drive.problem]
        assert [drive.directory.parent for drive in problems] == [a]
        assert "cannot write" in (problems[0].problem or "")
        everything = {number for volumes in numbers(written) for number in volumes}
        assert everything == set(range(1, len(index.volumes) + 1))


def test_the_last_drive_goes_away(world: World, index: Index, tmp_path: Path) -> None:
    """Breaks if it is not said what is safe on a drive that went away, and how another one goes on."""
    a, b, away = tmp_path / "a", tmp_path / "b", tmp_path / "away"
    a.mkdir()
    with pytest.raises(DriveFailed, match="volume 1 on it is safe") as caught:
        write(world, index, a, log=Hook(5, lambda: a.rename(away)))
    assert f"--sequence {index.sequence}" in (caught.value.hint or "")
    assert caught.value.data["safe"] == [1]
    assert not a.exists()
    b.mkdir()
    written = write(world, index, b)
    assert numbers(written)[0][0] == 2
    assert not written.finished


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("given", ["both", "the second", "elsewhere"])
def test_killed(world: World, index: Index, quiet: dict[str, str], tmp_path: Path, given: str) -> None:
    """Breaks if SIGKILL at any moment costs more than the volume under way, or what is complete is taken for lost."""
    disks = contextlib.ExitStack()
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    with disks:
        a, b = disks.enter_context(two_disks(tmp_path, 24, 24))
        leave(a, 6 * MIB)
        raw = tmp_path / "bundle.json"
        raw.write_bytes(encode(index))
        target = os.pathsep.join(map(str, (a, b)))
        killed = [run_killed(raw, world, target, count) for count in (chance.randrange(1, 5), chance.randrange(2, 12))]
        assert any(killed), seed
        if given == "both":
            assert write(world, index, a, b).finished, seed
            check_drives(world, index, quiet, a, b)
            return
        drives = [b]
        if given == "elsewhere":
            # The drives are mounted at other places now: each is known by what lies on it.
            moved = [tmp_path / "moved-a", tmp_path / "moved-b"]
            for old, new in zip((a, b), moved, strict=True):
                new.mkdir()
                subprocess.run(["mount", "--bind", str(old), str(new)], check=True)
                disks.callback(subprocess.run, ["umount", str(new)], check=True)
            drives = moved
        written = write(world, index, *drives)
        everything = sorted(number for volumes in numbers(written) for number in volumes)
        assert everything == list(range(1, len(index.volumes) + 1)), seed
        assert write(world, index, a, b).finished, seed
        check_drives(world, index, quiet, a, b)


def run_killed(raw: Path, world: World, target: str, kill_after: int) -> bool:
    """Write in a process of its own, and kill it after so many frames; ``False`` if it had finished by then."""
    command = [sys.executable, str(SCRIPT), "write", str(raw), str(world.root / "vault"), target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for count, _ in enumerate(process.stdout, 1):
            if count == kill_after:
                os.kill(process.pid, signal.SIGKILL)
        code = process.wait(60)
    assert code in {-signal.SIGKILL, 0}
    return code != 0


class Rot(Log):
    """Flips a bit of a file before anything is read back."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path: Path | None = path

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> NoTask:
        if label == "reading back" and self.path:
            flip(self.path)
            self.path = None
        return NoTask()


def test_a_drive_that_lost_data_holds_nothing(
    world: World, index: Index, quiet: dict[str, str], tmp_path: Path
) -> None:
    """Breaks if what a bad drive was given counts as safe once another drive takes its place."""
    a, b = tmp_path / "a", tmp_path / "b"
    directory = a / index.directory_name
    last = len(index.volumes)

    with pytest.raises(DriveLostData, match=str(directory)):
        write(world, index, a, log=Rot(directory / f"volume-{last:04d}.tar.zst"))
    assert numbers(write(world, index, b)) == [tuple(range(1, last + 1))]
    check_drives(world, index, quiet, b)


def test_the_vault_changed_while_a_drive_is_gone(world: World, index: Index, tmp_path: Path) -> None:
    """Breaks if the start of a blob on a drive that is away and a different rest of it are signed as one."""
    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.raises(Stop):
        write(world, index, a, log=Hook(9, stop))
    large = max(index.blobs, key=lambda blob: blob.size)
    first = index.volumes_of({large.digest})[0]
    assert (a / index.directory_name / f"volume-{first:04d}.json").exists()
    flip(world.blob_path(large.digest), 100)
    log = Log()
    with pytest.raises(DigestMismatch, match=large.digest.hex):
        write(world, index, b, log=log)
    assert any("has changed in the vault" in line for line in log.lines)


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_swap(world: World, index: Index, quiet: dict[str, str], tmp_path: Path) -> None:
    """Breaks if the drives that follow one another in one place are not a whole bundle, or a wrong one is taken."""
    place = tmp_path / "place"
    with contextlib.ExitStack() as stack:
        disks = stack.enter_context(two_disks(tmp_path, 24, 24, 24, 24))
        for disk in disks[:3]:
            leave(disk, 6 * MIB)
        place.mkdir()
        said: list[str] = []
        order = [disks[1], disks[0], disks[1], disks[2], disks[3]]  # the first again: refused

        def bind(disk: Path) -> None:
            subprocess.run(["mount", "--bind", str(disk), str(place)], check=True)

        def swap(message: str) -> None:
            said.append(message)
            subprocess.run(["umount", str(place)], check=True)
            bind(order.pop(0))

        bind(disks[0])
        stack.callback(subprocess.run, ["umount", str(place)], check=True)
        written = write(world, index, place, swap=swap)
        assert "full" in said[0]
        assert "already" in said[2], said
        assert written.finished
        assert len(numbers(written)) >= 3
        used = [disk for disk in disks if list(disk.glob("*.mvbundle"))]
        check_drives(world, index, quiet, *used)
        assert find_unfinished(world.journals) == ()


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_swap_goes_on_after_a_kill(world: World, index: Index, tmp_path: Path) -> None:
    """Breaks if the drive that was taken out before is asked for again, or its volumes are written twice."""
    with two_disks(tmp_path, 24, 24) as (a, b):
        leave(a, 6 * MIB)
        place = tmp_path / "place"
        place.mkdir()
        subprocess.run(["mount", "--bind", str(a), str(place)], check=True)

        def refuse(message: str) -> None:
            raise Stop

        with pytest.raises(Stop):
            write(world, index, place, swap=refuse)
        subprocess.run(["umount", str(place)], check=True)
        subprocess.run(["mount", "--bind", str(b), str(place)], check=True)
        try:
            written = write(world, index, place, swap=refuse)
        finally:
            subprocess.run(["umount", str(place)], check=True)
        (here, gone) = written.drives
        assert gone.volumes[0] == 1
        assert gone.finished
        assert here.volumes[0] == gone.volumes[-1] + 1
        assert written.finished


def test_gone_for_good(world: World, index: Index, quiet: dict[str, str], tmp_path: Path) -> None:
    """Breaks if a drive that was emptied or never comes back makes it impossible to write the bundle again."""
    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.raises(Stop):
        write(world, index, a, log=Hook(9, stop))
    shutil.rmtree(a)
    written = write(world, index, b)
    assert not written.finished
    assert [(drive.here, drive.volumes[0]) for drive in written.drives] == [(True, 3), (False, 1)]
    (unfinished,) = find_unfinished(world.journals)
    shutil.rmtree(unfinished.journal)  # as `gc --partial` does
    assert write(world, index, a).resumed == 0
    check_drives(world, index, quiet, a)


def test_a_volume_taken_from_the_drive(world: World, index: Index, quiet: dict[str, str], tmp_path: Path) -> None:
    """Breaks if a volume that was removed from a drive which is here counts as being on another one."""
    with pytest.raises(Stop):
        write(world, index, tmp_path, log=Hook(9, stop))
    (tmp_path / index.directory_name / "volume-0001.tar.zst").unlink()
    log = Log()
    written = write(world, index, tmp_path, log=log)
    assert numbers(written) == [tuple(range(1, len(index.volumes) + 1))]
    assert any("volume-0001" in line and "again" in line for line in log.lines)
    check_drives(world, index, quiet, tmp_path)


def test_a_patch_of_a_blob_that_rotted(world: World, index: Index, tmp_path: Path) -> None:
    """Breaks if pieces of a blob are signed that is damaged elsewhere: of a patch's blobs not all bytes pass by."""
    large = max(index.blobs, key=lambda blob: blob.size)
    spans = [Span(large.digest, 0, 3 * MIB), Span(large.digest, 5 * MIB, 1000)]
    options = PlanOptions("models-patch", 8, 2 * MIB)
    patch = plan_patch(index, Digest.of_bytes(encode(index)), spans, options)
    assert write(world, patch, tmp_path / "whole").finished
    with pytest.raises(Stop):
        write(world, patch, tmp_path / "a", log=Hook(3, stop))
    flip(world.blob_path(large.digest), large.size - 1)
    with pytest.raises(DigestMismatch, match=large.digest.hex):
        write(world, patch, tmp_path / "a")
    assert not list((tmp_path / "a" / patch.directory_name).glob("volume-*.json"))
    flip(world.blob_path(large.digest), large.size - 1)
    write(world, patch, tmp_path / "a")
    whole, resumed = (contents(tmp_path / name / patch.directory_name) for name in ("whole", "a"))
    assert whole == resumed


# ── which drive is it? ──


def begun(world: World, index: Index, drive: Path, frames: int = 9) -> list[Path]:
    """Break a run onto a drive off; give the volumes that are complete on it."""
    with pytest.raises(Stop):
        write(world, index, drive, log=Hook(frames, stop))
    tables = sorted((drive / index.directory_name).glob("volume-*.json"))
    assert len(tables) > 1
    return [table.with_suffix(".tar.zst") for table in tables]


def test_an_empty_drive_where_a_dead_one_was(world: World, index: Index, quiet: dict[str, str], tmp_path: Path) -> None:
    """Breaks if a bundle ends finished whose first volumes lie nowhere: its drive died, and a new stick was mounted in its place."""
    a, b, away = tmp_path / "a", tmp_path / "b", tmp_path / "away"
    a.mkdir()
    b.mkdir()
    first = write(world, index, a, b, log=Hook(9, lambda: a.rename(away)))
    (dead,) = [drive for drive in first.drives if drive.problem]
    assert dead.volumes
    a.mkdir()
    second = write(world, index, a, b)
    assert not second.finished
    (gone,) = [drive for drive in second.drives if not drive.here]
    assert (gone.volumes, gone.finished, gone.read_back) == (dead.volumes, False, False)
    # The drive was not dead after all; it is mounted somewhere else now.
    assert write(world, index, b, away, a).finished
    check_drives(world, index, quiet, *(path for path in (a, b, away) if list(path.iterdir())))
    assert not list(tmp_path.rglob("drive-id"))


@pytest.mark.parametrize("longer", [-1, 1])
def test_a_damaged_volume_elsewhere(
    world: World, index: Index, quiet: dict[str, str], tmp_path: Path, longer: int
) -> None:
    """Breaks if a volume that was cut off on a drive which is here counts as safe on one that is not, and can never be mended."""
    a, b = tmp_path / "a", tmp_path / "b"
    volume = begun(world, index, a)[0]
    os.truncate(volume, volume.stat().st_size + longer)
    a.rename(b)
    assert numbers(write(world, index, b)) == [tuple(range(1, len(index.volumes) + 1))]
    check_drives(world, index, quiet, b)


def test_a_drive_that_lost_its_id(world: World, index: Index, quiet: dict[str, str], tmp_path: Path) -> None:
    """Breaks if what lies on a drive is given up because of a small file, or a part of a volume on it counts as a whole one elsewhere."""
    a, b = tmp_path / "a", tmp_path / "b"
    volumes = begun(world, index, a)
    os.truncate(volumes[1], 1000)
    (a / index.directory_name / "drive-id").unlink()
    a.rename(b)
    written = write(world, index, b)
    assert written.resumed > 0
    assert written.finished
    check_drives(world, index, quiet, b)


def test_a_copy_of_a_drive(world: World, index: Index, quiet: dict[str, str], tmp_path: Path) -> None:
    """Breaks if two drives with one id are taken for one."""
    a, b = tmp_path / "a", tmp_path / "b"
    begun(world, index, a)
    shutil.copytree(a, b)
    assert write(world, index, a, b).finished
    check_drives(world, index, quiet, a, b)


def change(
    monkeypatch: pytest.MonkeyPatch, place: Path, drives: list[tuple[Path, Path]]
) -> tuple[list[str], Callable[[str], None]]:
    """Let the drive at a place be full after one volume, and be changed by renaming; give what the user is told, and who asks."""
    said: list[str] = []
    real = Target.has_room
    monkeypatch.setattr(
        Target, "has_room", lambda self, needed: (len(said) > 0 or not self.volumes) and real(self, needed)
    )

    def ask(message: str) -> None:
        said.append(message)
        out, into = drives.pop(0)
        place.rename(out)
        into.rename(place)

    return said, ask


def test_swap_for_a_drive_with_volumes(
    world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if the next drive's complete volumes are removed, though the journal counts them as safe, because it was elsewhere before."""
    x, slot, empty = tmp_path / "x", tmp_path / "slot", tmp_path / "empty"
    volumes = begun(world, index, x)
    for path in volumes[0].parent.glob("volume-*.tar.zst"):
        if path not in volumes:
            path.unlink()  # the one under way: that lies in the slot by the time the drive comes there
    slot.mkdir()
    empty.mkdir()
    said, ask = change(monkeypatch, slot, [(tmp_path / "first", x), (x, empty)])
    written = write(world, index, slot, swap=ask)
    assert len(said) == 2
    assert "already" in said[1]
    assert volumes[0].exists()
    assert not written.finished
    assert write(world, index, x, slot).finished


def test_swap_for_a_drive_with_half_a_volume(
    world: World, index: Index, quiet: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if a good drive is refused because a volume was begun on it that is complete elsewhere by now."""
    half, slot = tmp_path / "half", tmp_path / "slot"
    with pytest.raises(Stop):
        write(world, index, half, log=Hook(1, stop))
    slot.mkdir()
    said, ask = change(monkeypatch, slot, [(tmp_path / "first", half)])
    written = write(world, index, slot, swap=ask)
    assert len(said) == 1
    assert written.finished
    check_drives(world, index, quiet, slot, tmp_path / "first")


def test_swap_while_the_drive_in_the_slot_has_later_volumes(
    world: World, index: Index, quiet: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if volumes that lie on a drive which was taken out are written to the next one, since they are looked for in the slot."""
    slot, bad, out = tmp_path / "slot", tmp_path / "bad", tmp_path / "out"
    real = Target.has_room
    monkeypatch.setattr(
        Target,
        "has_room",
        lambda self, needed: (self.directory.parent != bad or not self.volumes) and real(self, needed),
    )
    with pytest.raises(DriveLostData) as caught:
        write(world, index, bad, slot, log=Rot(bad / index.directory_name / "volume-0001.tar.zst"))
    assert "what the others hold counts" in (caught.value.hint or "")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(Target, "has_room", lambda self, needed: (slot / "new").exists() and real(self, needed))

    def ask(message: str) -> None:
        slot.rename(out)
        empty.rename(slot)
        (slot / "new").touch()

    written = write(world, index, slot, swap=ask)
    assert numbers(written) == [(1,), tuple(range(2, len(index.volumes) + 1))]
    assert [drive.finished for drive in written.drives] == [True, False]
    assert write(world, index, slot, out).finished
    check_drives(world, index, quiet, slot, out)


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_swap_for_a_drive_that_is_not_mounted_yet(world: World, index: Index, tmp_path: Path) -> None:
    """Breaks if Enter that is pressed too early has the rest of the bundle written to the PC's own disk, below the mount point."""
    slot = tmp_path / "slot"
    said: list[str] = []
    with two_disks(tmp_path, 24, 24) as (a, b):
        leave(a, 6 * MIB)
        slot.mkdir()
        subprocess.run(["mount", "--bind", str(a), str(slot)], check=True)

        def ask(message: str) -> None:
            if not said:
                subprocess.run(["umount", str(slot)], check=True)
            else:
                subprocess.run(["mount", "--bind", str(b), str(slot)], check=True)
            said.append(message)

        written = write(world, index, slot, swap=ask)
        subprocess.run(["umount", str(slot)], check=True)
        assert written.finished
        assert f"nothing is mounted at {slot}" in said[1]
        assert list(slot.iterdir()) == []


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_swap_of_a_drive_without_room(world: World, index: Index, quiet: dict[str, str], tmp_path: Path) -> None:
    """Breaks if papers without sums stay on a drive that had no room for any volume: they look like a bundle that is not finished."""
    slot = tmp_path / "slot"
    with two_disks(tmp_path, 24, 24) as (a, b):
        leave(a, 400 << 10)
        slot.mkdir()
        subprocess.run(["mount", "--bind", str(a), str(slot)], check=True)

        def ask(message: str) -> None:
            subprocess.run(["umount", str(slot)], check=True)
            subprocess.run(["mount", "--bind", str(b), str(slot)], check=True)

        written = write(world, index, slot, swap=ask)
        subprocess.run(["umount", str(slot)], check=True)
        assert written.finished
        assert len(written.drives) == 1
        assert not list(a.glob("*.mvbundle"))
        check_drives(world, index, quiet, b)


def test_another_key(world: World, index: Index, tmp_path: Path) -> None:
    """Breaks if the drives of one bundle are signed by two keys: no site could read them together."""
    begun(world, index, tmp_path / "a")
    options = WriteOptions((tmp_path / "b" / index.directory_name,), world.journals)
    with pytest.raises(UsageProblem, match="another key") as caught:
        write_bundle(index, options, world.blob_path, world.keys.new("other"), Log())
    assert world.signer.fingerprint in caught.value.message
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("crash", ["before it is recorded", "before its ids go", "amid its journal"])
def test_a_crash_at_the_very_end(
    world: World, index: Index, quiet: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    """Breaks if a bundle of which all is written is not recorded for ever, is written once more, or counts as under way for ever."""
    options = WriteOptions((tmp_path / "a" / index.directory_name,), world.journals, threads=2)
    told: list[Written] = []

    def record(written: Written) -> None:
        if crash == "before it is recorded" and not told:
            told.append(written)
            stop()
        told.append(written)

    with monkeypatch.context() as patched:
        if crash == "before its ids go":
            patched.setattr(Target, "forget_id", lambda self: stop())
        elif crash == "amid its journal":
            patched.setattr("modelvault.bundle.journal.shutil.rmtree", lambda path: stop())
        with pytest.raises(Stop):
            write_bundle(index, options, world.blob_path, world.signer, Log(), record)
    assert len(told) == 1
    if crash == "amid its journal":
        assert find_unfinished(world.journals) == ()
    else:
        again = write_bundle(index, options, world.blob_path, world.signer, Log(), record)
        assert again.resumed == again.content
        assert len(told) == 2
    assert find_unfinished(world.journals) == ()
    check_drives(world, index, quiet, tmp_path / "a")
    # What a crash left of the journal says nothing about a bundle that is written under the same index later.
    assert (
        write_bundle(
            index,
            replace(options, directories=(tmp_path / "b" / index.directory_name,)),
            world.blob_path,
            world.signer,
            Log(),
        ).resumed
        == 0
    )


def test_closed_is_durable(world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a volume counts as safe whose table may not be on the medium: a run was killed before it synced the directory."""
    directory, signature = tmp_path / index.directory_name, "volume-0001.json.sig"
    sync, close = fsio.fsync_directory, Journal.close_volume
    synced: set[str] = set()

    def killed(path: Path) -> None:
        if (directory / signature).exists():
            stop()
        sync(path)

    def watched(path: Path) -> None:
        sync(path)
        synced.update(entry.name for entry in path.iterdir())

    def closing(self: Journal, volume: int) -> None:
        assert f"volume-{volume:04d}.json.sig" in synced
        close(self, volume)

    with monkeypatch.context() as patched:
        patched.setattr(fsio, "fsync_directory", killed)
        with pytest.raises(Stop):
            write(world, index, tmp_path)
    monkeypatch.setattr(fsio, "fsync_directory", watched)
    monkeypatch.setattr(Journal, "close_volume", closing)
    with pytest.raises(Stop):
        write(world, index, tmp_path, log=Hook(9, stop))
    assert signature in synced


def test_somebody_elses_bundle(world: World, index: Index, tmp_path: Path) -> None:
    """Breaks if going on with a bundle overwrites another one of the same name on a drive that is named for the first time."""
    a, b = tmp_path / "a", tmp_path / "b"
    other = small_world(tmp_path / "other")
    other.add("another", {"x.gguf": b"x" * MIB})
    foreign = other.write(other.plan(volume_size=2 * MIB), drive=b).directory
    assert foreign.name == index.directory_name
    before = contents(foreign)
    begun(world, index, a)
    with pytest.raises(UsageProblem, match="something else"):
        write(world, index, a, b)
    assert contents(foreign) == before


def test_read_back_in_another_run(world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a drive counts as read back because the run that finished another one read that back."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    real, finish = Target.has_room, Target.finish
    monkeypatch.setattr(
        Target,
        "has_room",
        lambda self, needed: (self.directory.parent != a or not self.volumes) and real(self, needed),
    )

    def fail(self: Target, signer: Signer, progress: Progress, *, compare: bool) -> None:
        if self.directory.parent == b:
            raise failed(self.directory, "it is gone")
        finish(self, signer, progress, compare=compare)

    with monkeypatch.context() as patched:
        patched.setattr(Target, "finish", fail)
        assert not write(world, index, a, b, read_back=False).finished
    written = write(world, index, b)
    assert written.finished
    assert not written.read_back
    assert [drive.read_back for drive in written.drives] == [True, False]


def test_sums_on_one_drive_only(world: World, index: Index, tmp_path: Path) -> None:
    """Breaks if a bundle counts as finished though one of its drives with volumes has no sums."""
    a, b = tmp_path / "a", tmp_path / "b"
    directory = write(world, index, a).directory
    shutil.copytree(a, b)
    assert together(world, index, a, b).finished
    (b / directory.name / "SHA256SUMS").unlink()
    assert not together(world, index, a, b).finished
    for volume in (b / directory.name).glob("volume-*"):
        volume.unlink()
    assert together(world, index, a, b).finished


def test_the_vaults_disk_fails(world: World, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a drive is given up because the journal in the vault cannot be written."""

    def broken(descriptor: int, data: bytes) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    log = Hook(3, lambda: monkeypatch.setattr("modelvault.bundle.journal.os.write", broken))
    with pytest.raises(ModelvaultError, match="journal in the vault") as caught:
        write(world, index, tmp_path / "a", tmp_path / "b", log=log)
    assert not isinstance(caught.value, DriveFailed)
    assert str(world.journals) in caught.value.data["path"]
    assert log.lines == []
