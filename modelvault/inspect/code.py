"""Code that a model brings along and wants to have run: what transformers loads only with ``trust_remote_code``.

Python files alone mean nothing: what makes an engine run them is a reference from a configuration, or the one place that transformers
looks at by itself.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modelvault.errors import InvalidModelFile
from modelvault.inspect.documents import read_object

MAX_CONFIG = 4 << 20
"""Bytes; real ones have a few thousand, those of tokenizers some hundred thousand."""

_CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
)
"""The configurations whose ``auto_map`` transformers follows; ``custom_pipelines`` stands in the first."""
_GENERATE = "custom_generate/generate.py"


def find_code(files: Mapping[str, Path]) -> tuple[str, ...]:
    """Name every reference to code of the model's own, as ``config.json: AutoModel = org/other--modeling.Model``.

    A configuration that cannot be read counts as one: an engine may be less strict, and find in it what we do not. Files that are not
    there are passed over. Raises ``OSError``.
    """
    found: list[str] = []
    for name in _CONFIGS:
        if name in files:
            try:
                found += (
                    f"{name}: {text}"
                    for text in _references(read_object(files[name], name, rule="config-json", limit=MAX_CONFIG))
                )
            except FileNotFoundError:
                continue
            except InvalidModelFile as error:
                found.append(f"{name}: {error.detail}, so that it is not known what it refers to")
    if _GENERATE in files:
        found.append(_GENERATE)
    return tuple(found)


def _references(config: Mapping[str, Any]) -> Iterator[str]:
    # Those of a part, as text_config, count as well: its model may be made by itself.
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        mapping = part.get("auto_map")
        table = mapping if isinstance(mapping, dict) else {"auto_map": mapping}
        yield from (f"{kind} = {text}" for kind, value in table.items() for text in _strings(value))
    pipelines = config.get("custom_pipelines")
    if isinstance(pipelines, dict):
        for task, pipeline in pipelines.items():
            yield f"{task} = {pipeline.get('impl') if isinstance(pipeline, dict) else pipeline}"


def _strings(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
