"""SGLang: safetensors by repository name from the hub's cache, GGUF by the path of its file there."""

import shlex
from pathlib import Path
from typing import ClassVar

from modelvault.engines.base import InstallRecord
from modelvault.engines.hub_engine import HubEngine


class SglangEngine(HubEngine):
    """The adapter for SGLang 0.5."""

    name = "sglang"
    title = "SGLang"
    refused: ClassVar = {"exl2": "SGLang cannot load EXL2", "exl3": "SGLang cannot load EXL3"}

    def recipe(self, record: InstallRecord) -> list[str]:
        """``sglang.launch_server``, offline."""
        names = (file.path for file in record.files if "/snapshots/" in file.path)
        gguf = next((name for name in names if name.lower().endswith(".gguf")), None)
        model = str(Path(record.directory) / gguf) if gguf else record.installed_name
        command = ["python", "-m", "sglang.launch_server", "--model-path", model]
        if gguf:
            command += ["--served-model-name", record.installed_name]
        return [f"HF_HUB_OFFLINE=1{self.cache_variable(record)} {shlex.join(command)}"]
