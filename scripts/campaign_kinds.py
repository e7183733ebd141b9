"""The ways to break things. Each breaks one thing at a random moment or place, mends the cause, and has the command run again."""

import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from campaign_world import (
    SITE,
    UNREAD,
    Command,
    Deed,
    Ended,
    Outcome,
    World,
    a_copy,
    bundling,
    importing,
    judged,
    on_two_drives,
    run,
    same,
)
from machines import Machine, flip_bit, only_bundle, small_disk

GOING_DOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN: from now on every access fails, and what was not synced is gone
WITHOUT_LOG = 2
MIB = 1 << 20

Kind = Callable[[World, Path, random.Random], Outcome]


# ── killed ──


def after(seconds: float, deed: Deed) -> Deed:
    """Give what does something after some seconds, if the command still runs."""

    def later(process: "subprocess.Popen[str]") -> None:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            deed(process)

    return later


def killer(seconds: float) -> Deed:
    """Give what kills a process after some seconds."""
    return after(seconds, lambda process: process.kill())


def killed(ended: Ended, outcome: Outcome) -> Outcome:
    """Correct an outcome: who is killed says nothing; the others ended well before, or wait for the other drive (3)."""
    outcome.broken, outcome.detected = ended.code not in {0, 3}, ended.code == -signal.SIGKILL
    return outcome


def kill_bundle(world: World, place: Path, chance: random.Random) -> Outcome:
    """SIGKILL while a bundle is written or read back."""
    pc, drive = a_copy(world.large, place / "pc"), place / "drive"
    drive.mkdir()
    ended = run(pc, bundling(drive), killer(chance.uniform(0, world.bundle_seconds)))
    return killed(ended, finished_bundle(world, pc, [drive], ended))


def kill_two_drives(world: World, place: Path, chance: random.Random) -> Outcome:
    """SIGKILL while a bundle is written to two drives."""
    pc = a_copy(world.large, place / "pc")
    with two_drives(place) as drives:
        ended = run(pc, bundling(*drives), killer(chance.uniform(0, 1.3 * world.bundle_seconds)))
        return killed(ended, finished_bundle(world, pc, drives, ended))


def finished_bundle(world: World, pc: Machine, drives: Sequence[Path], ended: Ended) -> Outcome:
    """Run a broken bundle to its end and compare it with one that nobody disturbed."""
    told = any(map(ended.told, drives))
    outcome = Outcome(broken=ended.code != 0 or told, detected=ended.honest or told)
    again = run(pc, bundling(*drives))
    outcome.recovered = again.code == 0 and same(world.large_bundle, finished_on(drives))
    outcome.blame(f"it {ended}", f"again, it {again}")
    return outcome


def finished_on(drives: Sequence[Path]) -> list[Path]:
    """Find the bundles that have sums.

    A drive that went away before any of its volumes counted as complete keeps what it has, perhaps a signed one; nobody needs it.
    """
    return [only_bundle(drive) for drive in drives if list(drive.glob("*.mvbundle/SHA256SUMS"))]


def kill_import(world: World, place: Path, chance: random.Random) -> Outcome:
    """SIGKILL while a bundle is received or installed."""
    server = a_copy(world.server, place / "server")
    command = importing(server, world.large_bundle)
    ended = run(server, command, killer(chance.uniform(0, world.import_seconds)))
    return killed(ended, judged(world, server, ended, lambda: run(server, command)))


def kill_import_of_two(world: World, place: Path, chance: random.Random) -> Outcome:
    """SIGKILL while the first or the second of two drives is received; each drive comes alone."""
    server = a_copy(world.server, place / "server")
    trips = [importing(server, drive) for drive in on_two_drives(world.large_bundle, place, chance)]
    chance.shuffle(trips)
    if chance.random() < 0.5:
        run(server, trips.pop(0))  # it was read to its end: it is not brought again
    ended = run(server, trips[0], killer(chance.uniform(0, world.import_seconds)))
    return killed(ended, judged(world, server, ended, lambda: in_turn(server, trips)))


def in_turn(server: Machine, commands: Sequence[Command]) -> Ended:
    """Run commands one after the other; the last one counts."""
    return [run(server, command) for command in commands][-1]


# ── flipped ──


def flip(world: World, place: Path, chance: random.Random) -> Outcome:
    """Flip one random bit of a bundle, and import it; then the same with a good copy."""
    server, bundle = a_copy(world.server, place / "server"), place / world.small_bundle.name
    shutil.copytree(world.small_bundle, bundle)
    path, offset, bit = a_bit([bundle], chance)
    flip_bit(path, offset, bit)
    ended = run(server, importing(server, bundle))
    flip_bit(path, offset, bit)
    outcome = judged(world, server, ended, lambda: run(server, importing(server, bundle)))
    return read_or_not(outcome, ended, path)


def flip_and_mend(world: World, place: Path, chance: random.Random) -> Outcome:
    """Flip one random bit on one of two drives; have what is wanted sent after, by request and patch."""
    server, pc = a_copy(world.server, place / "server"), a_copy(world.small, place / "pc")
    drives = on_two_drives(world.small_bundle, place, chance)
    path, offset, bit = a_bit(drives, chance)
    flip_bit(path, offset, bit)
    ended = run(server, importing(server, *drives))
    trip = place / "trip"
    trip.mkdir()
    brought = drives if chance.random() < 0.5 else ()

    def mend() -> Ended:
        asked = run(server, ("verify", *drives, "--request", trip, "--site", SITE))
        if not list(trip.glob("*.request.json")):  # all arrived, and it was said that nothing is wanted
            return Ended(ended.code, ended.said + asked.said)
        answered = run(pc, ("bundle", "--answer", trip, "--to", trip))
        return run(server, importing(server, *brought, only_bundle(trip))) if answered.code == 0 else answered

    outcome = judged(world, server, ended, mend)
    outcome.detected |= ended.told(path.parent)
    return read_or_not(outcome, ended, path)


def a_bit(bundles: Sequence[Path], chance: random.Random) -> tuple[Path, int, int]:
    """Choose a bit to flip: a file, the byte in it, the bit in that."""
    files = sorted(path for bundle in bundles for path in bundle.iterdir())
    # Volumes would take nearly all of the hits by their size: half of them go to any file.
    sizes = [path.stat().st_size for path in files]
    path = chance.choices(files, sizes)[0] if chance.random() < 0.5 else chance.choice(files)
    return path, chance.randrange(path.stat().st_size), chance.randrange(8)


def read_or_not(outcome: Outcome, ended: Ended, path: Path) -> Outcome:
    """Correct an outcome: some files are not read by an import."""
    outcome.unread = path.name in UNREAD and ended.code == 0
    outcome.blame(f"the bit was in {path}")
    return outcome


# ── filled, and pulled out ──


@contextmanager
def disk(place: Path, size: int = 160, kind: str = "ext4") -> Iterator[Path]:
    """Give a small disk of its own; its size in MiB."""
    with small_disk(place / "disk.img", place / "disk", size * MIB, kind) as mounted:
        yield mounted


@contextmanager
def two_drives(place: Path) -> Iterator[tuple[Path, Path]]:
    """Give two drives, of which the first takes half of the bundle. Without root nothing can be mounted: it takes all of it then."""
    other = place / "other"
    other.mkdir()
    if os.geteuid() == 0:
        with disk(place, 40) as small:
            yield small, other
    else:
        (place / "disk").mkdir()
        yield place / "disk", other


def filling(file: Path, seconds: float) -> Deed:
    """Give what takes all room of a disk after some seconds, and keeps taking what becomes free."""

    def fill(process: "subprocess.Popen[str]") -> None:
        with suppress(FileNotFoundError), file.open("wb", buffering=0) as filler:
            while process.poll() is None:
                free = os.statvfs(file.parent)
                with suppress(OSError):
                    os.posix_fallocate(
                        filler.fileno(), filler.seek(0, os.SEEK_END), max(free.f_bfree * free.f_bsize, 1)
                    )
                    filler.seek(0, os.SEEK_END)
                time.sleep(0.01)

    return after(seconds, fill)


def unplugging(drive: Path, seconds: float) -> Deed:
    """Give what has every access to a mounted disk fail after some seconds, as if it had been pulled out."""

    def unplug(_: "subprocess.Popen[str]") -> None:
        descriptor = os.open(drive, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, GOING_DOWN, struct.pack("I", WITHOUT_LOG))
        finally:
            os.close(descriptor)

    return after(seconds, unplug)


def plug_in(image: Path, drive: Path) -> None:
    """Mount the disk again."""
    subprocess.run(["umount", str(drive)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(drive)], check=True)


def fill_bundle(world: World, place: Path, chance: random.Random) -> Outcome:
    """Have somebody else fill the drive while a bundle is written to it."""
    pc = a_copy(world.large, place / "pc")
    with disk(place) as drive:
        filler = drive / "filler"
        ended = run(pc, bundling(drive), filling(filler, chance.uniform(0, world.bundle_seconds)))
        filler.unlink(missing_ok=True)
        return finished_bundle(world, pc, [drive], ended)


def fill_one_of_two(world: World, place: Path, chance: random.Random) -> Outcome:
    """Have somebody else fill the first of two drives: the second takes the rest."""
    pc = a_copy(world.large, place / "pc")
    with two_drives(place) as drives:
        filler = drives[0] / "filler"
        ended = run(pc, bundling(*drives), filling(filler, chance.uniform(0, world.bundle_seconds)))
        filler.unlink(missing_ok=True)
        outcome = finished_bundle(world, pc, drives, ended)
        # The second drive takes the rest: the bundle ends well, and says so in passing.
        said = "nothing more is written there" in ended.said
        outcome.broken |= said
        outcome.detected |= said
        return outcome


def fill_import(world: World, place: Path, chance: random.Random) -> Outcome:
    """Have the server's disk filled while a bundle is received."""
    with disk(place, 240) as mounted:
        server = a_copy(world.server, mounted / "server")
        filler = mounted / "filler"
        command = importing(server, world.large_bundle)
        ended = run(server, command, filling(filler, chance.uniform(0, world.import_seconds)))
        filler.unlink(missing_ok=True)
        outcome = judged(world, server, ended, lambda: run(server, command))
        outcome.broken = ended.code != 0
        return outcome


def unplug_bundle(world: World, place: Path, chance: random.Random) -> Outcome:
    """Pull the drive out while a bundle is written to it, and put it in again."""
    pc = a_copy(world.large, place / "pc")
    with disk(place, *chance.choice(((160, "ext4"), (320, "xfs")))) as drive:
        ended = run(pc, bundling(drive), unplugging(drive, chance.uniform(0, world.bundle_seconds)))
        plug_in(place / "disk.img", drive)
        return finished_bundle(world, pc, [drive], ended)


def unplug_one_of_two(world: World, place: Path, chance: random.Random) -> Outcome:
    """Pull the first of two drives out while a bundle is written, and put it in again."""
    pc = a_copy(world.large, place / "pc")
    with two_drives(place) as drives:
        ended = run(pc, bundling(*drives), unplugging(drives[0], chance.uniform(0, world.bundle_seconds)))
        plug_in(place / "disk.img", drives[0])
        return finished_bundle(world, pc, drives, ended)


def unplug_import(world: World, place: Path, chance: random.Random) -> Outcome:
    """Pull the drive out while a bundle is received from it, and put it in again."""
    server = a_copy(world.server, place / "server")
    with disk(place) as drive:
        bundle = drive / world.large_bundle.name
        shutil.copytree(world.large_bundle, bundle)
        plug_in(place / "disk.img", drive)  # so that nothing of it is in the cache
        command = importing(server, bundle)
        ended = run(server, command, unplugging(drive, chance.uniform(0, world.import_seconds)))
        plug_in(place / "disk.img", drive)
        outcome = judged(world, server, ended, lambda: run(server, command))
        outcome.broken = ended.code != 0
        return outcome


KINDS: dict[str, tuple[str, Kind]] = {
    "bundle killed": ("kills", kill_bundle),
    "bundle to two drives killed": ("kills", kill_two_drives),
    "import killed": ("kills", kill_import),
    "import from two drives killed": ("kills", kill_import_of_two),
    "bit flipped": ("flips", flip),
    "bit flipped on one of two drives, mended by a patch": ("flips", flip_and_mend),
    "drive filled during bundle": ("drives", fill_bundle),
    "first of two drives filled during bundle": ("drives", fill_one_of_two),
    "disk filled during import": ("drives", fill_import),
    "drive pulled during bundle": ("drives", unplug_bundle),
    "first of two drives pulled during bundle": ("drives", unplug_one_of_two),
    "drive pulled during import": ("drives", unplug_import),
}
