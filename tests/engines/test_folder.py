"""What is the plain directory's alone."""

import pytest
from engine_cases import Case, contents

from modelvault.engines import LinkMode
from modelvault.errors import EngineRefused, UsageProblem


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
    assert folder.engine.uninstall(again) == []
    assert contents(folder.directory) == before


def test_files_of_the_users_are_kept(folder: Case) -> None:
    """A ``tabby_config.yml`` beside the model survives its removal, and stops a replacement that would lose it."""
    record = folder.engine.install(folder.request())
    mine = folder.directory / record.installed_name / "tabby_config.yml"
    mine.write_text("mine")
    assert folder.engine.install(folder.request()) == record
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
    assert folder.engine.uninstall(old) == []
    assert folder.engine.verify(new) == []


def test_next_step_for_gguf(folder: Case) -> None:
    """llama.cpp takes the file, not the directory."""
    stored = folder.blobs.model("org/tiny", {"a-00001-of-00002.gguf": b"1", "a-00002-of-00002.gguf": b"2"})
    record = folder.engine.install(folder.request(stored))
    path = folder.directory / "org--tiny/a-00001-of-00002.gguf"
    assert folder.engine.next_steps(record) == [f"llama-server --offline --model {path}"]


def test_a_model_with_our_markers_name(folder: Case) -> None:
    """It would be overwritten by the marker."""
    stored = folder.blobs.model("org/tiny", {".modelvault.json": b"{}"})
    with pytest.raises(EngineRefused, match=r"\.modelvault\.json"):
        folder.engine.plan(folder.request(stored))
