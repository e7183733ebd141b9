"""The real vLLM and transformers, offline, on what the adapters wrote: started as the recipe says."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from engine_cases import COMMIT, Blobs
from make_models import SENTENCE, make_awq, make_gguf, make_sharded_safetensors
from real_vllm import run_recipe, run_transformers

from modelvault.artifact import Origin, Recipe, Traits
from modelvault.engines import InstallRecord, InstallRequest, Target, engines

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("vllm")]

CODE = {
    "configuration_tiny.py": b"from transformers import LlamaConfig\n\n\nclass TinyConfig(LlamaConfig):\n    model_type = 'tiny'\n",
    "modeling_tiny.py": (
        b"from transformers import LlamaForCausalLM\n\nfrom .configuration_tiny import TinyConfig\n\n\n"
        b"class TinyForCausalLM(LlamaForCausalLM):\n    config_class = TinyConfig\n"
    ),
}

Install = Callable[..., InstallRecord]


@pytest.fixture
def install(blobs: Blobs, tmp_path: Path) -> Install:
    """Installs files under a repository's name into an engine's directory of the test."""

    def make(
        engine: str, name: str, content: Mapping[str, bytes], traits: Traits, recipe: Recipe | None = None
    ) -> InstallRecord:
        stored = blobs.model(name, content, origin=Origin("hub", name, COMMIT), traits=traits, recipe=recipe)
        request = InstallRequest(stored, blobs.path, Target(engine, tmp_path / "engine"))
        assert engines()[engine].needs(request) == {}
        return engines()[engine].install(request)

    return make


@pytest.fixture
def unquantized(tmp_path: Path) -> dict[str, bytes]:
    """A float16 repository in shards, with an index."""
    make_sharded_safetensors(tmp_path / "f16")
    return {path.name: path.read_bytes() for path in (tmp_path / "f16").iterdir()}


F16, AWQ = Traits("safetensors", "llama", "F16"), Traits("safetensors", "llama", "AWQ 4-bit g128")


def with_code(content: Mapping[str, bytes], prefix: str = "") -> dict[str, bytes]:
    """Have a repository name the code above, in itself or where the prefix says. Its architecture is one that vLLM knows."""
    config = json.loads(content["config.json"])
    config |= {
        "model_type": "tiny",
        "auto_map": {
            "AutoConfig": f"{prefix}configuration_tiny.TinyConfig",
            "AutoModelForCausalLM": f"{prefix}modeling_tiny.TinyForCausalLM",
        },
    }
    return {**content, "config.json": json.dumps(config).encode()}


def completes(record: InstallRecord, *, gguf: bool = False) -> bool:
    """Start vLLM as the recipe says, and have it complete the sentence that the model knows."""
    (line,) = engines()[record.engine].recipe(record)
    return SENTENCE.startswith(run_recipe(line, "hello", gguf=gguf)) and engines()[record.engine].verify(record) == []


def test_awq_by_name(install: Install, tmp_path: Path) -> None:
    """``vllm serve org/name`` on a machine without network is what the hub layout is for."""
    make_awq(tmp_path / "awq")
    content = {path.name: path.read_bytes() for path in (tmp_path / "awq").iterdir()}
    record = install("vllm", "org/tiny-awq", content, AWQ, Recipe(vllm_arguments=("--dtype", "float16")))
    assert completes(record)
    assert engines()["vllm"].uninstall(record).removed


def test_unquantized_by_path(install: Install, unquantized: dict[str, bytes]) -> None:
    """``folder`` is vLLM's plain directory as well."""
    assert completes(install("folder", "org/tiny", unquantized, F16))


def test_code_of_another_repository(install: Install, unquantized: dict[str, bytes]) -> None:
    """The model loads offline only if the second repository lies in the same cache, with a reference of its own."""
    install("vllm", "org/other", CODE, Traits("code"))
    record = install("vllm", "org/tiny", with_code(unquantized, "org/other--"), F16)
    assert completes(record)


def test_gguf_by_path(install: Install, unquantized: dict[str, bytes], tmp_path: Path) -> None:
    """The plugin reads the file, and configuration and tokenizer from those beside it, through the cache's links."""
    make_gguf(tmp_path / "tiny-Q8_0.gguf")
    content = {"tiny-Q8_0.gguf": (tmp_path / "tiny-Q8_0.gguf").read_bytes()}
    content |= {name: data for name, data in unquantized.items() if "safetensors" not in name}
    assert completes(install("vllm", "org/tiny-GGUF", content, Traits("gguf", "llama", "Q8_0")), gguf=True)


@pytest.mark.parametrize("engine", ["vllm", "tgi", "sglang"])
def test_transformers_loads_by_name(
    install: Install, unquantized: dict[str, bytes], engine: str, tmp_path: Path
) -> None:
    """TGI and SGLang read the hub's cache as transformers does: configuration, tokenizer, sharded weights, and no second copy of them."""
    record = install(
        engine, "org/tiny", unquantized | {"consolidated.safetensors": b"a second copy of the weights"}, F16
    )
    variable = "HF_HOME" if engine == "tgi" else "HF_HUB_CACHE"
    found = run_transformers({variable: str(tmp_path / "engine")}, record.installed_name, "hello")
    assert SENTENCE.startswith(found["OUTPUT"])


@pytest.mark.parametrize("other", [None, "org/other"])
def test_transformers_runs_the_code(
    install: Install, unquantized: dict[str, bytes], other: str | None, tmp_path: Path
) -> None:
    """Code that imports its neighbours, from the model's own repository and from another one."""
    if other:
        install("vllm", other, CODE, Traits("code"))
    content = with_code(unquantized, f"{other}--") if other else with_code(unquantized | CODE)
    record = install("vllm", "org/tiny", content, F16)
    found = run_transformers({"HF_HUB_CACHE": str(tmp_path / "engine")}, record.installed_name, "hello", code=True)
    assert SENTENCE.startswith(found["OUTPUT"])
    assert found["CLASS"].startswith(f"transformers_modules.{(other or 'org/tiny').replace('/', '.')}.")
