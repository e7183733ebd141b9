"""vLLM: with ``HF_HUB_OFFLINE=1`` it loads by repository name from the hub's cache."""

import shlex
from typing import ClassVar

from modelvault.artifact import Model
from modelvault.engines.base import InstallRecord, Target
from modelvault.engines.hub_engine import HubEngine

_QUIET = "HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1"
_NO_BITSANDBYTES = "vLLM needs the bitsandbytes package for it, which this version does not carry"


class VllmEngine(HubEngine):
    """The adapter for vLLM and for whatever else reads the hub's cache."""

    name = "vllm"
    title = "vLLM"
    no_gguf = "vLLM loads GGUF only through a plugin and by path"
    refused: ClassVar = {
        "exl2": "vLLM cannot load EXL2",
        "exl3": "vLLM cannot load EXL3",
        "bitsandbytes": _NO_BITSANDBYTES,
        "bnb": _NO_BITSANDBYTES,
    }

    def detect(self) -> Target | None:
        """The hub's cache, if it exists or ``vllm`` is on the PATH."""
        target = self.default()
        return target if target.directory.is_dir() or self._around.program("vllm") else None

    def arguments(self, model: Model) -> tuple[str, ...]:
        """The recipe's flags for ``vllm serve``."""
        return model.recipe.vllm_arguments if model.recipe else ()

    def recipe(self, record: InstallRecord) -> list[str]:
        """``vllm serve`` by repository name, offline and quiet."""
        serve = shlex.join(["vllm", "serve", record.installed_name, *record.arguments])
        return [f"{_QUIET}{self.cache_variable(record)} {serve}"]
