"""Installing a GGUF into Ollama, against ``ollama create`` on one file system, and against copying by hand onto another one."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench_tools import Bench, Row, Timing, bench_vault
from machines import small_disk
from real_engines import OllamaServer, engines_directory, ollama_server

LITTLE = 1_000_000
"""Bytes that an install of a file that is linked may write: manifest, config, registry, event log."""


def bench_ollama(bench: Bench) -> Iterator[Row]:
    """One file system with the real ``ollama create``, where that is built; another one, where we may mount it."""
    if (engines_directory() / "bin/ollama").exists():
        yield _against_create(bench)
    else:
        print("  ollama create: skipped, needs scripts/setup-engines", file=sys.stderr)
    if os.geteuid() == 0:
        yield from _against_copies(bench)
    else:
        print("  install onto another file system: skipped, needs root", file=sys.stderr)


def _install(bench: Bench, models: Path) -> Timing:
    """Time an install, and take it back."""
    vault, engine = bench_vault(bench), ("--engine", f"ollama={models}")
    timing = bench.modelvault(vault, "install", "bench", *engine)
    bench.modelvault(vault, "uninstall", "bench", *engine)
    return timing


def _against_create(bench: Bench) -> Row:
    ours, theirs = bench.fresh("ollama-ours"), bench.fresh("ollama-theirs")
    (weights,) = (bench.root / "model-gguf").glob("*.gguf")
    modelfile = bench.root / "Modelfile"
    modelfile.write_text(f"FROM {weights}\n")
    with ollama_server(theirs) as server:

        def create() -> Timing:
            before = _written_by(server)
            timing = bench.run(
                server.program, "create", "bench", "-f", modelfile, sync=theirs, OLLAMA_HOST=f"127.0.0.1:{server.port}"
            )
            timing = replace(timing, written=timing.written + _written_by(server) - before)
            server.run("rm", "bench")
            return timing

        row = Row("install into Ollama", "ollama create", 1.0, LITTLE)
        return bench.compare(row, lambda: _install(bench, ours), create)


def _written_by(server: OllamaServer) -> int:
    """Tell how many bytes the server has sent to file systems so far (proc(5))."""
    lines = Path(f"/proc/{server.pid}/io").read_text(encoding="ascii").splitlines()
    return int(next(line.removeprefix("write_bytes: ") for line in lines if line.startswith("write_bytes: ")))


def _against_copies(bench: Bench) -> Iterator[Row]:
    """Peers that copy the file and read it again for its digest; ours computes it while it copies."""
    (weights,) = (bench.root / "model-gguf").glob("*.gguf")
    with small_disk(bench.root / "ollama.img", bench.root / "ollama-disk", bench.size * 5 // 4 + (64 << 20)) as disk:
        copy = disk / "copy.gguf"

        def peer(digest: str) -> Timing:
            timing = bench.run(f"cp {weights} {copy} && {digest} {copy}", sync=disk)
            copy.unlink()
            return timing

        for digest, goal in (("sha256sum", 1.0), ("openssl dgst -sha256", 1.0)):
            row = Row("install into Ollama, another file system", f"cp; {digest}", goal)
            yield bench.compare(row, lambda: _install(bench, disk / "models"), lambda digest=digest: peer(digest))
