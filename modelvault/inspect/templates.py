"""Where the chat templates of a model are, and what is warned of in them."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from modelvault.artifact import FileReport
from modelvault.errors import InvalidModelFile
from modelvault.inspect.code import MAX_CONFIG
from modelvault.inspect.documents import read_all, read_object
from modelvault.inspect.source import open_file

MAX_ALL = 256 << 10
"""Characters of all templates of a model together: the parser takes seconds for so many of a hostile one."""

_MOST_NAMED = 5
_GGUF_KEY = "tokenizer.chat_template"
_CONFIGS = ("tokenizer_config.json", "processor_config.json", "chat_template.json")


def template_warnings(files: Mapping[str, Path], reports: Mapping[str, FileReport]) -> tuple[str, ...]:
    """Warn of what was found in the templates beside the weights (``files``) and in GGUF files (``reports``). Raises ``OSError``."""
    templates = _in_metadata(reports) | _in_files(files)
    said = []
    left = MAX_ALL
    for number, (name, template) in enumerate(templates.items()):
        left -= len(template)
        if left < 0 and number:
            said.append(f"{len(templates) - number} chat templates were not looked through: they are too long")
            break
        # Jinja takes a while to import, and many models have no template.
        from modelvault.inspect.template_lint import lint_template  # noqa: PLC0415

        found = lint_template(template)
        if found and found[0].startswith("it "):
            said.append(f"{name}: the chat template was not looked through: {found[0]}")
        elif found:
            more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
            shown = ", ".join(found[:_MOST_NAMED]) + more
            said.append(
                f"{name}: the chat template has what none needs, so no engine should render it outside a sandbox: {shown}"
            )
    return tuple(said)


def _in_metadata(reports: Mapping[str, FileReport]) -> dict[str, str]:
    return {
        f"{path}: {key}": text
        for path, report in reports.items()
        for key, text in report.metadata.items()
        if isinstance(text, str) and (key == _GGUF_KEY or key.startswith(f"{_GGUF_KEY}."))
    }


def _in_files(files: Mapping[str, Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _CONFIGS:
        if name in files:
            # Of one that cannot be read, `find_code` says so.
            with contextlib.suppress(InvalidModelFile):
                document = read_object(files[name], name, rule="template-json", limit=MAX_CONFIG)
                found |= _of_config(name, document.get("chat_template"))
    for path in sorted(files):
        if path.lower().endswith((".jinja", ".jinja2")):
            with open_file(files[path], path) as (file, size):
                found[path] = read_all(file.read, min(size, MAX_ALL)).decode("utf-8", "replace")
    return found


def _of_config(name: str, value: object) -> dict[str, str]:
    """Take the one template of a configuration, or the several that have names."""
    if isinstance(value, str):
        return {name: value}
    listed = value if isinstance(value, list) else []
    named = value if isinstance(value, dict) else {}
    named |= {str(entry.get("name")): entry.get("template") for entry in listed if isinstance(entry, dict)}
    return {f"{name} ({str(key)[:60]})": text for key, text in named.items() if isinstance(text, str)}
