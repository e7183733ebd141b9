"""A quantized model that lacks a part: vLLM would load the rest without a word, and answer with rubbish. Refused at every door."""

import json
from collections.abc import Callable
from pathlib import Path

import make_models
import pytest
from faulty_hub import FaultyHub
from machines import Machine, only_bundle, trust

from modelvault.artifact import FileSpec, Model, ModelName, Origin, Traits
from modelvault.vault import Vault


def by_shard_name(folder: Path) -> str:
    """Two shards by name, of which one is there, and no index."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    return "missing-shard"


def by_layers(folder: Path) -> str:
    """Files with names of their own; only the layers tell that one is missing."""
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    return "missing-layers"


def by_index(folder: Path) -> str:
    """An index names a file that is not there."""
    index = {"weight_map": {"lm_head.weight": "model.safetensors", "model.norm.weight": "second.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "missing-shard"


LACKS = (by_shard_name, by_layers, by_index)


@pytest.fixture(params=LACKS, ids=lambda lack: lack.__name__)
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """An AWQ repository that lacks a part, and the rule that finds it."""
    folder = tmp_path / "broken"
    make_models.make_awq(folder)
    return folder, request.param(folder)


def publish_unseen(machine: Machine, folder: Path) -> None:
    """Put a model into a vault past every check, as a program that is not modelvault could."""
    with Vault.open(machine.vault) as vault, vault.publishing():
        files = tuple(
            FileSpec(path.name, path.stat().st_size, vault.store.put_bytes(path.read_bytes()))
            for path in folder.iterdir()
        )
        traits = Traits("safetensors", "LlamaForCausalLM", "AWQ 4-bit g128")
        vault.publish(Model(ModelName("org/broken"), Origin("folder"), files, traits), {})


def test_no_door_lets_it_in(broken: tuple[Path, str], machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if it gets into a vault by pull, add or import, though the bundle was signed by somebody who is trusted."""
    folder, rule = broken
    with FaultyHub({"org/broken": folder}) as hub:
        pc = machine("pc", hub.url)
        for command in (("pull", "org/broken"), ("add", folder, "--name", "org/broken")):
            assert pc.json(*command, code=13).document["error"]["data"]["rule"] == rule
    assert not pc.vault.exists() or pc.models() == set()
    drive, server = tmp_path / "drive", machine("server")
    drive.mkdir()
    publish_unseen(pc, folder)
    pc.run("bundle", "--to", drive)
    trust(server, pc, only_bundle(drive))
    refused = server.json("import", drive, "--engine", f"vllm={tmp_path / 'cache'}", code=13).document["error"]
    assert refused["data"]["rule"] == rule
    assert server.models() == set()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("engine", ["vllm", "folder", "tgi", "sglang"])
@pytest.mark.parametrize("lack", [by_shard_name, by_index])
def test_no_install_passes_it_on(
    machine: Callable[..., Machine], lack: Callable[[Path], str], engine: str, tmp_path: Path
) -> None:
    """Breaks if what got into a vault past the checks goes on into an engine."""
    folder = tmp_path / "broken"
    make_models.make_awq(folder)
    lack(folder)
    pc = machine("pc")
    publish_unseen(pc, folder)
    error = pc.json("install", "org/broken", "--engine", f"{engine}={tmp_path / 'place'}", code=16).document["error"]
    assert "not here" in error["message"]
    assert error["hint"]
    assert not (tmp_path / "place").exists()
