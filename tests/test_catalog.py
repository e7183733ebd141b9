"""The catalog: what an entry may say, how it is found, and what the real Ollama makes of its recipes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from make_models import make_gguf
from real_engines import OllamaServer, ollama_server

from modelvault.artifact import ModelName
from modelvault.catalog import (
    CatalogEntry,
    combined,
    find_entry,
    load_catalog,
    packaged_manifests,
    read_entries,
    schema,
    search,
    suggest,
)
from modelvault.catalog.languages import LANGUAGES, language_code
from modelvault.errors import UsageProblem
from modelvault.operations.catalog import recipe_of

SHIPPED = load_catalog()
GGUF_ENTRIES = [entry for entry in SHIPPED.values() if entry.format == "gguf"]
MODELS = """
llama-3.1-8b llama-3.1-70b llama-3.1-405b llama-3.2-1b llama-3.2-3b llama-3.2-11b llama-3.3-70b
qwen2.5-0.5b qwen2.5-1.5b qwen2.5-3b qwen2.5-7b qwen2.5-14b qwen2.5-32b qwen2.5-72b qwen2.5-coder-7b qwen2.5-coder-32b
mistral-7b mixtral-8x7b mixtral-8x22b mistral-large-2 deepseek-v2 deepseek-v3 deepseek-coder-v2 deepseek-coder-v2-lite
gemma-2-2b gemma-2-9b gemma-2-27b solar-10.7b phi-3-mini phi-3-medium phi-3.5-mini yi-1.5-6b yi-1.5-9b yi-1.5-34b codellama-34b
"""
FIRST = {  # what these names meant in the first release
    "llama-3.1-8b": "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF",
    "llama-3.1-70b": "bartowski/Meta-Llama-3.1-70B-Instruct-GGUF",
    "llama-3.1-70b-awq": "hugging-quants/Meta-Llama-3.1-70B-Instruct-AWQ-INT4",
    "qwen2.5-7b": "bartowski/Qwen2.5-7B-Instruct-GGUF",
    "qwen2.5-7b-awq": "Qwen/Qwen2.5-7B-Instruct-AWQ",
    "qwen2.5-72b": "bartowski/Qwen2.5-72B-Instruct-GGUF",
    "qwen2.5-72b-awq": "Qwen/Qwen2.5-72B-Instruct-AWQ",
}

ENTRY = """
name = "small"
title = "A small model"
parameters = "1.0M"
context = 512
languages = ["en", "ko"]
license = "mit"
gated = false
verified = false

[gguf]
repository = "org/small-GGUF"
quant = "Q4_K_M"

[awq]
repository = "org/small-awq"
revision = "0123456789abcdef0123456789abcdef01234567"
include = ["*.safetensors", "*.json"]
exclude = ["original/*"]
gated = true

[exl2]
repository = "org/small-exl2"
revision = "4.25bpw"
bits = 4.25

[ollama]
template = "{{ .Prompt }}"

[vllm]
arguments = ["--max-model-len", "512"]
"""


def write(folder: Path, text: str, name: str = "small") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    return file


def modelfile(entry: CatalogEntry) -> str:
    recipe = recipe_of(entry)
    assert recipe is not None
    assert recipe.modelfile is not None
    return recipe.modelfile


def test_shipped_models_are_the_promised_ones() -> None:
    """A missing or misspelled entry breaks the commands of the README, and names that people know by heart."""
    assert sorted({entry.model for entry in SHIPPED.values()}) == sorted(MODELS.split())
    assert {name: SHIPPED[name].repository for name in FIRST} == FIRST
    names = list(SHIPPED)
    assert names.index("qwen2.5-7b") < names.index("qwen2.5-14b") < names.index("qwen2.5-72b")


@pytest.mark.parametrize("entry", SHIPPED.values(), ids=lambda entry: entry.name.text)
def test_shipped_entries_are_complete(entry: CatalogEntry) -> None:
    """An entry without license, source or recipe would fail only after hours of download."""
    assert "/" in entry.repository
    assert entry.license
    assert set(entry.languages) <= set(LANGUAGES)
    assert not entry.verified, "set it to true only with the date of the check in the change log, and adapt this test"
    assert entry.name.text in {entry.model, f"{entry.model}-{entry.format}"}
    if entry.format == "gguf":
        text = modelfile(entry)
        assert entry.quant == "Q4_K_M"
        assert entry.ollama is not None
        assert entry.ollama.name == entry.name.text
        assert text.startswith('TEMPLATE """')
        assert "FROM" not in text
        assert "PARAMETER stop " in text
    elif entry.format == "exl2":
        assert recipe_of(entry) is None
        assert entry.revision
    else:
        recipe = recipe_of(entry)
        assert recipe is not None
        assert recipe.modelfile is None
        assert "--max-model-len" in recipe.vllm_arguments


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [  # as their publishers' repositories list them
        ("llama-3.1-8b", 4.92),
        ("llama-3.1-70b", 42.5),
        ("qwen2.5-7b", 4.68),
        ("qwen2.5-72b", 47.4),
        ("llama-3.1-405b", 245.7),
        ("llama-3.1-8b-awq", 5.7),
        ("llama-3.1-70b-awq", 39.8),
        ("qwen2.5-7b-awq", 5.6),
        ("llama-3.1-8b-fp8", 9.1),
        ("llama-3.3-70b-fp8", 72.7),
    ],
)
def test_estimates_are_near(name: str, gigabytes: float) -> None:
    """Breaks if a search for what fits into 24 GiB offers what does not, or hides what does."""
    assert SHIPPED[name].size / 1e9 == pytest.approx(gigabytes, rel=0.07)


def test_an_entry_is_read_whole(tmp_path: Path) -> None:
    """A key that is read into the wrong field, or not at all, changes what is downloaded."""
    gguf, awq, exl2 = read_entries(write(tmp_path, ENTRY))
    assert [str(entry.name) for entry in (gguf, awq, exl2)] == ["small", "small-awq", "small-exl2"]
    assert {entry.model for entry in (gguf, awq, exl2)} == {"small"}
    assert (gguf.repository, gguf.quant, gguf.revision, gguf.gated) == ("org/small-GGUF", "Q4_K_M", None, False)
    assert awq.revision == "0123456789abcdef0123456789abcdef01234567"
    assert (awq.include, awq.exclude) == (("*.safetensors", "*.json"), ("original/*",))
    assert awq.gated
    assert (awq.parameters, awq.context, awq.quant, awq.languages) == ("1.0M", 512, None, ("en", "ko"))
    assert (awq.vllm_arguments, awq.ollama) == (("--max-model-len", "512"), None)
    assert (exl2.revision, exl2.size, exl2.vllm_arguments) == ("4.25bpw", 531_250, ())
    assert (gguf.title, awq.title) == ("A small model, GGUF Q4_K_M", "A small model, AWQ")


def test_the_plain_name_means_the_first_format(tmp_path: Path) -> None:
    """A name that changed its meaning with the order of tables in a file would pull something else than last time."""
    text = (
        ENTRY[: ENTRY.index("[gguf]")]
        + '[fp8]\nrepository = "o/f"\n[safetensors]\nrepository = "o/s"\n[vllm]\narguments = []\n'
    )
    assert [(str(entry.name), entry.repository) for entry in read_entries(write(tmp_path, text))] == [
        ("small", "o/s"),
        ("small-fp8", "o/f"),
    ]


def test_modelfile_holds_template_system_parameters_and_stops(tmp_path: Path) -> None:
    """Ollama gets the recipe as this text: a part that is left out makes the model babble."""
    more = 'system = "Be brief."\nstop = ["<|a|>", "<|b|>"]\nparameters = { num_ctx = 512, top_p = 0.5 }\n[vllm]'
    gguf, *_ = read_entries(write(tmp_path, ENTRY.replace("[vllm]", more)))
    assert modelfile(gguf) == (
        'TEMPLATE """{{ .Prompt }}"""\n'
        'SYSTEM """Be brief."""\n'
        "PARAMETER num_ctx 512\n"
        "PARAMETER top_p 0.5\n"
        'PARAMETER stop "<|a|>"\n'
        'PARAMETER stop "<|b|>"\n'
    )


def test_a_family_gives_template_and_stops(tmp_path: Path) -> None:
    """A name that leads to no template would show only at the isolated site."""
    gguf, *_ = read_entries(write(tmp_path, ENTRY.replace('template = "{{ .Prompt }}"', 'family = "chatml"')))
    assert "<|im_start|>{{ .Role }}" in modelfile(gguf)
    assert 'PARAMETER stop "<|im_end|>"' in modelfile(gguf)
    other = ENTRY.replace('template = "{{ .Prompt }}"', 'family = "chatml"\nstop = ["x"]')
    assert modelfile(read_entries(write(tmp_path, other))[0]).count("PARAMETER stop") == 1
    wrong = write(tmp_path, ENTRY.replace('template = "{{ .Prompt }}"', 'family = "chatmll"'))
    with pytest.raises(UsageProblem, match=r"ollama\.family: there is no family 'chatmll'") as caught:
        recipe_of(read_entries(wrong)[0])
    assert str(wrong) in caught.value.message
    assert "chatml" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('title = "A small model"', 'titel = "A small model"', "titel"),
        ("[ollama]", '[ollama]\nstops = ["a"]', "stops"),
        ('quant = "Q4_K_M"', 'quant = "Q4_K_M"\nbranch = "main"', "branch"),
        ('template = "{{ .Prompt }}"', 'template = "x"\n[ollama.parameters]\nnum_ctxx = 1', "num_ctxx"),
        (
            'template = "{{ .Prompt }}"',
            'template = "x"\n[ollama.parameters]\nnum_ctx = "1"',
            "ollama.parameters.num_ctx",
        ),
        ('template = "{{ .Prompt }}"', "", "ollama.family"),
        ('template = "{{ .Prompt }}"', 'template = "x"\nfamily = "chatml"', "ollama.family"),
        ("context = 512", "context = 0", "context"),
        ("context = 512", 'context = "512"', "context"),
        ('parameters = "1.0M"', 'parameters = "large"', "parameters"),
        ('["en", "ko"]', "[]", "languages"),
        ('["en", "ko"]', '["English"]', "languages"),
        ("gated = false", "gated = 0", "gated"),
        ("gated = false\n", "", "gated"),
        ("gated = false", "gated = false\ngated = true", "gated = true"),
        ("org/small-GGUF", "https://huggingface.co/org/small-GGUF", "gguf.repository"),
        ('revision = "4.25bpw"', 'revision = "../x y"', "exl2.revision"),
        ("bits = 4.25\n", "", "bits"),
        ("bits = 4.25", "bits = 400", "exl2.bits"),
        ('quant = "Q4_K_M"\n', "", "quant"),
        ('name = "small"\ntitle', 'name = "../small"\ntitle', "name"),
        ('name = "small"\ntitle', 'name = "other"\ntitle', "name"),
        ("{{ .Prompt }}", '\\"\\"\\"', "ollama.template"),
        ('template = "{{ .Prompt }}"', "template = 'say \"hi\"'", "ollama.template"),
        ('template = "{{ .Prompt }}"', "template = 'x'\nstop = ['\"']", "ollama.stop"),
        ('template = "{{ .Prompt }}"', 'template = "x"\nstop = ["a\\nb"]', "ollama.stop"),
        ("name = ", "name == ", "name =="),
        ('[ollama]\ntemplate = "{{ .Prompt }}"\n', "", "ollama"),
        ('[vllm]\narguments = ["--max-model-len", "512"]\n', "", "vllm"),
    ],
)
def test_what_the_schema_does_not_know_is_refused_by_name(tmp_path: Path, old: str, new: str, key: str) -> None:
    """A typing mistake in an entry must be found by whoever reviews it, not by whoever pulls the model."""
    assert old in ENTRY
    file = write(tmp_path, ENTRY.replace(old, new, 1))
    with pytest.raises(UsageProblem) as caught:
        load_catalog(tmp_path)
    assert str(file) in caught.value.message
    assert key in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["org/small", "small:Q4", ".hidden"])
def test_name_must_be_short(tmp_path: Path, name: str) -> None:
    """A catalog name of the form org/name would hide the repository of that name."""
    file = tmp_path / f"{name.replace('/', '-')}.toml"
    file.write_text(ENTRY.replace('name = "small"', f'name = "{name}"', 1), encoding="utf-8")
    with pytest.raises(UsageProblem, match="name"):
        read_entries(file)


def test_a_model_in_no_format(tmp_path: Path) -> None:
    """It could not be pulled; recipes without files would be for nothing."""
    bare = ENTRY[: ENTRY.index("[gguf]")]
    with pytest.raises(UsageProblem, match="no format"):
        read_entries(write(tmp_path, bare))
    with pytest.raises(UsageProblem, match="vllm"):
        read_entries(write(tmp_path, bare + '[exl2]\nrepository = "o/x"\nbits = 4\n[vllm]\narguments = []\n'))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """Bytes that are no text, and a directory without entries, end in an error that names the place."""
    with pytest.raises(UsageProblem, match=str(tmp_path)):
        load_catalog(tmp_path)
    (tmp_path / "small.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageProblem, match=r"small\.toml"):
        load_catalog(tmp_path)


def test_names_that_are_taken_are_refused(tmp_path: Path) -> None:
    """They could not lie side by side in an engine's directory on every file system, or one would hide the other."""
    write(tmp_path, ENTRY)
    write(tmp_path, ENTRY.replace('name = "small"', 'name = "small-awq"', 1), "small-awq")
    with pytest.raises(
        UsageProblem, match=r"small-awq\.toml.*small-awq is the short name of an entry of small\.toml|small\.toml"
    ):
        load_catalog(tmp_path)
    (tmp_path / "small-awq.toml").unlink()
    if (tmp_path / "SMALL.toml").exists():
        pytest.skip("this file system does not tell case apart")
    write(tmp_path, ENTRY.replace('name = "small"', 'name = "SMALL"', 1), "SMALL")
    with pytest.raises(UsageProblem, match="case"):
        load_catalog(tmp_path)


def test_entries_are_found_in_any_case_and_near_names_suggested() -> None:
    """``pull Llama-3.1-8B`` is what people type; a slip of the finger should show the name that was meant."""
    assert find_entry(ModelName("Llama-3.1-8B"), SHIPPED) is SHIPPED["llama-3.1-8b"]
    assert find_entry(ModelName("llama"), SHIPPED) is None
    assert suggest(ModelName("lama3.1-8b"), SHIPPED)[0] == "llama-3.1-8b"
    assert suggest(ModelName("Qwen-2.5-7B"), SHIPPED)[0] == "qwen2.5-7b"
    assert suggest(ModelName("zzz"), SHIPPED) == []


def found(*words: str) -> set[str]:
    return {entry.name.text for entry in search(SHIPPED.values(), words)}


def test_search() -> None:
    """Breaks if a word is taken for something else than people mean by it."""
    korean = found("korean", "24GiB")
    assert {"qwen2.5-32b", "qwen2.5-7b-awq", "phi-3.5-mini"} <= korean
    assert not korean & {"qwen2.5-72b", "mistral-large-2", "llama-3.1-8b"}
    assert found("Korean") == found("ko") == found("KO")
    assert {SHIPPED[name].format for name in found("awq")} == {"awq"}
    assert found("70b") == {name for name in SHIPPED if "-70b" in name}
    assert found("qwen-research") == {"qwen2.5-3b", "qwen2.5-3b-awq", "qwen2.5-3b-gptq"}
    assert found("coder", "apache", "gguf") == {"qwen2.5-coder-7b", "qwen2.5-coder-32b"}
    assert found("nothing-like-it") == set()
    assert found("1kB") == set()
    assert len(found("8TiB")) == len(SHIPPED)
    with pytest.raises(UsageProblem, match="not a size"):
        found("0GiB")
    assert language_code("Klingon") is None


def test_later_catalogs_win_with_a_note(tmp_path: Path) -> None:
    """A site must be able to say where a name leads, and whoever uses it must see that it does."""
    site, user = tmp_path / "site", tmp_path / "user"
    ours = ENTRY.replace('name = "small"', 'name = "qwen2.5-7b"').replace("org/", "site/")
    write(site, ours, "qwen2.5-7b")
    write(user, ENTRY.replace("org/", "user/"))
    write(user, ours.replace("site/", "user/").replace("qwen2.5-7b", "QWEN2.5-7B"), "QWEN2.5-7B")
    catalog = combined([site, user, tmp_path / "absent"])
    entries = catalog.entries
    assert entries["QWEN2.5-7B"].repository == "user/small-GGUF"
    assert "qwen2.5-7b" not in entries
    assert entries["qwen2.5-7b-gptq"].repository == "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"
    assert entries["small"].repository == "user/small-GGUF"
    assert [note for note in catalog.notes if note.startswith("qwen2.5-7b: ")] == [
        f"qwen2.5-7b: the entry of {site / 'qwen2.5-7b.toml'} replaces that of {packaged_manifests() / 'qwen2.5-7b.toml'}"
    ]
    entry = catalog.find(ModelName("qwen2.5-7b"))
    assert entry is not None
    assert len(catalog.notes_on(entry)) == 1


def test_a_broken_file_costs_its_own_entry_only(tmp_path: Path) -> None:
    """One typing mistake on a shared drive must not stop a site, nor silently give the entry that was to be replaced."""
    write(tmp_path, ENTRY)
    broken = write(tmp_path, "name =", "llama-3.1-8b")
    catalog = combined([tmp_path])
    assert catalog.find(ModelName("small")) is not None
    assert catalog.find(ModelName("qwen2.5-7b")) is not None
    for name in ("llama-3.1-8b", "LLAMA-3.1-8B", "llama-3.1-8b-awq"):
        with pytest.raises(UsageProblem) as caught:
            catalog.find(ModelName(name))
        assert str(broken) in caught.value.message
    assert "llama-3.1-8b" in str(catalog.unknown(ModelName("smal")).hint)
    user = tmp_path / "user"
    write(user, ENTRY.replace('name = "small"', 'name = "llama-3.1-8b"'), "llama-3.1-8b")
    mended = combined([tmp_path, user]).find(ModelName("llama-3.1-8b"))
    assert mended is not None
    assert mended.repository == "org/small-GGUF"


def test_manifests_are_where_the_package_looks() -> None:
    """Outside of a wheel, the catalog of the checkout is the one that counts."""
    assert packaged_manifests().is_dir()
    assert packaged_manifests().name == "manifests"


def test_every_key_is_documented() -> None:
    """Whoever writes an entry has only the reference page to go by."""
    page = (packaged_manifests().parent / "docs/reference/catalog.md").read_text(encoding="utf-8")
    for kind in (schema.Entry, schema.Gguf, schema.Exl2, schema.Ollama, schema.OllamaParameters, schema.Vllm):
        for key in msgspec.structs.fields(kind):
            assert f"`{key.name}`" in page, f"{kind.__name__}.{key.name}"


# What the real Ollama makes of it: its parser reads the Modelfile, its template engine renders the conversation.

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}},
    },
}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Who?"},
]
TOOL_TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Oslo?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
    },
    {"role": "tool", "content": "rain"},
]
PREFILLED = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two"}]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaServer]:
    """Ollama with every GGUF entry of the catalog, over the weights of a tiny model."""
    folder = tmp_path_factory.mktemp("recipes")
    make_gguf(folder / "tiny.gguf")
    with ollama_server(folder / "models") as server:
        for entry in GGUF_ENTRIES:
            file = folder / f"{entry.name}.modelfile"
            file.write_text(f"FROM {folder / 'tiny.gguf'}\n{modelfile(entry)}", encoding="utf-8")
            server.run("create", entry.name.text, "-f", str(file))
        yield server


def render(
    server: OllamaServer, name: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> str:
    """Let Ollama write the prompt of a conversation; nothing is generated."""
    body = {"model": name, "messages": messages, "tools": tools or [], "stream": False, "_debug_render_only": True}
    return str(server.api("/api/chat", body)["_debug_info"]["rendered_template"])


@pytest.mark.engine
@pytest.mark.parametrize("entry", GGUF_ENTRIES, ids=lambda entry: entry.name.text)
def test_ollama_takes_the_recipe_whole(recipes: OllamaServer, entry: CatalogEntry) -> None:
    """A Modelfile that Ollama reads differently from us would lose stop tokens or the template's first line."""
    shown = recipes.api("/api/show", {"model": entry.name.text})
    text = modelfile(entry)
    assert f'TEMPLATE """{shown["template"]}"""' in text
    assert shown.get("system", "") == (
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant." if "qwen" in entry.name.text else ""
    )
    parameters = {" ".join(line.split()) for line in shown["parameters"].splitlines()}
    assert parameters == {
        line.removeprefix("PARAMETER ") for line in text.splitlines() if line.startswith("PARAMETER ")
    }
    assert ("tools" in shown["capabilities"]) is entry.model.startswith(("llama-3", "qwen2.5"))


LLAMA_TOOLS = (
    "You can call the functions below. To call one, answer with nothing but a JSON object of this form: "
    '{"name": <name of the function>, "parameters": <object of its arguments>}. Do not use variables. '
    "Otherwise answer in plain language."
)
WEATHER_JSON = json.dumps(WEATHER, separators=(",", ":"))


@pytest.mark.engine
@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.1-405b", "llama-3.2-3b", "llama-3.3-70b"])
def test_llama_conversations_are_rendered_as_trained(recipes: OllamaServer, name: str) -> None:
    """One wrong line break in a prompt makes a model measurably worse, and nobody sees why."""
    assert render(recipes, name, TURNS) == (
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(recipes, name, PREFILLED) == (
        "<|start_header_id|>user<|end_header_id|>\n\nCount<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nOne, two"
    )
    assert render(recipes, name, TOOL_TURNS, [WEATHER]) == (
        f"<|start_header_id|>system<|end_header_id|>\n\nBe brief.\n\n{LLAMA_TOOLS}\n\n{WEATHER_JSON}\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWeather in Oslo?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "weather", "parameters": {"city":"Oslo"}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\nrain<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


QWEN_TOOLS = f"""

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{WEATHER_JSON}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@pytest.mark.engine
@pytest.mark.parametrize("name", ["qwen2.5-7b", "qwen2.5-coder-32b"])
def test_qwen_conversations_are_rendered_as_trained(recipes: OllamaServer, name: str) -> None:
    """One wrong line break in a prompt makes a model measurably worse, and nobody sees why."""
    assert render(recipes, name, TURNS) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(recipes, name, PREFILLED) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nCount<|im_end|>\n<|im_start|>assistant\nOne, two"
    )
    assert render(recipes, name, TOOL_TURNS, [WEATHER]) == (
        f"<|im_start|>system\nBe brief.{QWEN_TOOLS}<|im_end|>\n<|im_start|>user\nWeather in Oslo?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city":"Oslo"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
