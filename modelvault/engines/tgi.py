"""Text Generation Inference 3.3: the hub's cache below its ``HF_HOME``, without the weights that it would load by mistake."""

import json
import shlex
from typing import ClassVar

from modelvault import fsio
from modelvault.artifact import FileSpec
from modelvault.engines.base import InstallRecord, InstallRequest, Target
from modelvault.engines.hub_engine import HubEngine
from modelvault.errors import EngineRefused

_INDEX = "model.safetensors.index.json"
_MAX_INDEX = 64 << 20  # bytes


class TgiEngine(HubEngine):
    """The adapter for TGI."""

    name = "tgi"
    title = "TGI"
    below = "hub/"
    no_gguf = "TGI takes safetensors files, and this model has only GGUF"
    refused: ClassVar = {
        "exl3": "TGI cannot load EXL3",
        "mxfp4": "TGI cannot load MXFP4",
        "modelopt": "TGI cannot load ModelOpt's formats",
        "bitsandbytes": "TGI quantizes with bitsandbytes by itself, and cannot load what was quantized before",
    }

    def default(self) -> Target:
        """``HF_HOME``, else ``~/.cache/huggingface``; its container has ``/data``."""
        return Target(self.name, self.home())

    def chosen(self, request: InstallRequest) -> tuple[FileSpec, ...]:
        """TGI loads every ``*.safetensors`` at the top level and does not look at the index: what is not in it stays out."""
        files = request.model.files
        wanted = _weights(request)
        return tuple(
            file for file in files if "/" in file.path or not file.path.endswith(".safetensors") or file.path in wanted
        )

    def recipe(self, record: InstallRecord) -> list[str]:
        """``text-generation-launcher`` by repository name; TGI takes nothing but ``1`` for offline."""
        launch = shlex.join(["text-generation-launcher", "--model-id", record.installed_name, "--usage-stats", "off"])
        return [f"HF_HUB_OFFLINE=1{self.cache_variable(record)} {launch}"]


def _weights(request: InstallRequest) -> set[str]:
    """Name the model's own weights: those in its index, else the one file of the usual name, else all."""
    files = {file.path: file for file in request.model.files}
    index = files.get(_INDEX)
    # An import is planned before its blobs are here: until then the names have to do.
    if index is not None and (path := request.blob_path(index.digest)).exists():
        try:
            return set(json.loads(fsio.read_regular(path, limit=_MAX_INDEX))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, fsio.NotRegular, fsio.TooLarge) as error:
            raise EngineRefused(f"{request.model.name}: {_INDEX} lists no weights") from error
    if index is None and "model.safetensors" in files:
        return {"model.safetensors"}
    return {path for path in files if not path.startswith("consolidated")}
