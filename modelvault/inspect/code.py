"""Code that a model brings along and wants to have run: what transformers loads only with ``trust_remote_code``.

Python files alone mean nothing: what makes an engine run them is a reference from a configuration, or the one place that transformers
looks at by itself.
"""

from collections.abc import Mapping
from pathlib import Path

from modelvault.errors import InvalidModelFile
from modelvault.formats.remote_code import CODE_MAPS, is_code_alone, named_code
from modelvault.inspect.documents import read_object

MAX_CONFIG = 4 << 20
"""Bytes; real ones have a few thousand, those of tokenizers some hundred thousand."""

_GENERATE = "custom_generate/generate.py"


def find_code(files: Mapping[str, Path]) -> tuple[str, ...]:
    """Name every reference to code of the model's own, as ``config.json: AutoModel = org/other--modeling.Model``.

    A configuration that cannot be read counts as one: an engine may be less strict, and find in it what we do not. Files that are not
    there are passed over. Raises ``OSError``.
    """
    # What is nothing but code is there to be run.
    found = [path for path in files if path.endswith(".py")] if is_code_alone(list(files)) else []
    for name in CODE_MAPS:
        if name in files:
            try:
                document = read_object(files[name], name, rule="config-json", limit=MAX_CONFIG)
                found += (f"{name}: {kind} = {text}" for kind, text in named_code(document))
            except FileNotFoundError:
                continue
            except InvalidModelFile as error:
                found.append(f"{name}: {error.detail}, so that it is not known what it refers to")
    if _GENERATE in files and _GENERATE not in found:
        found.append(_GENERATE)
    return tuple(found)
