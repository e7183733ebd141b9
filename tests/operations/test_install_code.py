"""A model whose code lies in another repository: pulled, bundled, imported and installed as users would."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_hub import FaultyHub
from machines import Machine, only_bundle, trust
from make_models import make_awq

CODE = {"configuration_tiny.py": "from transformers import LlamaConfig\n", "more.py": ""}


@pytest.fixture
def repositories(tmp_path: Path) -> dict[str, Path]:
    """``org/tiny`` names code in ``org/other``."""
    tiny, other = tmp_path / "tiny", tmp_path / "other"
    make_awq(tiny)
    config = json.loads((tiny / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "org/other--configuration_tiny.TinyConfig"}
    (tiny / "config.json").write_text(json.dumps(config))
    make_awq(other)
    for name, text in CODE.items():
        (other / name).write_text(text)
    return {"org/tiny": tiny, "org/other": other}


@pytest.fixture
def pc(machine: Callable[..., Machine], repositories: dict[str, Path]) -> Machine:
    """The connected side, with the model and the code, as the warning of the first pull says."""
    with FaultyHub(repositories) as hub:
        connected = machine("pc", hub.url)
        (warning,) = connected.json("pull", "org/tiny").document["warnings"]
        command = warning.partition("`")[2].rstrip("`")
        assert command == "modelvault pull org/other --include '*.py'"
        connected.run("pull", "org/other", "--include", "*.py")
    (code,) = (model for model in connected.json("list").result["models"] if model["name"] == "org/other")
    assert (code["format"], code["files"]) == ("code", 2)
    return connected


def snapshot(cache: Path, repository: str) -> set[str]:
    (folder,) = (cache / f"models--{repository.replace('/', '--')}/snapshots").iterdir()
    return {path.name for path in folder.iterdir()}


def test_the_code_is_brought_along(pc: Machine, tmp_path: Path) -> None:
    """Breaks if the install does not load offline, or if its parts cannot be verified and removed one by one."""
    cache = tmp_path / "cache"
    target = ("--engine", f"vllm={cache}")
    planned = pc.json("install", "org/tiny", *target, "--dry-run").result["installs"]
    done = pc.json("install", "org/tiny", *target).result["installs"]
    for steps in (planned, done):
        assert [step["installed_name"] for step in steps] == ["org/other", "org/tiny"]
    assert "--trust-remote-code" in done[1]["next_steps"][0]
    assert snapshot(cache, "org/other") == CODE.keys()
    pc.run("verify", "--installs")
    assert [step["already"] for step in pc.json("install", "org/tiny", *target).result["installs"]] == [True]
    pc.run("uninstall", "org/other", *target)
    failed = pc.json("verify", "--installs", code=12).document["error"]
    assert "needs the code of org/other" in failed["message"]
    pc.run("install", "org/tiny", *target)
    pc.run("verify", "--installs")


def test_code_that_is_nowhere(pc: Machine, tmp_path: Path) -> None:
    """Breaks if an install that cannot load passes for done, or if the way out is not said."""
    pc.run("rm", "org/other")
    for dry in ((), ("--dry-run",)):
        error = pc.json("install", "org/tiny", "--engine", f"vllm={tmp_path / 'cache'}", *dry, code=16).document[
            "error"
        ]
        assert "org/other (configuration_tiny.py), which is neither in the vault" in error["message"]
        assert "modelvault pull org/other --include '*.py'" in error["hint"]
    assert not (tmp_path / "cache").exists()
    assert "org/other" in pc.run("install", "org/tiny", "--engine", f"folder={tmp_path / 'plain'}").err


def test_of_a_whole_model_only_the_code_is_taken(pc: Machine, repositories: dict[str, Path], tmp_path: Path) -> None:
    """Breaks if the weights of the other model are dragged along; but what was installed whole stays recorded whole."""
    pc.run("rm", "org/other")
    pc.run("add", repositories["org/other"], "--name", "org/other")
    cache = tmp_path / "cache"
    target = ("--engine", f"vllm={cache}")
    pc.run("install", "org/tiny", *target)
    assert snapshot(cache, "org/other") == CODE.keys()
    pc.run("install", "org/other", *target)
    whole = {path.name for path in repositories["org/other"].iterdir()}
    assert snapshot(cache, "org/other") == whole
    shutil.rmtree(cache / "models--org--other/snapshots")
    pc.run("install", "org/tiny", *target)
    assert snapshot(cache, "org/other") == whole
    pc.run("verify", "--installs")


def test_import_installs_both(pc: Machine, machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if a bundle with model and code needs more than one command, in whichever order they lie in it."""
    drive, server = tmp_path / "drive", machine("server")
    drive.mkdir()
    pc.run("bundle", "--to", drive)
    bundle = only_bundle(drive)
    trust(server, pc, bundle)
    options = ("import", bundle, "--engine", f"vllm={tmp_path / 'cache'}")
    planned = server.json(*options, "--dry-run").result["imports"][0]["models"]
    assert {model["name"]: model["outcome"] for model in planned} == dict.fromkeys(
        ("org/other", "org/tiny"), "would be installed"
    )
    imported = server.json(*options).result["imports"][0]
    assert {model["outcome"] for model in imported["models"]} == {"installed"}
    assert snapshot(tmp_path / "cache", "org/other") == CODE.keys()
    server.run("verify", "--installs")
    # Again, with everything here: the plan knows now what the model needs.
    again = server.json(*options, "--dry-run").result["imports"][0]["models"]
    assert {model["outcome"] for model in again} == {"installed already"}


def test_a_bundle_without_the_code(pc: Machine, machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if it is found out only on the other side of the gap; there, the model is received, and the rest goes on."""
    drive, server = tmp_path / "drive", machine("server")
    drive.mkdir()
    for dry in (("--dry-run",), ()):
        warnings = pc.json("bundle", "org/tiny", "--to", drive, *dry).document["warnings"]
        assert "org/tiny needs code of org/other" in warnings[-1]
    bundle = only_bundle(drive)
    trust(server, pc, bundle)
    refused = server.json("import", bundle, "--engine", f"vllm={tmp_path / 'cache'}", code=16).document
    assert "code from another repository is needed" in refused["error"]["message"]
    assert server.models() == {"org/tiny"}
