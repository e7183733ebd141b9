"""What every run of the campaign begins with, and how it looks at what is left: with code that shares nothing with modelvault."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from drives import carry
from machines import PROGRAM, SECONDS, Machine, only_bundle, trust, trust_site
from make_models import make_awq, make_gguf_repository, make_large_gguf

LARGE = 60_000_000  # bytes of the model that is on its way when things break
SEQUENCE = "7"
SITE = "lab"
ENGINE = "folder"
SUMS = {"SHA256SUMS", "SHA256SUMS.sig"}
UNREAD = {"README.txt", *SUMS, "default.pub", "restore.sh", "restore.list"}

Command = tuple[str | Path, ...]
Deed = Callable[["subprocess.Popen[str]"], None]


@dataclass
class Outcome:
    """What one run came to."""

    broken: bool = True
    detected: bool = False
    unread: bool = False
    recovered: bool = False
    wrong: bool = False
    note: str = field(default="", repr=False)

    @property
    def defect(self) -> bool:
        """Whether something was lost or wrong, or broken without a word."""
        return not self.recovered or self.wrong or (self.broken and not self.detected and not self.unread)

    def blame(self, *reasons: str) -> None:
        """Add to what is to be known if this is a defect."""
        self.note = "\n".join(filter(None, (self.note, *reasons)))


@dataclass
class World:
    """Two vaults, an undisturbed bundle of each, a server that trusts their keys, and whose own they trust.

    The large bundle takes a while; the small one is for what is done often.
    """

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
        self.large_bundle, self.bundle_seconds = self._bundle(self.large, "8MiB")
        self.small_bundle, _ = self._bundle(self.small, "2MiB")
        self.server = Machine(self.root / "server")
        self.server.root.mkdir()
        trust(self.server, self.large, self.large_bundle)
        fingerprint = self.small.json("keys", "show").result["keys"][0]["fingerprint"]
        public_key = self.small_bundle / "default.pub"
        self.server.run("keys", "trust", public_key, "--name", "small", "--fingerprint", fingerprint)
        self.server.run("receipt", "write", self.root, "--site", SITE)
        trust_site(self.small, self.root / f"{SITE}.pub", self.server)
        timed = a_copy(self.server, self.root / "timed")
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

    def _bundle(self, machine: Machine, volume_size: str) -> tuple[Path, float]:
        drive = machine.root / "reference"
        drive.mkdir()
        begun = time.monotonic()
        machine.run(*bundling(drive, volume_size=volume_size))
        return only_bundle(drive), time.monotonic() - begun


def a_copy(machine: Machine, root: Path) -> Machine:
    """Give a machine of its own for one run."""
    root.mkdir(parents=True)
    # Blobs are never written to, so links do; a database that two share would not.
    link = "blobs"
    shutil.copytree(machine.vault, root / "vault", ignore=shutil.ignore_patterns(link))
    if (machine.vault / link).exists():
        shutil.copytree(machine.vault / link, root / "vault" / link, copy_function=os.link)
    return Machine(root)


def on_two_drives(bundle: Path, place: Path, chance: random.Random) -> tuple[Path, Path]:
    """Put each volume of a bundle on one of two drives, at random."""
    volumes = range(1, len(list(bundle.glob("volume-*.tar.zst"))) + 1)
    first = set(chance.sample(volumes, chance.randrange(1, len(volumes))))
    return carry(bundle, place / "a", first), carry(bundle, place / "b", set(volumes) - first)


def bundling(*drives: Path, volume_size: str = "8MiB") -> Command:
    """Give the command that all bundles are written with: the sequence is pinned, so that bytes can be compared."""
    to = [word for drive in drives for word in ("--to", drive)]
    return "bundle", *to, "--sequence", SEQUENCE, "--volume-size", volume_size


def importing(server: Machine, *bundles: Path) -> Command:
    """Give the command of all imports."""
    return "import", *bundles, "--engine", f"{ENGINE}={server.root / 'engine'}"


@dataclass(frozen=True)
class Ended:
    """How a command ended. ``honest``: with an exit code and words of ours."""

    code: int
    said: str

    @property
    def honest(self) -> bool:
        """Whether it failed, and knew why."""
        return self.code > 0 and "Traceback" not in self.said and "internal error" not in self.said

    def __str__(self) -> str:
        return f"ended with {self.code}: {self.said}"

    def told(self, place: Path) -> bool:
        """Whether it said that something is the matter with a drive, though the rest could do without."""
        said = [line for line in self.said.splitlines() if "same file system" not in line]
        return any(line.startswith("warning: ") and str(place) in line for line in said)


def run(machine: Machine, command: Command, during: Deed | None = None) -> Ended:
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
        happening = threading.Thread(target=during or (lambda _: None), args=(process,), daemon=True)
        happening.start()
        said, _ = process.communicate(timeout=SECONDS)
        happening.join()
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


def _wrong_so_far(world: World, server: Machine) -> list[str]:
    """Name what the vault lists or the engine sees, and is not whole or not what was sent."""
    listed = [f"{manifest} is listed and not whole" for manifest, whole in models_in(server.vault).items() if not whole]
    return [*listed, *_installed_wrong(world, server)]


def _installed_wrong(world: World, server: Machine) -> Iterator[str]:
    engine = server.root / "engine"
    sent = {_sha256(path) for path in (world.root / "models").rglob("*") if path.is_file()}
    seen = (path for path in engine.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in seen:
        if _sha256(path) not in sent:
            yield f"{path} is not what was sent"


def same(reference: Path, bundles: Collection[Path]) -> bool:
    """Tell whether what lies on some drives is one bundle, byte for byte, with each volume on one of them and right sums on each."""
    wanted = {path.name: _sha256(path) for path in reference.iterdir()}
    everywhere = {name for name in wanted if not name.startswith("volume-")}
    found: list[str] = []
    for bundle in bundles:
        here = {path.name: _sha256(path) for path in bundle.iterdir()}
        if not everywhere <= here.keys():
            return False  # also one without sums: it was not finished
        found += here.keys() - everywhere
        lines = (bundle / "SHA256SUMS").read_text().splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
        listed = {name: digest for name, digest in here.items() if name not in SUMS}
        if sums != listed or not listed.items() <= wanted.items():
            return False
    return sorted(found) == sorted(wanted.keys() - everywhere)


def judged(world: World, server: Machine, ended: Ended, mending: Callable[[], Ended]) -> Outcome:
    """Look at what a broken import left, mend it, and look again: both models have to be there."""
    outcome = Outcome(detected=ended.honest)
    before = _wrong_so_far(world, server)
    again = mending()
    after = _wrong_so_far(world, server)
    outcome.wrong = bool(before or after)
    outcome.recovered = again.code == 0 and not after and len(models_in(server.vault)) == 2
    outcome.blame(*before, *after, f"it {ended}", f"again, it {again}")
    return outcome
