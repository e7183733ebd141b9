"""``add --from-ollama``, with the installed program, from stores that are whole, damaged, somebody else's or none."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import Machine, flip_bit
from make_models import make_large_gguf
from ollama_stores import TEXTS, snapshot_of, write_model
from refusals import blobs, failed, running, succeeded

NAME = "tiny:q8_0"


@pytest.fixture
def store(tmp_path: Path, tiny_gguf: Path) -> Path:
    models = tmp_path / "models"
    write_model(models, NAME, [("model", next(tiny_gguf.glob("*.gguf"))), *TEXTS])
    return models


@pytest.fixture
def pc(machine: Callable[..., Machine], store: Path) -> Machine:
    """A machine whose Ollama has that store."""
    return machine("pc", OLLAMA_MODELS=str(store))


def weights(store: Path) -> Path:
    """The blob of the model."""
    return max((store / "blobs").iterdir(), key=lambda path: path.stat().st_size)


def add(machine: Machine, *options: str | Path, name: str = NAME) -> dict[str, object]:
    return succeeded(machine, "add", "--from-ollama", name, *options)


def test_what_is_found_is_taken_over(pc: Machine, store: Path) -> None:
    """Breaks if a model that Ollama has costs its bytes a second time, or if Ollama's store is another one afterwards."""
    before = snapshot_of(store)
    added = add(pc)
    blob = weights(store)
    assert added["linked"] == blob.stat().st_size
    assert pc.models() == {"ollama:tiny:q8_0"}
    assert (pc.vault / "blobs/sha256" / blob.name.removeprefix("sha256-")).samefile(blob)
    assert {path.stat().st_mode & 0o777 for path in (pc.vault / "blobs/sha256").iterdir()} == {0o444}
    assert snapshot_of(store) == before
    assert {path.name for path in (store / "blobs").iterdir() if path.stat().st_nlink > 1} == {blob.name}
    again = add(pc, name="library/tiny:q8_0")
    assert (again["unchanged"], again["linked"]) == (True, 0)
    assert add(pc, "--name", "ours/tiny", "--license", "mit", name="ollama:TINY:Q8_0")["model"]["name"] == "ours/tiny"  # type: ignore[index]
    assert list((pc.vault / "partial").iterdir()) == []
    for path in (store / "blobs").iterdir():
        path.unlink()
    pc.run("verify")


def test_in_words(pc: Machine) -> None:
    """Breaks if the user is not told what was linked, or what the Modelfile leaves out."""
    ran = pc.run("add", "--from-ollama", NAME)
    assert "take no space of their own" in ran.out
    assert "ollama:tiny:q8_0: 9 files, 1.46 MB, checked and added in" in ran.out
    assert "PARAMETER num_gqa" in ran.err


def test_a_damaged_blob(pc: Machine, store: Path) -> None:
    """Breaks if a store's rotten blob gets into the vault, or the user is not told which file it is."""
    blob = weights(store)
    flip_bit(blob, 500_000)
    error = failed(pc, "add", "--from-ollama", NAME, code=12)
    assert str(blob) in error["message"]
    assert "model.gguf of ollama:tiny:q8_0" in error["message"]
    assert "ollama pull tiny:q8_0" in error["hint"]
    assert blobs(pc) == {}
    flip_bit(blob, 500_000)
    add(pc)


def test_a_damaged_text(pc: Machine, store: Path) -> None:
    """Breaks if what is copied is not hashed as what is linked is."""
    (template,) = [path for path in (store / "blobs").iterdir() if path.read_bytes().startswith(b"{{")]
    flip_bit(template, 5)
    error = failed(pc, "add", "--from-ollama", NAME, code=12)
    assert str(template) in error["message"]


@pytest.mark.parametrize("how", ["short", "directory", "manifest"])
def test_a_store_that_is_broken(pc: Machine, store: Path, how: str) -> None:
    """Breaks if what a crash or a full disk left of a model is not told from a whole one, before a byte is read."""
    place = weights(store)
    if how == "short":
        os.truncate(place, 1000)
    elif how == "directory":
        place.unlink()
        place.mkdir()
    else:
        place = store / "manifests/registry.ollama.ai/library/tiny/q8_0"
        place.write_bytes(b"{")
    assert str(place) in failed(pc, "add", "--from-ollama", NAME, code=12)["message"]


def test_a_blob_that_is_missing(pc: Machine, store: Path) -> None:
    """Breaks if the model that "is listed but will not run" gets into a vault as half of one."""
    place = weights(store)
    place.unlink()
    error = failed(pc, "add", "--from-ollama", NAME, code=10)
    assert str(place) in error["message"]
    assert "ollama pull tiny:q8_0" in error["hint"]


def test_unknown_names(pc: Machine, store: Path, tmp_path: Path) -> None:
    """Breaks if a typing error leads nowhere."""
    assert "did you mean tiny:q8_0?" in failed(pc, "add", "--from-ollama", "tiny", code=10)["hint"]
    assert "not a name" in failed(pc, "add", "--from-ollama", "a/b/c/d", code=2)["message"]
    (tmp_path / "empty/manifests").mkdir(parents=True)
    error = failed(pc, "add", "--from-ollama", "tiny", "--store", tmp_path / "empty", code=10)
    assert "holds no models" in error["hint"]


def test_no_store(pc: Machine, tmp_path: Path) -> None:
    """Breaks if a directory that is none is searched in vain."""
    error = failed(pc, "add", "--from-ollama", NAME, "--store", tmp_path / "nowhere", code=2)
    assert "--store" in error["hint"]
    assert "OLLAMA_MODELS" in error["hint"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--from-ollama", NAME, "model.gguf"),
        ("--from-ollama", NAME, "--modelfile", "Modelfile"),
        ("--from-ollama", NAME, "--allow-pickle"),
        ("--store", "models", "model.gguf", "--name", "x"),
        ("model.gguf",),
        ("--name", "x"),
        (),
    ],
)
def test_what_does_not_go_together(pc: Machine, arguments: tuple[str, ...]) -> None:
    """Breaks if one of two contradicting wishes is passed over in silence."""
    assert "--from-ollama" in failed(pc, "add", *arguments, code=2)["hint"]


def test_a_store_behind_links(pc: Machine, store: Path, tmp_path: Path) -> None:
    """Breaks if a store whose blobs or manifests are links, as people share them between disks, cannot be taken over."""
    blob = weights(store)
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    manifest = store / "manifests/registry.ollama.ai/library/tiny/q8_0"
    manifest.rename(tmp_path / "manifest")
    manifest.symlink_to(tmp_path / "manifest")
    add(pc)
    (stored,) = [path for path in (pc.vault / "blobs/sha256").iterdir() if path.stat().st_size > 1_000_000]
    assert not stored.is_symlink()
    assert stored.samefile(tmp_path / "elsewhere")


@pytest.mark.root
def test_the_services_store(pc: Machine, store: Path, as_root: None) -> None:
    """Breaks if root shares a file with the service's user, who could write to it then; or changes whose it is."""
    for path in (store, *store.rglob("*")):
        os.chown(path, 65534, 65534)
    assert add(pc)["linked"] == 0
    blob = weights(store)
    assert (blob.stat().st_uid, blob.stat().st_mode & 0o777, blob.stat().st_nlink) == (65534, 0o644, 1)
    assert {path.stat().st_uid for path in (pc.vault / "blobs/sha256").iterdir()} == {os.geteuid()}
    pc.run("verify")


@pytest.mark.root
def test_killed_and_run_again(pc: Machine, tmp_path: Path, as_root: None) -> None:
    """Breaks if an adoption that was killed leaves half a model, or something that the next one trips over."""
    models = tmp_path / "large"
    make_large_gguf(tmp_path / "large.gguf", 200_000_000)
    write_model(models, "large:1", [("model", tmp_path / "large.gguf")])
    blob = weights(models)
    key = blob.name
    for owner in (os.geteuid(), 65534):  # linked, then copied
        os.chown(blob, owner, owner)
        begun = pc.vault / "partial" / key / ("linked" if owner == os.geteuid() else "journal")
        with running(pc, "add", "--from-ollama", "large:1", "--store", models) as adoption:
            adoption.until(begun.exists)
            adoption.signal(signal.SIGKILL)
            adoption.end(-signal.SIGKILL)
        assert pc.models() == set()
    assert add(pc, "--store", models, name="large:1")["linked"] == 0
    assert blob.stat().st_mode & 0o777 == 0o644
    pc.run("verify")
    assert list((pc.vault / "partial").iterdir()) == []


def test_without_a_network(pc: Machine, store: Path, as_root: None) -> None:
    """Breaks if the isolated side, where Ollama has models too, would have to reach anybody for this."""
    pc.run("add", "--from-ollama", NAME, prefix=("unshare", "--net"))
    assert pc.models() == {"ollama:tiny:q8_0"}
