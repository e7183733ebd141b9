"""Breaks bundles, imports and drives in every way that we can, many times, and counts what came of it.

Each run breaks one thing at a random place or moment, looks at what is left with code that shares nothing with modelvault, and
then runs the same command again. The columns:

broken     runs that were really hit; the others ended before their moment came
detected   the command said so: another exit code than 0, and no internal error
unread     a bit flipped in a file that import never reads (README.txt and the like); everything imported was right
recovered  the command, run again once the cause was gone, ended well, and all bytes were those of an undisturbed run
lost       it did not, or not all of them were; must be 0
wrong      something was listed or installed that was not whole and right; must be 0

Kills and flips need nothing; drives that fill up or are pulled out are small loop-mounted file systems, and need root.
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from machines import PROGRAM, SECONDS, Machine, flip_bit, only_bundle, small_disk, trust
from make_models import make_awq, make_gguf_repository, make_large_gguf

LARGE = 60_000_000  # bytes of the model that is on its way when things break
VOLUME = "8MiB"
SEQUENCE = "7"
ENGINE = "folder"
UNREAD = {"README.txt", "SHA256SUMS", "SHA256SUMS.sig", "default.pub", "restore.sh", "restore.list"}
GOING_DOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN: from now on every access fails, and what was not synced is gone
WITHOUT_LOG = 2

Kind = Callable[["World", Path, random.Random], "Outcome"]


@dataclass
class Outcome:
    """What one run came to."""

    broken: bool = True
    detected: bool = False
    unread: bool = False
    recovered: bool = False
    wrong: bool = False
    note: str = ""


@dataclass
class World:
    """What every run begins with: two vaults, an undisturbed bundle of each, a server that trusts their key."""

    root: Path
    large: Machine = field(init=False)
    small: Machine = field(init=False)
    large_bundle: Path = field(init=False)
    small_bundle: Path = field(init=False)
    server: Machine = field(init=False)
    bundle_seconds: float = field(init=False)
    import_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        """Make the models, the vaults and the bundles; measure how long the commands take undisturbed."""
        models = self.root / "models"
        make_gguf_repository(models / "tiny")
        make_awq(models / "awq")
        (models / "large").mkdir()
        make_large_gguf(models / "large/large-Q8_0.gguf", LARGE)
        self.large = self._vault("large", [models / "large", models / "tiny"])
        self.small = self._vault("small", [models / "tiny", models / "awq"])
        self.large_bundle, self.bundle_seconds = self._bundle(self.large)
        self.small_bundle, _ = self._bundle(self.small)
        self.server = Machine(self.root / "server")
        self.server.root.mkdir()
        trust(self.server, self.large, self.large_bundle)
        self.server.run("keys", "trust", self.small_bundle / "default.pub", "--name", "small", *self._fingerprint())
        timed = self.a_server(self.root / "timed")
        begun = time.monotonic()
        timed.run(*importing(timed, self.large_bundle))
        self.import_seconds = time.monotonic() - begun

    def _vault(self, name: str, models: list[Path]) -> Machine:
        machine = Machine(self.root / name)
        machine.root.mkdir()
        for model in models:
            machine.run("add", model, "--name", model.name)
        machine.run("keys", "new")
        return machine

    def _bundle(self, machine: Machine) -> tuple[Path, float]:
        drive = machine.root / "reference"
        drive.mkdir()
        begun = time.monotonic()
        machine.run(*bundling(drive))
        return only_bundle(drive), time.monotonic() - begun

    def _fingerprint(self) -> tuple[str, str]:
        return "--fingerprint", self.small.json("keys", "show").result["keys"][0]["fingerprint"]

    def a_pc(self, place: Path) -> Machine:
        """Give a connected PC of its own for one run."""
        return _copy(self.large, place / "pc")

    def a_server(self, place: Path) -> Machine:
        """Give an isolated server of its own for one run."""
        return _copy(self.server, place / "server")


def _copy(machine: Machine, root: Path) -> Machine:
    root.mkdir(parents=True)
    # Blobs are never written to, so links do; a database that two share would not.
    link = "blobs"
    shutil.copytree(machine.vault, root / "vault", ignore=shutil.ignore_patterns(link))
    if (machine.vault / link).exists():
        shutil.copytree(machine.vault / link, root / "vault" / link, copy_function=os.link)
    return Machine(root)


def bundling(drive: Path) -> tuple[str | Path, ...]:
    """Give the command that all bundles are written with: the sequence is pinned, so that bytes can be compared."""
    return "bundle", "--to", drive, "--sequence", SEQUENCE, "--volume-size", VOLUME


def importing(server: Machine, bundle: Path) -> tuple[str | Path, ...]:
    """Give the command of all imports."""
    return "import", bundle, "--engine", f"{ENGINE}={server.root / 'engine'}"


@dataclass(frozen=True)
class Ended:
    """How a command ended. ``honest``: with an exit code and words of ours."""

    code: int
    said: str

    @property
    def honest(self) -> bool:
        """Whether it failed, and knew why."""
        return self.code > 0 and "Traceback" not in self.said and "internal error" not in self.said


def run(
    machine: Machine, command: tuple[str | Path, ...], during: Callable[["subprocess.Popen[str]"], None] | None = None
) -> Ended:
    """Run a command to its end, with something happening meanwhile."""
    process = subprocess.Popen(
        (*PROGRAM, *map(str, command)),
        env=machine.environment(),
        cwd=machine.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        if during is not None:
            threading.Thread(target=during, args=(process,), daemon=True).start()
        said, _ = process.communicate(timeout=SECONDS)
    return Ended(process.returncode, said)


# ── looking at what is left, without modelvault ──


def models_in(vault: Path) -> dict[str, bool]:
    """Tell of every model that the vault lists whether all its bytes are there and right."""
    index = vault / "index.json"
    if not index.exists():
        return {}
    found = {}
    for descriptor in json.loads(index.read_bytes())["manifests"]:
        manifest = vault / "blobs/sha256" / descriptor["digest"].removeprefix("sha256:")
        needed = [descriptor]
        if manifest.exists():
            document = json.loads(manifest.read_bytes())
            needed += [document["config"], *document["layers"]]
        found[descriptor["digest"]] = all(_right(vault, item["digest"], item["size"]) for item in needed)
    return found


def _right(vault: Path, digest: str, size: int) -> bool:
    blob = vault / "blobs/sha256" / digest.removeprefix("sha256:")
    return blob.exists() and blob.stat().st_size == size and _sha256(blob) == digest.removeprefix("sha256:")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed_right(world: World, server: Machine) -> bool:
    """Tell whether every file that the engine sees is one of those that were sent, whole."""
    engine = server.root / "engine"
    if not engine.exists():
        return True
    models = world.root / "models"
    sent = {_sha256(path) for path in models.rglob("*") if path.is_file()}
    seen = [path for path in engine.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return all(_sha256(path) in sent for path in seen)


def same(one: Path, other: Path) -> bool:
    """Tell whether two bundles are equal byte for byte."""
    files = sorted(path.name for path in one.iterdir())
    return files == sorted(path.name for path in other.iterdir()) and all(
        _sha256(one / name) == _sha256(other / name) for name in files
    )


def judged_import(world: World, server: Machine, bundle: Path, ended: Ended) -> Outcome:
    """Look at a broken import, run it again from the sound ``bundle``, and look again."""
    before = models_in(server.vault)
    outcome = Outcome(detected=ended.honest)
    outcome.wrong = not all(before.values()) or not installed_right(world, server)
    again = run(server, importing(server, bundle))
    after = models_in(server.vault)
    whole = len(after) == 2 and all(after.values()) and installed_right(world, server)
    outcome.recovered = again.code == 0 and whole
    outcome.wrong |= not all(after.values())
    outcome.note = "" if outcome.recovered else again.said
    return outcome


# ── the ways to break things ──


def kill_bundle(world: World, place: Path, chance: random.Random) -> Outcome:
    """SIGKILL while a bundle is written or read back."""
    pc, drive = world.a_pc(place), place / "drive"
    drive.mkdir()
    ended = run(pc, bundling(drive), killer(chance.uniform(0, world.bundle_seconds)))
    return finished_bundle(world, pc, drive, Outcome(broken=ended.code != 0, detected=ended.code == -signal.SIGKILL))


def finished_bundle(world: World, pc: Machine, drive: Path, outcome: Outcome) -> Outcome:
    """Run the bundle to its end and compare it with one that nobody disturbed."""
    again = run(pc, bundling(drive))
    outcome.recovered = again.code == 0 and same(only_bundle(drive), world.large_bundle)
    outcome.note = "" if outcome.recovered else again.said
    return outcome


def killer(seconds: float) -> Callable[["subprocess.Popen[str]"], None]:
    """Give what kills a process after some seconds, if it still runs."""

    def kill(process: "subprocess.Popen[str]") -> None:
        time.sleep(seconds)
        process.kill()

    return kill


def kill_import(world: World, place: Path, chance: random.Random) -> Outcome:
    """SIGKILL while a bundle is received or installed."""
    server = world.a_server(place)
    ended = run(server, importing(server, world.large_bundle), killer(chance.uniform(0, world.import_seconds)))
    outcome = judged_import(world, server, world.large_bundle, ended)
    outcome.broken, outcome.detected = ended.code != 0, ended.code == -signal.SIGKILL
    return outcome


def flip(world: World, place: Path, chance: random.Random) -> Outcome:
    """Flip one random bit of one random file of a bundle, each byte of the bundle as likely as every other."""
    server, bundle = world.a_server(place), place / world.small_bundle.name
    shutil.copytree(world.small_bundle, bundle)
    files = sorted(bundle.iterdir())
    # Volumes would take nearly all of the hits by their size: half of them go to any file.
    sizes = [path.stat().st_size for path in files]
    path = chance.choices(files, sizes)[0] if chance.random() < 0.5 else chance.choice(files)
    offset, bit = chance.randrange(path.stat().st_size), chance.randrange(8)
    flip_bit(path, offset, bit)
    ended = run(server, importing(server, bundle))
    flip_bit(path, offset, bit)
    outcome = judged_import(world, server, bundle, ended)
    outcome.unread = path.name in UNREAD and ended.code == 0
    outcome.note = outcome.note or (
        "" if outcome.detected or outcome.unread else f"{path.name} {offset}.{bit}: {ended.said}"
    )
    return outcome


@contextmanager
def disk(place: Path, chance: random.Random, size: int = 160 << 20) -> Iterator[Path]:
    """Give a small disk of its own."""
    kind = chance.choice(("ext4", "xfs")) if size >= 320 << 20 else "ext4"
    with small_disk(place / "disk.img", place / "disk", size, kind) as mounted:
        yield mounted


def fill_bundle(world: World, place: Path, chance: random.Random) -> Outcome:
    """Have somebody else fill the drive while a bundle is written to it."""
    pc = world.a_pc(place)
    with disk(place, chance) as drive:
        filler = drive / "filler"
        ended = run(pc, bundling(drive), filling(filler, chance.uniform(0, world.bundle_seconds)))
        filler.unlink(missing_ok=True)
        return finished_bundle(world, pc, drive, Outcome(broken=ended.code != 0, detected=ended.honest))


def filling(file: Path, seconds: float) -> Callable[["subprocess.Popen[str]"], None]:
    """Give what takes all room of a disk after some seconds, and keeps taking what becomes free."""

    def fill(process: "subprocess.Popen[str]") -> None:
        time.sleep(seconds)
        with suppress(FileNotFoundError), file.open("wb", buffering=0) as filler:
            while process.poll() is None:
                free = os.statvfs(file.parent)
                with suppress(OSError):
                    os.posix_fallocate(
                        filler.fileno(), filler.seek(0, os.SEEK_END), max(free.f_bfree * free.f_bsize, 1)
                    )
                    filler.seek(0, os.SEEK_END)
                time.sleep(0.01)

    return fill


def fill_import(world: World, place: Path, chance: random.Random) -> Outcome:
    """Have the server's disk filled while a bundle is received."""
    with disk(place, chance, 240 << 20) as mounted:
        server = world.a_server(mounted)
        filler = mounted / "filler"
        ended = run(
            server, importing(server, world.large_bundle), filling(filler, chance.uniform(0, world.import_seconds))
        )
        filler.unlink(missing_ok=True)
        outcome = judged_import(world, server, world.large_bundle, ended)
        outcome.broken = ended.code != 0
        return outcome


def unplug_bundle(world: World, place: Path, chance: random.Random) -> Outcome:
    """Pull the drive out while a bundle is written to it, and put it in again."""
    pc = world.a_pc(place)
    with disk(place, chance, chance.choice((160, 320)) << 20) as drive:
        ended = run(pc, bundling(drive), unplugging(drive, chance.uniform(0, world.bundle_seconds)))
        plug_in(place / "disk.img", drive)
        return finished_bundle(world, pc, drive, Outcome(broken=ended.code != 0, detected=ended.honest))


def unplug_import(world: World, place: Path, chance: random.Random) -> Outcome:
    """Pull the drive out while a bundle is received from it, and put it in again."""
    server = world.a_server(place)
    with disk(place, chance) as drive:
        bundle = drive / world.large_bundle.name
        shutil.copytree(world.large_bundle, bundle)
        plug_in(place / "disk.img", drive)  # so that nothing of it is in the cache
        ended = run(server, importing(server, bundle), unplugging(drive, chance.uniform(0, world.import_seconds)))
        plug_in(place / "disk.img", drive)
        outcome = judged_import(world, server, bundle, ended)
        outcome.broken = ended.code != 0
        return outcome


def unplugging(drive: Path, seconds: float) -> Callable[["subprocess.Popen[str]"], None]:
    """Give what has every access to a mounted disk fail after some seconds, as if it had been pulled out."""

    def unplug(_: "subprocess.Popen[str]") -> None:
        time.sleep(seconds)
        descriptor = os.open(drive, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, GOING_DOWN, struct.pack("I", WITHOUT_LOG))
        finally:
            os.close(descriptor)

    return unplug


def plug_in(image: Path, drive: Path) -> None:
    """Mount the disk again."""
    subprocess.run(["umount", str(drive)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(drive)], check=True)


KINDS: dict[str, tuple[str, Kind]] = {
    "bundle killed": ("kills", kill_bundle),
    "import killed": ("kills", kill_import),
    "bit flipped": ("flips", flip),
    "drive filled during bundle": ("drives", fill_bundle),
    "disk filled during import": ("drives", fill_import),
    "drive pulled during bundle": ("drives", unplug_bundle),
    "drive pulled during import": ("drives", unplug_import),
}


# ── the campaign ──


def share(total: int, parts: int) -> list[int]:
    """Cut a number of runs into parts."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def plan(counts: dict[str, int]) -> list[str]:
    """Give the kinds of all runs."""
    runs = []
    for group, count in counts.items():
        names = [name for name, (of, _) in KINDS.items() if of == group]
        for name, number in zip(names, share(count, len(names)), strict=True):
            runs += [name] * number
    return runs


def campaign(root: Path, counts: dict[str, int], seed: int, workers: int) -> dict[str, list[Outcome]]:
    """Do all runs, some at a time; whatever is broken is broken in a place of its own."""
    world = World(root)

    def one(item: tuple[int, str]) -> tuple[str, Outcome]:
        number, name = item
        place = root / f"run-{number}"
        place.mkdir()
        outcome = KINDS[name][1](world, place, random.Random(seed * 1_000_003 + number))
        shutil.rmtree(place)
        if not outcome.recovered or outcome.wrong or not (outcome.detected or outcome.unread or not outcome.broken):
            print(f"run {number} ({name}, seed {seed}): {outcome}", file=sys.stderr)
        if number % 50 == 49:
            print(f"{number + 1} runs", file=sys.stderr, flush=True)
        return name, outcome

    results: dict[str, list[Outcome]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for name, outcome in pool.map(one, enumerate(plan(counts))):
            results.setdefault(name, []).append(outcome)
    return results


def report(results: dict[str, list[Outcome]]) -> str:
    """Lay the results out as a table of Markdown."""
    columns = ["what was done", "runs", "broken", "detected", "unread", "recovered", "lost", "wrong"]
    rows = []
    for name, outcomes in results.items():
        hit = [outcome for outcome in outcomes if outcome.broken and not outcome.unread]
        cells = [
            len(outcomes),
            len(hit),
            sum(outcome.detected for outcome in hit),
            sum(outcome.unread for outcome in outcomes),
            sum(outcome.recovered for outcome in outcomes),
            sum(not outcome.recovered for outcome in outcomes),
            sum(outcome.wrong for outcome in outcomes),
        ]
        rows.append([name, *map(str, cells)])
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows])


def failed(results: dict[str, list[Outcome]]) -> bool:
    """Tell whether anything was lost, wrong, or broken without a word."""
    return any(
        not outcome.recovered or outcome.wrong or (outcome.broken and not outcome.detected and not outcome.unread)
        for outcomes in results.values()
        for outcome in outcomes
    )


def main() -> int:
    """Run the campaign and print its table; 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of bundle and import, half each")
    parser.add_argument("--flips", type=int, default=1000, help="bits flipped in bundles")
    parser.add_argument("--drives", type=int, default=50, help="filled up or pulled out (needs root)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    counts = {"kills": options.kills, "flips": options.flips, "drives": options.drives}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="modelvault-campaign-") as place:
        results = campaign(Path(place), counts, options.seed, options.workers)
    print(f"seed {options.seed}, {time.monotonic() - begun:.0f} s, {platform.system()} {platform.machine()}\n")
    print(report(results))
    return int(failed(results))


if __name__ == "__main__":
    sys.exit(main())
