"""``install`` and ``uninstall`` where something is not as it should be: what they say, and the exit codes."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machines import Machine, Ran

from modelvault.cli.install import engine_lines
from modelvault.results.installs import EngineStep

NAME = "tiny"
GGUF_NAME = "tiny-gguf"


@pytest.fixture
def server(machine: Callable[..., Machine], tiny_awq: Path, tiny_gguf: Path) -> Machine:
    made = machine("server")
    made.run("add", tiny_awq, "--name", NAME)
    made.run("add", tiny_gguf, "--name", GGUF_NAME)
    return made


@pytest.fixture
def tiny_disk(tmp_path: Path, as_root: None) -> Iterator[Path]:
    """A file system without room for a model."""
    point = tmp_path / "tiny-disk"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(point)], check=True)
    yield point
    subprocess.run(["umount", str(point)], check=True)


def test_a_changed_file_is_replaced_with_a_word(server: Machine) -> None:
    """Breaks if hours of tuning are lost in silence, if the vault's blob was what they changed, or if a plan says otherwise."""
    where = server.root / "models"
    command = ("install", NAME, "--engine", f"folder={where}")

    def outcome(*options: str) -> tuple[bool, list[str], Ran]:
        ran = server.json(*command, *options)
        (step,) = ran.result["installs"]
        return step["already"], ran.document["warnings"], ran

    assert outcome("--dry-run")[:2] == (False, [])
    assert outcome()[:2] == (False, [])
    for options in (["--dry-run"], []):
        already, warnings, ran = outcome(*options)
        assert (already, warnings) == (True, [])
        assert "installing" not in ran.err
    assert "there already" in server.run(*command, "--dry-run").out
    config = where / NAME / "config.json"
    config.write_bytes(b" " * config.stat().st_size)
    server.run("verify")
    said = f"{NAME}: files that had been changed since they were installed"
    assert outcome("--dry-run")[:2] == (False, [f"{said} would be replaced: config.json"])
    assert config.read_bytes().isspace()
    assert outcome()[:2] == (False, [f"{said} were replaced: config.json"])
    assert outcome()[:2] == (True, [])


def test_exit_codes(server: Machine) -> None:
    """Breaks if a script cannot tell a damaged vault, a typing error and an engine that takes no such model from one another."""
    ollama = server.root / "ollama"
    unfit = server.run("install", NAME, "--engine", f"ollama={ollama}", code=16)
    assert "goes into no engine" in unfit.err
    found = Machine(server.root, variables={"OLLAMA_MODELS": str(ollama)})
    assert "goes into no engine; found here: ollama" in found.run("install", NAME, code=16).err
    missing = server.root / "no-such-file"
    command = ("install", GGUF_NAME, "--engine", f"ollama={ollama}", "--modelfile")
    assert f"{missing}: no such file" in server.run(*command, missing, code=2).err
    assert "not a regular file" in server.run(*command, server.root, code=2).err
    files = server.json("show", GGUF_NAME).result["files"]
    (weights,) = (file["digest"] for file in files if file["path"].endswith(".gguf"))
    (server.vault / "blobs" / weights.replace(":", "/")).unlink()
    assert "missing from the vault" in server.run("install", GGUF_NAME, "--engine", f"ollama={ollama}", code=12).err


@pytest.mark.root
def test_dry_run_warns_of_the_disk(server: Machine, tiny_disk: Path) -> None:
    """Breaks if a plan promises what the disk cannot take, as the real run then says."""
    command = ("install", NAME, "--engine", f"folder={tiny_disk / 'models'}")
    (warning,) = server.json(*command, "--dry-run").document["warnings"]
    assert f"the file system of {tiny_disk / 'models'} has 16,384 bytes free, and " in warning
    full = server.run(*command, code=15)
    assert "it goes on" not in full.err
    subprocess.run(["mount", "-o", "remount,ro,size=64m", str(tiny_disk)], check=True)
    (warning,) = server.json(*command, "--dry-run").document["warnings"]
    assert warning == f"the file system of {tiny_disk / 'models'} is mounted read-only"
    refused = server.run(*command, code=16)
    assert str(tiny_disk) in refused.err
    assert "/proc/self" not in refused.err


@pytest.mark.root
def test_a_read_only_ollama_is_named(server: Machine, tiny_disk: Path) -> None:
    """Breaks if an error names a descriptor of ours in place of the directory that the user named."""
    models = tiny_disk / "models"
    (models / "blobs").mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro,size=64m", str(tiny_disk)], check=True)
    refused = server.run("install", GGUF_NAME, "--engine", f"ollama={models}", code=16)
    assert str(models) in refused.err
    assert "/proc/self" not in refused.err


def test_uninstall_with_several_names(server: Machine) -> None:
    """Breaks if what is printed cannot be typed."""
    where = server.root / "my models"
    for name in ("one", "two"):
        server.run("install", NAME, "--engine", f"folder={where}", "--as", name)
    refused = server.run("uninstall", NAME, "--engine", f"folder={where}", code=2)
    commands = [line for line in refused.err.splitlines() if line.startswith("  modelvault ")]
    assert commands == [f"  modelvault uninstall {name} --engine 'folder={where}'" for name in ("one", "two")]
    assert {path.name for path in where.iterdir()} == {"one", "two"}


def test_one_server_serves_all_models() -> None:
    """Breaks if the reader is told to start the same server once for each model."""
    serve = "OLLAMA_MODELS=/srv/models ollama serve"
    steps = [
        EngineStep(name, "ollama", "/srv/models", name, "hard link", 0, False, (), (serve, f"ollama run {name}"))
        for name in ("a", "b")
    ]
    lines = [line.strip() for line in engine_lines(steps, dry_run=False)]
    assert lines[lines.index("next:") + 1 :] == [serve, "ollama run a", "ollama run b"]
