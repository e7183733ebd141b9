"""``modelvault catalog``: what it lists, finds and shows; the catalogs of a site and of a user."""

from collections.abc import Callable
from pathlib import Path

from faulty_hub import FaultyHub
from machines import Machine
from refusals import failed
from terminals import on_terminal

ENTRY = """
name = "{name}"
title = "Our model"
parameters = "1.0M"
context = 512
languages = ["ko"]
license = "mit"
gated = false
verified = true

[gguf]
repository = "{repository}"
quant = "Q8_0"

[ollama]
family = "chatml"
"""


def own(pc: Machine, name: str, repository: str = "ours/m-GGUF", folder: Path | None = None) -> Path:
    """Write an entry into the user's own catalog, or another folder."""
    folder = folder or pc.root / "home" / ".config" / "modelvault" / "catalog"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.toml"
    file.write_text(ENTRY.format(name=name, repository=repository))
    return file


def test_the_list_fits(machine: Callable[..., Machine]) -> None:
    """Breaks if an ordinary terminal folds the catalog, or a repository's name: people copy it from there."""
    pc = machine("pc")
    shown = on_terminal(pc, "catalog", code=0)
    assert max(len(line) for line in shown.splitlines() if "gated" not in line) <= 80
    (row,) = (line.split() for line in shown.splitlines() if line.startswith("qwen2.5-7b "))
    assert row == ["qwen2.5-7b", "7.6B", "32K", "apache-2.0", "gguf", "awq", "gptq"]
    for name in ("llama-3.1-405b-awq", "deepseek-coder-v2-lite-fp8", "mistral-large-2"):
        entry = on_terminal(pc, "catalog", "show", name, code=0)
        result = pc.json("catalog", "show", name).result
        for line in (result["entry"], *result["others"]):
            assert line["repository"] in entry


def test_searching(machine: Callable[..., Machine]) -> None:
    """Breaks if the words are not taken together, or nothing found ends in an empty screen."""
    pc = machine("pc")
    names = [line.split()[0] for line in pc.run("catalog", "search", "korean", "24GiB", "gguf").out.splitlines()]
    assert names[0] == "name"
    assert {"qwen2.5-7b", "phi-3.5-mini"} <= set(names)
    assert "qwen2.5-72b" not in names
    assert "nothing in the catalog fits" in pc.run("catalog", "search", "korean", "1kB").out
    assert pc.json("catalog", "search", "klingon").result["entries"] == []
    assert "sizes are larger" in failed(pc, "catalog", "search", "0GiB", code=2)["hint"]


def test_a_name_that_is_not_there(machine: Callable[..., Machine]) -> None:
    """Breaks if a typing mistake gets no suggestion."""
    error = failed(machine("pc"), "catalog", "show", "qwen2.5-7b-agw", code=2)
    assert error["hint"].startswith("did you mean qwen2.5-7b-awq")
    assert error["data"]["suggestions"][0] == "qwen2.5-7b-awq"


def test_own_entries_win(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if a site or a user cannot say where a name leads, or it happens without a word."""
    shared = tmp_path / "shared"
    with FaultyHub({"user/m-GGUF": tiny_gguf, "site/m-GGUF": tiny_gguf}) as hub:
        pc = machine("pc", hub.url, MODELVAULT_CATALOG=str(shared))
        site = own(pc, "site-model", "site/m-GGUF", shared)
        own(pc, "qwen2.5-7b", "site/m-GGUF", shared)
        user = own(pc, "qwen2.5-7b", "user/m-GGUF")
        listed = {entry["name"]: entry for entry in pc.json("catalog").result["entries"]}
        assert (listed["site-model"]["repository"], listed["site-model"]["file"]) == ("site/m-GGUF", str(site))
        assert listed["qwen2.5-7b"]["repository"] == "user/m-GGUF"
        assert listed["qwen2.5-7b-awq"]["repository"] == "Qwen/Qwen2.5-7B-Instruct-AWQ"
        note = f"qwen2.5-7b: the entry of {user} replaces that of {shared / 'qwen2.5-7b.toml'}"
        assert note in pc.json("catalog", "show", "qwen2.5-7b").document["warnings"]
        pulled = pc.json("pull", "qwen2.5-7b")
        assert note in pulled.document["warnings"]
        assert pulled.result["plan"]["repository"] == "user/m-GGUF"
        assert not any("not checked online" in warning for warning in pulled.document["warnings"])
        assert pc.json("pull", "site-model").document["warnings"] == []
    assert "site-model" in pc.run("catalog", "search", "ko", "our").out


def test_a_broken_file_of_the_user(machine: Callable[..., Machine]) -> None:
    """Breaks if one typing mistake hides the catalog, or what is wrong cannot be found."""
    pc = machine("pc")
    file = own(pc, "qwen2.5-7b")
    file.write_text(file.read_text().replace("context", "contxt"))
    listed = pc.json("catalog")
    assert len(listed.result["entries"]) > 90
    (warning,) = listed.document["warnings"]
    assert str(file) in warning
    assert "contxt" in warning
    assert "warning: not read: " in pc.run("catalog").err
    for name in ("qwen2.5-7b", "qwen2.5-7b-awq"):
        error = failed(pc, "pull", name, code=2)
        assert str(file) in error["message"]
        assert "contxt" in error["message"]
    pc.run("catalog", "show", "llama-3.1-8b")
    assert "not read: qwen2.5-7b" in failed(pc, "pull", "nothing", code=2)["hint"]


def test_a_shared_catalog_that_is_not_there(machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if names silently mean something else while a drive is not mounted."""
    pc = machine("pc", MODELVAULT_CATALOG=str(tmp_path / "absent"))
    error = failed(pc, "catalog", code=2)
    assert str(tmp_path / "absent") in error["message"]
    assert "MODELVAULT_CATALOG" in error["hint"]
    failed(pc, "pull", "llama-3.1-8b", code=2)
