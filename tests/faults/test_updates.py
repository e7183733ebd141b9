"""Newer versions: what ``outdated`` says, what ``pull --update`` brings, and several versions side by side."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_hub import FaultyHub, Refusals
from machines import Machine
from make_models import make_gguf, make_sharded_safetensors
from refusals import failed, succeeded

NAME, QUANTS = "org/sharded", "org/quants"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    first, quants = tmp_path / "first", tmp_path / "quants"
    first.mkdir()
    quants.mkdir()
    make_sharded_safetensors(first)
    make_gguf(quants / "m-Q8_0.gguf")
    make_gguf(quants / "m-Q4_K_M.gguf", seed=1)
    (quants / "notes.txt").write_text("first")
    with FaultyHub({NAME: first, QUANTS: quants, f"{NAME}-instruct": first}) as hub:
        yield hub


@pytest.fixture
def pc(hub: FaultyHub, machine: Callable[..., Machine]) -> Machine:
    return machine("pc", endpoint=hub.url)


def republish(hub: FaultyHub, tmp_path: Path, path: str) -> str:
    """Publish a second version of the sharded model, in which one file is another; give the first commit."""
    second = tmp_path / "second"
    shutil.copytree(tmp_path / "first", second)
    (second / path).write_text((second / path).read_text() + "\n")
    return hub.publish(NAME, second)


def states(machine: Machine, *names: str) -> dict[str, str]:
    return {line["model"]: line["state"] for line in succeeded(machine, "outdated", *names)["models"]}


def test_an_update_brings_what_changed(pc: Machine, hub: FaultyHub, tmp_path: Path) -> None:
    """Breaks if an update is not noticed, brings what was here, or leaves the old version under the name."""
    succeeded(pc, "pull", NAME)
    assert states(pc) == {NAME: "up to date"}
    before = republish(hub, tmp_path, "tokenizer.json")
    (line,) = succeeded(pc, "outdated")["models"]
    assert (line["state"], line["changed"], line["commit"], line["newest"]) == (
        "outdated",
        ["tokenizer.json"],
        before,
        hub.commit(NAME),
    )
    assert "pull --update" in pc.run("outdated").out
    (planned,) = succeeded(pc, "pull", "--update", "--dry-run")["models"]
    assert (planned["outcome"], planned["to_download"]) == ("would pull", line["to_download"])
    assert states(pc) == {NAME: "outdated"}
    hub.forget()
    (model,) = succeeded(pc, "pull", "--update")["models"]
    assert (model["outcome"], model["before"], model["commit"]) == ("pulled", before, hub.commit(NAME))
    assert sum(hub.bytes_sent(path) for path in hub.repositories[NAME].files) == line["to_download"]
    assert states(pc) == {NAME: "up to date"}
    assert {model["outcome"] for model in succeeded(pc, "pull", "--update")["models"]} == {"up to date"}


def test_only_the_first_hub_tells_of_updates(hub: FaultyHub, machine: Callable[..., Machine]) -> None:
    """Breaks if nobody says why the second hub, which works, is not asked; that one may be behind."""
    pc = machine("pc", endpoint=hub.url)
    succeeded(pc, "pull", NAME)
    dead_first = machine("pc", MODELVAULT_ENDPOINT=f"http://127.0.0.1:1,{hub.url}")
    error = failed(dead_first, "outdated", code=10)
    assert "first endpoint alone: --endpoint names another" in error["hint"]
    assert succeeded(dead_first, "outdated", "--endpoint", hub.url)["models"][0]["state"] == "up to date"


def test_versions_side_by_side(pc: Machine, hub: FaultyHub, tmp_path: Path) -> None:
    """Breaks if a second version takes the name of the first, if its shared files are kept twice, or if an update moves it unasked."""
    kept, frozen = "org/sharded-mine", "org/sharded-old"
    assert succeeded(pc, "pull", NAME, "--as", kept)["model"]["name"] == kept
    before = republish(hub, tmp_path, "config.json")
    succeeded(pc, "pull", NAME, "--revision", before, "--as", frozen)
    result = succeeded(pc, "pull", NAME)
    assert result["received"] < result["model"]["size"] / 10
    assert states(pc) == {NAME: "up to date", kept: "outdated", frozen: "no source"}
    assert f"pull --update {kept}" in pc.run("outdated").out
    succeeded(pc, "pull", "--update")
    assert states(pc, kept) == {kept: "outdated"}
    succeeded(pc, "pull", "--update", kept)
    assert states(pc, kept) == {kept: "up to date"}
    (line,) = succeeded(pc, "pull", "--update", frozen)["models"]
    assert (line["outcome"], line["reason"]) == ("no source", f"it was pulled at the commit {before[:12]}")
    assert pc.models() == {NAME, kept, frozen}
    for other in ((QUANTS, "--quant", "Q8_0"), (f"{NAME}-instruct",)):  # of two names, one may begin with the other
        assert "another model already" in failed(pc, "pull", *other, "--as", kept, code=2)["message"]


def test_a_revision_stays_the_one_that_is_followed(pc: Machine, hub: FaultyHub, tmp_path: Path) -> None:
    """Breaks if a model of one branch is replaced with another branch's, as where branches are quantizations."""
    before = hub.commit(NAME)
    hub.versions[NAME, "4.0bpw"] = hub.repositories[NAME]
    republish(hub, tmp_path, "config.json")
    succeeded(pc, "pull", NAME, "--revision", "4.0bpw")
    assert states(pc) == {NAME: "up to date"}
    hub.versions[NAME, "4.0bpw"] = hub.repositories[NAME]
    (model,) = succeeded(pc, "pull", "--update")["models"]
    assert (model["outcome"], model["before"]) == ("pulled", before)
    hub.versions[NAME, "4.0bpw"] = hub.versions[NAME, before]
    assert states(pc) == {NAME: "outdated"}


def test_files_that_were_named_stay_those(pc: Machine, hub: FaultyHub, tmp_path: Path) -> None:
    """Breaks if one file of a GGUF repository, which its name does not tell, cannot be followed."""
    succeeded(pc, "pull", QUANTS, "--include", "m-Q4_K_M.gguf")
    second = tmp_path / "more"
    shutil.copytree(tmp_path / "quants", second)
    make_gguf(second / "m-Q4_K_M.gguf", seed=3)
    (second / "old").mkdir()
    shutil.copy(second / "m-Q8_0.gguf", second / "old" / "m-Q4_K_M.gguf")
    hub.publish(QUANTS, second)
    (line,) = succeeded(pc, "outdated")["models"]
    assert line["changed"] == ["m-Q4_K_M.gguf"]
    succeeded(pc, "pull", "--update")
    assert [file["path"] for file in succeeded(pc, "show", QUANTS)["files"]] == ["m-Q4_K_M.gguf"]


def test_what_was_chosen_stays_chosen(pc: Machine, hub: FaultyHub, tmp_path: Path) -> None:
    """Breaks if an update of one quantization, or of files that were named, brings the others along."""
    succeeded(pc, "pull", QUANTS, "--quant", "Q8_0")
    succeeded(pc, "pull", NAME, "--exclude", "README.md")
    second = tmp_path / "more"
    shutil.copytree(tmp_path / "quants", second)
    make_gguf(second / "m-Q8_0.gguf", seed=2)
    hub.publish(QUANTS, second)
    republish(hub, tmp_path, "config.json")
    files = {model: {file["path"] for file in succeeded(pc, "show", model)["files"]} for model in pc.models()}
    updated = {model["name"]: model["outcome"] for model in succeeded(pc, "pull", "--update")["models"]}
    assert updated == {f"{QUANTS}:Q8_0": "pulled", NAME: "pulled"}
    assert {model: {file["path"] for file in succeeded(pc, "show", model)["files"]} for model in pc.models()} == files


@pytest.mark.parametrize("gone", [True, False])
def test_what_was_chosen_stays_chosen_without_the_old_listing(
    pc: Machine, hub: FaultyHub, tmp_path: Path, gone: bool
) -> None:
    """Breaks if an update brings everything since nobody lists the old commit any more, or since that failed once."""
    succeeded(pc, "pull", NAME, "--exclude", "README.md")
    before = republish(hub, tmp_path, "config.json")
    if gone:
        del hub.versions[NAME, before]
    else:
        hub.faults.refusals.append(Refusals(500, 99, where=before))
        assert "500" in failed(pc, "outdated", code=10)["message"]
        assert "500" in failed(pc, "pull", "--update", code=10)["message"]
        hub.faults.refusals.clear()
    succeeded(pc, "pull", "--update")
    assert "README.md" not in {file["path"] for file in succeeded(pc, "show", NAME)["files"]}


@pytest.mark.parametrize("options", [(), ("--exclude", "README.md")])
def test_what_the_publisher_took_away(pc: Machine, hub: FaultyHub, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Breaks if a file that was withdrawn stays in the vault, and in every bundle, as up to date."""
    wrong = tmp_path / "wrong"
    shutil.copytree(tmp_path / "first", wrong)
    (wrong / "notes.md").write_text("wrong")
    hub.publish(NAME, wrong)
    succeeded(pc, "pull", NAME, *options)
    hub.publish(NAME, tmp_path / "first")
    (line,) = succeeded(pc, "outdated")["models"]
    assert (line["state"], line["changed"], line["to_download"]) == ("outdated", ["notes.md"], 0)
    succeeded(pc, "pull", "--update")
    assert "notes.md" not in {file["path"] for file in succeeded(pc, "show", NAME)["files"]}
    assert states(pc) == {NAME: "up to date"}


def test_a_damaged_model_holds_up_no_other(pc: Machine, hub: FaultyHub, tmp_path: Path) -> None:
    """Breaks if one manifest that rotted keeps all the others from being looked at and updated."""
    manifest = succeeded(pc, "pull", QUANTS, "--quant", "Q8_0")["model"]["manifest"]
    succeeded(pc, "pull", NAME)
    republish(hub, tmp_path, "config.json")
    blob = pc.vault / "blobs/sha256" / manifest.removeprefix("sha256:")
    blob.chmod(0o644)
    blob.write_bytes(b"{")
    looked = pc.json("outdated", code=3).result
    assert {line["model"]: line["state"] for line in looked["models"]} == {
        f"{QUANTS}:Q8_0": "not known",
        NAME: "outdated",
    }
    updated = pc.json("pull", "--update", code=3).result
    assert {model["name"]: model["outcome"] for model in updated["models"]} == {
        f"{QUANTS}:Q8_0": "failed",
        NAME: "pulled",
    }


def test_what_has_no_source(pc: Machine, hub: FaultyHub, tiny_gguf: Path) -> None:
    """Breaks if a model from a folder is called up to date, or if one source that fails hides the others."""
    pc.run("add", tiny_gguf, "--name", "mine")
    succeeded(pc, "pull", NAME)
    assert states(pc) == {"mine": "no source", NAME: "up to date"}
    succeeded(pc, "pull", QUANTS, "--quant", "Q8_0")
    del hub.repositories[QUANTS]
    ran = pc.json("outdated", code=3)
    assert {line["model"]: line["state"] for line in ran.result["models"]} == {
        "mine": "no source",
        NAME: "up to date",
        f"{QUANTS}:Q8_0": "not known",
    }
    assert failed(pc, "outdated", f"{QUANTS}:Q8_0", code=10)["hint"]
    assert pc.json("pull", "--update", code=3).document["error"]["data"]["failed"] == [f"{QUANTS}:Q8_0"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--update", "--revision", "main"),
        ("--update", NAME, "--as", "x"),
        ("--all", "--as", "x"),
        (NAME, "--file", "modelvault.toml"),
        (),
    ],
)
def test_what_does_not_go_together(pc: Machine, arguments: tuple[str, ...]) -> None:
    """Breaks if one of two contradicting wishes is passed over in silence."""
    assert "Usage:" in pc.run("pull", *arguments, "--dry-run", code=2).err


def test_rm_tells_bytes_first(pc: Machine) -> None:
    """Breaks if a user cannot see what removing a model would free, shared files left out."""
    succeeded(pc, "pull", QUANTS, "--quant", "Q8_0")
    succeeded(pc, "pull", QUANTS, "--quant", "Q4_K_M")
    foretold = succeeded(pc, "rm", f"{QUANTS}:Q8_0", "--dry-run")
    assert foretold["dry_run"] is True
    assert pc.models() == {f"{QUANTS}:Q8_0", f"{QUANTS}:Q4_K_M"}
    assert succeeded(pc, "rm", f"{QUANTS}:Q8_0")["freeable"] == foretold["freeable"]
    assert succeeded(pc, "gc")["size"] == foretold["freeable"] > 1_000_000
