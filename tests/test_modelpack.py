"""The layout's documents: encode and decode are inverse, identity depends on nothing but the content."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelvault import modelpack
from modelvault.artifact import Digest, FileSpec, Model, ModelName, Origin, Recipe, StoredModel, Traits
from modelvault.errors import InvalidModelFile, UsageProblem

digests = st.binary(min_size=32, max_size=32).map(lambda data: Digest.sha256(data.hex()))
paths = st.from_regex(r"[a-z0-9]{1,12}(/[a-z0-9_.-]{1,12}x){0,2}", fullmatch=True)
files = st.builds(FileSpec, path=paths, size=st.integers(0, 1 << 50), digest=digests, upstream=st.none() | digests)
recipes = st.builds(
    Recipe,
    ollama_name=st.none() | st.just("llama3.1:8b"),
    modelfile=st.none() | st.text(min_size=1),
    vllm_arguments=st.lists(st.text(), max_size=3).map(tuple),
)
models = st.builds(
    Model,
    name=st.sampled_from(["tiny", "org/name", "org/name:Q4_K_M", "_a/b__c"]).map(ModelName),
    origin=st.sampled_from([Origin("folder"), Origin("hub", "org/name", "c" * 40)]),
    files=st.lists(files, max_size=5, unique_by=lambda file: file.path).map(tuple),
    traits=st.builds(
        Traits,
        format=st.sampled_from(["gguf", "safetensors"]),
        architecture=st.none() | st.just("llama"),
        quantization=st.none() | st.just("Q4_K_M"),
        parameters=st.none() | st.integers(1, 1 << 45),
        context_length=st.none() | st.integers(1, 1 << 20),
    ),
    license=st.none() | st.just("apache-2.0"),
    recipe=st.none(),
)


@given(models)
def test_manifest_round_trip(model: Model) -> None:
    """Breaks if a model read back from its documents is another one."""
    manifest, config = modelpack.encode_manifest(model), modelpack.encode_config(model)
    assert modelpack.decode_manifest(manifest, config, model.name) == model
    assert modelpack.config_digest(manifest) == (Digest.of_bytes(config), len(config))


@given(models)
def test_name_is_no_part_of_identity(model: Model) -> None:
    """Breaks if the same files from the same commit get two identities under two names."""
    assert modelpack.encode_manifest(model) == modelpack.encode_manifest(replace(model, name=ModelName("another")))


@given(recipes)
def test_recipe_round_trip(recipe: Recipe) -> None:
    """Breaks if a recipe changes on its way across the gap."""
    kept = Recipe(recipe.ollama_name, recipe.modelfile or None, recipe.vllm_arguments)
    assert modelpack.decode_recipe(modelpack.encode_recipe(recipe)) == kept


@given(st.lists(models, max_size=4, unique_by=lambda model: model.name))
def test_index_round_trip(listed: list[Model]) -> None:
    """Breaks if index.json loses or reorders a model."""
    stored = [modelpack.store_form(model) for model in listed]
    entries = modelpack.decode_index(modelpack.encode_index(stored))
    assert [(entry.name, entry.manifest) for entry in entries] == sorted(
        (item.model.name, item.manifest) for item in stored
    )


def test_index_passes_foreign_descriptors_over() -> None:
    """Breaks if a layout that another tool wrote into cannot be read."""
    document = {"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 3}]}
    assert modelpack.decode_index(json.dumps(document).encode()) == ()


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b'{"manifests":1}', b'{"a":1,"a":2}', b"\xff", b"[" * 100_000, b'{"artifactType":"x"}'],
)
def test_untrusted_documents_fail_as_invalid(data: bytes) -> None:
    """Breaks if a hostile document ends in anything but InvalidModelFile."""
    with pytest.raises(InvalidModelFile):
        modelpack.decode_manifest(data, None, ModelName("a"))
    if data != b'{"artifactType":"x"}':
        with pytest.raises(InvalidModelFile):
            modelpack.decode_index(data)


def test_config_of_another_model_is_refused() -> None:
    """Breaks if traits can be taken from a config that the manifest does not name."""
    model = Model(ModelName("a"), Origin("folder"), (), Traits("gguf"))
    with pytest.raises(InvalidModelFile, match="another digest"):
        modelpack.decode_manifest(modelpack.encode_manifest(model), b"{}", model.name)


@pytest.mark.parametrize(
    "name", ["tiny", "org/name:Q4_K_M", "a__b/_c", "_a", "a-/b", "A.b/C--d", "ollama:hub:5000/me/a__b:q", "ollama:a"]
)
def test_reference_names_fit_the_grammar(name: str) -> None:
    """Breaks if skopeo and others could not address a model: the grammar is that of the OCI image layout."""
    component = r"[A-Za-z0-9]+((-{1,2}|[._:@+])[A-Za-z0-9]+)*"
    assert re.fullmatch(rf"{component}(/{component})*", modelpack.reference_name(ModelName(name)))


names = st.from_regex(r"(ollama:)?(escaped/|[ax5f_-]{1,4}/)?[a-z0-9_x.-]{1,8}(:[Q4_]{1,3})?", fullmatch=True).filter(
    lambda text: not re.search(r"(^|[:/])[-.]", text)
)


@given(names, names)
@example("_a", "escaped/x5fa")
@example("ollama:_a", "escaped/ollama")
def test_reference_names_stay_apart(first: str, second: str) -> None:
    """Breaks if two models would share one reference: a name may itself look like the escaped form of another."""
    references = {modelpack.reference_name(ModelName(name)) for name in (first, second)}
    assert len(references) == len({ModelName(first), ModelName(second)})


@given(names)
def test_an_escaped_form_leads_back_to_its_name(name: str) -> None:
    """Breaks if the escape loses something: what can be undone keeps any two names apart."""
    name = ModelName(name).text
    reference = modelpack.reference_name(ModelName(name))
    if reference != name:
        escaped = reference.removeprefix("escaped/")
        assert re.sub(r"x([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), escaped) == name


@pytest.mark.parametrize("data", [b'{"a":NaN}', rb'{"a":"\ud800"}', b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"])
def test_documents_of_the_layout_are_read_as_strictly_as_those_of_models(data: bytes) -> None:
    """Breaks if something gets into the vault's books that cannot be printed or written again."""
    with pytest.raises(InvalidModelFile, match="JSON"):
        modelpack.load_object(data, "index.json")


@pytest.mark.parametrize("license_name", ["", "two\nlines", "\udcff", "\x1b[31m"])
def test_a_garbled_license_is_refused(license_name: str) -> None:
    """Breaks if a license that no document can hold, or that garbles a terminal, is met only when it is written."""
    with pytest.raises(UsageProblem, match="license"):
        Model(ModelName("a"), Origin("folder"), (), Traits("gguf"), license_name)


def test_store_form_is_what_is_stored() -> None:
    """Breaks if the announced identity and the stored bytes differ."""
    model = Model(ModelName("a"), Origin("folder"), (), Traits("gguf"))
    manifest = modelpack.encode_manifest(model)
    assert modelpack.store_form(model) == StoredModel(model, Digest.of_bytes(manifest), len(manifest))
