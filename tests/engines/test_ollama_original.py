"""Models that came from Ollama go back there as they were: manifest, config and layers byte for byte."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_cases import Case, contents
from ollama_stores import TEXTS, snapshot_of, write_model

from modelvault.artifact import Digest, Origin, Recipe, StoredModel, Traits
from modelvault.engines import Removal
from modelvault.errors import DigestMismatch, EngineRefused, InvalidModelFile
from modelvault.formats.ollama import MANIFEST_FILE, decode_manifest
from modelvault.formats.ollama_layers import modelfile_of

WEIGHTS = b"GGUF" + bytes(range(256)) * 1000
NAME = "ollama:tiny:q8_0"
PATH = "manifests/registry.ollama.ai/library/tiny/q8_0"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one model of every kind of layer."""
    models = tmp_path / "store"
    layers = [("model", WEIGHTS), ("projector", b"GGUF projector"), *TEXTS, ("embed", b"old")]
    write_model(models, "tiny:q8_0", layers, renderer="r")
    return models


def content_of(store: Path) -> dict[str, bytes]:
    data = (store / PATH).read_bytes()
    files = decode_manifest(data).files()
    blobs = {path: (store / "blobs" / f"sha256-{layer.digest.hex}").read_bytes() for path, layer in files.items()}
    return {**blobs, MANIFEST_FILE: data}


def stored(case: Case, content: dict[str, bytes], **changes: Any) -> StoredModel:
    """The model as an adoption or a pull stores it."""
    data = content[MANIFEST_FILE]
    if "recipe" not in changes:
        changes["recipe"] = Recipe("tiny:q8_0", modelfile_of(decode_manifest(data), content)[0])
    origin = Origin("ollama", "registry.ollama.ai/library/tiny", Digest.of_bytes(data).hex)
    fields = {"origin": origin, "traits": Traits("gguf", "llama", "Q8_0", 1)}
    return case.blobs.model(NAME, content, **{**fields, **changes})


def test_it_is_the_same_again(ollama: Case, store: Path) -> None:
    """Breaks if Ollama would list another digest for what arrived than for what left."""
    model = stored(ollama, content_of(store))
    plan = ollama.engine.plan(ollama.request(model))
    assert (plan.installed_name, plan.warnings) == ("tiny:q8_0", ())
    record = ollama.engine.install(ollama.request(model))
    assert snapshot_of(ollama.directory) == snapshot_of(store)
    assert {str(file.path.relative_to(ollama.directory)) for file in plan.files} == set(snapshot_of(store))
    assert plan.extra_bytes == sum(file.size for file in plan.files if file.link != "hard link")
    assert {file.link for file in record.files if file.size > 1000} >= {"hard link"}
    assert ollama.engine.verify(record) == []
    assert "TEMPLATE" in (record.modelfile or "")
    assert ollama.engine.install(ollama.request(model, previous=record)) == record
    ollama.engine.uninstall(record)
    assert contents(ollama.directory) == {}
    assert ollama.blobs.intact()


def test_a_plan_before_anything_was_received(ollama: Case, store: Path, tmp_path: Path) -> None:
    """Breaks if an import cannot be planned, or promises other bytes than it will write."""
    content = content_of(store)
    model = stored(ollama, content)
    nothing = replace(ollama.request(model), blob_path=lambda digest: tmp_path / digest.hex)
    planned = ollama.engine.plan(nothing)
    assert {(file.path, file.size, file.digest) for file in planned.files} == {
        (file.path, file.size, file.digest) for file in ollama.engine.plan(ollama.request(model)).files
    }
    ollama.engine.install(ollama.request(model))
    assert ollama.engine.plan(nothing).extra_bytes == 0
    with pytest.raises(DigestMismatch, match="missing from the vault"):
        ollama.engine.install(replace(nothing, name="other"))


def test_under_another_name(ollama: Case, store: Path) -> None:
    """Breaks if `--as` makes another model of it."""
    model = stored(ollama, content_of(store))
    ollama.engine.install(ollama.request(model, name="me/mine:1"))
    manifest = (ollama.directory / "manifests/registry.ollama.ai/me/mine/1").read_bytes()
    assert manifest == (store / PATH).read_bytes()


def test_a_modelfile_of_the_users_makes_a_new_model(ollama: Case, store: Path) -> None:
    """Breaks if what the user wants different is not, or if a model from elsewhere is taken for Ollama's."""
    content = content_of(store)
    model = stored(ollama, content)
    for request in (
        ollama.request(model, modelfile="SYSTEM mine\n"),
        ollama.request(stored(ollama, content, origin=Origin("hub", "org/tiny", "0" * 40)), name="b"),
        ollama.request(stored(ollama, content, origin=Origin("ollama", "x/y/z", "0" * 64)), name="c"),
    ):
        record = ollama.engine.install(request)
        assert record.files[-1].digest != f"sha256:{model.model.origin.commit}"


def test_back_into_the_store_that_it_came_from(ollama: Case, store: Path) -> None:
    """Breaks if uninstalling takes the user's own model, which only happened to be there."""
    content = content_of(store)
    case = replace(ollama, directory=store)
    before = snapshot_of(store)
    model = stored(case, content)
    assert case.engine.plan(case.request(model)).extra_bytes == 0
    record = case.engine.install(case.request(model))
    assert {file.link for file in record.files} == {"present"}
    assert case.engine.verify(record) == []
    assert case.engine.uninstall(record) == Removal()
    assert snapshot_of(store) == before


def test_another_model_of_that_name_is_refused(ollama: Case, store: Path) -> None:
    """Breaks if a tag that the user pulled anew is replaced by the older one from a drive."""
    model = stored(ollama, content_of(store))
    ollama.engine.install(ollama.request(model))
    path = ollama.directory / PATH
    path.write_bytes(path.read_bytes().replace(b":2,", b": 2,"))
    with pytest.raises(EngineRefused, match="another model named tiny:q8_0"):
        ollama.engine.plan(ollama.request(model))


def test_a_manifest_that_does_not_fit(ollama: Case, store: Path) -> None:
    """Breaks if a model that was put together by hand leaves Ollama with a manifest whose blobs are not there."""
    content = content_of(store)
    model = stored(ollama, {path: data for path, data in content.items() if path != "ollama/system"})
    with pytest.raises(InvalidModelFile, match="which the model does not have"):
        ollama.engine.install(ollama.request(model))
    odd = {**content, MANIFEST_FILE: json.dumps({"schemaVersion": 3}).encode()}
    with pytest.raises(InvalidModelFile, match="not the manifest of these files"):
        ollama.engine.install(ollama.request(stored(ollama, odd, recipe=None)))
    assert contents(ollama.directory) == {}


def test_a_damaged_manifest_in_the_vault(ollama: Case, store: Path) -> None:
    """Breaks if the vault's copy is believed unread where it decides what Ollama runs."""
    model = stored(ollama, content_of(store))
    place = ollama.blobs.path(Digest.sha256(model.model.origin.commit or ""))
    place.chmod(0o644)
    place.write_bytes(place.read_bytes().replace(b":2,", b":3,"))
    for attempt in (ollama.engine.plan, ollama.engine.install):
        with pytest.raises(DigestMismatch, match="no longer has the digest"):
            attempt(ollama.request(model))
