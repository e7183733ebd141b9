"""Finds and runs the real engines for tests marked ``engine``: Ollama, old and newer, vLLM on the CPU, llama.cpp.

They lie where ``scripts/setup-engines`` puts them: ``MODELVAULT_ENGINES``, else ``modelvault-engines`` in the user's cache directory.
Without one the test skips and says why; with ``MODELVAULT_REQUIRE_ENGINES=1`` it fails.
"""

import ast
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from programs import alone, ended

_START_SECONDS = 60.0
_GENERATE = Path(__file__).parents[1] / "scripts" / "generate.py"
_VLLM_SECONDS = 600.0  # half a minute on an idle machine
_PROGRAMS = {
    "ollama": "bin/ollama",
    "ollama-newer": "newer/ollama",
    "vllm": "vllm/bin/python",
    "vllm-gguf": "vllm-gguf/.installed",
    "llama-server": "llama-server/llama-server",
}
_ON_REQUEST = {"llama-server"}
"""Engines that `scripts/setup-engines` builds only where it is asked to."""
OLLAMAS = ("ollama", "ollama-newer")
"""The releases: 0.24.0, which generates, and a newer one, which has no runner here and does all else."""


def engines_directory() -> Path:
    """Where ``scripts/setup-engines`` puts the engines."""
    if chosen := os.environ.get("MODELVAULT_ENGINES"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "modelvault-engines"


def require_engine(name: str) -> Path:
    """Give the program of one of ``OLLAMAS``, ``vllm`` or ``llama-server``, a file of the packages ``vllm-gguf`` and ``xllamacpp``; else skip or fail the test."""
    if name == "xllamacpp":
        spec = find_spec(name)
        found = Path(spec.origin) if spec and spec.origin else None
    else:
        program = engines_directory() / _PROGRAMS[name]
        found = program if program.exists() else None
    if found is None:
        reason = f"{name} is not installed in {engines_directory()}: run scripts/setup-engines"
        if os.environ.get("MODELVAULT_REQUIRE_ENGINES") == "1" and name not in _ON_REQUEST:
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class OllamaServer:
    """A running server: its address, and how to ask it."""

    program: Path
    pid: int
    port: int
    environment: Mapping[str, str]
    log: Path

    def run(self, *arguments: str) -> str:
        """Run the real command line against the server and give what it prints."""
        done = self.tried(*arguments)
        assert done.returncode == 0, f"{done.args}: {done.stderr}\n{self.log.read_text()[-3000:]}"
        return done.stdout

    def tried(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the real command line against the server, whatever comes of it."""
        command = [str(self.program), *arguments]
        return ended(command, self.environment)

    def api(self, path: str, body: object = None) -> Any:
        """Call the HTTP API and decode its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        assert answer.status == 200, f"{path}: {answer.status} {data[:500]!r}\n{self.log.read_text()[-3000:]}"
        return json.loads(data)

    def generate(self, model: str, prompt: str, *, tokens: int = 8) -> str:
        """Let a model complete a prompt, without its template, always the same way."""
        options = {"num_predict": tokens, "temperature": 0, "num_ctx": 256}
        body = {"model": model, "prompt": prompt, "raw": True, "stream": False, "options": options}
        text: str = self.api("/api/generate", body)["response"]
        return text


@contextlib.contextmanager
def ollama_server(models_dir: Path, *, uid: int | None = None, release: str = "ollama") -> Iterator[OllamaServer]:
    """Run the real Ollama, one of ``OLLAMAS``, over a models directory on a free loopback port, with a home of its own; end it by its pid.

    ``uid`` runs it as another user (root only).
    """
    program = require_engine(release)
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="ollama-home-") as home:
        if uid is not None:
            # The engines may lie below a home that other users cannot enter.
            program = Path(shutil.copy2(program, home))
            os.chown(home, uid, uid)
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": home,
            "OLLAMA_MODELS": str(models_dir),
            "OLLAMA_HOST": f"127.0.0.1:{port}",
            "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_KEEP_ALIVE": "1m",
        }
        log = Path(home) / "server.log"
        with log.open("wb") as sink:
            server = subprocess.Popen(
                [program, "serve"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                user=uid,
                group=uid,
                extra_groups=None if uid is None else [],
                cwd=home,
            )
        try:
            _await_port(port, server, log)
            yield OllamaServer(program, server.pid, port, environment, log)
        finally:
            # SIGTERM first: the server ends its model runners itself.
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _await_port(port: int, server: subprocess.Popen[bytes], log: Path, seconds: float = _START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if server.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the server did not start (exit code {server.returncode}):\n{log.read_text()[-3000:]}")
        time.sleep(0.05)  # between two attempts to connect; how long starting takes is not ours to know


AWQ_KERNEL = """
import torch
from vllm import _custom_ops

def unpacked(packed):
    return ((packed[..., None] >> torch.arange(0, 32, 4)) & 15).flatten(-2)

def multiply_awq(input, q_weight, scales, zeros, g_idx=None, bias=None, pack_factor=8, isa_hint=""):
    blocks, width = q_weight.shape
    levels = unpacked(q_weight.view(blocks, width // 2, 2)).permute(1, 0, 2).flatten(1)
    group = levels.shape[0] // scales.shape[0]
    weights = (levels - unpacked(zeros).repeat_interleave(group, 0)) * scales.repeat_interleave(group, 0)
    product = input @ weights.to(input.dtype)
    return product if bias is None else product + bias

if not torch.cpu._is_avx512_supported():
    _custom_ops.cpu_gemm_wna16 = multiply_awq
"""
"""For the start of a script that runs vLLM: its product of 4-bit weights on a CPU is built with AVX-512 only, and replaced elsewhere."""

_VLLM_SCRIPT = f"""
import json, sys
{AWQ_KERNEL}
from vllm import LLM, SamplingParams
repository, prompt, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
llm = LLM(repository, enforce_eager=True, max_model_len=256, max_num_seqs=1, seed=0)
output = llm.generate([prompt], SamplingParams(max_tokens=tokens, temperature=0))
print("OUTPUT " + json.dumps(output[0].outputs[0].text))
"""


def _vllm_environment(home: str, cache_dir: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": home,
        "HF_HOME": f"{home}/hf",
        "HF_HUB_CACHE": str(cache_dir),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }


def vllm_generate(cache_dir: Path, repo: str, prompt: str, *, tokens: int = 8) -> str:
    """Let the real vLLM load ``repo`` by name from a hub cache, offline, and complete a prompt on the CPU."""
    python = require_engine("vllm")
    with alone("vllm"), tempfile.TemporaryDirectory(prefix="vllm-home-") as home:
        environment = _vllm_environment(home, cache_dir)
        command = [str(python), "-c", _VLLM_SCRIPT, repo, prompt, str(tokens)]
        done = ended(command, environment, home)
    lines = [line for line in done.stdout.splitlines() if line.startswith("OUTPUT ")]
    assert lines, f"vllm failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    text: str = json.loads(lines[-1].removeprefix("OUTPUT "))
    return text


@contextlib.contextmanager
def vllm_server(cache_dir: Path, repo: str) -> Iterator[str]:
    """Run vLLM's OpenAI server on the CPU over a hub cache, offline, on a free loopback port; give its address."""
    python = require_engine("vllm")
    port = _free_port()
    options = [
        "--enforce-eager",
        "--max-model-len",
        "256",
        "--max-num-seqs",
        "1",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with alone("vllm"), tempfile.TemporaryDirectory(prefix="vllm-home-") as home:
        log = Path(home) / "server.log"
        with log.open("wb") as sink:
            # The program `vllm` of the CPU's package does not start: it looks for a package of another name.
            server = subprocess.Popen(
                [python, "-m", "vllm.entrypoints.openai.api_server", "--model", repo, *options],
                env=_vllm_environment(home, cache_dir),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=home,
                start_new_session=True,
            )
        try:
            _await_port(port, server, log, _VLLM_SECONDS)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            with contextlib.suppress(ProcessLookupError):  # the process that holds the model
                os.killpg(server.pid, signal.SIGKILL)


def llama_generate(gguf_path: Path, prompt: str, *, tokens: int = 8) -> str:
    """Let the real llama.cpp load a GGUF file and complete a prompt, as the demo does."""
    require_engine("xllamacpp")
    done = ended([sys.executable, str(_GENERATE), str(gguf_path), prompt, str(tokens)], os.environ)
    assert done.returncode == 0, done.stderr[-3000:]
    text: str = ast.literal_eval(done.stdout.partition("generated: ")[2])
    return text


@dataclass(frozen=True)
class LlamaServer:
    """A running ``llama-server`` that offers several models."""

    port: int
    log: Path

    def ask(self, path: str, body: object = None) -> Any:
        """Call the HTTP API and decode its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, sent, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        assert answer.status == 200, f"{path}: {answer.status} {data[:500]!r}\n{self.log.read_text()[-5000:]}"
        return json.loads(data)

    def models(self) -> dict[str, Any]:
        """List the models by name, as they are on disk now."""
        return {model["id"]: model for model in self.ask("/models?reload=1")["data"]}

    def complete(self, model: str, prompt: str, *, tokens: int = 8) -> str:
        """Have a model loaded and complete a prompt."""
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        text: str = self.ask("/v1/completions", body)["choices"][0]["text"]
        return text


@contextlib.contextmanager
def llama_server(line: str) -> Iterator[LlamaServer]:
    """Let a shell run a recipe's line with ``llama-server`` at its end, on a free loopback port and with a home of its own."""
    program = require_engine("llama-server")
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="llama-home-") as home:
        log = Path(home) / "server.log"
        with log.open("wb") as sink:
            server = subprocess.Popen(
                ["sh", "-c", f"{line} --host 127.0.0.1 --port {port}"],
                env={"PATH": f"{program.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}", "HOME": home},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=home,
                start_new_session=True,
            )
        try:
            _await_port(port, server, log)
            yield LlamaServer(port, log)
        finally:
            with contextlib.suppress(ProcessLookupError):  # the shell, the server, and one process for each model
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()
