"""Speed against what people use today, as ratios measured in one run: ``scripts/bench [--size GB] [--runs N] [--only NAME]``.

Each row runs our command and the peer's alternately and compares the medians. Everybody starts with a cold or equally warm cache:
the inputs are read once before. Peers do not sync what they wrote, we do; the time that a sync of the peer's output takes after its
run is measured too and shown in a column of its own. Peak memory is that of our process. Needs hf, openssl, tar, zstd, pigz; for some
rows root (they mount file systems) or Ollama (scripts/setup-engines).
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from bench_ollama import bench_ollama
from bench_tools import MODELVAULT, Bench, Row, Timing, bench_vault, serving
from faulty_hub import FaultyHub
from machines import small_disk

MEMORY_LIMIT = 250  # MB
SLOW = 25_000_000  # bytes per second and connection of the slow server


def bench_pull(bench: Bench) -> Iterator[Row]:
    """One large GGUF, and a sharded model, from a local hub as fast as it goes."""
    hub = bench.root / "hub"
    for kind in ("gguf", "safetensors"):
        name = f"bench/{kind}"
        bench.modelvault(hub, "add", bench.root / f"model-{kind}", "--name", name)
    with serving(bench, hub) as url:
        for kind in ("gguf", "safetensors"):

            def ours(kind: str = kind) -> Timing:
                return bench.modelvault(bench.fresh("pulled"), "pull", f"bench/{kind}", HF_ENDPOINT=url)

            def theirs(kind: str = kind) -> Timing:
                target = bench.fresh("downloaded")
                line = f"hf download bench/{kind} --local-dir {target} --quiet && find {target} -type f -not -path '*/.cache/*' -exec openssl dgst -sha256 {{}} +"
                return bench.run(line, sync=target, HF_ENDPOINT=url)

            yield bench.compare(Row(f"pull, {kind}", "hf download; openssl dgst", 1.0), ours, theirs)
    shutil.rmtree(bench.root / "pulled")
    shutil.rmtree(bench.root / "downloaded")


def bench_slow_pull(bench: Bench) -> Iterator[Row]:
    """One file from a server that gives each connection 25 MB/s."""
    folder = bench.fresh("slow")
    bench.make("large-gguf", folder, bench.size)
    with FaultyHub({"bench/slow": folder}) as hub:
        hub.faults.rate = SLOW

        def ours() -> Timing:
            return bench.modelvault(bench.fresh("pulled"), "pull", "bench/slow", HF_ENDPOINT=hub.url)

        def theirs() -> Timing:
            target = bench.fresh("downloaded")
            return bench.run(f"hf download bench/slow --local-dir {target} --quiet", sync=target, HF_ENDPOINT=hub.url)

        yield bench.compare(Row("pull, 25 MB/s a connection", "hf download", 4.0), ours, theirs)
    shutil.rmtree(folder)


def bench_bundle(bench: Bench) -> Iterator[Row]:
    """Write a bundle without reading it back; the read-back has a row of its own."""
    pc = bench_vault(bench)
    model = bench.root / "model-gguf"

    def ours() -> Timing:
        return bench.modelvault(pc, "bundle", "--to", bench.fresh("ssd"), "--no-readback")

    def zstd() -> Timing:
        target = bench.fresh("archive")
        line = f"tar -C {model} -c . | zstd -q -1 -T0 -o {target}/a.tar.zst && openssl dgst -sha256 {target}/a.tar.zst"
        return bench.run(line, sync=target)

    def pigz() -> Timing:
        target = bench.fresh("archive")
        return bench.run(f"tar -C {model} -c . | pigz > {target}/a.tar.gz", sync=target)

    def read_back() -> Timing:
        return bench.modelvault(pc, "verify", next((bench.root / "ssd").glob("*.mvbundle")))

    def openssl() -> Timing:
        return bench.run(f"openssl dgst -sha256 {next((bench.root / 'archive').glob('*'))}")

    yield bench.compare(Row("bundle", "tar, zstd -1 -T0; openssl dgst", 1.0), ours, zstd)
    yield bench.compare(Row("bundle", "tar, pigz", 2.0), ours, pigz)
    yield bench.compare(Row("verify a bundle", "openssl dgst of the archive", 0.5), read_back, openssl)


def bench_thin(bench: Bench) -> Iterator[Row]:
    """A fine-tune that shares nine files of ten with a model that the site has: the difference against all of it."""
    pc, base, tuned = bench.root / "thin-pc", bench.fresh("base"), bench.fresh("tuned")
    bench.make("large-safetensors", base, bench.size, shards=10)
    for path in base.iterdir():
        os.link(path, tuned / path.name)
    other = min(tuned.glob("*.safetensors"))
    other.unlink()
    shutil.copy(base / other.name, other)
    change_weights(other)
    bench.modelvault(pc, "add", base, "--name", "bench/base")
    bench.modelvault(pc, "keys", "new")
    site = ("--for", "bench-site", "--assume-sent")
    bench.modelvault(pc, "bundle", "bench/base", "--to", bench.fresh("first"), *site)
    bench.modelvault(pc, "add", tuned, "--name", "bench/tuned")
    sizes: dict[str, int] = {}

    def bundle(*options: str) -> Timing:
        drive = bench.fresh("ssd")
        timing = bench.modelvault(
            pc, "bundle", "bench/tuned", "--to", drive, "--label", f"bench-{len(options)}", *options
        )
        sizes["thin" if options else "full"] = sum(path.stat().st_size for path in drive.rglob("*") if path.is_file())
        return timing

    # A record of what was sent would make the next run thinner still: each run begins with the first bundle's.
    kept = [path for path in pc.iterdir() if path.name != "blobs"]
    copy_all(kept, bench.fresh("thin-kept"))

    def thin() -> Timing:
        copy_all((bench.root / "thin-kept").iterdir(), pc)
        return bundle(*site)

    row = bench.compare(Row("bundle, thin", "the same in full", 2.0), thin, bundle)
    row.name += f" ({sizes['thin'] / 1e9:.2f} of {sizes['full'] / 1e9:.2f} GB)"
    yield row
    for name in ("thin-pc", "thin-kept", "base", "tuned", "first", "ssd"):
        shutil.rmtree(bench.root / name)


def copy_all(paths: Iterable[Path], target: Path) -> None:
    """Put copies of files and folders in the place of those in ``target``."""
    for path in paths:
        shutil.rmtree(target / path.name, ignore_errors=True)
        (target / path.name).unlink(missing_ok=True)
        subprocess.run(["cp", "-r", str(path), str(target)], check=True)


def change_weights(path: Path) -> None:
    """Change one byte of the weights: a fine-tune's shard has the length and header of the base's."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def bench_targets(bench: Bench) -> Iterator[Row]:
    """One drive against two that each take a half (root: they are loop-mounted)."""
    if os.geteuid() != 0:
        print("  two targets: skipped, needs root", file=sys.stderr)
        return
    pc = bench_vault(bench)
    with contextlib.ExitStack() as stack:
        drives = [
            stack.enter_context(small_disk(bench.root / f"{name}.img", bench.root / f"drive-{name}", size))
            for name, size in (("one", bench.size * 3 // 2), ("a", bench.size * 2 // 3), ("b", bench.size))
        ]
        one, two = drives[:1], drives[1:]

        def bundle(targets: Sequence[Path]) -> Timing:
            for drive in targets:
                for path in drive.glob("*.mvbundle"):
                    shutil.rmtree(path)
            words = [word for drive in targets for word in ("--to", str(drive))]
            return bench.modelvault(pc, "bundle", *words, "--volume-size", "256MiB")

        yield bench.compare(Row("bundle to two drives", "to one drive", 0.8), lambda: bundle(two), lambda: bundle(one))


def bench_resume(bench: Bench) -> Iterator[Row]:
    """What is left to do after a kill at half of the bytes, against the whole."""
    pc = bench_vault(bench)
    command = ("bundle", "--sequence", "7")

    def resumed() -> Timing:
        drive = bench.fresh("ssd")
        process = subprocess.Popen(
            [*MODELVAULT, *command, "--to", str(drive)],
            env=bench.environment | {"MODELVAULT_HOME": str(pc)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while sum(path.stat().st_size for path in drive.glob("*/volume-*.zst")) < bench.size // 2:
            time.sleep(0.005)
        process.kill()
        process.wait()
        return bench.modelvault(pc, *command, "--to", drive)

    yield bench.compare(
        Row("bundle, resumed at 50 %", "the whole bundle", 1.0),
        resumed,
        lambda: bench.modelvault(pc, *command, "--to", bench.fresh("ssd")),
    )


def bench_import(bench: Bench) -> Iterator[Row]:
    """Import into an engine's directory on the same file system."""
    pc, drive, archive = bench_vault(bench), bench.fresh("ssd"), bench.fresh("archive")
    bench.modelvault(pc, "bundle", "--to", drive, "--no-readback")
    bundle = next(drive.glob("*.mvbundle"))
    bench.run(f"tar -C {bench.root}/model-gguf -c . | zstd -q -1 -T0 -o {archive}/a.tar.zst")
    shown = subprocess.run(
        [*MODELVAULT, "keys", "show", "--json"],
        env=bench.environment | {"MODELVAULT_HOME": str(pc)},
        capture_output=True,
        check=True,
    )
    fingerprint = json.loads(shown.stdout)["result"]["keys"][0]["fingerprint"]

    def ours() -> Timing:
        server = bench.fresh("server")
        bench.modelvault(server / "vault", "keys", "trust", bundle / "default.pub", "--fingerprint", fingerprint)
        return bench.modelvault(server / "vault", "import", bundle, "--engine", f"ollama={server / 'ollama'}")

    def theirs() -> Timing:
        target = bench.fresh("extracted")
        line = (
            f"tar -C {target} --zstd -xf {archive}/a.tar.zst && find {target} -type f -exec openssl dgst -sha256 {{}} +"
        )
        return bench.run(line, sync=target)

    yield bench.compare(Row("import", "tar --zstd -x; openssl dgst", 1.0), ours, theirs)


def bench_start(bench: Bench) -> Iterator[Row]:
    """How long a command takes that does nothing."""
    bench.runs, runs = max(bench.runs, 7), bench.runs
    yield bench.compare(
        Row("--version", "hf version", 2.0),
        lambda: bench.run(*MODELVAULT, "--version"),
        lambda: bench.run("hf", "version"),
    )
    bench.runs = runs


def bench_header(bench: Bench) -> Iterator[Row]:
    """Read a GGUF header with a vocabulary of 128k tokens; the peer is the reader of the gguf package."""
    real = Path(os.environ.get("MODELVAULT_TEST_DATA", Path(__file__).parent.parent.parent / "shared/data"))
    vocabulary = real / "gguf/ggml-vocab-llama-bpe.gguf"
    if not vocabulary.exists():
        print(f"  inspect: skipped, {vocabulary} is not here (MODELVAULT_TEST_DATA)", file=sys.stderr)
        return
    model = vocabulary
    ours = [
        sys.executable,
        "-c",
        "import sys; from pathlib import Path; from modelvault.inspect import inspect_file; inspect_file(Path(sys.argv[1]))",
        model,
    ]
    theirs = [sys.executable, "-c", "import sys; from gguf import GGUFReader; GGUFReader(sys.argv[1])", model]
    yield bench.compare(
        Row("GGUF header, 128k tokens", "gguf.GGUFReader", 2.0), lambda: bench.run(*ours), lambda: bench.run(*theirs)
    )


BENCHES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "start": bench_start,
    "header": bench_header,
    "pull": bench_pull,
    "slow": bench_slow_pull,
    "bundle": bench_bundle,
    "targets": bench_targets,
    "resume": bench_resume,
    "thin": bench_thin,
    "import": bench_import,
    "ollama": bench_ollama,
}


def report(rows: Sequence[Row], bench: Bench) -> str:
    """Lay the rows out as a table of Markdown, with what they were measured on."""
    header = ["ours", "time", "peer", "time", "times faster", "peer synced", "goal", "memory"]
    about = (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, models of {bench.size / 1e9:g} GB, "
        f"medians of {bench.runs} alternating runs, on {_file_system(bench.root)}."
    )
    lines = [
        about,
        "",
        "| " + " | ".join(header) + " |",
        "| " + " | ".join("---" for _ in header) + " |",
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _file_system(path: Path) -> str:
    shown = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=True)
    return shown.stdout.strip()


def main() -> int:
    """Run the benchmarks that were asked for and print the table; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=2.0, help="size of the models in GB; default 2")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=list(BENCHES), action="append")
    parser.add_argument(
        "--dir", type=Path, help="where to work; needs six times the size; default: a temporary directory"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="modelvault-bench-") as place:
        bench = Bench(Path(place), int(options.size * 1e9), options.runs)
        chosen = options.only or list(BENCHES)
        if {"pull", "bundle", "targets", "resume", "import", "ollama"} & set(chosen):
            bench.make("large-gguf", bench.root / "model-gguf", bench.size)
        if "pull" in chosen:
            bench.make("large-safetensors", bench.root / "model-safetensors", bench.size)
        rows = [row for name in chosen for row in BENCHES[name](bench)]
        print(report(rows, bench))
    missed = [row.name for row in rows if row.ratio < row.goal]
    heavy = [row.name for row in rows if max(timing.memory for timing in row.ours) > MEMORY_LIMIT]
    wrote = [row.name for row in rows if row.wrote_too_much]
    complaints = (
        ("slower than meant", missed),
        (f"more than {MEMORY_LIMIT} MB", heavy),
        ("wrote more than meant", wrote),
    )
    for text, names in complaints:
        if names:
            print(f"{text}: {', '.join(names)}", file=sys.stderr)
    return bool(missed or heavy or wrote)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
