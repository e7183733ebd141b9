"""What the smaller adapters have of their own: which files, under which names, what they refuse, and how the engine is started."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from engine_cases import COMMIT, Blobs, Case, contents
from huggingface_hub import scan_cache_dir, snapshot_download

from modelvault.artifact import Origin, StoredModel, Traits
from modelvault.engines import InstallRecord, LinkMode
from modelvault.engines.place import Placer, Wanted
from modelvault.errors import EngineRefused

CONFIG = b'{"architectures": ["LlamaForCausalLM"]}'
SHARDS = {f"BF16/big-0000{number}-of-00003.gguf": b"GGUF%d" % number for number in (1, 2, 3)}
EXLLAMA = {"config.json": CONFIG, "model.safetensors": b"x", "tokenizer.json": b"{}"}


Make = Callable[[str], Case]


@pytest.fixture
def make(blobs: Blobs, tmp_path: Path) -> Make:
    """Makes a case of the named adapter, in the test's own directory."""
    return lambda name: Case(name, blobs, tmp_path / name)


def model(case: Case, content: Mapping[str, bytes], quantization: str | None = None, **changes: object) -> StoredModel:
    return case.blobs.model("org/tiny", content, traits=Traits("x", quantization=quantization), **changes)


def install(case: Case, content: Mapping[str, bytes], quantization: str | None = None) -> InstallRecord:
    return case.engine.install(case.request(model(case, content, quantization)))


@pytest.mark.parametrize(
    ("engine", "content", "quantization", "reason"),
    [
        ("llamacpp", {"model.safetensors": b"x"}, None, "has none"),
        ("llamacpp", {"a-Q4_K_M.gguf": b"1", "a-Q8_0.gguf": b"2"}, None, "2 models"),
        ("llamacpp", {"a-00001-of-00002.gguf": b"1"}, None, "1 are not here"),
        ("llamacpp", {"mmproj-F16.gguf": b"1"}, None, "without the model"),
        ("llamacpp", {"mtp-a.gguf": b"1"}, None, "for a draft model"),
        ("textgen", {"a-Q4_K_M.gguf": b"1", "a-Q8_0.gguf": b"2"}, None, "text-generation-webui takes one"),
        ("textgen", EXLLAMA, "exl2 4.0bpw", "no longer loads EXL2"),
        ("textgen", {"model.safetensors": b"x"}, None, "no config.json"),
        ("textgen", {"pytorch_model.bin": b"x", "config.json": CONFIG}, None, "takes safetensors"),
        ("exllama", EXLLAMA, None, "not quantized"),
        ("exllama", EXLLAMA, "awq 4-bit", "awq 4-bit"),
        ("exllama", {name: data for name, data in EXLLAMA.items() if "token" not in name}, "exl3", "no tokenizer.json"),
        ("exllama", EXLLAMA | {"config.json": b'{"architectures": ["A", "B"]}'}, "exl2", "exactly one architecture"),
        ("tabbyapi", EXLLAMA | {"config.json": b"{}"}, "exl3", "exactly one architecture"),
        ("tabbyapi", EXLLAMA | {"config.json": b"["}, "exl3", "exactly one architecture"),
        ("tabbyapi", EXLLAMA, "gptq 4-bit", "gptq 4-bit"),
        ("tgi", {"a.gguf": b"1"}, None, "only GGUF"),
        ("tgi", {"model.safetensors": b"x", "config.json": CONFIG}, "exl3", "EXL3"),
        ("tgi", EXLLAMA | {"model.safetensors.index.json": b"[]"}, None, "lists no weights"),
        ("tgi", EXLLAMA | {"training-x.safetensors": b"1"}, None, "passes over a file called training-x"),
        ("tgi", EXLLAMA, "hqq 4-bit", "as unquantized"),
        (
            "tgi",
            EXLLAMA | {"model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}'},
            None,
            "not here",
        ),
        ("sglang", {"a.gguf": b"1", "b.gguf": b"2"}, None, "SGLang takes one"),
        ("sglang", {f"a-0000{number}-of-00002.gguf": b"%d" % number for number in (1, 2)}, None, "takes one per model"),
        ("sglang", {"a-00001-of-00002.gguf": b"1"}, None, "1 are not here"),
        ("tabbyapi", {"model-00001-of-00002.safetensors": b"x"} | EXLLAMA, "exl3", "1 are not here"),
        ("sglang", EXLLAMA, "exl2", "EXL2"),
    ],
)
def test_what_is_refused(
    make: Make, engine: str, content: dict[str, bytes], quantization: str | None, reason: str
) -> None:
    """What the engine cannot load is better refused than installed: its own error comes later, and says less."""
    case = make(engine)
    with pytest.raises(EngineRefused, match=reason):
        install(case, content, quantization)
    assert contents(case.directory) == {}


def test_shards_lie_side_by_side_for_llama_cpp(make: Make) -> None:
    """llama.cpp looks for the others beside the first, and never in a subdirectory of a model's; other files are not for it."""
    case = make("llamacpp")
    record = install(case, SHARDS | {"mmproj-BF16.gguf": b"low", "mmproj-F16.gguf": b"projector", "config.json": b"{}"})
    names = [*(Path(path).name for path in SHARDS), "mmproj-F16.gguf"]
    assert [file.path for file in record.files] == [f"org--tiny/{name}" for name in names]
    serve, preset = case.engine.recipe(record)
    assert serve == f"llama-server --offline --models-dir {case.directory}"
    assert f"model = {case.directory}/org--tiny/{names[0]}" in preset
    assert f"mmproj = {case.directory}/org--tiny/mmproj-F16.gguf" in preset


def test_llama_cpp_looks_at_upper_and_lower_case(make: Make) -> None:
    """``llama-server`` would not see ``TINY.GGUF``, and take ``MMPROJ`` for the model; a draft model is found beside it by its name."""
    case = make("llamacpp")
    record = install(case, {"TINY.GGUF": b"1", "MMProj-F16.GGUF": b"2", "mtp-TINY.gguf": b"3", "lora-x.gguf": b"4"})
    assert {Path(file.path).name for file in record.files} == {"TINY.gguf", "mmproj-F16.gguf", "mtp-TINY.gguf"}
    _, preset = case.engine.recipe(record)
    assert f"model = {case.directory}/org--tiny/TINY.gguf" in preset


def test_textgen_needs_packages_for_some(make: Make) -> None:
    """Its own requirements hold nothing that loads AWQ: offline, that is found out too late. It runs a model's code if it is told to."""
    case = make("textgen")
    (warning,) = case.engine.plan(case.request(model(case, EXLLAMA, "AWQ 4-bit g128"))).warnings
    assert "only with gptqmodel installed" in warning
    code = EXLLAMA | {"config.json": b'{"auto_map": {"AutoModel": "modeling.Model"}}', "modeling.py": b""}
    (line,) = case.engine.recipe(install(case, code))
    assert line.endswith("--model org--tiny --trust-remote-code")
    assert case.engine.recipe(install(make("tabbyapi"), code | {"config.json": CONFIG}, "exl3"))


@pytest.mark.parametrize(
    ("more", "warns"),
    [
        ({}, False),
        ({"chat_template.jinja": b"x"}, True),
        ({"chat_template.jinja": b"x", "tokenizer_config.json": b"{}"}, True),
        ({"chat_template.jinja": b"x", "tokenizer_config.json": b'{"chat_template": "x"}'}, False),
        ({"chat_template.jinja": b"x", "chat_template.json": b"{}"}, False),
    ],
)
def test_tgi_reads_templates_elsewhere(make: Make, more: dict[str, bytes], *, warns: bool) -> None:
    """Newer repositories have the template in a file that TGI does not know: chats are refused then."""
    case = make("tgi")
    warnings = case.engine.plan(case.request(model(case, EXLLAMA | more))).warnings
    assert [("chat_template.jinja" in warning) for warning in warnings] == [True] * warns


def test_textgen_has_projectors_elsewhere(make: Make) -> None:
    """Below models/ a projector would be offered as a model; a new version without one must not leave the old one behind."""
    case = make("textgen")
    content = {"tiny.gguf": b"GGUF", "mmproj-F16.gguf": b"projector"}
    record = install(case, content)
    projector = case.directory / "mmproj/org--tiny--mmproj-F16.gguf"
    assert projector.read_bytes() == b"projector"
    (step,) = case.engine.recipe(record)
    assert step.endswith(f"--model-dir {case.directory}/models --model org--tiny/tiny.gguf --mmproj {projector}")
    plain = model(case, {"tiny.gguf": b"GGUF, newer"})
    assert case.engine.verify(case.engine.install(case.request(plain, previous=record))) == []
    assert not projector.exists()
    foreign = case.directory / "mmproj/org--other--mmproj-F16.gguf"
    foreign.write_bytes(b"theirs")
    with pytest.raises(EngineRefused, match="is in the way"):
        case.engine.install(case.request(case.blobs.model("org/other", content)))
    assert foreign.read_bytes() == b"theirs"
    other = case.request(model(case, EXLLAMA, "exl3"), name="other")
    assert case.engine.recipe(case.engine.install(other))[0].endswith("--model other")


def test_a_projector_goes_though_the_directory_is_gone(make: Make) -> None:
    """Whoever removed the model's directory by hand still has a gigabyte beside it."""
    case = make("textgen")
    record = install(case, {"tiny.gguf": b"GGUF", "mmproj-F16.gguf": b"projector"})
    for path in (case.directory / "models/org--tiny").iterdir():
        path.unlink()
    (case.directory / "models/org--tiny").rmdir()
    assert len(case.engine.uninstall(record).removed) == 1
    assert contents(case.directory) == {}


def test_tabby_keeps_the_users_settings(make: Make) -> None:
    """A ``tabby_config.yml`` outlives updates and removals; older TabbyAPI only serves EXL2, which is said."""
    case = make("tabbyapi")
    record = install(case, EXLLAMA, "exl3 4.0bpw")
    settings = case.directory / "org--tiny/tabby_config.yml"
    settings.write_text("mine")
    updated = case.request(model(case, EXLLAMA | {"model.safetensors": b"y"}, "exl2"), previous=record)
    assert "older release" in case.engine.plan(updated).warnings[0]
    newer = case.engine.install(updated)
    assert settings.read_text() == "mine"
    assert case.engine.verify(newer) == []
    assert case.engine.uninstall(newer).kept == ()
    assert contents(case.directory).keys() == {"org--tiny/tabby_config.yml"}
    assert case.engine.verify(install(case, EXLLAMA, "exl3")) == []
    assert settings.read_text() == "mine"


def test_tabby_takes_unquantized_weights(make: Make) -> None:
    """ExLlamaV3 loads them as they were trained; ExLlama's own programs are for what was quantized for them."""
    case = make("tabbyapi")
    assert case.engine.verify(install(case, EXLLAMA, "BF16")) == []
    (step,) = case.engine.recipe(install(case, EXLLAMA, "BF16"))
    assert step == f"python main.py --model-dir {case.directory} --model-name org--tiny"


@pytest.mark.parametrize(
    ("content", "left_out"),
    [
        (
            EXLLAMA | {"consolidated.safetensors": b"again", "original/x.safetensors": b"deep"},
            {"consolidated.safetensors"},
        ),
        (
            {
                "config.json": CONFIG,
                "a.safetensors": b"1",
                "b.safetensors": b"2",
                "stray.safetensors": b"3",
                "model.safetensors.index.json": b'{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}',
            },
            {"stray.safetensors"},
        ),
        ({"config.json": CONFIG, "one.safetensors": b"1", "two.safetensors": b"2"}, set()),
    ],
)
def test_tgi_finds_only_the_models_weights(make: Make, content: dict[str, bytes], left_out: set[str]) -> None:
    """TGI loads whatever ``*.safetensors`` lies there: a second copy of the weights doubles the memory, or fails."""
    case = make("tgi")
    record = install(case, content)
    snapshot = next((case.directory / "hub/models--org--tiny/snapshots").iterdir())
    assert {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.*")} == content.keys() - left_out
    (step,) = case.engine.recipe(record)
    assert step == (
        f"HF_HUB_OFFLINE=1 HF_HOME={case.directory} text-generation-launcher --model-id org/tiny --usage-stats off"
    )


def test_tgi_plans_before_the_index_is_here(make: Make) -> None:
    """An import says what it would do before it has read anything; the import itself then goes by the index."""
    case = make("tgi")
    stored = model(case, EXLLAMA | {"consolidated.safetensors": b"1", "model.safetensors.index.json": b"{}"})
    for file in stored.model.files:
        case.blobs.path(file.digest).unlink(missing_ok=True)
    names = {file.path.name for file in case.engine.plan(case.request(stored)).files}
    assert "model.safetensors" in names
    assert "consolidated.safetensors" not in names


@pytest.mark.parametrize("engine", ["tgi", "sglang", "vllm"])
def test_the_hubs_own_client_finds_the_model(make: Make, engine: str) -> None:
    """The engines resolve a repository's name with it, offline: what it does not find, they do not."""
    case = make(engine)
    record = case.engine.install(case.request(case.stored(origin=Origin("hub", "org/tiny", COMMIT))))
    cache = case.directory / "hub" if engine == "tgi" else case.directory
    found = Path(snapshot_download(record.installed_name, cache_dir=cache, local_files_only=True))
    assert found.name == COMMIT
    assert (found / "config.json").read_bytes() == CONFIG
    scanned = scan_cache_dir(cache)
    assert scanned.warnings == []
    (repository,) = scanned.repos
    (revision,) = repository.revisions
    assert (repository.repo_id, set(revision.refs), revision.commit_hash) == ("org/tiny", {"main"}, COMMIT)


def test_sglang_takes_gguf_by_path(make: Make) -> None:
    """SGLang loads GGUF by the path of a file, for which the hub's cache is a directory like any other."""
    case = make("sglang")
    record = install(case, {"tiny.gguf": b"GGUF", "config.json": CONFIG})
    (step,) = case.engine.recipe(record)
    path = Path(step.partition("--model-path ")[2].partition(" ")[0])
    assert path.read_bytes() == b"GGUF"
    assert path.name == "tiny.gguf"
    assert step.endswith("--served-model-name org/tiny")
    assert case.engine.recipe(install(make("sglang"), EXLLAMA))[0].endswith("--model-path org/tiny")


def test_a_projector_of_a_killed_install_is_ours(make: Make) -> None:
    """Copied before the directory with the marker got its name, it would otherwise stay for ever."""
    case = make("textgen")
    request = case.request(model(case, {"tiny.gguf": b"GGUF", "mmproj-F16.gguf": b"projector"}), link=LinkMode.COPY)
    (projector,) = (file for file in request.model.files if "mmproj" in file.path)
    placer = Placer(request)
    placer.make_directories(case.directory / "mmproj")
    placer.bring(Wanted.of(request, projector), case.directory / "mmproj/org--tiny--mmproj-F16.gguf")
    record = case.engine.install(request)
    case.engine.uninstall(record)
    assert contents(case.directory) == {}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root could be led astray")
@pytest.mark.parametrize("place", ["models", "mmproj"])
def test_textgens_user_cannot_lead_root_astray(make: Make, tmp_path: Path, place: str) -> None:
    """Whoever owns the engine's directory could else have root write into one of root's."""
    case = make("textgen")
    case.directory.mkdir()
    (tmp_path / "roots").mkdir()
    (case.directory / place).symlink_to(tmp_path / "roots")
    for path in (case.directory, case.directory / place):
        os.chown(path, 1234, 1234, follow_symlinks=False)
    with pytest.raises(EngineRefused, match="does not belong to the engine's user"):
        install(case, {"tiny.gguf": b"GGUF", "mmproj-F16.gguf": b"projector"})
    assert list((tmp_path / "roots").iterdir()) == []
