"""Text Generation Inference 3.3: the hub's cache below its ``HF_HOME``, without the weights that it would load by mistake."""

import shlex
from typing import ClassVar

from modelvault import fsio
from modelvault.artifact import FileSpec, Model
from modelvault.engines.base import InstallRecord, InstallRequest, Target
from modelvault.engines.hub_engine import HubEngine, has_weights
from modelvault.engines.weights import INDEX, indexed, top_weights

_TOKENIZER = "tokenizer_config.json"
_MAX_TOKENIZER = 32 << 20  # bytes
_UNSEEN = ("arguments", "args", "training")  # server/text_generation_server/utils/hub.py


class TgiEngine(HubEngine):
    """The adapter for TGI."""

    name = "tgi"
    title = "TGI"
    below = "hub/"
    refused: ClassVar = {
        "exl3": "TGI cannot load EXL3",
        "mxfp4": "TGI cannot load MXFP4",
        "modelopt": "TGI cannot load ModelOpt's formats",
        **dict.fromkeys(("aqlm", "hqq", "quanto", "torchao"), "TGI does not know it, and would load it as unquantized"),
        "bitsandbytes": "TGI quantizes with bitsandbytes by itself, and cannot load what was quantized before",
    }

    def default(self) -> Target:
        """``HF_HOME``, else ``~/.cache/huggingface``; its container has ``/data``."""
        return Target(self.name, self.home())

    def why_not_gguf(self, model: Model) -> str:  # noqa: ARG002 (none at all)
        """It loads none."""
        return "TGI takes safetensors files, and this model has only GGUF"

    def accepts(self, model: Model) -> str | None:
        """As the others; but it passes over weights with certain words in their names, and loads what is left."""
        unseen = next((path for path in top_weights(model) if any(word in path for word in _UNSEEN)), None)
        if unseen:
            return f"TGI passes over a file called {unseen}: it takes it for what is left of a training"
        return super().accepts(model)

    def notes(self, request: InstallRequest) -> tuple[str, ...]:
        """It has its own idea of where a chat template is."""
        if not lacks_template(request):
            return ()
        said = "TGI does not read chat_template.jinja: without --tokenizer-config-path it completes, and refuses chats"
        return (f"{request.model.name}: {said}",)

    def chosen(self, request: InstallRequest) -> tuple[FileSpec, ...]:
        """TGI loads every ``*.safetensors`` at the top level and does not look at the index: what is not in it stays out."""
        files = request.model.files
        wanted = _weights(request)
        return tuple(
            file for file in files if "/" in file.path or not file.path.endswith(".safetensors") or file.path in wanted
        )

    def recipe(self, record: InstallRecord) -> list[str]:
        """``text-generation-launcher`` by repository name; TGI takes nothing but ``1`` for offline."""
        if not has_weights(record):
            return []
        launch = ["text-generation-launcher", "--model-id", record.installed_name, "--usage-stats", "off"]
        return [f"HF_HUB_OFFLINE=1{self.settings(record)} {shlex.join([*launch, *record.arguments])}"]


def lacks_template(request: InstallRequest) -> bool:
    """Tell whether the one place of a model's chat template is a file that TGI does not read."""
    files = {file.path: file for file in request.model.files}
    if "chat_template.jinja" not in files or "chat_template.json" in files:
        return False
    path = request.blob_path(files[_TOKENIZER].digest) if _TOKENIZER in files else None
    return path is None or (path.exists() and b'"chat_template"' not in fsio.read_regular(path, limit=_MAX_TOKENIZER))


def _weights(request: InstallRequest) -> frozenset[str]:
    """Name the model's own weights: those in its index, else the one file of the usual name, else all."""
    paths = {file.path for file in request.model.files}
    # An import is planned before its blobs are here: until then the names have to do.
    if (named := indexed(request)) is not None:
        return named
    if INDEX not in paths and "model.safetensors" in paths:
        return frozenset({"model.safetensors"})
    return frozenset(path for path in paths if not path.startswith("consolidated"))
