"""``smoke`` with real engines: Ollama and llama.cpp, found running and started by modelvault; vLLM's OpenAI server."""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import Machine
from make_models import SENTENCE, make_sharded_safetensors
from real_engines import engines_directory, ollama_server, require_engine, vllm_server

from modelvault.artifact import ModelName
from modelvault.engines.http_client import Server
from modelvault.engines.processes import Launch, running
from modelvault.errors import EngineRefused
from modelvault.operations.add import AddRequest, add
from modelvault.operations.install import Placement, install
from modelvault.operations.smoke import SmokeOptions, smoke
from modelvault.progress import NoProgress
from modelvault.results.engines import SmokeResult
from modelvault.vault import Vault

pytestmark = pytest.mark.engine
NOBODY = 65534
_LLAMA_SERVER = """#!{python}
# The command line of llama-server, as far as it is used, over the real llama.cpp of the xllamacpp wheel.
import argparse, threading, xllamacpp
parser = argparse.ArgumentParser()
parser.add_argument("--offline", action="store_true")
for name in ("host", "port", "model", "alias", "ctx-size", "mmproj"):
    parser.add_argument("--" + name)
options = parser.parse_args()
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.model_alias = options.model, {{options.alias}}
parameters.port, parameters.n_ctx, parameters.n_parallel, parameters.warmup = int(options.port), int(options.ctx_size), 1, False
server = xllamacpp.Server(parameters)
threading.Event().wait()
"""


@pytest.fixture
def vault(tmp_path: Path, tiny_gguf: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "vault") as opened:
        add(opened, AddRequest(tiny_gguf, name=ModelName("tiny")), NoProgress())
        yield opened


def put(vault: Vault, target: str, **options: Any) -> None:
    install(vault, ModelName("tiny"), Placement.parse([target], **options), NoProgress())


def ask(vault: Vault, **options: Any) -> SmokeResult:
    return smoke(vault, "tiny", SmokeOptions(**{"tokens": 8} | options), NoProgress())


def answers(result: SmokeResult) -> bool:
    """Tell whether the model said what it was made to say."""
    return bool(result.text) and SENTENCE.startswith(result.text) and result.tokens > 1 and bool(result.rate)


def test_ollama_that_runs(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the server that users use cannot be asked, or one without the model passes."""
    put(vault, f"ollama={tmp_path / 'models'}", name="tiny:smoke")
    with ollama_server(tmp_path / "models") as server:
        monkeypatch.setenv("OLLAMA_HOST", f"0.0.0.0:{server.port}")
        result = ask(vault)
        assert answers(result)
        assert (result.served_as, result.address) == ("tiny:smoke", f"http://127.0.0.1:{server.port}")
        assert result.loading is not None
        server.run("rm", "tiny:smoke")
        with pytest.raises(EngineRefused, match="does not list tiny:smoke; it has no models"):
            ask(vault)
    with pytest.raises(EngineRefused, match="cannot be reached"):
        ask(vault)


def test_ollama_that_is_started(vault: Vault, tmp_path: Path) -> None:
    """Breaks if modelvault cannot prove by itself that Ollama runs what was installed, or that it does not any more."""
    program = str(require_engine("ollama"))
    models = tmp_path / "models"
    put(vault, f"ollama={models}")
    stray = models / "blobs" / f"sha256-{'0' * 64}-partial"
    stray.touch()
    os.utime(stray, (0, 0))
    result = ask(vault, start=True, program=program)
    assert answers(result)
    assert result.started
    assert stray.exists(), "a server that is started for a moment must not prune what another one downloads"
    manifest = next((models / "manifests").rglob("tiny/*"))
    largest = max((models / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    largest.unlink()
    with pytest.raises(EngineRefused, match=r"answered [45]") as caught:
        ask(vault, start=True, program=program)
    assert f"{largest} is missing" in str(caught.value.hint)
    manifest.unlink()
    with pytest.raises(EngineRefused, match="does not list"):
        ask(vault, start=True, program=program)
    outcomes = [row.outcome for row in vault.registry.smokes()]
    assert outcomes == ["failed", "failed", "ok"]


@pytest.mark.root
def test_ollama_is_started_as_the_owner(tiny_gguf: Path, as_root: None) -> None:
    """Breaks if root runs an engine over files of another user's, or the test passes where the service's own user could read nothing."""
    with tempfile.TemporaryDirectory(prefix="modelvault-smoke-") as name:
        root = Path(name)
        root.chmod(0o755)
        program = shutil.copy2(require_engine("ollama"), root)
        models = root / "models"
        models.mkdir()
        os.chown(models, NOBODY, NOBODY)
        with Vault.open(root / "vault") as vault:
            add(vault, AddRequest(tiny_gguf, name=ModelName("tiny")), NoProgress())
            put(vault, f"ollama={models}")
            assert answers(ask(vault, start=True, program=program))
            assert {path.stat().st_uid for path in models.rglob("*")} == {NOBODY}
            blob = max((models / "blobs").iterdir(), key=lambda path: path.stat().st_size)
            os.chown(blob, 0, 0)
            blob.chmod(0o600)
            with pytest.raises(EngineRefused, match=r"answered [45]") as caught:
                ask(vault, start=True, program=program)
            assert "the last that Ollama said" in str(caught.value.hint)
            (root / "ollama").chmod(0o700)
            with pytest.raises(EngineRefused, match="cannot be started as nobody") as caught:
                ask(vault, start=True, program=program)
            assert caught.value.slug == "engine-missing"


@pytest.mark.root
def test_without_a_network(machine: Callable[..., Machine], tiny_gguf: Path, as_root: None) -> None:
    """Breaks if trying a model out needs anything but this machine."""
    server = machine("server")
    server.run("add", tiny_gguf, "--name", "tiny")
    server.run("install", "tiny", "--engine", f"ollama={server.root / 'models'}")
    alone = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    program = require_engine("ollama")
    shown = server.run("smoke", "tiny", "--start", "--program", program, prefix=alone)
    assert "tiny:q8_0 answers in ollama: every byte" in shown.out
    assert "started for this, and ended" in shown.out
    assert "0 dangers" in server.run("doctor", prefix=alone).out


def llama_server(directory: Path) -> str:
    """Give the real ``llama-server``, where it is built (which takes an hour), else its command line over the library."""
    program = engines_directory() / "llama-server/llama-server"
    if program.exists():
        return str(program)
    require_engine("xllamacpp")
    script = directory / "llama-server"
    script.write_text(_LLAMA_SERVER.format(python=sys.executable))
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize("engine", ["llamacpp", "folder"])
def test_llama_cpp_that_is_started(vault: Vault, tmp_path: Path, engine: str) -> None:
    """Breaks if modelvault cannot prove by itself that llama.cpp runs what was installed, or that it does not any more."""
    put(vault, f"{engine}={tmp_path / 'models'}")
    program = llama_server(tmp_path)
    result = ask(vault, start=True, program=program)
    assert answers(result)
    assert result.served_as == "tiny"
    (weights,) = (tmp_path / "models").rglob("*.gguf")
    weights.unlink()
    weights.write_bytes(b"GGUF")
    with pytest.raises(EngineRefused, match="did not start"):
        ask(vault, start=True, program=program)


def test_llama_cpp_that_runs(vault: Vault, tmp_path: Path) -> None:
    """Breaks if the real server's dialect of OpenAI's API is not understood."""
    put(vault, f"llamacpp={tmp_path / 'models'}")
    (weights,) = (tmp_path / "models").rglob("*.gguf")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    server = Server("llama.cpp", f"http://127.0.0.1:{port}", seconds=5)
    command = (
        llama_server(tmp_path),
        "--offline",
        "--port",
        port,
        "--model",
        str(weights),
        "--alias",
        "mine",
        "--ctx-size",
        "512",
    )
    with running(Launch("llama.cpp", command, lambda: server.status("/health") == 200), seconds=60):
        with pytest.raises(EngineRefused, match="does not list tiny; it has mine"):
            ask(vault, url=server.address)
        assert answers(ask(vault, url=server.address, name="mine"))


@pytest.mark.xdist_group("vllm")
def test_vllm_that_runs(tmp_path: Path) -> None:
    """Breaks if the server that serves many users cannot be asked, or the name that it gives an install is not known."""
    make_sharded_safetensors(tmp_path / "model", name="tiny-f16")
    with Vault.open(tmp_path / "vault") as vault:
        add(vault, AddRequest(tmp_path / "model", name=ModelName("demo/tiny")), NoProgress())
        install(vault, ModelName("demo/tiny"), Placement.parse([f"vllm={tmp_path / 'hub'}"]), NoProgress())
        with vllm_server(tmp_path / "hub", "demo/tiny") as address:
            result = smoke(vault, "demo/tiny", SmokeOptions(url=f"{address}/v1", tokens=8), NoProgress())
            assert answers(result)
            assert result.served_as == "demo/tiny"
            with pytest.raises(EngineRefused, match="does not list other; it has demo/tiny"):
                smoke(vault, "demo/tiny", SmokeOptions(url=address, name="other"), NoProgress())
