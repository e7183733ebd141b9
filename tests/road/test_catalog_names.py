"""Short names: what the catalog knows of a model reaches the engine on the other side of the gap."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from faulty_hub import FaultyHub
from machines import Machine, only_bundle, trust

GGUF = "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF"
AWQ = "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4"


def repository(source: Path, *names: str) -> Path:
    """A folder as the publisher's: several quantizations beside each other, all of them the small model."""
    folder = source.parent / "Meta-Llama-3.1-8B-Instruct-GGUF"
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(next(source.glob("*.gguf")), folder / name)
    return folder


def test_short_names_travel_with_their_recipe(
    machine: Callable[..., Machine], tiny_gguf: Path, tiny_awq: Path, tmp_path: Path
) -> None:
    """Breaks if the three commands of the README do: a short name must end as a model that its engine serves as meant."""
    folder = repository(tiny_gguf, "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", "Meta-Llama-3.1-8B-Instruct-Q8_0.gguf")
    drive = tmp_path / "ssd"
    drive.mkdir()
    with FaultyHub({GGUF: folder, AWQ: tiny_awq}) as hub:
        pc = machine("pc", hub.url)
        pulled = pc.json("pull", "llama-3.1-8b")
        assert any("not checked online" in warning for warning in pulled.document["warnings"])
        assert [file["path"] for file in pulled.result["plan"]["files"]] == ["Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf"]
        pc.run("pull", "llama-3.1-70b-awq")
        pc.run("pull", "llama-3.1-8b", "--quant", "q8_0")
    assert pc.models() == {"llama-3.1-8b", "llama-3.1-8b:Q8_0", "llama-3.1-70b-awq"}
    pc.run("bundle", "--to", drive)

    server = machine("server")
    trust(server, pc, only_bundle(drive))
    ollama, cache = server.root / "ollama", server.root / "hub"
    steps = server.json(
        "import", drive, "--only", "llama-3.1-8b", "--only", "llama-3.1-70b-awq",
        "--engine", f"ollama={ollama}", "--engine", f"vllm={cache}",
    ).result["imports"][0]["installs"]  # fmt: skip
    assert {step["engine"]: step["installed_name"] for step in steps} == {"ollama": "llama-3.1-8b:latest", "vllm": AWQ}
    manifest = json.loads((ollama / "manifests/registry.ollama.ai/library/llama-3.1-8b/latest").read_bytes())
    layers = {layer["mediaType"].rpartition(".")[2]: layer["digest"] for layer in manifest["layers"]}
    template = (ollama / "blobs" / layers["template"].replace(":", "-")).read_text()
    assert "<|start_header_id|>" in template
    parameters = json.loads((ollama / "blobs" / layers["params"].replace(":", "-")).read_text())
    assert "<|eot_id|>" in parameters["stop"]


def test_unknown_short_names_get_a_suggestion(machine: Callable[..., Machine]) -> None:
    """Breaks if a typing mistake is sent to the Hub, or answered without help."""
    error = machine("pc").json("pull", "lama-3.1-8b", code=2).document["error"]
    assert "llama-3.1-8b" in error["hint"]
    assert "org/name" in error["hint"]
