"""What is Ollama's alone: names, JSON, prune-proof placing, the manifest's meaning."""

import json
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from engine_cases import MODELFILE, Case, contents
from hypothesis import given
from hypothesis import strategies as st
from machines import Machine
from make_models import make_large_gguf

from modelvault.artifact import Origin, Recipe, Traits
from modelvault.engines import LinkMode
from modelvault.engines.ollama_store import (
    config_layer,
    encode_parameters,
    go_json,
    human_number,
    text_layers,
)
from modelvault.errors import EngineRefused, UsageProblem
from modelvault.formats.modelfile import parse
from modelvault.ollama_name import OllamaName


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (70553706496, "70.6B"),
        (134515008, "134.52M"),
        (10**9, "1B"),
        (8 * 10**9, "8B"),
        (999999999, "1000.00M"),
        (10**6, "1M"),
        (1500, "2K"),
        (999, "999"),
        (0, "0"),
    ],
)
def test_sizes_are_formatted_as_in_go(count: int, text: str) -> None:
    """``ollama list`` shows it, and it is part of the config's digest."""
    assert human_number(count) == text


def test_go_json() -> None:
    """Go escapes what could end a script element; a blob with other bytes has another digest."""
    document = {"stop": ["<|end|>", "a&b", "\u2028", "é", "\n\t\x01"]}
    expected = '{"stop":["\\u003c|end|\\u003e","a\\u0026b","\\u2028","é","\\n\\t\\u0001"]}\n'
    assert go_json(document) == expected.encode()


@given(
    st.recursive(
        st.text() | st.integers() | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_go_json_is_json(document: object) -> None:
    """Whatever is escaped must read back the same."""
    assert json.loads(go_json(document)) == document


def test_params_and_layers() -> None:
    """Keys sorted, ``stop`` a list, the last of other parameters: the bytes of ``ollama create``."""
    text = "PARAMETER top_k 40\nPARAMETER stop <a>\nPARAMETER temperature 1.0\nPARAMETER top_k 41\nPARAMETER stop b\n"
    assert encode_parameters(parse(text)) == b'{"stop":["\\u003ca\\u003e","b"],"temperature":1,"top_k":41}\n'
    layers = text_layers(parse(f"{text}MESSAGE user hi\nLICENSE one\nSYSTEM s\nLICENSE two\nTEMPLATE t\nTEMPLATE u\n"))
    assert [(layer.media, layer.data) for layer in layers if layer.media != "params"] == [
        ("template", b"u"),
        ("system", b"s"),
        ("license", b"one"),
        ("license", b"two"),
        ("messages", b'[{"role":"user","content":"hi"}]\n'),
    ]


def test_config() -> None:
    """The order of the keys is part of the digest."""
    traits = Traits("gguf", "llama", "Q4_K_M", 8030261312)
    assert config_layer(traits, parse("RENDERER r\nREQUIRES v0.24.0\nPARSER p"), ["llama"]).data == (
        b'{"model_format":"gguf","model_family":"llama","model_families":["llama"],"model_type":"8.0B",'
        b'"file_type":"Q4_K_M","renderer":"r","parser":"p","requires":"0.24.0","architecture":"amd64","os":"linux"}\n'
    )
    unknown = config_layer(Traits("gguf"), parse(""), ["unknown"]).data or b""
    assert json.loads(unknown)["file_type"] == "unknown"


@pytest.mark.parametrize(
    ("text", "path", "shown"),
    [
        ("llama3.1", "registry.ollama.ai/library/llama3.1/latest", "llama3.1:latest"),
        ("llama3.1:8b-Q4", "registry.ollama.ai/library/llama3.1/8b-Q4", "llama3.1:8b-Q4"),
        ("me/llama", "registry.ollama.ai/me/llama/latest", "me/llama:latest"),
        ("hub.local:5000/me/llama:1", "hub.local:5000/me/llama/1", "hub.local:5000/me/llama:1"),
    ],
)
def test_names(text: str, path: str, shown: str) -> None:
    """The path is where Ollama looks, the short form what the user types."""
    name = OllamaName.parse(text)
    assert (name.path, str(name)) == (path, shown)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a:",
        ":b",
        "-a",
        ".a",
        "a b",
        "a/b/c/d",
        "a:cloud",
        "a:Local",
        "a:x-cloud",
        "me.too/a",
        "a" * 81,
        "../a",
        "a/../b",
        "é",
    ],
)
def test_names_that_ollama_would_not_take(text: str) -> None:
    """A manifest under such a name is invisible, or means the cloud."""
    with pytest.raises(UsageProblem) as refusal:
        OllamaName.parse(text)
    assert "--as" in (refusal.value.hint or "")


def test_names_take_the_spelling_of_the_store() -> None:
    """Two spellings of one part make models come and go: Ollama folds them in random order."""
    existing = [OllamaName.parse("Llama:Q4_K_M"), OllamaName.parse("other:q8_0")]
    assert str(OllamaName.parse("llama:Q8_0").folded_onto(existing)) == "Llama:q8_0"
    assert str(OllamaName.parse("new:q4_k_m").folded_onto(existing)) == "new:Q4_K_M"
    both = [*existing, OllamaName.parse("x:q4_k_m")]
    assert str(OllamaName.parse("new:q4_k_m").folded_onto(both)) == "new:q4_k_m"


def test_default_name(ollama: Case) -> None:
    """The catalog's name wins; else lower-case ``repo:quant``; ``--as`` beats both."""
    named = ollama.stored(recipe=Recipe(ollama_name="llama3.1:8b"))
    plain = ollama.stored("Org/Tiny-GGUF", traits=Traits("gguf", "llama", "Q4_K_M", 1), recipe=None)
    unknown = ollama.stored("tiny", traits=Traits("gguf"), recipe=None)
    names = [ollama.engine.plan(ollama.request(stored)).installed_name for stored in (named, plain, unknown)]
    assert names == ["llama3.1:8b", "tiny-gguf:q4_k_m", "tiny:latest"]
    assert ollama.engine.plan(ollama.request(named, name="Mine:x")).installed_name == "Mine:x"


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["model.safetensors"], "has none"),
        (["a-00002-of-00003.gguf"], "split into 3 files, of which 2 are not here"),
        (["a-Q4.gguf", "a-Q8.gguf"], "2 models in its 2 GGUF files"),
        (["a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "a-Q8.gguf"], "2 models in its 3 GGUF files"),
        (["mmproj-a.gguf"], "without the model"),
    ],
)
def test_what_is_refused(ollama: Case, paths: list[str], reason: str) -> None:
    """Ollama would list these models and then fail to run them, or run a shard of them."""
    stored = ollama.blobs.model("org/tiny", {path: b"GGUF" + path.encode() for path in paths})
    for attempt in (ollama.engine.plan, ollama.engine.install):
        with pytest.raises(EngineRefused, match=reason) as refusal:
            attempt(ollama.request(stored))
        assert refusal.value.hint
    assert not ollama.directory.exists()


def test_a_single_shard_is_a_whole_model(ollama: Case) -> None:
    """``-00001-of-00001`` is a name that conversion tools give to unsplit files."""
    stored = ollama.blobs.model("org/tiny", {"a-00001-of-00001.gguf": b"GGUF"})
    assert ollama.engine.accepts(stored.model) is None


def test_the_users_modelfile_beats_the_recipe(ollama: Case) -> None:
    """And its FROM, which names a file on some other machine, is ignored with a warning."""
    request = ollama.request(modelfile="FROM /elsewhere.gguf\nSYSTEM mine\n")
    warnings = ollama.engine.plan(request).warnings
    assert any("FROM is ignored" in warning for warning in warnings)
    assert any("org/tiny:Q8_0: no TEMPLATE" in warning for warning in warnings)
    assert ollama.engine.plan(ollama.request()).warnings == ()
    record = ollama.engine.install(request)
    assert record.modelfile == f"FROM {ollama.directory / record.files[0].path}\nSYSTEM mine\n"
    assert "TEMPLATE" in MODELFILE
    with pytest.raises(UsageProblem, match="DRAFT is not supported"):
        ollama.engine.plan(ollama.request(modelfile="DRAFT ./small.gguf\n"))


def test_another_model_of_that_name_is_refused(ollama: Case) -> None:
    """``ollama create`` would overwrite it; we ask."""
    ollama.engine.install(ollama.request(name="taken"))
    before = contents(ollama.directory)
    other = ollama.request(ollama.stored(weights=b"GGUF other"), name="Taken")
    for attempt in (ollama.engine.plan, ollama.engine.install):
        with pytest.raises(EngineRefused, match="another model named taken:latest") as refusal:
            attempt(other)
        assert "ollama rm taken:latest" in (refusal.value.hint or "")
    assert contents(ollama.directory) == before


def test_a_name_that_was_given_to_another_model_since(ollama: Case) -> None:
    """Uninstalling must not take the model that the user made in its place."""
    record = ollama.engine.install(ollama.request())
    manifest = ollama.directory / record.files[-1].path
    manifest.write_bytes(manifest.read_bytes().replace(b'"schemaVersion":2', b'"schemaVersion": 2'))
    assert any("manifest" in problem for problem in ollama.engine.verify(record))
    removed = ollama.engine.uninstall(record).removed
    assert manifest.exists()
    assert not removed


def test_changed_parameters_replace_the_layers(ollama: Case) -> None:
    """A second install with another Modelfile must leave no orphans, and keep the weights where they are."""
    record = ollama.engine.install(ollama.request(link=LinkMode.COPY))
    weights = ollama.directory / record.files[0].path
    inode = weights.stat().st_ino
    changed = ollama.engine.install(ollama.request(modelfile="SYSTEM new\n", previous=record, link=LinkMode.COPY))
    assert weights.stat().st_ino == inode
    assert ollama.engine.verify(changed) == []
    ollama.engine.uninstall(changed)
    assert contents(ollama.directory) == {}


def test_two_names_share_the_weights(ollama: Case) -> None:
    """``--as`` twice makes two models of one blob; removing one keeps it."""
    first = ollama.engine.install(ollama.request(name="one"))
    second = ollama.engine.install(ollama.request(name="two", previous=first))
    assert ollama.visible() == {"one/latest", "two/latest"}
    ollama.engine.uninstall(first)
    assert ollama.visible() == {"two/latest"}
    assert ollama.engine.verify(second) == []


def test_blobs_are_fresh(ollama: Case) -> None:
    """Ollama prunes unreferenced blobs older than an hour when it starts: a pull from last week must look new."""
    stored = ollama.stored()
    for file in stored.model.files:
        os.utime(ollama.blobs.path(file.digest), (1, 1))
    ollama.engine.install(ollama.request(stored))
    assert all(path.stat().st_mtime > 10**9 for path in (ollama.directory / "blobs").iterdir())


def test_blobs_of_an_existing_store_are_hashed_before_they_are_trusted(ollama: Case) -> None:
    """A flipped bit in a store that somebody else filled would otherwise be served under our name."""
    request = ollama.request()
    record = ollama.engine.install(replace(request, link=LinkMode.COPY))
    (ollama.directory / record.files[-1].path).unlink()
    again = ollama.engine.install(request)
    assert again.files[0].link == "present"
    (ollama.directory / record.files[-1].path).unlink()
    weights = ollama.directory / record.files[0].path
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(EngineRefused, match="its content is not"):
        ollama.engine.install(request)
    assert ollama.visible() == set()


def test_manifests_v2_is_announced(ollama: Case) -> None:
    """A newer Ollama may look elsewhere: the user must hear of it."""
    (ollama.directory / "manifests-v2").mkdir(parents=True)
    (ollama.directory / "manifests-v2" / "x").write_text(f"sha256:{ollama.stored().model.files[1].digest.hex}")
    assert any("manifests-v2" in warning for warning in ollama.engine.plan(ollama.request()).warnings)
    record = ollama.engine.install(ollama.request())
    removed = ollama.engine.uninstall(record).removed
    assert not any(Path(path).name.endswith(ollama.stored().model.files[1].digest.hex) for path in removed)


def test_what_hides_models_is_announced(ollama: Case) -> None:
    """A link to nothing at a tag's place makes ``ollama list`` fail: nobody would look for it there."""
    link = ollama.directory / "manifests/registry.ollama.ai/library/gone/latest"
    link.parent.mkdir(parents=True)
    link.symlink_to("nowhere")
    (warning,) = ollama.engine.plan(ollama.request()).warnings
    assert str(link) in warning
    ollama.engine.install(ollama.request())
    assert link.is_symlink()


def test_deprecated_parameters_are_named(ollama: Case) -> None:
    """They have no effect, which somebody who tuned a model with them must hear; the layers are those without them."""
    text = "TEMPLATE x\nPARAMETER top_k 4\n"
    plain = ollama.engine.install(ollama.request(modelfile=text, name="plain"))
    old = ollama.request(modelfile=f"{text}PARAMETER mirostat 2\n", name="old")
    (warning,) = ollama.engine.plan(old).warnings
    assert warning.endswith("no longer has these parameters: mirostat")
    assert ollama.engine.install(old).files[:-1] == plain.files[:-1]


def test_an_install_beside_the_vault_writes_little(machine: Callable[..., Machine], tmp_path: Path) -> None:
    """``ollama create`` writes the whole model a second time; ours is a link, a manifest and what the vault notes of it."""
    server = machine("server")
    make_large_gguf(tmp_path / "large.gguf", 8_000_000)
    server.run("add", tmp_path / "large.gguf", "--name", "large")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock
    server.run("install", "large", "--engine", f"ollama={server.root / 'models'}")
    assert 512 * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock - before) < 1_000_000


def test_no_shell_in_names(ollama: Case) -> None:
    """A models directory with a blank must come out quoted."""
    case = replace(ollama, directory=ollama.directory.parent / "my models")
    record = case.engine.install(case.request(case.stored(origin=Origin("hub", "org/tiny", "0" * 40))))
    assert case.engine.recipe(record)[0] == f"OLLAMA_MODELS='{case.directory}' ollama serve"


@pytest.mark.parametrize("what", ["fifo", "gigabyte"])
def test_what_is_no_manifest_is_named(ollama: Case, what: str) -> None:
    """Which blobs are in use decides what is removed: what cannot be read is a refusal that says where it lies."""
    record = ollama.engine.install(ollama.request())
    odd = ollama.directory / "manifests/registry.ollama.ai/library/odd/latest"
    odd.parent.mkdir(parents=True)
    if what == "fifo":
        os.mkfifo(odd)
    else:
        odd.touch()
        os.truncate(odd, 1 << 30)
    before = contents(ollama.directory) if what == "gigabyte" else None
    with pytest.raises(EngineRefused, match="is in the way: it is not a manifest") as refused:
        ollama.engine.uninstall(record)
    assert refused.value.data["path"] == str(odd)
    assert before is None or contents(ollama.directory) == before
