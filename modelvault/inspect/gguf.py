"""GGUF files by path: the header of ``formats.gguf``, held against the file's name."""

import re
from pathlib import Path

from modelvault.errors import InvalidModelFile
from modelvault.formats.gguf import GgufHeader, read_gguf_header
from modelvault.inspect.source import open_file

_SHARD_NAME = re.compile(r".*-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def read_gguf(path: Path, *, name: str | None = None) -> GgufHeader:
    """Read and check the header of a GGUF file; ``name`` is what to call the file, and what a shard's numbers are held against.

    Raises ``InvalidModelFile`` with a rule ``gguf-…``, and ``OSError`` if the file cannot be read.
    """
    shown = name or path.name
    with open_file(path, shown) as (file, size):
        header = read_gguf_header(file, size, name=shown)
    _check_split(header, shown)
    return header


def _check_split(header: GgufHeader, name: str) -> None:
    """llama.cpp finds the shards of a model by their names: they must say what the metadata say."""
    match = _SHARD_NAME.fullmatch(name)
    if not name.endswith(".gguf") or (match is None and header.split is None):
        return  # a blob or a partial file has no name that could be wrong
    named = (int(match[1]) - 1, int(match[2])) if match else None
    if named == header.split or (named == (0, 1) and header.split is None):
        return
    said = f"shard {header.split[0] + 1} of {header.split[1]}" if header.split else "not a shard"
    raise InvalidModelFile(
        name,
        "gguf-split-name",
        f"its metadata say that it is {said}, its name says otherwise",
        hint="shards find one another by name: <prefix>-00001-of-0000N.gguf; give it its original name back",
    )
