"""SGLang: safetensors by repository name from the hub's cache, GGUF by the path of its file there."""

import shlex
from typing import ClassVar

from modelvault.artifact import Model
from modelvault.engines.base import InstallRecord
from modelvault.engines.gguf_parts import gguf_files, why_not_gguf
from modelvault.engines.hub_engine import HubEngine, gguf_path, has_weights


class SglangEngine(HubEngine):
    """The adapter for SGLang 0.5."""

    name = "sglang"
    title = "SGLang"
    refused: ClassVar = {"exl2": "SGLang cannot load EXL2", "exl3": "SGLang cannot load EXL3"}

    def why_not_gguf(self, model: Model) -> str | None:
        """It reads one file: of a split model, the first part alone (0.5.23)."""
        if reason := why_not_gguf(model, "SGLang"):
            return reason
        files = len(gguf_files(model))
        return f"it has {files} GGUF files, and SGLang takes one per model" if files > 1 else None

    def recipe(self, record: InstallRecord) -> list[str]:
        """``sglang.launch_server``, offline."""
        if not has_weights(record):
            return []
        gguf = gguf_path(record)
        command = ["python", "-m", "sglang.launch_server", "--model-path", gguf or record.installed_name]
        if gguf:
            command += ["--served-model-name", record.installed_name]
        return [f"HF_HUB_OFFLINE=1{self.settings(record)} {shlex.join([*command, *record.arguments])}"]
