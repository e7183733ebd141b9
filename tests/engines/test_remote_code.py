"""Models that name Python code: what the engine is told, and what has to lie in the cache with them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_cases import COMMIT, HUBS, Blobs, Case

from modelvault.artifact import Origin, Recipe, StoredModel, Traits
from modelvault.engines import InstallRecord
from modelvault.errors import EngineRefused

CODE = {"modeling_x.py": b"from .more import X\n", "more.py": b"X = 1\n"}


@pytest.fixture(params=HUBS)
def hub(request: pytest.FixtureRequest, blobs: Blobs, tmp_path: Path) -> Case:
    return Case(request.param, blobs, tmp_path / "cache")


def model(
    case: Case, prefix: str = "", code: Mapping[str, bytes] = CODE, *, name: str = "org/tiny", **changes: Any
) -> StoredModel:
    """A model whose config.json names ``modeling_x.py``, of the repository that the prefix says."""
    config = {"architectures": ["X"], "auto_map": {"AutoModel": f"{prefix}modeling_x.Model"}}
    content = {"config.json": json.dumps(config).encode(), "model.safetensors": b"x", "tokenizer.json": b"{}"}
    return case.blobs.model(name, content | dict(code), **({"origin": Origin("hub", name, COMMIT)} | changes))


def install(case: Case, stored: StoredModel, **options: Any) -> InstallRecord:
    return case.engine.install(case.request(stored, **options))


def test_code_of_its_own_comes_along(hub: Case) -> None:
    """The engine has to be allowed to run it, and has to have somewhere to copy it to; the user has to know."""
    recipe = Recipe(vllm_arguments=("--trust-remote-code",))
    for stored in (model(hub), model(hub, recipe=recipe), model(hub, "org/self--", name="org/self")):
        record = install(hub, stored)
        assert hub.engine.needs(hub.request(stored)) == {}
        assert record.arguments == ("--trust-remote-code",)
        (line,) = hub.engine.recipe(record)
        assert line.count("--trust-remote-code") == 1
        assert "HF_MODULES_CACHE=" in line
        (warning,) = hub.engine.plan(hub.request(stored)).warnings
        assert "(modeling_x.py)" in warning
        assert {Path(file.path).name for file in record.files} >= CODE.keys()
        assert hub.engine.verify(record) == []


def test_code_that_is_not_there(hub: Case) -> None:
    """A copy of a repository without its code: engines that know the model load it, and would fail if told to run the code."""
    record = install(hub, model(hub, code={}))
    assert "--trust-remote-code" not in record.arguments
    (warning,) = hub.engine.plan(hub.request(model(hub, code={}))).warnings
    assert "not there (modeling_x.py)" in warning


def test_code_of_another_repository(hub: Case) -> None:
    """Offline, transformers looks for it under the other's name in the same cache, and for nothing else."""
    stored = model(hub, "org/other--", code={})
    assert hub.engine.needs(hub.request(stored)) == {"org/other": ("modeling_x.py",)}
    record = install(hub, stored)
    assert record.arguments == ("--trust-remote-code",)
    (problem,) = hub.engine.verify(record)
    assert "code of org/other (modeling_x.py)" in problem
    code = hub.blobs.model("org/other", CODE, origin=Origin("hub", "org/other", COMMIT), traits=Traits("code"))
    brought = install(hub, code)
    assert hub.engine.recipe(brought) == []
    assert hub.engine.verify(brought) == hub.engine.verify(record) == []
    assert hub.engine.needs(hub.request(stored)) == {}
    hub.engine.uninstall(brought)
    assert hub.engine.verify(record) == [problem]


def test_under_another_name_it_is_another_repository(vllm: Case) -> None:
    """Whoever renames a repository that names itself has to bring the old name, too."""
    stored = model(vllm, "org/tiny--")
    assert vllm.engine.needs(vllm.request(stored, name="mine/own")) == {"org/tiny": ("modeling_x.py",)}


def test_half_of_the_code_is_not_enough(vllm: Case) -> None:
    """What is in the cache has to have the very file, at a commit that can be read."""
    stored = model(vllm, "org/other--", code={})
    install(vllm, vllm.blobs.model("org/other", {"more.py": b""}, origin=Origin("hub", "org/other", COMMIT)))
    assert "org/other" in vllm.engine.needs(vllm.request(stored))
    (vllm.directory / "models--org--other/refs/main").write_text("../../..")
    assert "org/other" in vllm.engine.needs(vllm.request(stored))


def test_a_map_that_cannot_be_read(vllm: Case) -> None:
    """No engine could load it either."""
    broken = {"tokenizer_config.json": b'{"auto_map": '}
    with pytest.raises(EngineRefused, match=r"tokenizer_config\.json cannot be read"):
        install(vllm, model(vllm, code=broken))
    record = install(vllm, model(vllm))
    (vllm.directory / f"models--org--tiny/snapshots/{COMMIT}/config.json").write_text('{"auto_map": ')
    assert any("cannot be read" in problem for problem in vllm.engine.verify(record))


def test_an_import_is_planned_before_the_code_is_here(vllm: Case) -> None:
    """The dry run of an import knows no content of files that are still on the drive."""
    stored = model(vllm, "org/other--", code={})
    for file in stored.model.files:
        vllm.blobs.path(file.digest).unlink()
    assert vllm.engine.needs(vllm.request(stored)) == {}


def test_a_plain_directory(folder: Case) -> None:
    """vLLM serves it by path, with the recipe's flags; for another repository's code it still goes to the hub's cache."""
    recipe = Recipe(vllm_arguments=("--max-model-len", "64"))
    stored = model(folder, recipe=recipe)
    (line,) = folder.engine.recipe(install(folder, stored))
    command = (
        f"vllm serve {folder.directory}/org--tiny --served-model-name org/tiny --max-model-len 64 --trust-remote-code"
    )
    assert line.endswith(command)
    assert line.startswith("HF_HUB_OFFLINE=1 ")
    assert "HF_MODULES_CACHE=" in line
    first, second = folder.engine.plan(folder.request(model(folder, "org/other--", code={}), name="b")).warnings
    assert "modeling_x.py of org/other" in first
    assert "install org/other with --engine vllm" in second
    assert folder.engine.recipe(install(folder, folder.blobs.model("org/other", CODE))) == []
