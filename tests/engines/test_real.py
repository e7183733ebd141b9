"""The real engines, on what the adapters wrote."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from engine_cases import Blobs
from make_models import SENTENCE, make_gguf, make_split_gguf
from real_engines import llama_generate, ollama_server

from modelvault.artifact import StoredModel, Traits
from modelvault.engines import InstallRecord, InstallRequest, Target, engines

pytestmark = pytest.mark.engine
MODELFILE = (
    'TEMPLATE """{{ if .System }}<s>{{ .System }}{{ end }}{{ .Prompt }}"""\n'
    "PARAMETER temperature 0.7\nPARAMETER stop <|end|>\nPARAMETER num_ctx 256\nPARAMETER use_mmap true\n"
    'PARAMETER top_p 1\nPARAMETER seed -1\nPARAMETER stop "a & b"\n'
    'SYSTEM Answer briefly.\nLICENSE """Free\n\tfor all."""\nLICENSE Or not\nMESSAGE user Hi > you\nMESSAGE assistant Hello\n'
)


@pytest.fixture
def tiny(blobs: Blobs, tmp_path: Path) -> tuple[StoredModel, Path]:
    """A GGUF model that llama.cpp and Ollama load, with the traits that its header has."""
    path = tmp_path / "tiny-Q8_0.gguf"
    make_gguf(path)
    parameters = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(path).tensors)
    traits = Traits("gguf", "llama", "Q8_0", parameters)
    return blobs.model("org/tiny:Q8_0", {path.name: path.read_bytes()}, traits=traits), path


def install(blobs: Blobs, stored: StoredModel, target: Target, **options: Any) -> InstallRecord:
    return engines()[target.engine].install(InstallRequest(stored, blobs.path, target, **options))


def test_ollama_serves_what_was_installed(blobs: Blobs, tiny: tuple[StoredModel, Path], tmp_path: Path) -> None:
    """List, show and generate: the proof that the store is what Ollama takes for one."""
    record = install(blobs, tiny[0], Target("ollama", tmp_path / "models"), modelfile=MODELFILE)
    with ollama_server(tmp_path / "models") as server:
        listed = server.run("list")
        assert "tiny:q8_0" in listed
        assert record.files[-1].digest.removeprefix("sha256:")[:12] in listed
        shown = server.run("show", "tiny:q8_0")
        assert "Q8_0" in shown
        assert "Answer briefly." in shown
        assert SENTENCE.startswith(server.generate("tiny:q8_0", "hello"))
        assert server.run("show", "--modelfile", "tiny:q8_0")
        # A model installed beside a running server needs no restart.
        install(blobs, tiny[0], Target("ollama", tmp_path / "models"), name="second")
        assert SENTENCE.startswith(server.generate("second", "world", tokens=3))


def test_ollama_create_writes_the_same(blobs: Blobs, tiny: tuple[StoredModel, Path], tmp_path: Path) -> None:
    """Layers byte for byte, config up to the ``rootfs`` that newer releases dropped: ``show``, ``cp`` and ``push`` rely on them."""
    models = tmp_path / "models"
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(f"FROM {tiny[1]}\n{MODELFILE}")
    with ollama_server(models) as server:
        server.run("create", "real", "-f", str(modelfile))
        record = install(blobs, tiny[0], Target("ollama", models), name="ours", modelfile=MODELFILE)
        real = json.loads((models / "manifests/registry.ollama.ai/library/real/latest").read_bytes())
        ours = json.loads((models / record.files[-1].path).read_bytes())
        kept = ("mediaType", "digest", "size")
        assert [[layer[key] for key in kept] for layer in ours["layers"]] == [
            [layer[key] for key in kept] for layer in real["layers"]
        ]
        assert list(ours) == list(real)
        configs = [
            (models / "blobs" / found["config"]["digest"].replace(":", "-")).read_bytes() for found in (ours, real)
        ]
        head, rootfs, _ = configs[1].partition(b',"rootfs":')
        assert rootfs
        assert configs[0] == head + b"}\n"
        again = tmp_path / "Modelfile.record"
        again.write_text(record.modelfile or "")
        server.run("create", "again", "-f", str(again))
        repeated = json.loads((models / "manifests/registry.ollama.ai/library/again/latest").read_bytes())
        assert [layer["digest"] for layer in repeated["layers"]] == [layer["digest"] for layer in real["layers"]]


def test_llama_cpp_loads_from_the_folder(blobs: Blobs, tiny: tuple[StoredModel, Path], tmp_path: Path) -> None:
    """The folder adapter's promise: any engine that takes a path."""
    record = install(blobs, tiny[0], Target("folder", tmp_path / "models"))
    assert SENTENCE.startswith(llama_generate(tmp_path / "models" / record.files[0].path, "hello"))


@pytest.mark.parametrize("shards", [1, 3])
def test_llama_cpp_loads_from_its_models_directory(blobs: Blobs, tmp_path: Path, shards: int) -> None:
    """The file that ``--models-dir`` would choose loads, and finds its shards, wherever they lay in the repository."""
    source = tmp_path / "source"
    source.mkdir()
    if shards == 1:
        make_gguf(source / "tiny-Q8_0.gguf")
    else:
        make_split_gguf(source, shards=shards)
    content = {f"Q8_0/{path.name}": path.read_bytes() for path in source.glob("*.gguf")}
    assert len(content) == shards
    stored = blobs.model("org/tiny:Q8_0", content, traits=Traits("gguf", "llama", "Q8_0"))
    models = tmp_path / "models"
    record = install(blobs, stored, Target("llamacpp", models))
    assert {path.parent for path in models.rglob("*.gguf")} == {models / record.installed_name}
    chosen = min((models / record.installed_name).glob("*.gguf"))
    assert SENTENCE.startswith(llama_generate(chosen, "hello"))
