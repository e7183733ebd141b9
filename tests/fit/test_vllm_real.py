"""The tokens that we say have room in a cache are those that the real vLLM reports, on a CPU, for the same bytes."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from make_models import make_sharded_safetensors
from programs import alone, ended
from real_engines import require_engine

from modelvault.fit import vllm
from modelvault.fit.transformers_shape import transformers_shape

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("vllm")]
CACHE = 1 << 30
# Weights are made up by vLLM itself: what is looked at is the shape.
_START = """
import json, sys
from vllm import LLM
engine = LLM(sys.argv[1], load_format="dummy", enforce_eager=True, max_model_len=512, max_num_seqs=1)
config = engine.llm_engine.vllm_config.cache_config
print("CACHE " + json.dumps([config.num_gpu_blocks, config.block_size]))
"""
Shape = dict[str, object]
LLAMA: Shape = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
QWEN: Shape = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
MISTRAL: Shape = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
SHAPES: dict[str, Shape] = {
    "every head its own": {**LLAMA, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64},
    "heads share": {**LLAMA, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    "many layers, two heads": {**QWEN, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2, "hidden_size": 1024},
    "wide heads": {**MISTRAL, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_those_that_vllm_reports(shape: str, tmp_path: Path) -> None:
    """Breaks if a model is said to serve longer or more conversations than it does."""
    model = tmp_path / "model"
    model.mkdir()
    make_sharded_safetensors(tmp_path / "made")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "made" / name, model)
    config: Shape = json.loads((tmp_path / "made" / "config.json").read_bytes())
    for key in ("head_dim", "sliding_window"):
        config.pop(key, None)
    config |= {"hidden_size": 256, "intermediate_size": 256, "dtype": "float16", "torch_dtype": "float16"} | SHAPES[
        shape
    ]
    (model / "config.json").write_text(json.dumps(config))
    blocks, size = start(model)
    run = vllm.Run(512, "auto", block=size)
    assert vllm.cache_tokens(transformers_shape(config, [], None), run, CACHE) == blocks * size


def start(model: Path) -> tuple[int, int]:
    """Have vLLM start with a model; give the blocks of its cache, and the tokens of one."""
    with alone("vllm"), tempfile.TemporaryDirectory(prefix="vllm-home-") as home:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": home,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
        command = [str(require_engine("vllm")), "-c", _START, str(model)]
        done = ended(command, environment, home)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("CACHE ")] or [done.stderr[-3000:]]
    assert line.startswith("CACHE "), line
    blocks, size = json.loads(line.removeprefix("CACHE "))
    return blocks, size
