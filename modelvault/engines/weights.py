"""Whether the safetensors files of a model are all there, and which of them are the model.

Engines do not ask: without an index vLLM loads what is left of a quantized model, and TGI loads whatever lies there.
"""

import json

from modelvault import fsio
from modelvault.artifact import Model
from modelvault.engines.base import InstallRequest
from modelvault.errors import EngineRefused, InvalidModelFile
from modelvault.formats.shards import shard_sets

INDEX = "model.safetensors.index.json"
_MAX_INDEX = 64 << 20  # bytes


def top_weights(model: Model) -> list[str]:
    """Give the safetensors files beside ``config.json``: engines look for them only there."""
    return [file.path for file in model.files if "/" not in file.path and file.path.endswith(".safetensors")]


def why_not_whole(model: Model) -> str | None:
    """Give the reason why its weights cannot be the whole model, by their names; ``None`` if they can."""
    try:
        for shards in shard_sets(top_weights(model)):
            if shards.missing:
                return f"its weights are split into {shards.total} files, of which {len(shards.missing)} are not here"
    except InvalidModelFile as error:
        return f"{error.path} {error.detail}"
    return None


def indexed(request: InstallRequest) -> frozenset[str] | None:
    """Give the files that the model's index names; ``None`` if there is none, or if it is not here before an import.

    Raises ``EngineRefused`` for an index that names files which the model lacks.
    """
    paths = {file.path: file for file in request.model.files}
    if INDEX not in paths or not (path := request.blob_path(paths[INDEX].digest)).exists():
        return None
    try:
        named = frozenset(json.loads(fsio.read_regular(path, limit=_MAX_INDEX))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, fsio.NotRegular, fsio.TooLarge) as error:
        raise EngineRefused(f"{request.model.name}: {INDEX} lists no weights") from error
    if missing := sorted(str(name) for name in named if name not in paths):
        raise EngineRefused(
            f"{request.model.name}: {INDEX} names {missing[0][:120]}, which is not here ({len(missing)} of {len(named)} files)",
            hint="pull or import the whole model again: some engines load what is left without a word",
        )
    return named
