"""Runs what recipes print for vLLM, and transformers over a hub cache, with the real ones on a CPU.

A recipe is a line for a shell. The shell runs it as it is; ``vllm`` is a script here that reads the arguments of ``vllm serve`` with
vLLM's own parser, and completes a prompt instead of listening.
"""

import json
import os
import shlex
import tempfile
from pathlib import Path

from programs import alone, ended
from real_engines import AWQ_KERNEL, require_engine

_SERVE = """
import json, os, sys
{kernels}
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

verb, model, *arguments = sys.argv[1:]
assert verb == "serve"
parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
small = ["--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "1"]
engine = LLM.from_engine_args(EngineArgs.from_cli_args(parser.parse_args(["--model", model, *arguments, *small])))
output = engine.generate([os.environ["PROMPT"]], SamplingParams(max_tokens=8, temperature=0))
print("OUTPUT " + json.dumps(output[0].outputs[0].text))
"""

# The plugin has kernels for GPUs only: on a CPU, the gguf package's own arithmetic takes their place.
_GGUF_KERNELS = """
import gguf
from vllm_gguf_plugin import ops

def dequantize(weights, kind, rows, columns, dtype):
    values = gguf.quants.dequantize(weights.numpy(), gguf.GGMLQuantizationType(kind))
    return torch.from_numpy(values).reshape(rows, columns).to(dtype)

def multiply(weights, values, kind, rows):
    return values @ dequantize(weights, kind, rows, values.shape[-1], values.dtype).T

ops.ggml_dequantize, ops.ggml_mul_mat_vec_a8, ops.ggml_mul_mat_a8 = dequantize, multiply, multiply
"""

_TRANSFORMERS = """
import json, os, sys
from transformers import AutoModelForCausalLM, AutoTokenizer

options = {"local_files_only": True, "trust_remote_code": sys.argv[2] == "code"}
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **options)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], **options)
asked = tokenizer(os.environ["PROMPT"], return_tensors="pt")
answer = model.generate(**asked, max_new_tokens=8, do_sample=False)[0][asked["input_ids"].shape[1]:]
print("CLASS " + type(model).__module__)
print("OUTPUT " + json.dumps(tokenizer.decode(answer)))
"""


def run_recipe(line: str, prompt: str, *, gguf: bool = False) -> str:
    """Let a shell run a line with ``vllm serve`` in it, and give what the model makes of a prompt; ``gguf`` adds the plugin."""
    python = require_engine("vllm")
    with tempfile.TemporaryDirectory(prefix="vllm-home-") as home:
        script, program = Path(home, "serve.py"), Path(home, "bin/vllm")
        script.write_text(_SERVE.format(kernels=AWQ_KERNEL + (_GGUF_KERNELS if gguf else "")))
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} {shlex.quote(str(script))} "$@"\n')
        program.chmod(0o755)
        environment = {
            "PATH": f"{program.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": home,
            "PROMPT": prompt,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
        if gguf:
            environment["PYTHONPATH"] = str(require_engine("vllm-gguf").parent)
        return _outputs(["sh", "-c", line], environment, home)["OUTPUT"]


def run_transformers(variables: dict[str, str], repository: str, prompt: str, *, code: bool = False) -> dict[str, str]:
    """Let transformers load a repository by name with ``local_files_only``; give its ``OUTPUT`` and the module of its ``CLASS``."""
    command = [str(require_engine("vllm")), "-c", _TRANSFORMERS, repository, "code" if code else "plain"]
    with tempfile.TemporaryDirectory(prefix="hf-home-") as home:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": home,
            "PROMPT": prompt,
            "HF_HUB_OFFLINE": "1",
        }
        return _outputs(command, environment | variables, home)


def _outputs(command: list[str], environment: dict[str, str], home: str) -> dict[str, str]:
    with alone("vllm"):
        done = ended(command, environment, home)
    words = (line.partition(" ") for line in done.stdout.splitlines())
    found = {word: rest for word, _, rest in words if word in {"CLASS", "OUTPUT"}}
    assert "OUTPUT" in found, f"{command[-1]}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return found | {"OUTPUT": json.loads(found["OUTPUT"])}
