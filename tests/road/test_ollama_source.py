"""From one real Ollama to another, by way of a drive: what arrives is what was there, byte for byte."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from machines import Machine, only_bundle, trust
from make_models import SENTENCE, make_gguf
from ollama_registry import OllamaRegistry
from ollama_stores import snapshot_of
from real_engines import OllamaServer, ollama_server
from tiny_parts import STUCK, make_adapter, make_projector

from modelvault.formats.modelfile import parse

pytestmark = pytest.mark.engine

TEXTS = (
    'TEMPLATE """{{ if .System }}<|system|>{{ .System }}<|end|>\n{{ end }}<|user|>{{ .Prompt }}<|end|>\n"""\n'
    "SYSTEM Answer <briefly> & well.\nPARAMETER temperature 0.7\nPARAMETER num_ctx 256\nPARAMETER stop <|end|>\nPARAMETER stop b\n"
    "MESSAGE user Hi\nMESSAGE assistant Hello\nLICENSE Free\nLICENSE Or not\n"
)
MODELFILES = {
    "plain:q8_0": "FROM ./tiny-Q8_0.gguf\n",
    "texts:latest": f"FROM ./tiny-Q8_0.gguf\n{TEXTS}",
    "me/seeing:q8_0": f"FROM ./tiny-Q8_0.gguf\nFROM ./mmproj.gguf\n{TEXTS}",
    "tuned:q8_0": "FROM ./tiny-Q8_0.gguf\nADAPTER ./adapter.gguf\nTEMPLATE {{ .Prompt }}\n",
}


@dataclass(frozen=True)
class Made:
    """A store that the real Ollama wrote, and what ``ollama list`` said of it."""

    models: Path
    listed: dict[str, str]


def listed(server: OllamaServer) -> dict[str, str]:
    """The names and digests that a server lists."""
    return {model["name"]: model["digest"] for model in server.api("/api/tags")["models"]}


@pytest.fixture(scope="module")
def made() -> Iterator[Made]:
    """Have the real Ollama make models with everything that a Modelfile can say, and a copy of one under the name of a registry."""
    with tempfile.TemporaryDirectory(prefix="modelvault-ollama-") as name:
        root = Path(name)
        make_gguf(root / "tiny-Q8_0.gguf")
        make_projector(root / "mmproj.gguf")
        make_adapter(root / "adapter.gguf")
        with ollama_server(root / "models") as server:
            for number, (model, text) in enumerate(MODELFILES.items()):
                (root / f"Modelfile-{number}").write_text(text)
                server.run("create", model, "-f", str(root / f"Modelfile-{number}"))
            server.run("cp", "texts", "hub.local:5000/org/other:1")
            names = listed(server)
        yield Made(root / "models", names)


def adopt_all(machine: Machine, made: Made, store: Path) -> None:
    for name in made.listed:
        machine.run("add", "--from-ollama", name, "--store", store)


def test_from_store_to_store(made: Made, tmp_path: Path) -> None:
    """Breaks if a manifest or blob differs after the trip: Ollama would list another model under the same name."""
    store = tmp_path / "store"
    shutil.copytree(made.models, store)
    before = snapshot_of(store)
    pc, server, drive = Machine(tmp_path / "pc"), Machine(tmp_path / "server"), tmp_path / "drive"
    for path in (pc.root, server.root, drive):
        path.mkdir()
    adopt_all(pc, made, store)
    assert snapshot_of(store) == before
    assert pc.models() == {f"ollama:{name}" for name in made.listed}
    linked = [path for path in (store / "blobs").iterdir() if path.stat().st_nlink > 1]
    assert {path.read_bytes()[:4] for path in linked} == {b"GGUF"}
    assert {path.stat().st_mode & 0o777 for path in linked} == {0o444}

    pc.run("bundle", "--to", drive)
    trust(server, pc, only_bundle(drive))
    arrived = server.root / "ollama"
    server.run("import", drive, "--engine", f"ollama={arrived}")
    assert snapshot_of(arrived) == before
    again = server.json("import", drive, "--engine", f"ollama={arrived}").result["imports"][0]["models"]
    assert {model["outcome"] for model in again} == {"installed already"}

    with ollama_server(arrived) as ollama:
        assert listed(ollama) == made.listed
        assert SENTENCE.startswith(ollama.generate("plain:q8_0", "hello"))
        assert ollama.generate("tuned:q8_0", "hello", tokens=3) == f" {STUCK}" * 3
        ollama.run("rm", "plain:q8_0")
    server.run("verify")


def test_the_modelfile_says_what_ollama_was_told(made: Made, tmp_path: Path) -> None:
    """Breaks if the Modelfile that `show` prints, and that a server behind an address is given, is not the one that was typed."""
    machine = Machine(tmp_path)
    machine.run("add", "--from-ollama", "texts", "--store", made.models)
    shown = parse(machine.json("show", "ollama:texts").result["modelfile"])
    typed = parse(TEXTS)
    assert (shown.parameters, shown.messages) == (typed.parameters, typed.messages)
    for keyword in ("TEMPLATE", "SYSTEM", "LICENSE"):
        assert shown.all(keyword) == typed.all(keyword)


@pytest.mark.parametrize("tokens", [False, True], ids=["open", "tokens"])
@pytest.mark.parametrize("bytes_at", ["storage", "location"])
def test_ollama_pulls_from_the_registry_of_the_tests(made: Made, tmp_path: Path, tokens: bool, bytes_at: str) -> None:
    """Breaks if that registry is not like a real one: then what `pull` can do with it means nothing."""
    with OllamaRegistry(made.models) as registry, ollama_server(tmp_path / "pulled") as ollama:
        registry.faults.tokens, registry.faults.bytes_at = tokens, bytes_at
        for name in ("texts:latest", "tuned:q8_0"):
            ollama.run("pull", "--insecure", f"{registry.host}/library/{name}")
        pulled = listed(ollama)
        assert set(pulled.values()) == {made.listed["texts:latest"], made.listed["tuned:q8_0"]}
        assert ollama.generate(f"{registry.host}/library/tuned:q8_0", "hello", tokens=3) == f" {STUCK}" * 3
        assert bool(registry.signers) is tokens


def test_pulled_and_adopted_are_one_model(made: Made, tmp_path: Path) -> None:
    """Breaks if the same model from the registry and from the store has two identities, and is carried twice."""
    machine = Machine(tmp_path)
    with OllamaRegistry(made.models) as registry:
        machine.run("pull", "ollama:me/seeing:q8_0", "--endpoint", registry.url)
    pulled = machine.json("show", "ollama:me/seeing:q8_0").result["model"]
    assert pulled["commit"] == made.listed["me/seeing:q8_0"]
    adopted = machine.json("add", "--from-ollama", "me/seeing:q8_0", "--store", made.models).result
    assert adopted["unchanged"] is True
    assert adopted["model"]["manifest"] == pulled["manifest"]
    files = [file["path"] for file in machine.json("show", "ollama:me/seeing:q8_0").result["files"]]
    assert {"model.gguf", "mmproj.gguf", "LICENSE", "LICENSE-2", "ollama/template"} <= set(files)


def test_an_adopted_model_runs_behind_an_address(made: Made, tmp_path: Path) -> None:
    """Breaks if a model from Ollama cannot be given to a server whose directory is out of reach."""
    machine = Machine(tmp_path)
    machine.run("add", "--from-ollama", "tuned:q8_0", "--store", made.models)
    with ollama_server(tmp_path / "elsewhere") as ollama:
        machine.run("install", "ollama:tuned:q8_0", "--engine", f"ollama=http://127.0.0.1:{ollama.port}")
        assert ollama.generate("tuned:q8_0", "hello", tokens=3) == f" {STUCK}" * 3
        manifest = tmp_path / "elsewhere/manifests/registry.ollama.ai/library/tuned/q8_0"
        original = made.models / "manifests/registry.ollama.ai/library/tuned/q8_0"
        assert {layer["digest"] for layer in json.loads(manifest.read_bytes())["layers"]} == {
            layer["digest"] for layer in json.loads(original.read_bytes())["layers"]
        }
