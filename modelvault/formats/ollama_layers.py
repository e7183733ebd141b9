"""From the layers of an Ollama model back to the Modelfile that says the same. Pure."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from modelvault.errors import UsageProblem
from modelvault.formats.modelfile import Instruction, Modelfile, parse, render
from modelvault.formats.ollama import CONFIG_FILE, OllamaManifest
from modelvault.strictjson import decode_object

TEXTS = frozenset({"template", "prompt", "system", "params", "messages", "license"})
"""The kinds of layers that a Modelfile says something about, besides the weights."""
MAX_TEXT = 1 << 20
"""Bytes. What is larger is no text that somebody wrote into a Modelfile."""


def modelfile_of(manifest: OllamaManifest, content: Mapping[str, bytes]) -> tuple[str, tuple[str, ...]]:
    """Write the Modelfile, without FROM, and name the instructions that the grammar of today cannot say.

    Such are parameters that Ollama has given up, or quotes that nothing can quote; the layers themselves still have them.
    ``content`` are the texts and the config, by their path within the model. Raises ``ValueError`` for JSON that is none.
    """
    instructions = tuple(_instructions(manifest, content))
    said = tuple(entry for entry in instructions if _can_be_said(entry))
    names = (f"{entry.keyword} {entry.argument or ''}".strip() for entry in instructions if entry not in said)
    return render(Modelfile(said), None), tuple(dict.fromkeys(names))


def _can_be_said(instruction: Instruction) -> bool:
    try:
        return parse(render(Modelfile((instruction,)), None)).instructions == (instruction,)
    except UsageProblem:
        return False


def _instructions(manifest: OllamaManifest, content: Mapping[str, bytes]) -> Iterator[Instruction]:
    files = manifest.files()
    # Of templates, systems, parameters and messages the last one holds; licenses add up.
    last = {layer.kind: content[path] for path, layer in files.items() if path in content}
    if template := last.get("template", last.get("prompt")):
        yield Instruction("TEMPLATE", _text(template))
    if system := last.get("system"):
        yield Instruction("SYSTEM", _text(system))
    config = decode_object(content[CONFIG_FILE]) if CONFIG_FILE in content else {}
    for keyword in ("RENDERER", "PARSER", "REQUIRES"):
        if value := config.get(keyword.lower()):
            yield Instruction(keyword, str(value))
    for path, layer in files.items():
        if layer.kind == "adapter":
            yield Instruction("ADAPTER", f"./{path}")
        elif layer.kind == "license" and path in content:
            yield Instruction("LICENSE", _text(content[path]))
    yield from _parameters(last.get("params", b"{}"))
    yield from _messages(last.get("messages", b"[]"))


def _text(data: bytes) -> str:
    """Decode a text; what is not UTF-8 becomes what no Modelfile can say."""
    return data.decode("utf-8", "surrogateescape")


def _parameters(data: bytes) -> Iterator[Instruction]:
    for name, value in decode_object(data).items():
        for single in value if isinstance(value, list) else [value]:
            # json.dumps writes numbers and true and false as Modelfiles have them.
            yield Instruction("PARAMETER", single if isinstance(single, str) else json.dumps(single), name)


def _messages(data: bytes) -> Iterator[Instruction]:
    messages: Any = decode_object(b'{"messages":' + data + b"}")["messages"]
    for message in messages if isinstance(messages, list) else []:
        if not isinstance(message, dict):
            raise ValueError("one of its messages is none")  # noqa: TRY004 (a wrong document, not a wrong argument)
        yield Instruction("MESSAGE", str(message.get("content", "")), str(message.get("role", "")))
