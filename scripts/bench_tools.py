"""How the benchmarks measure: timings, rows of the table, and the place in which commands are run and timed."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

MODELVAULT = [sys.executable, "-m", "modelvault"]


@dataclass(frozen=True)
class Timing:
    """One run: seconds, those that a sync took after it, the peak memory in MB, and the bytes that it sent to file systems."""

    seconds: float
    sync: float = 0.0
    memory: float = 0.0
    written: int = 0


@dataclass
class Row:
    """One comparison; ``goal`` is how many times faster than the peer we mean to be.

    ``written`` is how many bytes we mean to write at most; where it is given, the row's name says how many they were.
    """

    name: str
    peer: str
    goal: float
    written: int | None = None
    ours: list[Timing] = field(default_factory=list)
    theirs: list[Timing] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The peer's median over ours: above one, we are faster."""
        return _median(self.theirs) / _median(self.ours)

    @property
    def synced_ratio(self) -> float:
        """The same, with the peer's output synced as ours is."""
        return statistics.median(t.seconds + t.sync for t in self.theirs) / _median(self.ours)

    @property
    def wrote_too_much(self) -> bool:
        """Whether one of our runs wrote more than we mean to."""
        return self.written is not None and max(timing.written for timing in self.ours) > self.written

    def _title(self) -> str:
        if self.written is None:
            return self.name
        ours, theirs = (max(timing.written for timing in timings) / 1e6 for timings in (self.ours, self.theirs))
        return f"{self.name} ({ours:.2f} against {theirs:.0f} MB written)"

    def cells(self) -> list[str]:
        """Give the row as text."""
        memory = max(timing.memory for timing in self.ours)
        return [
            self._title(),
            f"{_median(self.ours):.2f} s",
            self.peer,
            f"{_median(self.theirs):.2f} s",
            f"{self.ratio:.2f}",
            f"{self.synced_ratio:.2f}",
            f"{self.goal:g}",
            f"{memory:.0f} MB",
        ]


def _median(timings: Sequence[Timing]) -> float:
    return statistics.median(timing.seconds for timing in timings)


class Bench:
    """The place of one run, and how commands are timed in it."""

    def __init__(self, root: Path, size: int, runs: int) -> None:
        """Prepare directories below ``root``; ``size`` in bytes is that of each model."""
        self.root = root
        self.size = size
        self.runs = runs
        self.environment = {
            **os.environ,
            "HOME": str(root / "home"),
            "HF_HOME": str(root / "home/huggingface"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        # Both programs run as they do once installed: compiled.
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        (root / "home").mkdir()

    def run(self, *command: str | Path, sync: Path | None = None, **variables: str) -> Timing:
        """Time one command; a shell line is given as one string. Raises ``CalledProcessError`` if it fails."""
        words = (
            ["bash", "-o", "pipefail", "-c", str(command[0])] if len(command) == 1 else [str(word) for word in command]
        )
        before = time.perf_counter()
        process = subprocess.Popen(
            words,
            env=self.environment | variables,
            cwd=self.root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        assert process.stderr is not None
        message = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - before
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, words, stderr=message)
        waited = 0.0
        if sync is not None:
            before = time.perf_counter()
            subprocess.run(["sync", "-f", str(sync)], check=True)
            waited = time.perf_counter() - before
        # Linux counts what a process sends to file systems that lie on a device, in blocks of 512 bytes.
        return Timing(seconds, waited, usage.ru_maxrss / 1000, 512 * usage.ru_oublock)

    def modelvault(self, vault: Path, *arguments: str | Path, **variables: str) -> Timing:
        """Time one of our commands."""
        return self.run(*MODELVAULT, *arguments, MODELVAULT_HOME=str(vault), **variables)

    def compare(self, row: Row, ours: Callable[[], Timing], theirs: Callable[[], Timing]) -> Row:
        """Run both alternately, after a sync, so that nobody pays for the other's writes."""
        for number in range(self.runs):
            order = [(ours, row.ours), (theirs, row.theirs)]
            for work, timings in order if number % 2 else reversed(order):
                subprocess.run(["sync"], check=True)
                timings.append(work())
            print(f"  {row.name}: run {number + 1} of {self.runs}", file=sys.stderr, flush=True)
        return row

    def make(self, kind: str, directory: Path, size: int, *, shards: int = 4) -> None:
        """Make a model in a process of its own: Linux counts what we held at the fork into the peak memory of what we time."""
        maker = Path(__file__).with_name("make_models.py")
        subprocess.run(
            [sys.executable, maker, kind, directory, "--size", str(size), "--shards", str(shards)],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def fresh(self, name: str) -> Path:
        """Give an empty directory of that name."""
        path = self.root / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


@contextmanager
def serving(bench: Bench, vault: Path) -> Iterator[str]:
    """Offer a vault with ``modelvault serve`` in a process of its own."""
    process = subprocess.Popen(
        [*MODELVAULT, "serve", "--port", "0"],
        env=bench.environment | {"MODELVAULT_HOME": str(vault)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        yield next(word for word in process.stderr.readline().split() if word.startswith("http"))
    finally:
        process.terminate()
        process.wait()
        if process.stderr:
            process.stderr.close()


def bench_vault(bench: Bench) -> Path:
    """Give a vault with the large GGUF and a key."""
    pc = bench.root / "pc"
    if not pc.exists():
        bench.modelvault(pc, "add", bench.root / "model-gguf", "--name", "bench")
        bench.modelvault(pc, "keys", "new")
    return pc
