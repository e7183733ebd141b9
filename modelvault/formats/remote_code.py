"""The Python code that a repository's JSON files name, which transformers, and engines on it, run where that is allowed.

``auto_map`` names classes, ``custom_pipelines`` more of them. A class is named ``file.Class`` where ``file.py`` lies in the same repository, ``org/name--file.Class`` where it lies in another
(``dynamic_module_utils.py`` of transformers 5.19). A list or an object holds alternatives.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelvault.artifact import FileRole, file_role
from modelvault.strictjson import decode_object

CODE_MAPS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
)
"""The files at the top level of a repository in which transformers looks for names of code."""
MAX_CODE_MAP = 32 << 20
"""Bytes; a tokenizer's configuration lists its added tokens, and may have a few million."""
CODE_FORMAT = "code"
"""The format of a model that is nothing but the code that others need."""
_MOST_NAMED = 3  # files

_PART = r"\w(?:[\w.]|-(?!-))*"
_MODULE = r"\w(?:\w|-(?!-))*"
_REFERENCE = re.compile(
    rf"(?:(?P<repository>{_PART}(?:/{_PART})?)--)?(?P<module>{_MODULE}(?:/{_MODULE})*)\.\w+", re.ASCII
)


@dataclass(frozen=True, slots=True)
class CodeReference:
    """A file of code; ``repository`` is the other one that it lies in, if so."""

    file: str
    repository: str | None = None


@dataclass(frozen=True, slots=True)
class CodeNeeds:
    """The code that a model asks for: ``own`` files, files of its own that are ``lacking``, and files of ``others``, by repository."""

    own: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Whether there is code to be run."""
        return bool(self.own or self.others)


def code_needs(references: Sequence[CodeReference], paths: Collection[str], repository: str | None = None) -> CodeNeeds:
    """Sort out what is referred to. ``paths`` are the model's files; ``repository`` is its own, which it may name as well."""
    own = dict.fromkeys(found.file for found in references if found.repository in {None, repository})
    others: dict[str, list[str]] = {}
    for found in dict.fromkeys(references):
        if found.repository not in {None, repository}:
            others.setdefault(str(found.repository), []).append(found.file)
    return CodeNeeds(
        tuple(file for file in own if file in paths),
        tuple(file for file in own if file not in paths),
        {name: tuple(files) for name, files in others.items()},
    )


def read_code_map(data: bytes) -> tuple[CodeReference, ...]:
    """Find what one of ``CODE_MAPS`` names. Raises ``ValueError`` for one that names code and is no valid JSON object."""
    names_code = any(key in data for key in (b'"auto_map"', b'"custom_pipelines"'))
    return code_references(decode_object(data)) if names_code else ()


def code_references(document: Mapping[str, Any]) -> tuple[CodeReference, ...]:
    """Find what a decoded file names, each once and in order."""
    return tuple(dict.fromkeys(_reference(text) for _, text in named_code(document)))


def named_code(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give every name of code in a decoded file, with what it is for."""
    # Those of a part, as text_config, count as well: its model may be made by itself.
    for part in (document, *(value for value in document.values() if isinstance(value, dict))):
        value = part.get("auto_map")
        table = value if isinstance(value, dict) else {"auto_map": value}
        yield from ((str(kind), text) for kind, entry in table.items() for text in _texts(entry))
    pipelines = document.get("custom_pipelines")
    for task, pipeline in pipelines.items() if isinstance(pipelines, dict) else ():
        yield from (
            (str(task), text) for text in _texts(pipeline.get("impl") if isinstance(pipeline, dict) else pipeline)
        )


def is_code_alone(paths: Sequence[str]) -> bool:
    """Tell whether files are Python code, with at most a license and a model card, and nothing that it would be run on."""
    return any(path.endswith(".py") for path in paths) and {file_role(path) for path in paths} <= {
        FileRole.CODE,
        FileRole.DOC,
    }


def _texts(value: Any) -> Iterator[str]:
    """Give the alternatives that an entry holds."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    yield from (text for text in inner if isinstance(text, str))


def _reference(text: str) -> CodeReference:
    """Read a reference; what is none is taken for the name of a file, which will not be there."""
    match = _REFERENCE.fullmatch(text)
    return CodeReference(f"{match['module']}.py", match["repository"]) if match else CodeReference(text)


def shorten(files: Sequence[str]) -> str:
    """Name files in a sentence, the first few of many, whatever their names are made of."""
    named = ", ".join(file[:120] for file in files[:_MOST_NAMED])
    return f"{named} and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else named
