"""What we compute is what the real llama.cpp reports when it loads models of these shapes."""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import shape_models
from make_models import make_large_gguf
from programs import ended
from real_engines import require_engine
from shape_models import Spec, make_shape

from modelvault.fit import llamacpp
from modelvault.fit.gguf_shape import gguf_shape
from modelvault.inspect.gguf import read_gguf

pytestmark = pytest.mark.engine
MIB = 1 << 20

_LOAD = """
import json, os, sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.n_ctx, parameters.n_parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
parameters.warmup, parameters.verbosity = False, 4
before = int(open("/proc/self/statm").read().split()[1])
server = xllamacpp.Server(parameters)
if len(sys.argv) > 4:
    server.handle_completions({"prompt": "hello world " * 200, "n_predict": 4, "max_tokens": 4, "temperature": 0})
after = int(open("/proc/self/statm").read().split()[1])
print("GROWTH " + json.dumps((after - before) * 4096), flush=True)
os._exit(0)  # a server that was asked nothing may hang while it is destroyed: its loop has hardly begun
"""


def load(path: Path, run: llamacpp.Run, *more: str) -> str:
    """Have llama.cpp load a file; give all that it says."""
    require_engine("xllamacpp")
    command = [sys.executable, "-c", _LOAD, str(path), str(run.context * run.users), str(run.users), *more]
    done = ended(command, {**os.environ, "LLAMA_ARG_FIT": "off"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr + done.stdout


def reported(said: str, what: str) -> float:
    """Sum up, in MiB, what the last load said about something that may be said several times."""
    loads = said.split("llama_context: constructing")
    return sum(float(size) for size in re.findall(what + r" += +([\d.]+) MiB", loads[-1]))


@pytest.mark.parametrize(
    ("spec", "context", "users"),
    [
        (shape_models.QWEN2_3B, 4096, 2),
        (shape_models.GEMMA3, 8192, 1),
        (shape_models.GEMMA3, 4096, 3),
        (shape_models.MIXTRAL, 4096, 1),
        (shape_models.DEEPSEEK2, 4096, 2),
        (shape_models.MAMBA2, 4096, 2),
    ],
    ids=["dense with few heads", "sliding window", "sliding window, three users", "experts", "latent attention", "recurrent"],
)  # fmt: skip
def test_weights_and_cache_are_the_engines(spec: Spec, context: int, users: int, tmp_path: Path) -> None:
    """A sum that the engine does not share refuses models that run, or promises what does not."""
    path = make_shape(tmp_path / "model.gguf", replace(spec, vocabulary=8192))  # long vocabularies take long to write
    shape = gguf_shape([read_gguf(path)])
    assert shape.unknown == ()
    run = llamacpp.Run(context, users)
    said = load(path, run)
    (weights,) = {float(size) for size in re.findall(r"CPU_Mapped model buffer size += +([\d.]+) MiB", said)}
    assert weights == pytest.approx(shape.weights / MIB, abs=0.01)
    cache = sum(llamacpp.cache_bytes(shape, number, run) for number in range(len(shape.layers)))
    assert reported(said, r"(?:llama_kv_cache|llama_memory_recurrent): size") == pytest.approx(cache / MIB, abs=0.01)
    compute = reported(said, r"CPU compute buffer size")
    tolerance = 0.1 if spec is shape_models.MAMBA2 else 0.01
    assert compute == pytest.approx(llamacpp.compute_bytes(shape, run, output=True) / MIB, rel=tolerance)


def test_the_whole_process_grows_as_foretold(tmp_path: Path) -> None:
    """The parts may be right and the sum forget one: within five percent of what the process really takes."""
    path = tmp_path / "large-Q8_0.gguf"
    make_large_gguf(path, 300_000_000)
    shape = gguf_shape([read_gguf(path)])
    run = llamacpp.Run(4096, 1)
    (line,) = [line for line in load(path, run, "complete").splitlines() if line.startswith("GROWTH ")]
    growth = json.loads(line.removeprefix("GROWTH "))
    foretold = llamacpp.host_bytes(llamacpp.place(shape, run, (), 0))
    assert growth == pytest.approx(foretold, rel=0.05)
