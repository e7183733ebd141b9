"""The main job end to end, with the installed program: pull, bundle, import between machines."""

from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_hub import FaultyHub
from machines import Machine, only_bundle, trust


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    path = tmp_path / "ssd"
    path.mkdir()
    return path


def test_three_commands(machine: Callable[..., Machine], tiny_gguf: Path, tiny_awq: Path, drive: Path) -> None:
    """Breaks if the road itself does: what the hub offers must be in the engines, byte for byte, after three commands."""
    with FaultyHub({"demo/tiny-GGUF": tiny_gguf, "demo/tiny-AWQ": tiny_awq}) as hub:
        pc = machine("pc", hub.url)
        pc.run("pull", "demo/tiny-GGUF", "--quant", "Q8_0")
        pc.run("pull", "demo/tiny-AWQ")
    assert pc.models() == {"demo/tiny-GGUF:Q8_0", "demo/tiny-AWQ"}
    pc.run("bundle", "--to", drive)

    server = machine("server")
    bundle = only_bundle(drive)
    trust(server, pc, bundle)
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    ollama, cache = server.root / "ollama", server.root / "hub"
    done = server.json("import", drive, "--engine", f"ollama={ollama}", "--engine", f"vllm={cache}")
    (imported,) = done.result["imports"]
    assert {model["outcome"] for model in imported["models"]} == {"installed"}
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before, "import wrote to the medium"

    (gguf,) = tiny_gguf.glob("*.gguf")
    assert any(blob.read_bytes() == gguf.read_bytes() for blob in (ollama / "blobs").iterdir())
    (snapshot,) = (cache / "models--demo--tiny-AWQ" / "snapshots").iterdir()
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == {
        path.name: path.read_bytes() for path in tiny_awq.iterdir()
    }
    server.run("verify")
    server.run("verify", bundle)
    assert server.models() == pc.models()


def test_identity_is_the_same_on_every_machine(machine: Callable[..., Machine], tiny_awq: Path) -> None:
    """Breaks if anything of the machine or the time gets into a manifest: its digest is the model's identity."""
    with FaultyHub({"demo/tiny-AWQ": tiny_awq}) as hub:
        manifests = set()
        for name in ("one", "two"):
            pc = machine(name, hub.url)
            manifests.add(pc.json("pull", "demo/tiny-AWQ").result["model"]["manifest"])
    assert len(manifests) == 1


def test_dry_runs_change_nothing(machine: Callable[..., Machine], tiny_gguf: Path, drive: Path) -> None:
    """Breaks if a plan moves bytes: people run it to decide whether to."""
    with FaultyHub({"demo/tiny-GGUF": tiny_gguf}) as hub:
        pc = machine("pc", hub.url)
        plan = pc.json("pull", "demo/tiny-GGUF", "--dry-run").result
        assert plan["to_download"] == plan["total"] == sum(path.stat().st_size for path in tiny_gguf.iterdir())
        assert pc.models() == set()
        pc.run("pull", "demo/tiny-GGUF")
    pc.run("bundle", "--to", drive, "--dry-run")
    assert list(drive.iterdir()) == []
    pc.run("bundle", "--to", drive)
    server = machine("server")
    trust(server, pc, only_bundle(drive))
    engine = server.root / "ollama"
    plan = server.json("import", drive, "--dry-run", "--engine", f"ollama={engine}").result["imports"][0]
    assert [model["outcome"] for model in plan["models"]] == ["would be installed"]
    assert [step["link"] for step in plan["installs"]] == ["hard link"]
    assert server.models() == set()
    assert not engine.exists()
    command = ("import", drive, "--engine", f"ollama={engine}")
    server.run(*command)
    for again in (server.run(*command, "--dry-run"), server.run(*command)):
        assert "installed already" in again.out
        assert "would" not in again.out.replace("would install as", "")
        assert "installing" not in again.err


def test_no_engine_is_no_failure(machine: Callable[..., Machine], tiny_gguf: Path, drive: Path) -> None:
    """Breaks if a server without an engine cannot receive, or is not told how to go on."""
    pc, server = machine("pc"), machine("server")
    pc.run("add", tiny_gguf, "--name", "tiny")
    pc.run("bundle", "--to", drive)
    trust(server, pc, only_bundle(drive))
    done = server.json("import", drive)
    assert done.result["imports"][0]["models"][0]["outcome"] == "received"
    assert any("modelvault install" in warning for warning in done.document["warnings"])
    target = server.root / "models"
    server.run("install", "tiny", "--engine", f"folder={target}")
    assert (target / "tiny" / next(tiny_gguf.glob("*.gguf")).name).exists()
    server.run("uninstall", "tiny", "--engine", f"folder={target}")
    assert not (target / "tiny").exists()
