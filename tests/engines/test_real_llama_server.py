"""The real ``llama-server`` in the mode in which it offers many models, on what the adapter wrote: started as the recipe says."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from engine_cases import Blobs
from make_models import SENTENCE, make_gguf, make_split_gguf
from real_engines import llama_server
from tiny_parts import make_projector

from modelvault.artifact import Traits
from modelvault.engines import InstallRecord, InstallRequest, Target, engines

pytestmark = pytest.mark.engine


@pytest.fixture
def contents(tmp_path: Path) -> dict[str, dict[str, bytes]]:
    """Three models: in one file, in shards below a folder, and with a projector whose name is spelled in capitals."""
    make_gguf(tmp_path / "tiny-Q8_0.gguf")
    single = (tmp_path / "tiny-Q8_0.gguf").read_bytes()
    make_split_gguf(tmp_path / "split", shards=3)
    make_projector(tmp_path / "mmproj-tiny.gguf")
    return {
        "org/single": {"tiny-Q8_0.gguf": single, "README.md": b"# tiny\n", "config.json": b"{}"},
        "org/split:Q8_0": {f"Q8_0/{path.name}": path.read_bytes() for path in (tmp_path / "split").iterdir()},
        "seeing": {"TINY.GGUF": single, "MMPROJ-F16.gguf": (tmp_path / "mmproj-tiny.gguf").read_bytes()},
    }


def install(blobs: Blobs, name: str, content: Mapping[str, bytes], directory: Path) -> InstallRecord:
    stored = blobs.model(name, content, traits=Traits("gguf", "llama", "Q8_0"))
    return engines()["llamacpp"].install(InstallRequest(stored, blobs.path, Target("llamacpp", directory)))


def test_every_model_is_offered_and_answers(
    blobs: Blobs, contents: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    """Shards that are offered as models, a projector that is taken for one, a model that is not seen: each would show here."""
    models = tmp_path / "models"
    records = {name: install(blobs, name, content, models) for name, content in contents.items()}
    names = {name: record.installed_name for name, record in records.items()}
    line, _ = engines()["llamacpp"].recipe(records["seeing"])
    with llama_server(line) as server:
        offered = server.models()
        assert set(offered) == set(names.values())
        seeing = {name for name, model in offered.items() if "image" in model["architecture"]["input_modalities"]}
        assert seeing == {names["seeing"]}
        for name in ("org/single", "org/split:Q8_0"):
            assert SENTENCE.startswith(server.complete(names[name], "hello"))
        engines()["llamacpp"].uninstall(records["org/single"])
        assert set(server.models()) == set(names.values()) - {names["org/single"]}
    for name in ("org/split:Q8_0", "seeing"):
        assert engines()["llamacpp"].verify(records[name]) == []


def test_a_preset_is_what_the_server_reads(blobs: Blobs, contents: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    """The second line of the recipe is for those who want settings of a model's own."""
    record = install(blobs, "org/split:Q8_0", contents["org/split:Q8_0"], tmp_path / "models")
    _, line = engines()["llamacpp"].recipe(record)
    with llama_server(line) as server:
        assert record.installed_name in server.models()
        assert SENTENCE.startswith(server.complete(record.installed_name, "hello"))
