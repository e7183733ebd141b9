"""vLLM: with ``HF_HUB_OFFLINE=1`` it loads by repository name from the hub's cache, and GGUF by the path of its file there."""

from pathlib import PurePosixPath
from typing import ClassVar

from modelvault.artifact import Model
from modelvault.engines.base import InstallRecord, Target
from modelvault.engines.gguf_parts import is_projector, loaded_files, why_not_gguf
from modelvault.engines.hub_cache import layout_of
from modelvault.engines.hub_engine import HubEngine, gguf_path, has_weights
from modelvault.engines.vllm_command import serve
from modelvault.engines.weights import top_weights
from modelvault.formats.names import has_tokenizer

_NO_BITSANDBYTES = "vLLM needs the bitsandbytes package for it, which this version does not carry"
_PLUGIN = "vllm-gguf-plugin"


class VllmEngine(HubEngine):
    """The adapter for vLLM and for whatever else reads the hub's cache."""

    name = "vllm"
    title = "vLLM"
    takes_vllm_arguments = True
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

    def why_not_gguf(self, model: Model) -> str | None:
        """The plugin (0.0.5) reads configuration and tokenizer from files: those in the GGUF file do not do. And it reads one file.

        Of a split model it looks for the output layer in every part, ties it to the embedding where one lacks it, and answers with rubbish.
        """
        if reason := why_not_gguf(model, "vLLM"):
            return reason
        if sum(not is_projector(file) for file in loaded_files(model)) > 1:
            return f"{_PLUGIN} takes the output layer of a split GGUF for a missing one, and answers with rubbish: join the parts, with `llama-gguf-split --merge`"
        names = [file.path for file in model.files if "/" not in file.path]
        missing = [
            *([] if "config.json" in names else ["config.json"]),
            *([] if has_tokenizer(names) else ["tokenizer"]),
        ]
        if not missing:
            return None
        return (
            f"vLLM loads GGUF through {_PLUGIN}, with the original model's config.json and tokenizer beside it, and this "
            f"model has no {' and no '.join(missing)}: put them into one folder with the GGUF file, and `modelvault add` that"
        )

    def knows_architecture(self, model: Model) -> bool:
        """A ``config.json``; or Mistral's own layout, ``params.json`` with ``consolidated`` weights."""
        native = any(file.path == "params.json" for file in model.files) and all(
            path.startswith("consolidated") for path in top_weights(model)
        )
        return native or super().knows_architecture(model)

    def plugin_for(self, model: Model) -> str | None:
        """GGUF is loaded by a package of its own."""
        return _PLUGIN if loaded_files(model) and not top_weights(model) else None

    def recipe(self, record: InstallRecord) -> list[str]:
        """``vllm serve`` by repository name, or by the path of the GGUF file, offline and quiet."""
        gguf = gguf_path(record)
        if gguf is None:
            return (
                [serve(record.installed_name, record.arguments, self.settings(record))] if has_weights(record) else []
            )
        arguments = ["--served-model-name", record.installed_name, *record.arguments, *gguf_arguments(record, gguf)]
        return [serve(gguf, arguments, self.settings(record))]


def gguf_arguments(record: InstallRecord, gguf: str) -> tuple[str, ...]:
    """Say where the configuration of a GGUF is, if it does not lie beside it."""
    snapshot = PurePosixPath(record.directory, layout_of(record).snapshot)
    return () if PurePosixPath(gguf).parent == snapshot else ("--hf-config-path", str(snapshot))
