"""``DIR/<name>/`` with the files under their own names: for any engine that takes a path."""

import shlex

from modelvault.engines.base import InstallRecord
from modelvault.engines.plain_engine import PlainEngine


class FolderEngine(PlainEngine):
    """The adapter for everything that has no adapter of its own."""

    name = "folder"

    def recipe(self, record: InstallRecord) -> list[str]:
        """Name the usual command for what lies there: llama.cpp for GGUF, else vLLM by path."""
        gguf = sorted(path for path in self.paths(record) if path.lower().endswith(".gguf"))
        if gguf:
            return [shlex.join(["llama-server", "--offline", "--model", gguf[0]])]
        served = shlex.join(["vllm", "serve", str(self.root_of(record)), "--served-model-name", record.model])
        return [f"HF_HUB_OFFLINE=1 {served}"]
