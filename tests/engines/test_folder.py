"""What is the plain directory's alone."""

from dataclasses import replace
from pathlib import Path

import pytest
from engine_cases import Case, contents

from modelvault.artifact import Digest, FileSpec
from modelvault.engines import InstallRecord, LinkMode, Removal, Target
from modelvault.errors import EngineRefused, UsageProblem
from modelvault.modelpack import store_form
from modelvault.operations.install import Placement, Step, do_step
from modelvault.progress import NoProgress
from modelvault.vault import Vault


def test_names(folder: Case) -> None:
    """One directory per model, whatever slashes and colons its name has; ``--as`` decides if given."""
    assert folder.engine.install(folder.request()).installed_name == "org--tiny--Q8_0"
    record = folder.engine.install(folder.request(name="mine"))
    assert (folder.directory / "mine/nested/extra.json").exists()
    assert record.files[0].path == "mine/config.json"
    with pytest.raises(UsageProblem):
        folder.engine.plan(folder.request(name="../up"))


def test_the_same_content_is_taken_as_it_is(folder: Case) -> None:
    """A directory that somebody copied by hand is fine, and stays theirs."""
    record = folder.engine.install(folder.request(link=LinkMode.COPY))
    (folder.directory / record.installed_name / ".modelvault.json").unlink()
    before = contents(folder.directory)
    again = folder.engine.install(folder.request())
    assert {file.link for file in again.files} == {"present"}
    assert folder.engine.uninstall(again) == Removal()
    assert contents(folder.directory) == before


def test_files_of_the_users_are_kept(folder: Case) -> None:
    """A ``tabby_config.yml`` beside the model survives its removal, and stops a replacement that would lose it."""
    record = folder.engine.install(folder.request())
    mine = folder.directory / record.installed_name / "tabby_config.yml"
    mine.write_text("mine")
    assert folder.engine.install(folder.request()) == record
    weights = mine.parent / "model.safetensors"
    weights.unlink()
    assert folder.engine.install(folder.request(previous=record)) == record
    assert folder.engine.verify(record) == []
    updated = folder.request(folder.stored(weights=b"new"), previous=record)
    with pytest.raises(EngineRefused, match=r"tabby_config\.yml is in the way"):
        folder.engine.install(updated)
    folder.engine.uninstall(record)
    assert contents(folder.directory).keys() == {f"{record.installed_name}/tabby_config.yml"}
    with pytest.raises(EngineRefused, match="in the way"):
        folder.engine.install(updated)


def test_an_old_record_does_not_remove_the_new_version(folder: Case) -> None:
    """The registry may hold both for a moment."""
    old = folder.engine.install(folder.request())
    new = folder.engine.install(folder.request(folder.stored(weights=b"new"), previous=old))
    assert folder.engine.uninstall(old) == Removal()
    assert folder.engine.verify(new) == []


def test_recipe_for_gguf(folder: Case) -> None:
    """llama.cpp takes the file, not the directory."""
    stored = folder.blobs.model("org/tiny", {"a-00001-of-00002.gguf": b"1", "a-00002-of-00002.gguf": b"2"})
    record = folder.engine.install(folder.request(stored))
    path = folder.directory / "org--tiny/a-00001-of-00002.gguf"
    assert folder.engine.recipe(record) == [f"llama-server --offline --model {path}"]


def test_a_model_with_our_markers_name(folder: Case) -> None:
    """It would be overwritten by the marker."""
    stored = folder.blobs.model("org/tiny", {".modelvault.json": b"{}"})
    with pytest.raises(EngineRefused, match=r"\.modelvault\.json"):
        folder.engine.plan(folder.request(stored))


def test_an_edited_file_is_kept(folder: Case) -> None:
    """A config.json that somebody tuned for hours is theirs, and is named; and a later install does not overwrite it."""
    record = folder.engine.install(folder.request())
    edited = folder.directory / record.installed_name / "config.json"
    edited.write_text('{"tuned": true}')
    removal = folder.engine.uninstall(record)
    assert removal.kept == (str(edited),)
    assert contents(folder.directory).keys() == {f"{record.installed_name}/config.json"}
    with pytest.raises(EngineRefused, match=r"config\.json is in the way"):
        folder.engine.install(folder.request())


def test_a_root_that_became_a_link_is_not_followed(folder: Case, tmp_path: Path) -> None:
    """Whoever moved the model away, and linked to it, would lose it."""
    record = folder.engine.install(folder.request())
    moved = tmp_path / "moved"
    root = folder.directory / record.installed_name
    root.rename(moved)
    root.symlink_to(moved)
    before = contents(moved)
    with pytest.raises(EngineRefused, match="it is a link"):
        folder.engine.uninstall(record)
    assert contents(moved) == before


def test_more_files_than_a_record_can_name(folder: Case, tmp_path: Path) -> None:
    """The record of an install is one line of the event log: what does not fit there must not be installed at all."""
    digest = Digest.of_bytes(b"x")
    deep = "/".join(["d" * 200] * 4)
    files = tuple(FileSpec(f"{deep}/{number}", 1, digest) for number in range(9000))
    stored = store_form(replace(folder.stored().model, files=files))
    step = Step(stored, Target("folder", folder.directory), Placement())
    with Vault.open(tmp_path / "filled") as vault:
        vault.store.put_bytes(b"x")
        with pytest.raises(EngineRefused, match="9,000 files"):
            do_step(vault, step, NoProgress())
        assert not folder.directory.exists()
        some = replace(step, stored=store_form(replace(stored.model, files=files[:3000])))
        do_step(vault, some, NoProgress())
        (install,) = vault.installs()
        assert len(InstallRecord.from_json(install.record).files) == 3000
