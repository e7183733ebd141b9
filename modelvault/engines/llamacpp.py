"""llama.cpp: ``llama-server --models-dir DIR`` offers every directory in DIR that has a GGUF file.

Of a directory's files (its subdirectories are not looked at) it takes the first shard, else the only other file, for the model,
and the one with ``mmproj`` in its name for the projector (server-models.cpp, mid-2026).
"""

import shlex
from collections.abc import Mapping

from modelvault.artifact import FileSpec, Model
from modelvault.engines.base import InstallRecord
from modelvault.engines.gguf_parts import base_name, loaded_files, why_not_gguf
from modelvault.engines.plain_engine import PlainEngine


class LlamaCppEngine(PlainEngine):
    """The adapter for llama.cpp's server."""

    name = "llamacpp"

    def accepts(self, model: Model) -> str | None:
        """One GGUF model, in one file or in all of its shards."""
        return why_not_gguf(model, "llama.cpp")

    def inside(self, model: Model) -> Mapping[str, FileSpec]:
        """The GGUF files side by side, whatever directories they had: shards are sought beside the first."""
        return {base_name(file): file for file in loaded_files(model)}

    def recipe(self, record: InstallRecord) -> list[str]:
        """The server for the whole directory, and a preset of the model, for those who want settings of its own."""
        serve = ["llama-server", "--offline", "--models-dir", record.directory]
        first, *rest = sorted(self.paths(record), key=lambda path: "mmproj" in path.rpartition("/")[2].lower())
        projector = next((path for path in rest if "mmproj" in path.rpartition("/")[2].lower()), None)
        preset = ["version = 1", "", f"[{record.installed_name}]", f"model = {first}"]
        if projector:
            preset.append(f"mmproj = {projector}")
        write = shlex.join(["printf", "%s\\n", *preset])
        return [shlex.join(serve), f"{write} > models.ini; llama-server --offline --models-preset models.ini"]
