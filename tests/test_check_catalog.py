"""``scripts/check-catalog``: against hubs on this machine, since the real one is nothing that tests may need."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_hub import FaultyHub
from machines import Machine
from serve_hub import serving

from modelvault.store import Store

SCRIPT = Path(__file__).parent.parent / "scripts" / "check_catalog.py"
HEAD = """
name = "{name}"
title = "A model"
parameters = "1.0M"
context = 512
languages = ["en"]
license = "{license}"
gated = {gated}
verified = false
"""
GGUF = '[gguf]\nrepository = "{repository}"\nquant = "{quant}"\n[ollama]\nfamily = "{family}"\n'


def entry(folder: Path, name: str, tables: str, license: str = "mit", gated: str = "false") -> None:  # noqa: A002
    folder.mkdir(exist_ok=True)
    text = HEAD.format(name=name, license=license, gated=gated) + tables
    (folder / f"{name}.toml").write_text(text)


def gguf(repository: str, quant: str = "Q8_0", family: str = "chatml") -> str:
    return GGUF.format(repository=repository, quant=quant, family=family)


def check(machine: Machine, *arguments: str | Path, code: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, env=machine.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def found(shown: str) -> dict[str, list[str]]:
    """Take the table apart: by name the verdict, and what differs."""
    results: dict[str, list[str]] = {}
    for line in shown.splitlines()[1:-1]:
        if line.startswith("  "):
            results[next(reversed(results))].append(line.strip())
        else:
            results[line.split()[0]] = [line.split()[-1]]
    return results


def test_against_a_vault_that_serves(
    machine: Callable[..., Machine], tiny_gguf: Path, tiny_awq: Path, tmp_path: Path
) -> None:
    """Breaks if an entry that leads nowhere, or to something else than it says, is found only by who pulls it."""
    publisher, catalog = machine("publisher"), tmp_path / "catalog"
    publisher.run("add", tiny_gguf, "--name", "org/good-GGUF", "--license", "mit")
    publisher.run("add", tiny_awq, "--name", "org/good-AWQ", "--license", "mit")
    entry(
        catalog, "good", gguf("org/good-GGUF") + '[awq]\nrepository = "org/good-AWQ"\n[vllm]\narguments = []\n'
    )  # fmt: skip
    entry(catalog, "license", gguf("org/good-GGUF"), license="apache-2.0")
    entry(catalog, "gone", gguf("org/gone-GGUF"))
    entry(catalog, "quant", gguf("org/good-GGUF", "Q4_K_M"))
    entry(catalog, "family", gguf("org/good-GGUF", family="chatmll"))
    with serving(Store(publisher.vault)) as server:
        shown = check(machine("pc"), "--endpoint", server.url, "--catalog", catalog, code=1).stdout
        assert "2 of 2 entries agree" in check(
            machine("pc"), "--endpoint", server.url, "--catalog", catalog, "good", "GOOD-awq", code=0
        ).stdout  # fmt: skip
    results = found(shown)
    assert results["good"] == results["good-awq"] == ["ok"]
    assert results["license"] == ["differs", "license mit, not apache-2.0"]
    assert "org/gone-GGUF" in results["gone"][1]
    assert results["quant"] == ["differs", "no Q4_K_M in the repository"]
    assert "there is no family 'chatmll'" in results["family"][1]
    assert shown.splitlines()[-1].startswith("2 of 6 entries agree with http://127.0.0.1:")


@pytest.mark.parametrize(
    ("hub_says", "entry_says", "result"), [("auto", "false", "gated"), (False, "true", "not gated")]
)
def test_gating(
    machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path, hub_says: object, entry_says: str, result: str
) -> None:
    """Breaks if somebody is sent to a download that asks for an account, or for an account where none is needed."""
    entry(tmp_path / "catalog", "one", gguf("org/one"), gated=entry_says)
    with FaultyHub({"org/one": tiny_gguf}) as hub:
        hub.repositories["org/one"].info |= {"gated": hub_says, "tags": ["license:mit"]}
        shown = check(machine("pc", hub.url), "--catalog", tmp_path / "catalog", code=1).stdout
    assert found(shown)["one"] == ["differs", result]


def test_without_a_network(machine: Callable[..., Machine]) -> None:
    """Breaks if a network that is down looks like a catalog that is wrong in every line."""
    done = check(machine("pc"), "--endpoint", "http://127.0.0.1:1", code=10)
    assert "cannot reach http://127.0.0.1:1" in done.stderr
    assert "did you mean llama-3.1-8b" in check(machine("pc"), "lama-3.1-8b", code=2).stderr
