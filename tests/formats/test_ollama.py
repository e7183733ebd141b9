"""Ollama's manifests as lists of files, and its layers as a Modelfile."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelvault.artifact import Digest, ModelName, check_distinct, check_relative_path
from modelvault.engines.ollama_store import text_layers
from modelvault.formats.modelfile import Instruction, Modelfile, parse, render
from modelvault.formats.ollama import CONFIG_FILE, Descriptor, OllamaManifest, decode_manifest, listed_files
from modelvault.formats.ollama_layers import modelfile_of

MEDIA = "application/vnd.ollama.image."


def blob(kind: str, data: bytes = b"x") -> Descriptor:
    return Descriptor(kind, Digest.of_bytes(data), len(data))


def manifest(*kinds: str) -> OllamaManifest:
    return OllamaManifest(blob("config"), tuple(blob(kind, kind.encode()) for kind in kinds))


def test_every_layer_is_a_file() -> None:
    """Breaks if a layer is lost, or two of them are one file."""
    found = manifest(
        "model", "model", "projector", "adapter", "license", "license", "license", "draft", "embed", "x/y"
    ).files()
    assert list(found) == [
        "ollama/config.json",
        "model.gguf",
        "model-2.gguf",
        "mmproj.gguf",
        "adapter.gguf",
        "LICENSE",
        "LICENSE-2",
        "LICENSE-3",
        "draft.gguf",
        "ollama/layer",
        "ollama/layer-2",
    ]
    files = listed_files(manifest("model"), "0" * 64, 5)
    assert [file.path for file in files] == ["model.gguf", "ollama/config.json", "ollama/manifest.json"]


@given(st.lists(st.text() | st.sampled_from(["model", "license", "system", "params"]), max_size=30))
def test_files_of_any_layers_are_safe(kinds: list[str]) -> None:
    """Breaks if what a registry calls a layer becomes a path that leaves the model, or meets another."""
    files = manifest(*kinds).files()
    assert len(files) == len(kinds) + 1
    check_distinct(ModelName("a"), [check_relative_path(path) for path in files])


def document(**changes: Any) -> bytes:
    layer = {"mediaType": f"{MEDIA}model", "digest": "sha256:" + "a" * 64, "size": 7, "from": "/x"}
    return json.dumps({"schemaVersion": 2, "config": layer, "layers": [layer], **changes}).encode()


def test_a_manifest() -> None:
    """Breaks if what Ollama writes is not read."""
    expected = Descriptor("model", Digest.sha256("a" * 64), 7)
    assert decode_manifest(document()) == OllamaManifest(expected, (expected,))
    assert decode_manifest(document(layers=[])).layers == ()


BAD = {"mediaType": f"{MEDIA}model", "digest": "sha256:" + "A" * 64, "size": 7}


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'{"a":1,"a":2}', b"\xff", document(schemaVersion=1), document(layers=None), document(config=None)]
    + [
        document(layers=[layer])
        for layer in ({}, 5, BAD, {**BAD, "digest": "sha1:x"}, {**BAD, "digest": "sha256:../x"})
    ]
    + [
        document(config={**BAD, "digest": "sha256:" + "a" * 64, "size": size}) for size in (-1, 1.5, True, "7", 1 << 70)
    ],
)
def test_what_is_no_manifest(data: bytes) -> None:
    """Breaks if a hostile registry or store gets anything but an error out of it."""
    with pytest.raises(ValueError):  # noqa: PT011 (each says something else)
        decode_manifest(data)


def layers_of(text: str) -> tuple[OllamaManifest, dict[str, bytes]]:
    """What the engine would write for a Modelfile, as a manifest and its files."""
    made = text_layers(parse(text))
    found = OllamaManifest(blob("config"), tuple(Descriptor(layer.media, layer.digest, layer.size) for layer in made))
    data = {layer.digest: layer.data or b"" for layer in made}
    return found, {path: data[file.digest] for path, file in found.files().items() if file.digest in data}


TEXT = (
    'TEMPLATE """{{ if .System }}{{ .System }}\n{{ end }}{{ .Prompt }}"""\nSYSTEM """  Answer "briefly".  """\nLICENSE one\n'
    "LICENSE two\nPARAMETER num_ctx 4096\nPARAMETER stop <|a|>\nPARAMETER stop b\nPARAMETER temperature 0.7\nPARAMETER top_p 1\n"
    "PARAMETER use_mmap true\nMESSAGE user hi\nMESSAGE assistant hello\n"
)


def test_layers_say_what_the_modelfile_said() -> None:
    """Breaks if a model comes back from Ollama with another template, parameter or message than it went there with."""
    text, unsaid = modelfile_of(*layers_of(TEXT))
    assert unsaid == ()
    assert text_layers(parse(text)) == text_layers(parse(TEXT))
    assert "FROM" not in text


values = st.text(max_size=20)
instructions = st.one_of(
    st.builds(Instruction, st.sampled_from(["TEMPLATE", "SYSTEM", "LICENSE"]), values),
    st.builds(Instruction, st.just("MESSAGE"), values, st.sampled_from(["user", "assistant", "system"])),
    st.builds(Instruction, st.just("PARAMETER"), values, st.just("stop")),
    st.builds(Instruction, st.just("PARAMETER"), st.floats(0, 2, width=32).map(str), st.just("temperature")),
    st.builds(Instruction, st.just("PARAMETER"), st.integers(0, 1 << 40).map(str), st.just("num_ctx")),
)


@given(st.lists(instructions, max_size=6).map(lambda entries: Modelfile(tuple(entries))))
def test_layers_of_anything(modelfile: Modelfile) -> None:
    """Breaks if a text that no Modelfile can hold stops a model, or changes what the rest of it says."""
    made = text_layers(modelfile)
    found = OllamaManifest(blob("config"), tuple(Descriptor(layer.media, layer.digest, layer.size) for layer in made))
    data = {layer.digest: layer.data or b"" for layer in made}
    text, unsaid = modelfile_of(
        found, {path: data[file.digest] for path, file in found.files().items() if file.digest in data}
    )
    again = text_layers(parse(text))
    if not unsaid:
        assert again == made


def test_what_cannot_be_said_is_named() -> None:
    """Breaks if a parameter of an old release, or a text with quotes that nothing quotes, makes a model that nobody can install."""
    kinds = ("template", "params", "license", "messages")
    content = {
        "ollama/template": b'a"""\nb',
        "ollama/params.json": b'{"mirostat":2,"num_gqa":8,"num_ctx":"many","temperature":0.5,"tfs_z":[1],"stop":"x"}',
        "LICENSE": b"not \xff text",
        "ollama/messages.json": b'[{"role":"tool","content":"x"},{"role":"user","content":"y"}]',
        CONFIG_FILE: b'{"renderer":"r","requires":"new"}',
    }
    text, unsaid = modelfile_of(manifest(*kinds), content)
    assert text == "RENDERER r\nPARAMETER mirostat 2\nPARAMETER temperature 0.5\nPARAMETER stop x\nMESSAGE user y\n"
    assert set(unsaid) == {
        *("TEMPLATE", "REQUIRES", "LICENSE", "PARAMETER num_gqa", "PARAMETER num_ctx", "PARAMETER tfs_z"),
        "MESSAGE tool",
    }


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b'{"a":NaN}', b"\xff"])
@pytest.mark.parametrize("path", ["ollama/params.json", "ollama/messages.json", CONFIG_FILE])
def test_layers_that_are_broken(path: str, content: bytes) -> None:
    """Breaks if JSON that Ollama could not read either is met as a defect of ours."""
    with pytest.raises(ValueError):  # noqa: PT011 (each says something else)
        modelfile_of(manifest("params", "messages"), {path: content})


def test_an_adapter_is_named() -> None:
    """Breaks if the second file of a tuned model is not the one that the Modelfile means."""
    assert modelfile_of(manifest("model", "adapter"), {})[0] == render(parse("ADAPTER ./adapter.gguf"), None)
