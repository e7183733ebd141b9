"""Compares our sums with the usual formula and with hf-mem, on models of real shapes; the judge is the real llama.cpp.

    python scripts/compare_fit.py            needs xllamacpp; hf-mem joins in where it is installed

Prints a table of Markdown: the cache that llama.cpp reports, and by how much each is off.
"""

import importlib
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import shape_models
from shape_models import Spec, make_shape

from modelvault.fit import llamacpp
from modelvault.fit.gguf_shape import gguf_shape
from modelvault.inspect.gguf import read_gguf

CONTEXT = 8192
MODELS = {
    "Qwen2.5 3B": shape_models.QWEN2_3B,
    "Gemma 2 27B, 8 of 46 layers": shape_models.GEMMA2,
    "Gemma 3 1B, 13 of 26 layers": shape_models.GEMMA3,
    "Mixtral 8x7B, 4 of 32 layers": shape_models.MIXTRAL,
    "DeepSeek-V2 Lite, 4 of 27 layers, MLA": shape_models.DEEPSEEK2,
    "Mamba-2 130M, 6 of 24 layers": shape_models.MAMBA2,
}
MIB = 1 << 20
_LOAD = (
    "import os, sys, xllamacpp; p = xllamacpp.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = int(sys.argv[2]); "
    "p.n_parallel = 1; p.warmup = False; p.verbosity = 4; s = xllamacpp.Server(p); sys.stdout.flush(); os._exit(0)"
)


def naive(spec: Spec) -> float:
    """Keys and values of all layers, as wide as the model divided by its heads, two bytes each."""
    if not spec.heads:
        return 0.0
    return 2 * spec.layers * spec.kv_heads * (spec.embedding // spec.heads) * CONTEXT * 2


def hf_mem(path: Path) -> float | None:
    """Ask hf-mem, if it is installed; ``None`` where it has no answer."""
    try:
        parse = importlib.import_module("hf_mem.gguf.metadata").parse_gguf_metadata
    except ImportError:
        return None
    with path.open("rb") as file:
        head = file.read(32 << 20)
    try:
        return float(parse(head, experimental=True, max_model_len=CONTEXT).kv_cache.cache_size)
    except (RuntimeError, ZeroDivisionError):
        return None


def reported(path: Path) -> float:
    """Load it, and sum up what llama.cpp says of its caches."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path), str(CONTEXT)],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        env={**os.environ, "LLAMA_ARG_FIT": "off"},
    )
    said = (done.stderr + done.stdout).split("llama_context: constructing")[-1]
    return sum(map(float, re.findall(r"(?:kv_cache|memory_recurrent): size += +([\d.]+) MiB", said))) * MIB


def off(value: float | None, truth: float) -> str:
    """By how many percent."""
    return "no answer" if value is None else f"{100 * (value - truth) / truth:+.0f} %"


def main() -> None:
    """Print the table."""
    print("| model | cache of 8,192 tokens in llama.cpp | modelvault | the usual formula | hf-mem |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        for name, spec in MODELS.items():
            path = make_shape(Path(place) / "model.gguf", replace(spec, vocabulary=8192))
            shape = gguf_shape([read_gguf(path)])
            ours = sum(
                llamacpp.cache_bytes(shape, number, llamacpp.Run(CONTEXT)) for number in range(len(shape.layers))
            )
            truth = reported(path)
            row = [name, f"{truth / MIB:.2f} MiB", off(ours, truth), off(naive(spec), truth), off(hf_mem(path), truth)]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
