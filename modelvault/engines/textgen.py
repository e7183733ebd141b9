"""text-generation-webui 4: ``user_data/models/`` with GGUF or a Hugging Face model per directory, projectors in ``user_data/mmproj/``.

The list of models is every ``.gguf`` file below ``models/`` and every directory in it without one, hidden ones included; that of
projectors is the files of ``mmproj/`` itself (modules/utils.py).
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

from modelvault.artifact import FileSpec, Model
from modelvault.engines.base import InstallRecord, InstallRequest
from modelvault.engines.gguf_parts import base_name, gguf_files, is_projector, loaded_files, why_not_gguf
from modelvault.engines.plain_engine import PlainEngine, why_not_transformers
from modelvault.engines.remote_code import ALLOW_CODE, MODULES, needed_code

_PACKAGES = {"awq": "gptqmodel", "gptq": "gptqmodel", "compressed-tensors": "compressed-tensors"}


class TextgenEngine(PlainEngine):
    """The adapter for text-generation-webui (oobabooga)."""

    name = "textgen"
    below = "models/"
    runs_code = True

    def accepts(self, model: Model) -> str | None:
        """GGUF as llama.cpp takes it, or safetensors; no longer EXL2."""
        if gguf_files(model):
            return why_not_gguf(model, "text-generation-webui")
        if (model.traits.quantization or "").lower().startswith("exl2"):
            return "text-generation-webui no longer loads EXL2"
        return why_not_transformers(model, "text-generation-webui") or super().accepts(model)

    def plugin_for(self, model: Model) -> str | None:
        """It loads safetensors with transformers, and brings nothing for these quantizations."""
        quantization = (model.traits.quantization or "").lower()
        return next((package for prefix, package in _PACKAGES.items() if quantization.startswith(prefix)), None)

    def arguments(self, request: InstallRequest) -> tuple[str, ...]:
        """The permission to run a model's code."""
        runs = not gguf_files(request.model) and needed_code(request).runs
        return (ALLOW_CODE,) if runs else ()

    def inside(self, model: Model) -> Mapping[str, FileSpec]:
        """GGUF files side by side, without projectors, which would be offered as models; else all files."""
        weights = {base_name(file): file for file in loaded_files(model) if not is_projector(file)}
        return weights or super().inside(model)

    def beside(self, model: Model, name: str) -> Mapping[str, FileSpec]:
        """Projectors in one directory for all models: the model's name tells them apart."""
        return {f"mmproj/{name}--{base_name(file)}": file for file in loaded_files(model) if is_projector(file)}

    def recipe(self, record: InstallRecord) -> list[str]:
        """The server, from the program's own directory."""
        models = str(Path(record.directory, self.below))
        first, *rest = (file.path for file in record.files)
        model = first.removeprefix(self.below) if first.lower().endswith(".gguf") else record.installed_name
        command = ["python", "server.py", "--model-dir", models, "--model", model]
        projector = next((path for path in rest if path.startswith("mmproj/")), None)
        if projector:
            command += ["--mmproj", str(Path(record.directory, projector))]
        modules = MODULES if ALLOW_CODE in record.arguments else ""
        return [f"HF_HUB_OFFLINE=1{modules} {shlex.join([*command, *record.arguments])}"]
