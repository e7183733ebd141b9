"""The real Ollama and llama.cpp, on models of several layers: merged shards, templates of ours, adapters and projectors."""

import base64
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from engine_cases import Blobs
from machines import Machine
from make_models import SENTENCE, make_gguf, make_split_gguf
from real_engines import OLLAMAS, OllamaServer, llama_generate, ollama_server
from split_models import TRAITS, split_model
from tiny_parts import AFTER_SEEN, SIDE, STUCK, make_adapter, make_projector

from modelvault.engines import InstallRecord, InstallRequest, LinkMode, Removal, Target, engines, parse_target
from modelvault.engines.chat_templates import families
from modelvault.errors import EngineRefused
from modelvault.formats.modelfile import parse, render

pytestmark = pytest.mark.engine

MESSAGES = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]
RENDERED = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "[INST] S\n\nU[/INST] A</s>[INST] V[/INST]",
    "llama2": "[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]",
    "solar": "### System:\nS\n\n### User:\nU\n\n### Assistant:\nA</s>\n### User:\nV\n\n### Assistant:\n",
    "deepseek-v2": "S\n\nUser: U\n\nAssistant: A<｜end▁of▁sentence｜>User: V\n\nAssistant:",  # noqa: RUF001 (its own bars)
    "gemma": "<start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
    "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
    "phi3": "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n<|assistant|>\n",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n<|assistant|>\n",
    "deepseek": "S<｜User｜>U<｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>V<｜Assistant｜>",  # noqa: RUF001 (its own bars)
}
RENDERED |= {"llama3.1": RENDERED["llama3"], "qwen2.5": RENDERED["chatml"]}
OPENED = {
    "chatml": "<|im_start|>assistant\nA",
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\nA",
    "mistral": "U[/INST] A",
    "llama2": "U [/INST] A",
    "solar": "### Assistant:\nA",
    "deepseek-v2": "User: U\n\nAssistant: A",
    "gemma": "<start_of_turn>model\nA",
    "phi3": "<|assistant|>\nA",
    "zephyr": "<|assistant|>\nA",
    "deepseek": "<｜Assistant｜>A",  # noqa: RUF001 (its own bars)
}
OPENED |= {"llama3.1": OPENED["llama3"], "qwen2.5": OPENED["chatml"]}


def layer_digests(models: Path, name: str) -> list[tuple[str, str]]:
    """List kinds and digests of the layers of a model."""
    manifest = json.loads((models / f"manifests/registry.ollama.ai/library/{name}").read_bytes())
    return [(layer["mediaType"], layer["digest"]) for layer in manifest["layers"]]


def config(models: Path, name: str) -> dict[str, Any]:
    manifest = json.loads((models / f"manifests/registry.ollama.ai/library/{name}").read_bytes())
    found: dict[str, Any] = json.loads((models / "blobs" / manifest["config"]["digest"].replace(":", "-")).read_bytes())
    found.pop("rootfs", None)
    return found


def create_again(server: OllamaServer, record: InstallRecord, where: Path) -> None:
    """Have ``ollama create`` make a model from the Modelfile in a record."""
    (where / "Modelfile").write_text(record.modelfile or "")
    server.run("create", "again", "-f", str(where / "Modelfile"))


def test_split_model_runs(blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The merged file is one that llama.cpp and Ollama load, and say the same with as with the file that was never split."""
    monkeypatch.setattr("make_models.CHAT_TEMPLATE", "{{ '<|im_start|>user\n' + content + '<|im_end|>\n' }}")
    models = tmp_path / "models"
    record = engines()["ollama"].install(
        InstallRequest(split_model(blobs, tmp_path / "shards"), blobs.path, Target("ollama", models))
    )
    assert record.files[0].link == "merge"
    merged = tmp_path / "merged.gguf"
    merged.hardlink_to(models / record.files[0].path)
    assert SENTENCE.startswith(llama_generate(merged, "hello"))
    with ollama_server(models) as server:
        assert SENTENCE.startswith(server.generate("tiny:q8_0", "hello"))
        shown = server.run("show", "--template", "tiny:q8_0")
        assert shown.rstrip("\n") == next(family.template for family in families() if family.name == "chatml")
        create_again(server, record, tmp_path)
        assert layer_digests(models, "again/latest") == layer_digests(models, "tiny/q8_0")
    assert engines()["ollama"].verify(record) == []


def test_templates_say_what_the_models_expect(blobs: Blobs, tmp_path: Path) -> None:
    """Rendered by the real Ollama: one missing line end, and a model answers as if it were drunk."""
    path = tmp_path / "tiny-Q8_0.gguf"
    make_gguf(path)
    stored = blobs.model("org/tiny", {path.name: path.read_bytes()}, traits=TRAITS)
    target = Target("ollama", tmp_path / "models")
    for family in families():
        modelfile = render(family.added_to(parse("")), "x")
        engines()["ollama"].install(InstallRequest(stored, blobs.path, target, name=family.name, modelfile=modelfile))
    options = {"num_ctx": 1024, "num_predict": 4, "temperature": 0}
    with ollama_server(target.directory) as server:
        for family in families():
            body = {"model": family.name, "messages": MESSAGES, "stream": False, "options": options}
            rendered = server.api("/api/chat", body | {"_debug_render_only": True})["_debug_info"]["rendered_template"]
            assert rendered == RENDERED[family.name]
            opened = server.api("/api/chat", body | {"messages": MESSAGES[1:3], "_debug_render_only": True})
            assert opened["_debug_info"]["rendered_template"].endswith(OPENED[family.name])
        answer = server.api("/api/chat", {"model": "chatml", "messages": MESSAGES, "stream": False, "options": options})
        assert answer["message"]["content"]


def png() -> str:
    """An image, in base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes([8 * row, 0, 255 - 8 * row]) * 28 for row in range(28))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 2, 0, 0, 0))
    return base64.b64encode(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    ).decode()


@pytest.mark.parametrize("part", ["adapter", "projector"])
def test_parts_are_what_create_makes_of_them(blobs: Blobs, tmp_path: Path, part: str) -> None:
    """The same layers, a config that says the same of the model's files, and an answer that only they can give."""
    make_gguf(tmp_path / "tiny-Q8_0.gguf")
    if part == "adapter":
        make_adapter(tmp_path / "extra.gguf")
    else:
        make_projector(tmp_path / "mmproj.gguf")
    content = {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")}
    parameters = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(tmp_path / "tiny-Q8_0.gguf").tensors)
    stored = blobs.model("org/tiny", content, traits=TRAITS.__class__("gguf", "llama", "Q8_0", parameters))
    models = tmp_path / "models"
    modelfile = "TEMPLATE {{ .Prompt }}\n" + ("ADAPTER ./extra.gguf\n" if part == "adapter" else "")
    record = engines()["ollama"].install(
        InstallRequest(stored, blobs.path, Target("ollama", models), modelfile=modelfile)
    )
    with ollama_server(models) as server:
        create_again(server, record, tmp_path)
        kinds = [kind for kind, _ in layer_digests(models, "tiny/q8_0")]
        assert f"application/vnd.ollama.image.{part}" in kinds
        assert sorted(layer_digests(models, "again/latest")) == sorted(layer_digests(models, "tiny/q8_0"))
        ours, theirs = config(models, "tiny/q8_0"), config(models, "again/latest")
        if part == "projector":  # create takes its two files in random order, and the first for the family
            assert sorted(theirs["model_families"]) == sorted(ours["model_families"]) == ["clip", "llama"]
            assert "vision" in server.api("/api/show", {"model": "tiny:q8_0"})["capabilities"]
            assert SENTENCE.startswith(server.generate("tiny:q8_0", "hello"))
            asked = [{"role": "user", "content": "what is [img]", "images": [png()]}]
            options = {"num_ctx": 256, "num_predict": 6, "temperature": 0}
            body = {"model": "tiny:q8_0", "messages": asked, "stream": False, "options": options}
            assert server.api("/api/chat", body)["message"]["content"] == AFTER_SEEN
        else:
            assert ours == theirs
            assert server.generate("tiny:q8_0", "hello", tokens=3) == f" {STUCK}" * 3


def test_parts_in_a_newer_release(blobs: Blobs, tmp_path: Path) -> None:
    """It can show what it has of a model, and load neither part here."""
    make_gguf(tmp_path / "tiny-Q8_0.gguf")
    make_projector(tmp_path / "mmproj.gguf")
    make_adapter(tmp_path / "extra.gguf")
    content = {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")}
    stored = blobs.model("org/tiny", content, traits=TRAITS)
    target = Target("ollama", tmp_path / "models")
    record = engines()["ollama"].install(
        InstallRequest(stored, blobs.path, target, modelfile="TEMPLATE {{ .Prompt }}\nADAPTER ./extra.gguf\n")
    )
    with ollama_server(target.directory, release="ollama-newer") as server:
        shown = server.api("/api/show", {"model": "tiny:q8_0"})
        assert shown["capabilities"] == ["completion", "vision"]
        assert shown["projector_info"]["clip.vision.image_size"] == SIDE
        paths = [str(target.directory / file.path) for file in record.files[:3]]
        assert all(path in shown["modelfile"] for path in paths)
        assert f"ADAPTER {paths[2]}\n" in shown["modelfile"]


MODELFILE = (
    'TEMPLATE """{{ .System }}{{ .Prompt }}"""\nSYSTEM Answer briefly.\nPARAMETER temperature 0.7\nPARAMETER stop <|end|>\n'
    "PARAMETER stop b\nPARAMETER num_ctx 256\nLICENSE Free\nLICENSE Or not\nMESSAGE user Hi\nMESSAGE assistant Hello\n"
)


@pytest.mark.parametrize("release", OLLAMAS)
def test_through_the_api(blobs: Blobs, tmp_path: Path, release: str) -> None:
    """What the server makes of what it is sent has the same layers as what is written into its directory, shards included."""
    stored = split_model(blobs, tmp_path / "shards")
    models = tmp_path / "models"
    with ollama_server(models, release=release) as server:
        target = parse_target(f"ollama=http://127.0.0.1:{server.port}", engines())
        adapter = engines()[target.engine]
        request = InstallRequest(stored, blobs.path, target, modelfile=MODELFILE)
        plan = adapter.plan(request)
        assert server.api("/api/tags")["models"] == []
        sent: list[int] = []
        record = adapter.install(replace(request, on_bytes=sent.append))
        assert [file.link for file in record.files] == ["merge", "write"]
        assert plan.files[0].size == record.files[0].size == sum(sent)
        assert record.directory == f"http://127.0.0.1:{server.port}"
        assert InstallRecord.from_json(record.to_json()) == record
        if release == "ollama":
            assert SENTENCE.startswith(server.generate(record.installed_name, "hello"))
        beside = replace(request, target=Target("ollama", models), name="beside")
        engines()["ollama"].install(beside)
        assert layer_digests(models, "beside/latest") == layer_digests(models, "tiny/q8_0")
        assert adapter.verify(record) == []
        again = replace(request, previous=record)
        assert adapter.plan(again).extra_bytes == 0
        assert adapter.install(replace(again, on_bytes=sent.append)) == record
        assert sum(sent) == record.files[0].size
        changed = adapter.install(replace(again, modelfile="SYSTEM other\n", name="TINY:Q8_0"))
        assert changed.installed_name == "tiny:q8_0"
        assert any("another model" in problem for problem in adapter.verify(record))
        assert adapter.uninstall(record) == Removal(kept=("tiny:q8_0",))
        for attempt in (adapter.plan, adapter.install):
            with pytest.raises(EngineRefused, match="has another model named tiny:q8_0 already"):
                attempt(request)
        with pytest.raises(EngineRefused, match=r"refused the model: .*template"):
            adapter.install(replace(request, name="bad", modelfile="TEMPLATE {{ unheard .Of }}\n"))
        assert adapter.uninstall(changed).removed == ("tiny:q8_0",)
        assert adapter.uninstall(changed) == Removal()
        assert any("has no model" in problem for problem in adapter.verify(changed))
        with pytest.raises(EngineRefused, match="over a network"):
            adapter.install(replace(request, link=LinkMode.HARD))
    with pytest.raises(EngineRefused, match="cannot be reached") as refused:
        adapter.verify(record)
    assert "running" in (refused.value.hint or "")
    assert blobs.intact()


def test_what_a_newer_server_refuses(blobs: Blobs, tmp_path: Path) -> None:
    """It says so in words, which must reach the user as they are; written into its directory the adapter stays the user's choice."""
    make_gguf(tmp_path / "tiny-Q8_0.gguf")
    make_adapter(tmp_path / "extra.gguf")
    content = {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")}
    stored = blobs.model("org/tiny", content, traits=TRAITS)
    with ollama_server(tmp_path / "models", release="ollama-newer") as server:
        target = parse_target(f"ollama=http://127.0.0.1:{server.port}", engines())
        for modelfile, reason in (
            ("ADAPTER ./extra.gguf\n", "LoRA adapters are no longer supported"),
            ("ADAPTER ./extra.gguf\nPARAMETER typical_p 0.5\n", "typical_p is no longer supported"),
        ):
            with pytest.raises(EngineRefused, match=reason):
                engines()[target.engine].install(InstallRequest(stored, blobs.path, target, modelfile=modelfile))
        assert server.api("/api/tags")["models"] == []


def test_the_program_through_the_api(tmp_path: Path) -> None:
    """``--engine ollama=http://…`` from the command line, to the end: the shards of a folder run on a server without its directory."""
    make_split_gguf(tmp_path / "shards")
    machine = Machine(tmp_path / "machine")
    machine.root.mkdir()
    machine.run("add", tmp_path / "shards", "--name", "ours/tiny")
    with ollama_server(tmp_path / "models") as server:
        address = f"http://127.0.0.1:{server.port}"
        engine = ("--engine", f"ollama={address}/")
        (planned,) = machine.json("install", "ours/tiny", *engine, "--dry-run").result["installs"]
        assert (planned["engine"], planned["directory"], planned["link"]) == ("ollama-api", address, "merge")
        assert server.run("list").count("\n") == 1
        done = machine.run("install", "ours/tiny", *engine)
        assert f"OLLAMA_HOST={address} ollama run tiny:q8_0" in done.out
        assert SENTENCE.startswith(server.generate("tiny:q8_0", "hello"))
        (again,) = machine.json("install", "ours/tiny", *engine).result["installs"]
        assert again["already"] is True
        machine.run("verify", "--installs")
        server.run("rm", "tiny:q8_0")
        assert "has no model tiny:q8_0" in machine.run("verify", "--installs", code=12).err
        assert "ollama-api" in machine.run("installs").out
        machine.run("uninstall", "ours/tiny", *engine)
    assert "cannot be reached" in machine.run("install", "ours/tiny", *engine, code=16).err
    assert (
        "not the address of a server" in machine.run("install", "ours/tiny", "--engine", "ollama=http://", code=2).err
    )
    assert "ollama=http://HOST" in machine.run("install", "ours/tiny", "--engine", "ollama-api=/tmp", code=2).err
