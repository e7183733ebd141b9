"""The end of the road: the real engines run what `modelvault import` wrote, without anything having been told to them."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faulty_hub import FaultyHub
from machines import Machine, only_bundle, trust
from make_models import SENTENCE, make_awq, make_gguf_repository
from real_engines import llama_generate, ollama_server, vllm_generate

pytestmark = pytest.mark.engine
NOBODY = 65534


@dataclass(frozen=True)
class Arrived:
    """A server on which a bundle was imported, and its engines' directories."""

    server: Machine
    bundle: Path
    ollama: Path
    cache: Path
    folder: Path


@pytest.fixture(scope="module")
def arrived() -> Iterator[Arrived]:
    """Pull from a hub, bundle, and import into three engines; where other users can reach it."""
    with tempfile.TemporaryDirectory(prefix="modelvault-road-") as name:
        root = Path(name)
        root.chmod(0o755)
        gguf, awq, drive = root / "gguf", root / "awq", root / "drive"
        make_gguf_repository(gguf, name="tiny")
        make_awq(awq, name="tiny-awq")
        pc, server = Machine(root / "pc"), Machine(root / "server")
        for path in (pc.root, server.root, drive):
            path.mkdir()
        with FaultyHub({"demo/tiny-GGUF": gguf, "demo/tiny-AWQ": awq}) as hub:
            connected = Machine(pc.root, hub.url)
            connected.run("pull", "demo/tiny-GGUF", "--quant", "Q8_0")
            connected.run("pull", "demo/tiny-AWQ")
        pc.run("bundle", "--to", drive)
        bundle = only_bundle(drive)
        trust(server, pc, bundle)
        places = {name: server.root / name for name in ("ollama", "vllm", "folder")}
        engines = [word for name, path in places.items() for word in ("--engine", f"{name}={path}")]
        server.run("import", bundle, *engines)
        yield Arrived(server, bundle, places["ollama"], places["vllm"], places["folder"])


def test_ollama_lists_shows_and_runs(arrived: Arrived) -> None:
    """Breaks if the first program that a user types after an import does not have the model, or generates something else."""
    steps = arrived.server.json("import", arrived.bundle, "--engine", f"ollama={arrived.ollama}")
    outcomes = {model["name"]: model["outcome"] for model in steps.result["imports"][0]["models"]}
    assert outcomes == {"demo/tiny-AWQ": "here already", "demo/tiny-GGUF:Q8_0": "installed already"}
    (step,) = steps.result["imports"][0]["installs"]
    name = step["installed_name"]
    assert step["next_steps"][-1] == f"ollama run {name}"
    with ollama_server(arrived.ollama) as server:
        assert name in server.run("list")
        shown = server.run("show", name)
        assert "llama" in shown
        assert "Q8_0" in shown
        assert SENTENCE.startswith(server.generate(name, "hello"))
    # A server prunes what it does not know when it starts: everything is still whole.
    arrived.server.run("verify")
    with ollama_server(arrived.ollama) as server:
        assert name in server.run("list")


@pytest.mark.root
def test_ollama_as_its_own_user(arrived: Arrived, as_root: None) -> None:
    """Breaks if the service's user cannot read what root installed for it: the usual set-up on Linux."""
    models = arrived.server.root / "service"
    models.mkdir()
    os.chown(models, NOBODY, NOBODY)
    name = "demo:service"
    options = ("--engine", f"ollama={models}", "--only", "demo/tiny-GGUF:Q8_0", "--as", name)
    arrived.server.run("import", arrived.bundle, *options)
    with ollama_server(models, uid=NOBODY) as server:
        assert name in server.run("list")
        assert SENTENCE.startswith(server.generate(name, "hello", tokens=4))
        server.run("rm", name)
    assert list((models / "blobs").iterdir()) == [], "the service's user could not remove its own model"
    arrived.server.run("verify")


def test_ollama_lists_nothing_after_uninstall(arrived: Arrived) -> None:
    """Breaks if an uninstall leaves Ollama with a model that it cannot load."""
    models = arrived.server.root / "short-lived"
    target = ("--engine", f"ollama={models}")
    arrived.server.run("install", "demo/tiny-GGUF:Q8_0", *target)
    arrived.server.run("uninstall", "demo/tiny-GGUF:Q8_0", *target)
    with ollama_server(models) as server:
        assert server.api("/api/tags")["models"] == []


def test_llama_cpp_completes(arrived: Arrived) -> None:
    """Breaks if the file that import put into a folder is not the model that was published."""
    (weights,) = arrived.folder.rglob("*.gguf")
    assert SENTENCE.startswith(llama_generate(weights, "hello"))


@pytest.mark.xdist_group("vllm")
def test_vllm_loads_by_repository_offline(arrived: Arrived) -> None:
    """Breaks if vLLM, offline, does not find by the repository's name what import wrote, or generates something else."""
    assert SENTENCE.startswith(vllm_generate(arrived.cache, "demo/tiny-AWQ", "hello"))
