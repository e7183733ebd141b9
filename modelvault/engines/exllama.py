"""ExLlamaV2, ExLlamaV3 and TabbyAPI, which serves with them: a directory per model, and strict about what is in it.

``config.json`` names exactly one architecture, and ``tokenizer.json`` is there (ExLlamaV2 0.3, ExLlamaV3 1.4). TabbyAPI of August 2026
has ExLlamaV3 alone; releases before that serve EXL2.
"""

import json
import shlex

from modelvault import fsio
from modelvault.artifact import Model
from modelvault.engines.base import InstallRecord, InstallRequest
from modelvault.engines.plain_engine import PlainEngine, why_not_transformers
from modelvault.errors import EngineRefused

_MAX_CONFIG = 16 << 20  # bytes
_AS_TRAINED = {"", "f16", "bf16", "f32"}
_NEEDED = ("config.json", "tokenizer.json")


class ExllamaEngine(PlainEngine):
    """The adapter for programs on ExLlamaV2 and ExLlamaV3 themselves."""

    name = "exllama"
    title = "ExLlama"
    unquantized = False
    """Whether weights as they were trained are loaded, too."""

    def accepts(self, model: Model) -> str | None:
        """What it was made for, with the files that it asks for."""
        quantization = (model.traits.quantization or "").lower()
        if not quantization.startswith(("exl2", "exl3")) and not (self.unquantized and quantization in _AS_TRAINED):
            return (
                f"{self.title} is for EXL2 and EXL3, and this model is {model.traits.quantization or 'not quantized'}"
            )
        return why_not_transformers(model, self.title, _NEEDED) or super().accepts(model)

    def check(self, request: InstallRequest) -> None:
        """Refuse a ``config.json`` that does not name exactly one architecture."""
        super().check(request)
        (config,) = (file for file in request.model.files if file.path == "config.json")
        path = request.blob_path(config.digest)
        if not path.exists():
            return  # an import is planned before its blobs are here
        try:
            architectures = json.loads(fsio.read_regular(path, limit=_MAX_CONFIG))["architectures"]
        except (ValueError, KeyError, TypeError, fsio.NotRegular, fsio.TooLarge):
            architectures = None
        if not isinstance(architectures, list) or len(architectures) != 1:
            raise EngineRefused(
                f"{request.model.name}: its config.json does not name exactly one architecture, as {self.title} wants",
                hint="ask the publisher for a repository that loads, or install it with --engine folder=DIR",
            )

    def recipe(self, record: InstallRecord) -> list[str]:
        """The program of that name in either project's own checkout."""
        return [shlex.join(["python", "examples/chat.py", "-m", str(self.root_of(record)), "-mode", "raw"])]


class TabbyApiEngine(ExllamaEngine):
    """The adapter for TabbyAPI. A ``tabby_config.yml`` that the user put beside a model outlives its updates."""

    name = "tabbyapi"
    title = "TabbyAPI"
    unquantized = True
    keeps = frozenset({"tabby_config.yml"})

    def warnings(self, request: InstallRequest) -> tuple[str, ...]:
        """Newer releases no longer have ExLlamaV2."""
        if (request.model.traits.quantization or "").lower().startswith("exl2"):
            return (f"{request.model.name}: TabbyAPI of 2026 no longer loads EXL2: use an older release, or EXL3",)
        return ()

    def recipe(self, record: InstallRecord) -> list[str]:
        """TabbyAPI's server, from its own directory."""
        command = ["python", "main.py", "--model-dir", record.directory, "--model-name", record.installed_name]
        return [shlex.join(command)]
