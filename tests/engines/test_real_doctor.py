"""``doctor`` beside the real engines: what it says of them is so."""

import os
from pathlib import Path

import pytest
from engine_cases import tree
from real_engines import ollama_server, require_engine

from modelvault.artifact import ModelName
from modelvault.engines import Surroundings
from modelvault.errors import EngineRefused
from modelvault.operations.add import AddRequest, add
from modelvault.operations.doctor import doctor
from modelvault.operations.install import Placement, install
from modelvault.progress import NoProgress
from modelvault.results.engines import DoctorResult
from modelvault.vault import Vault

pytestmark = pytest.mark.engine


def said(result: DoctorResult, level: str) -> list[str]:
    return [finding.what for finding in result.findings if finding.level == level]


def test_ollama(tmp_path: Path, tiny_gguf: Path) -> None:
    """Breaks if the real program or server does not tell its release, is changed by being asked, or suffers from other things than doctor says."""
    program, store, home = require_engine("ollama"), tmp_path / "store", tmp_path / "home"
    home.mkdir()
    variables = {"PATH": str(program.parent), "OLLAMA_MODELS": str(store), "HOME": str(home)}
    around = Surroundings({**variables, "OLLAMA_HOST": "127.0.0.1:1"}, home, tmp_path)
    with Vault.open(tmp_path / "vault") as vault:
        add(vault, AddRequest(tiny_gguf, name=ModelName("tiny")), NoProgress())
        install(vault, ModelName("tiny"), Placement.parse([f"ollama={store}"], name="tiny:doctor"), NoProgress())
        vault.close_registry()
        before = tree(tmp_path)
        result = doctor(vault, (), around)
        assert tree(tmp_path) == before
        assert f"{program} is Ollama 0.24.0" in said(result, "ok")
        assert [(line.version, line.found) for line in result.engines] == [("0.24.0", "found here")]
        stray = store / "blobs/model.gguf"
        stray.touch()
        os.utime(stray, (0, 0))
        with ollama_server(store) as server:
            asked = Surroundings({**variables, "OLLAMA_HOST": f"127.0.0.1:{server.port}"}, home, tmp_path)
            result = doctor(vault, (), asked)
            assert f"the server at http://127.0.0.1:{server.port} is Ollama 0.24.0" in said(result, "ok")
            assert said(result, "danger") == []
            assert not stray.exists(), "Ollama has removed what doctor would have warned of"
            (tag,) = (path for path in (store / "manifests").rglob("*") if path.is_file())
            tag.with_name("gone").symlink_to("nowhere")
            with pytest.raises(EngineRefused, match="leads nowhere") as caught:
                doctor(vault, (), asked)
            assert isinstance(caught.value.result, DoctorResult)
            assert any("the server does not list its models" in what for what in said(caught.value.result, "danger"))


def test_llama_cpp(tmp_path: Path) -> None:
    """Breaks if the real llama-server does not tell its release, or does so where nobody looks."""
    program = require_engine("llama-server")
    around = Surroundings({"PATH": str(program.parent), "OLLAMA_HOST": "127.0.0.1:1"}, tmp_path, tmp_path)
    result = doctor(Vault.prospective(tmp_path / "vault"), (), around)
    (what,) = (what for what in said(result, "ok") if str(program) in what)
    assert " is release " in what
    assert any("where its models lie is not known" in what for what in said(result, "note"))


def test_vllm(tmp_path: Path) -> None:
    """Breaks if the real vLLM does not tell its release without being imported."""
    programs = require_engine("vllm").parent
    around = Surroundings({"PATH": str(programs), "OLLAMA_HOST": "127.0.0.1:1"}, tmp_path, tmp_path)
    result = doctor(Vault.prospective(tmp_path / "vault"), (), around)
    assert f"{programs / 'vllm'} is release 0.32.0" in said(result, "ok")
    assert [(line.engine, line.version, line.exists) for line in result.engines] == [("vllm", "0.32.0", False)]
