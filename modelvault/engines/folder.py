"""``DIR/<name>/`` with the files under their own names: for any engine that takes a path, vLLM among them."""

import shlex

from modelvault.engines.base import InstallRecord, InstallRequest
from modelvault.engines.gguf_parts import served_gguf
from modelvault.engines.plain_engine import PlainEngine
from modelvault.engines.remote_code import ALLOW_CODE, MODULES, needed_code
from modelvault.engines.vllm_command import serve


class FolderEngine(PlainEngine):
    """The adapter for everything that has no adapter of its own."""

    name = "folder"
    runs_code = True

    def arguments(self, request: InstallRequest) -> tuple[str, ...]:
        """What the recipe has for vLLM, which serves such a directory by its path."""
        own = request.model.recipe.vllm_arguments if request.model.recipe else ()
        return (*own, ALLOW_CODE) if needed_code(request).runs and ALLOW_CODE not in own else own

    def recipe(self, record: InstallRecord) -> list[str]:
        """Name the usual command for what lies there: llama.cpp for GGUF, vLLM by path for safetensors."""
        gguf = served_gguf(self.paths(record))
        if gguf:
            return [shlex.join(["llama-server", "--offline", "--model", gguf])]
        if not any(path.endswith(".safetensors") for path in self.paths(record)):
            return []
        modules = MODULES if ALLOW_CODE in record.arguments else ""
        arguments = ["--served-model-name", record.model, *record.arguments]
        return [serve(str(self.root_of(record)), arguments, modules)]
