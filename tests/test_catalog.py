"""The catalog: what an entry may say, how it is found, and what the real Ollama makes of its recipes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from make_models import make_gguf
from real_engines import OllamaServer, ollama_server

from modelvault import catalog
from modelvault.artifact import ModelName
from modelvault.catalog import CatalogEntry, find_entry, load_catalog, packaged_manifests, read_entry, suggest
from modelvault.errors import UsageProblem

GGUF_ENTRIES = [entry for entry in load_catalog().values() if entry.format == "gguf"]

GGUF_ENTRY = """
name = "small"
title = "A small model"
parameters = "1.0M"
context = 512
format = "gguf"
license = "mit"
gated = false
verified = false

[source]
kind = "hub"
repository = "org/small-GGUF"
quant = "Q4_K_M"

[ollama]
name = "small"
template = "{{ .Prompt }}"
"""

AWQ_ENTRY = """
name = "small"
title = "A small model"
parameters = "1.0M"
context = 512
format = "awq"
license = "mit"
gated = true
verified = false

[source]
kind = "hub"
repository = "org/small-awq"
revision = "0123456789abcdef0123456789abcdef01234567"
include = ["*.safetensors", "*.json"]
exclude = ["original/*"]

[vllm]
arguments = ["--max-model-len", "512"]
"""


def write(folder: Path, text: str, name: str = "small") -> Path:
    file = folder / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_shipped_entries_are_the_promised_ones() -> None:
    """A missing or misspelled entry breaks the commands of the README."""
    assert list(load_catalog()) == [
        "llama-3.1-70b",
        "llama-3.1-70b-awq",
        "llama-3.1-8b",
        "qwen2.5-72b",
        "qwen2.5-72b-awq",
        "qwen2.5-7b",
        "qwen2.5-7b-awq",
    ]


@pytest.mark.parametrize("entry", load_catalog().values(), ids=lambda entry: entry.name.text)
def test_shipped_entries_are_complete(entry: CatalogEntry) -> None:
    """An entry without license, source or recipe would fail only after hours of download."""
    assert "/" in entry.repository
    assert entry.license
    assert not entry.verified, "set it to true only with the date of the check in the change log, and adapt this test"
    if entry.format == "gguf":
        modelfile = entry.recipe.modelfile
        assert entry.quant == "Q4_K_M"
        assert entry.recipe.ollama_name == entry.name.text
        assert modelfile is not None
        assert modelfile.startswith('TEMPLATE """')
        assert "FROM" not in modelfile
        assert "PARAMETER stop " in modelfile
    else:
        assert entry.recipe.modelfile is None
        assert "--max-model-len" in entry.recipe.vllm_arguments


def test_awq_entry_is_read_whole(tmp_path: Path) -> None:
    """A key that is read into the wrong field, or not at all, changes what is downloaded."""
    entry = read_entry(write(tmp_path, AWQ_ENTRY))
    assert entry.revision == "0123456789abcdef0123456789abcdef01234567"
    assert entry.include == ("*.safetensors", "*.json")
    assert entry.exclude == ("original/*",)
    assert entry.gated
    assert (entry.parameters, entry.context, entry.quant) == ("1.0M", 512, None)
    assert entry.recipe.vllm_arguments == ("--max-model-len", "512")


def test_modelfile_holds_template_system_parameters_and_stops(tmp_path: Path) -> None:
    """Ollama gets the recipe as this text: a part that is left out makes the model babble."""
    text = (
        GGUF_ENTRY
        + 'system = "Be brief."\nstop = ["<|a|>", "<|b|>"]\n[ollama.parameters]\nnum_ctx = 512\ntop_p = 0.5\n'
    )
    assert read_entry(write(tmp_path, text)).recipe.modelfile == (
        'TEMPLATE """{{ .Prompt }}"""\n'
        'SYSTEM """Be brief."""\n'
        "PARAMETER num_ctx 512\n"
        "PARAMETER top_p 0.5\n"
        'PARAMETER stop "<|a|>"\n'
        'PARAMETER stop "<|b|>"\n'
    )


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('title = "A small model"', 'titel = "A small model"', "titel"),
        ('[ollama]\nname = "small"', '[ollama]\nname = "small"\nstops = ["a"]', "stops"),
        ('quant = "Q4_K_M"', 'quant = "Q4_K_M"\nbranch = "main"', "branch"),
        ('template = "{{ .Prompt }}"', 'template = "x"\n[ollama.parameters]\nnum_ctxx = 1', "num_ctxx"),
        (
            'template = "{{ .Prompt }}"',
            'template = "x"\n[ollama.parameters]\nnum_ctx = "1"',
            "ollama.parameters.num_ctx",
        ),
        ("context = 512", "context = 0", "context"),
        ("context = 512", 'context = "512"', "context"),
        ("gated = false", "gated = 0", "gated"),
        ("gated = false\n", "", "gated"),
        ("gated = false", "gated = false\ngated = true", "gated = true"),
        ('kind = "hub"', 'kind = "ftp"', "source.kind"),
        ("org/small-GGUF", "https://huggingface.co/org/small-GGUF", "source.repository"),
        ('quant = "Q4_K_M"', 'quant = "Q4_K_M"\nrevision = "main"', "source.revision"),
        ('quant = "Q4_K_M"\n', "", "source.quant"),
        ('name = "small"\ntitle', 'name = "../small"\ntitle', "name"),
        ('name = "small"\ntitle', 'name = "other"\ntitle', "name"),
        ("{{ .Prompt }}", '\\"\\"\\"', "ollama.template"),
        ('template = "{{ .Prompt }}"', "template = 'say \"hi\"'", "ollama.template"),
        ('template = "{{ .Prompt }}"', "template = 'x'\nstop = ['\"']", "ollama.stop"),
        ('template = "{{ .Prompt }}"', 'template = "x"\nstop = ["a\\nb"]', "ollama.stop"),
        ("name = ", "name == ", "name =="),
    ],
)
def test_what_the_schema_does_not_know_is_refused_by_name(tmp_path: Path, old: str, new: str, key: str) -> None:
    """A typing mistake in an entry must be found by whoever reviews it, not by whoever pulls the model."""
    assert old in GGUF_ENTRY
    file = write(tmp_path, GGUF_ENTRY.replace(old, new, 1))
    with pytest.raises(UsageProblem) as caught:
        load_catalog(tmp_path)
    assert str(file) in caught.value.message
    assert key in caught.value.message


@pytest.mark.parametrize("name", ["org/small", "small:Q4", ".hidden"])
def test_name_must_be_short(tmp_path: Path, name: str) -> None:
    """A catalog name of the form org/name would hide the repository of that name."""
    file = tmp_path / "x.toml"
    file = file.with_name(f"{name.replace('/', '-')}.toml")
    file.write_text(GGUF_ENTRY.replace('name = "small"', f'name = "{name}"', 1), encoding="utf-8")
    with pytest.raises(UsageProblem, match="name"):
        read_entry(file)


def test_format_decides_which_recipe_is_needed(tmp_path: Path) -> None:
    """An AWQ model has no use for Ollama's recipe, and vLLM's must not be forgotten."""
    with pytest.raises(UsageProblem, match="table vllm"):
        read_entry(write(tmp_path, GGUF_ENTRY.replace('"gguf"', '"awq"')))
    with pytest.raises(UsageProblem, match="table ollama"):
        read_entry(write(tmp_path, AWQ_ENTRY.replace('"awq"', '"gguf"')))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """Bytes that are no text, and a directory without entries, end in an error that names the place."""
    with pytest.raises(UsageProblem, match=str(tmp_path)):
        load_catalog(tmp_path)
    (tmp_path / "small.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageProblem, match=r"small\.toml"):
        load_catalog(tmp_path)


def test_names_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    """They could not lie side by side in an engine's directory on every file system."""
    write(tmp_path, GGUF_ENTRY)
    if (tmp_path / "SMALL.toml").exists():
        pytest.skip("this file system does not tell case apart")
    write(tmp_path, GGUF_ENTRY.replace('name = "small"', 'name = "SMALL"', 1), "SMALL")
    with pytest.raises(UsageProblem, match="case"):
        load_catalog(tmp_path)


def test_entries_are_found_in_any_case_and_near_names_suggested() -> None:
    """``pull Llama-3.1-8B`` is what people type; a slip of the finger should show the name that was meant."""
    entries = load_catalog()
    assert find_entry(ModelName("Llama-3.1-8B"), entries) is entries["llama-3.1-8b"]
    assert find_entry(ModelName("llama"), entries) is None
    assert suggest(ModelName("lama3.1-8b"), entries)[0] == "llama-3.1-8b"
    assert suggest(ModelName("Qwen-2.5-7B"), entries)[0] == "qwen2.5-7b"
    assert suggest(ModelName("zzz"), entries) == []


def test_manifests_are_where_the_package_looks() -> None:
    """Outside of a wheel, the catalog of the checkout is the one that counts."""
    assert packaged_manifests().is_dir()
    assert packaged_manifests().name == "manifests"


def test_every_key_is_documented() -> None:
    """Whoever writes an entry has only the reference page to go by."""
    page = (packaged_manifests().parent / "docs/reference/catalog.md").read_text(encoding="utf-8")
    for schema in (catalog._Entry, catalog._Source, catalog._Ollama, catalog._OllamaParameters, catalog._Vllm):
        for key in msgspec.structs.fields(schema):
            assert f"`{key.name}`" in page, f"{schema.__name__}.{key.name}"


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
            modelfile = folder / f"{entry.name}.modelfile"
            modelfile.write_text(f"FROM {folder / 'tiny.gguf'}\n{entry.recipe.modelfile}", encoding="utf-8")
            server.run("create", str(entry.recipe.ollama_name), "-f", str(modelfile))
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
    shown = recipes.api("/api/show", {"model": entry.recipe.ollama_name})
    modelfile = str(entry.recipe.modelfile)
    assert f'TEMPLATE """{shown["template"]}"""' in modelfile
    assert shown.get("system", "") == (
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant." if "qwen" in entry.name.text else ""
    )
    parameters = {" ".join(line.split()) for line in shown["parameters"].splitlines()}
    assert parameters == {
        line.removeprefix("PARAMETER ") for line in modelfile.splitlines() if line.startswith("PARAMETER ")
    }
    assert "tools" in shown["capabilities"]


LLAMA_TOOLS = (
    "You can call the functions below. To call one, answer with nothing but a JSON object of this form: "
    '{"name": <name of the function>, "parameters": <object of its arguments>}. Do not use variables. '
    "Otherwise answer in plain language."
)
WEATHER_JSON = json.dumps(WEATHER, separators=(",", ":"))


@pytest.mark.engine
@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.1-70b"])
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
@pytest.mark.parametrize("name", ["qwen2.5-7b", "qwen2.5-72b"])
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
