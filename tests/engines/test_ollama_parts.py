"""Ollama's layers that are more than one file of a model: shards, projectors, adapters, and templates of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from engine_cases import Blobs, Case, contents
from make_models import CHAT_TEMPLATE
from split_models import SplitCase, small_shards

from modelvault.artifact import Digest, FileSpec, Model, ModelName, Origin, Recipe, Traits
from modelvault.engines import InstallRecord, LinkMode
from modelvault.engines.chat_templates import families, recognize
from modelvault.engines.gguf_parts import Parts, choose_parts
from modelvault.errors import EngineRefused, UsageProblem
from modelvault.formats.modelfile import parse, render

HERE = Path(__file__).resolve().parents[1]


@pytest.fixture
def split(blobs: Blobs, tmp_path: Path) -> SplitCase:
    return SplitCase("ollama", blobs, tmp_path / "engine" / "models")


def layers(case: Case, record: InstallRecord) -> dict[str, bytes]:
    """Map the kinds of layers of an installed model to their bytes."""
    manifest = json.loads((case.directory / record.files[-1].path).read_bytes())
    return {
        layer["mediaType"].rpartition(".")[2]: (
            case.directory / "blobs" / layer["digest"].replace(":", "-")
        ).read_bytes()
        for layer in manifest["layers"]
    }


# ── shards ──


def test_shards_become_one_blob(split: SplitCase) -> None:
    """The bytes that the plan shows are those that are written; a repeat writes none."""
    plan = split.engine.plan(split.request())
    assert not split.directory.exists()
    record = split.engine.install(split.request())
    merged = record.files[0]
    assert merged.link == "merge"
    assert plan.files[0].link == "merge"
    assert plan.files[0].size == merged.size == (split.directory / merged.path).stat().st_size
    assert plan.extra_bytes == sum(file.size for file in record.files)
    assert split.visible() == {"tiny/q8_0"}
    assert split.engine.verify(record) == []
    inode = (split.directory / merged.path).stat().st_ino
    again = split.engine.plan(split.request(previous=record))
    assert again.extra_bytes == 0
    assert all(file.there for file in again.files)
    assert split.engine.install(split.request(previous=record)) == record
    assert (split.directory / merged.path).stat().st_ino == inode
    assert split.blobs.intact()


def test_a_second_name_shares_the_merged_blob(split: SplitCase) -> None:
    """Nothing records that the blob is the model's, but its digest can be computed: nothing is written for it."""
    first = split.engine.install(split.request(name="one"))
    request = split.request(name="two", link=LinkMode.COPY)
    plan = split.engine.plan(request)
    assert [file for file in plan.files if not file.there] == [plan.files[-1]]
    second = split.engine.install(request)
    assert second.files[0].path == first.files[0].path
    assert second.files[0].link == "present"
    split.engine.uninstall(first)
    assert split.visible() == {"two/latest"}
    split.engine.uninstall(second)
    assert contents(split.directory) == {}


def test_a_damaged_merged_blob(split: SplitCase) -> None:
    """Ours is made anew; somebody else's is refused, however it came there."""
    record = split.engine.install(split.request())
    path = split.directory / record.files[0].path
    sound = path.read_bytes()
    for data in (sound[:-1] + b"!", b"short"):
        path.write_bytes(data)
        assert split.engine.plan(split.request(previous=record)).files[0].there is (data != b"short")
        assert split.engine.install(split.request(previous=record)) == record
        assert path.read_bytes() == sound
        path.write_bytes(data)
        (split.directory / record.files[-1].path).unlink()
        with pytest.raises(EngineRefused, match="is in the way"):
            split.engine.install(split.request())
        assert path.read_bytes() == data


def test_shards_that_are_still_to_come(split: SplitCase) -> None:
    """An import is planned before anything was received."""
    stored = split.stored()
    for file in stored.model.files:
        split.blobs.path(file.digest).unlink()
    plan = split.engine.plan(split.request(stored))
    assert plan.files[0].digest is None
    assert plan.extra_bytes >= sum(len(data) for data in small_shards().values())


def test_killed_at_any_step_of_a_merge(tmp_path: Path) -> None:
    """Half of a merged file must not get a name, nor stay for ever."""
    script = "import engine_crash, split_models; engine_crash.Case = split_models.SplitCase; engine_crash.main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "ollama", "auto", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "scripts")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


# ── parts ──


def parts_of(*paths: str, modelfile: str = "") -> Parts:
    files = tuple(FileSpec(path, 1, Digest.of_bytes(path.encode())) for path in paths)
    return choose_parts(Model(ModelName("org/x"), Origin("folder"), files, Traits("gguf")), parse(modelfile))


def test_parts_by_name() -> None:
    """A repository's other GGUF files must not keep its model from being installed, nor get into it unasked."""
    parts = parts_of("a-Q4.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf", "x.imatrix.gguf", "my-lora.gguf", "README.md")
    assert [file.path for file in parts.weights] == ["a-Q4.gguf"]
    assert parts.projector is not None
    assert parts.projector.path == "mmproj-F16.gguf"
    assert parts.adapter is None
    assert {file.path for file in parts.unused} == {"mmproj-BF16.gguf", "x.imatrix.gguf", "my-lora.gguf"}
    named = parts_of("a.gguf", "sub/extra.gguf", modelfile="ADAPTER ./sub/extra.gguf\n")
    assert named.adapter is not None
    assert (named.adapter.path, [file.path for file in named.weights]) == ("sub/extra.gguf", ["a.gguf"])
    assert parts_of("colorado.gguf").weights
    assert parts_of("merged-lora-model.gguf").weights
    shards = parts_of("q/a-00002-of-00002.gguf", "q/a-00001-of-00002.gguf")
    assert [file.path for file in shards.weights] == ["q/a-00001-of-00002.gguf", "q/a-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    "modelfile", ["ADAPTER ./other.gguf\n", "ADAPTER a.gguf\nADAPTER b.gguf\n", "ADAPTER README.md\n"]
)
def test_a_wrong_adapter(modelfile: str) -> None:
    """A mistyped file must not end in a model without its adapter."""
    with pytest.raises(UsageProblem, match="ADAPTER"):
        parts_of("a.gguf", "b.gguf", "README.md", modelfile=modelfile)


def test_projector_and_adapter_are_layers(ollama: Case) -> None:
    """They are linked as the model is, and go with it."""
    content = {"a.gguf": b"GGUF model", "mmproj.gguf": b"GGUF projector", "lora.gguf": b"GGUF adapter"}
    stored = ollama.blobs.model("org/x", content, traits=Traits("gguf", "llama"))
    request = ollama.request(stored, modelfile="TEMPLATE {{ .Prompt }}\nADAPTER ./lora.gguf\n")
    assert ollama.engine.plan(request).warnings == ()
    record = ollama.engine.install(request)
    found = layers(ollama, record)
    assert list(found)[:3] == ["model", "projector", "adapter"]
    assert [found["model"], found["projector"], found["adapter"]] == list(content.values())
    assert [file.link for file in record.files[:3]] == ["hard link"] * 3
    paths = [str(ollama.directory / file.path) for file in record.files[:3]]
    modelfile = record.modelfile or ""
    assert modelfile.startswith(f"FROM {paths[0]}\n")
    assert modelfile.endswith(f"ADAPTER {paths[2]}\nFROM {paths[1]}\n")
    assert ollama.engine.uninstall(record).removed
    assert contents(ollama.directory) == {}
    unused = ollama.engine.plan(ollama.request(stored, modelfile="TEMPLATE x\n")).warnings
    assert any("left out" in warning and "lora.gguf" in warning for warning in unused)


# ── templates ──

JINJA = {
    "chatml": CHAT_TEMPLATE
    if "im_start" in CHAT_TEMPLATE
    else "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
    "llama3": "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}",
    "llama3.1": "{% if tools %}{{ 'Environment: ipython\n' }}{% endif %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}",
    "qwen2.5": "{{ '<|im_start|>system\n<tools>\n</tools>\n<tool_call>\n{\"name\": <function-name>}\n</tool_call><|im_end|>\n' }}"
    "{{ '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}",
    "llama2": "{{ '[INST] <<SYS>>\n' + system + '\n<</SYS>>\n\n' + content + ' [/INST]' }}",
    "solar": "{{ '### System:\n' + s }}{{ '### User:\n' + message['content'] + '\n\n' }}{{ '### Assistant:\n' }}",
    "deepseek-v2": "{{ 'User: ' + message['content'] + '\n\n' }}{{ 'Assistant: ' + message['content'] + eos_token }}",
    "mistral": "{{ bos_token }}{{ '[INST] ' + message['content'] + ' [/INST]' }}{{ message['content'] + eos_token }}",
    "gemma": "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}",
    "phi3": "{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}",
    "zephyr": "{{ '<|user|>\n' + message['content'] + eos_token }}{{ '<|assistant|>\n'  + message['content'] + eos_token }}",
    "deepseek": "{{'<｜User｜>' + message['content'] + '<｜Assistant｜>'}}{{message['content'] + '<｜end▁of▁sentence｜>'}}",  # noqa: RUF001 (its own bars)
}
FOREIGN = {
    "phi-4": "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|><|im_start|>assistant<|im_sep|>'}}",
    "mistral v7": "{{ '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}{{ '[INST]' + content + '[/INST]' }}",
    "tulu": "{{ '<|user|>\n' + message['content'] + '\n' }}{{ '<|assistant|>\n' + message['content'] + eos_token }}",
    "none": "",
}


@pytest.mark.parametrize("name", [*JINJA, *FOREIGN])
def test_families_are_recognized(name: str) -> None:
    """The wrong template makes a model babble; none at all is better."""
    family = recognize(JINJA.get(name, FOREIGN.get(name, "")))
    assert (family and family.name) == (name if name in JINJA else None)
    assert {family.name for family in families()} == set(JINJA)


@pytest.mark.parametrize(
    ("jinja", "family"),
    [
        (JINJA["qwen2.5"] + "{{ '<think>\n\n</think>\n\n' }}", "chatml"),
        (JINJA["qwen2.5"] + "{{ '<function=' + name + '>\n' }}", "chatml"),
        (JINJA["llama3.1"].replace("ipython", ""), "llama3"),
    ],
    ids=["qwen3", "qwen3-coder", "llama 3"],
)
def test_tools_only_where_they_are_called_so(jinja: str, family: str) -> None:
    """A relative that calls its tools in another way would be taught the wrong one."""
    found = recognize(jinja)
    assert found is not None
    assert found.name == family


def with_chat_template(path: Path, template: str) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path.read_bytes()


def test_a_model_without_template_gets_ours(ollama: Case, tmp_path: Path) -> None:
    """Shown before it is done, and only where nobody gave one."""
    data = with_chat_template(tmp_path / "x.gguf", JINJA["chatml"])
    stored = ollama.blobs.model("org/x", {"x.gguf": data}, traits=Traits("gguf", "llama"))
    assert any("modelvault's for ChatML" in warning for warning in ollama.engine.plan(ollama.request(stored)).warnings)
    record = ollama.engine.install(ollama.request(stored))
    chatml = recognize(JINJA["chatml"])
    assert chatml is not None
    found = layers(ollama, record)
    assert found["template"].decode() == chatml.template
    assert json.loads(found["params"]) == {"stop": list(chatml.stop)}
    assert parse(record.modelfile or "").last("TEMPLATE") == chatml.template
    for given, template in (("TEMPLATE mine\n", b"mine"), ('TEMPLATE ""\n', None), ("RENDERER qwen3-coder\n", None)):
        request = ollama.request(stored, modelfile=given, name="other")
        assert not any("modelvault's" in warning for warning in ollama.engine.plan(request).warnings)
        other = ollama.engine.install(request)
        assert layers(ollama, other).get("template") == template
        ollama.engine.uninstall(other)
    own = ollama.engine.install(ollama.request(stored, modelfile="PARAMETER stop mine\n", name="own"))
    assert json.loads(layers(ollama, own)["params"]) == {"stop": ["mine"]}
    recipe = ollama.blobs.model(
        "org/y", {"x.gguf": data}, traits=Traits("gguf", "llama"), recipe=Recipe(modelfile="TEMPLATE theirs\n")
    )
    assert layers(ollama, ollama.engine.install(ollama.request(recipe)))["template"] == b"theirs"


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_templates_can_be_written_into_a_modelfile(family: object) -> None:
    """The record's Modelfile is what ``ollama create`` makes the model from again."""
    chosen = next(entry for entry in families() if entry is family)
    modelfile = chosen.added_to(parse("SYSTEM x\n"))
    again = parse(render(modelfile, "./x.gguf"))
    assert again.last("TEMPLATE") == chosen.template
    assert again.parameters["stop"] == chosen.stop
