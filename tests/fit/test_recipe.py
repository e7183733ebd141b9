"""Recipes that shells, systemd and compose take as they are."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import Machine
from programs import require_program
from refusals import failed, succeeded


@pytest.fixture
def server(machine: Callable[..., Machine], tiny_gguf: Path, tiny_awq: Path) -> Machine:
    """A machine with a model in each of two engines, in directories with an awkward name."""
    one = machine("server")
    one.run("add", tiny_gguf, "--name", "tiny")
    one.run("add", tiny_awq, "--name", "org/tiny-awq")
    one.run("install", "tiny", "--engine", f"llamacpp={one.root / 'my $models %n'}")
    one.run("install", "tiny", "--engine", f"ollama={one.root / 'ollama'}")
    one.run("install", "org/tiny-awq", "--engine", f"vllm={one.root / 'hub'}")
    return one


CASES = [("tiny", "llamacpp"), ("tiny", "ollama"), ("org/tiny-awq", "vllm")]


def text(server: Machine, *arguments: str) -> str:
    (file,) = succeeded(server, "recipe", *arguments)["files"]
    return str(file["text"])


@pytest.mark.parametrize(("model", "engine"), CASES)
def test_command_lines(model: str, engine: str, server: Machine, tmp_path: Path) -> None:
    """A script that a shell reads otherwise than it was meant starts the wrong thing, or nothing."""
    path = tmp_path / "start.sh"
    path.write_text(text(server, model, "--engine", engine, "--gpu", "24GiB", "--users", "2"))
    # A path with a $ is in single quotes so that it stays one.
    subprocess.run([require_program("shellcheck"), "--exclude=SC2016", path], check=True)
    program = {"llamacpp": "llama-server", "ollama": "ollama", "vllm": "vllm"}[engine]
    fake = tmp_path / "bin" / program
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", path], env={"PATH": f"{fake.parent}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    if engine == "llamacpp":
        file = Path(words[words.index("-m") + 1])
        assert file.is_file()
        assert words[words.index("-c") + 1] == "1024"  # two conversations of the 512 tokens that it was made for
    if engine == "vllm":
        assert words[:2] == ["serve", "org/tiny-awq"]
        assert words[words.index("--max-model-len") + 1] == "512"


@pytest.mark.parametrize(("model", "engine"), CASES)
def test_units(model: str, engine: str, server: Machine, tmp_path: Path) -> None:
    """systemd has quotes and variables of its own."""
    unit = tmp_path / "model.service"
    program = {"llamacpp": "llama-server", "ollama": "ollama", "vllm": "vllm"}[engine]
    written = text(server, model, "--engine", engine, "--gpu", "24GiB", "--as", "systemd", "--user", "root")
    assert f"/usr/local/bin/{program}" in written
    # Whether the program is there is not what is looked at.
    unit.write_text(written.replace(f"/usr/local/bin/{program}", "/bin/true"))
    done = subprocess.run(
        [require_program("systemd-analyze"), "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    if engine == "llamacpp":
        assert "my $$models %%n" in written


@pytest.mark.parametrize(("model", "engine"), CASES)
@pytest.mark.parametrize("replicas", ["1", "2"])
def test_compose_files(model: str, engine: str, replicas: str, server: Machine, tmp_path: Path) -> None:
    """The real docker-compose reads it, and sees what we meant."""
    out = tmp_path / "out"
    gpu = ("--gpu", "24GiB", "--as", "compose", "--replicas", replicas)
    server.run("recipe", model, "--engine", engine, *gpu, "--to", out)
    done = subprocess.run(
        [require_program("docker-compose"), "-f", out / "compose.yaml", "config"], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("image:") == int(replicas)
    assert (out / "nginx.conf").exists() == (replicas == "2")
    server.run("recipe", model, "--engine", engine, *gpu, "--to", out)
    (out / "compose.yaml").write_text("somebody's own")
    failed(server, "recipe", model, "--engine", engine, *gpu, "--to", out, code=2)
    assert (out / "compose.yaml").read_text() == "somebody's own"


def test_what_does_not_fit_gets_no_recipe(server: Machine) -> None:
    """A recipe that ends in out of memory is worse than none; who insists gets it."""
    error = failed(server, "recipe", "org/tiny-awq", "--engine", "vllm", "--gpu", "v100-32", code=17)
    assert "7.5" in error["message"]
    assert "vllm serve" in server.run("recipe", "org/tiny-awq", "--engine", "vllm", "--gpu", "v100-32", "--force").out


def test_what_is_not_installed(server: Machine) -> None:
    """The paths of an install are what a recipe is for."""
    error = failed(server, "recipe", "tiny", "--engine", "tgi", "--gpu", "24GiB", code=2)
    assert "modelvault install tiny --engine tgi`" in error["hint"]
    error = failed(server, "recipe", "org/tiny-awq", "--engine", "llamacpp", "--gpu", "24GiB", code=2)
    assert "modelvault install org/tiny-awq --engine llamacpp=DIR`" in error["hint"]


def test_one_of_two_installs(server: Machine) -> None:
    """Where a model is in two directories of an engine, the user says which, as for the other commands."""
    server.run("install", "tiny", "--engine", f"llamacpp={server.root / 'other'}")
    error = failed(server, "recipe", "tiny", "--engine", "llamacpp", "--gpu", "24GiB", code=2)
    assert f"modelvault recipe tiny --engine llamacpp={server.root / 'other'}" in error["hint"]
    assert f"-m {server.root}/other/tiny/" in text(
        server, "tiny", "--engine", f"llamacpp={server.root / 'other'}", "--gpu", "24GiB"
    )


def test_a_draft_is_not_the_model(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """The recipe, and what is computed, are of the model and not of the small one beside it that only guesses for it."""
    folder = tmp_path / "with a draft"
    shutil.copytree(tiny_gguf, folder)
    (weights,) = folder.glob("*.gguf")
    shutil.copy(weights, folder / f"mtp-{weights.name}")
    weights.rename(folder / "tuned.gguf")  # by its name after the draft
    one = machine("server")
    one.run("add", folder, "--name", "tuned")
    one.run("install", "tuned", "--engine", f"llamacpp={one.root / 'models'}")
    assert f"-m {one.root}/models/tuned/tuned.gguf" in text(one, "tuned", "--engine", "llamacpp", "--gpu", "24GiB")


def test_the_modelfiles_context(server: Machine, tmp_path: Path) -> None:
    """Ollama prefers what the model says to what its server is told: a recipe for another context would be for another sum."""
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text("TEMPLATE {{ .Prompt }}\nPARAMETER num_ctx 256\n")
    server.run("install", "tiny", "--engine", f"ollama={server.root / 'short'}", "--modelfile", modelfile)
    asked = ("tiny", "--engine", f"ollama={server.root / 'short'}", "--gpu", "24GiB")
    assert "OLLAMA_CONTEXT_LENGTH=256" in text(server, *asked)
    error = failed(server, "recipe", *asked, "--context", "512", code=2)
    assert ("num_ctx 256" in error["message"], "PARAMETER num_ctx 512" in error["hint"]) == (True, True)


def test_a_processor_alone(server: Machine) -> None:
    """A container without cards must not ask for them: it would not start."""
    asked = ("tiny", "--engine", "llamacpp", "--as", "compose")
    alone = text(server, *asked, "--gpu", "cpu-64")
    assert ("nvidia" in alone, 'llama.cpp:server"' in alone) == (False, True)
    assert "nvidia" in text(server, *asked, "--gpu", "24GiB")


@pytest.mark.parametrize(("engine", "kind"), [("vllm", "fp8"), ("sglang", "fp8_e4m3"), ("tgi", "fp8_e4m3fn")])
def test_a_cache_of_another_type(server: Machine, engine: str, kind: str) -> None:
    """A smaller cache that is computed and not asked for runs out of memory; one that the engine does not have does not start."""
    target = server.root / f"hub-{engine}"
    server.run("install", "org/tiny-awq", "--engine", f"{engine}={target}")
    asked = ("org/tiny-awq", "--engine", f"{engine}={target}", "--gpu", "24GiB")
    assert f"--kv-cache-dtype {kind} " in text(server, *asked, "--kv-type", "fp8")
    assert "no such cache" in failed(server, "recipe", *asked, "--kv-type", "q8_0", code=2)["message"]
    composed = text(server, *asked, "--as", "compose")
    assert ("entrypoint" in composed) == (engine != "tgi"), "its own entrypoint has to come first"


def test_a_wrong_cache_of_llama_cpp(server: Machine) -> None:
    """A type that only others know is no defect of ours, and no recipe."""
    assert (
        "no such cache"
        in failed(server, "recipe", "tiny", "--engine", "llamacpp", "--gpu", "24GiB", "--kv-type", "fp8", code=2)[
            "message"
        ]
    )


def test_tensor_parallel_and_json(server: Machine) -> None:
    """Two cards that work together are told so; the envelope holds the text."""
    ran = server.json("recipe", "org/tiny-awq", "--engine", "vllm", "--gpu", "2xa100-80")
    assert "--tensor-parallel-size 2" in json.dumps(ran.result)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tgi"])
def test_a_model_that_brings_code(machine: Callable[..., Machine], tiny_awq: Path, tmp_path: Path, engine: str) -> None:
    """What the install says that the engine has to be told must not get lost between its flags."""
    folder = tmp_path / "code"
    shutil.copytree(tiny_awq, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "configuration_x.Config"}}))
    (folder / "configuration_x.py").write_text("class Config: ...\n")
    one = machine("server")
    one.run("add", folder, "--name", "org/code")
    one.run("install", "org/code", "--engine", f"{engine}={one.root / 'hub'}")
    written = text(one, "org/code", "--engine", engine, "--gpu", "24GiB")
    assert "--trust-remote-code" in written
    assert f"{'--hostname' if engine == 'tgi' else '--host'} 127.0.0.1" in written
