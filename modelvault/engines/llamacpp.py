"""llama.cpp: ``llama-server --models-dir DIR`` offers every directory in DIR that has a GGUF file.

Of a directory's ``.gguf`` files (its subdirectories are not looked at) it takes the first shard, else the only other file, for the model,
one with ``mmproj`` in its name for the projector, and one that begins with ``mtp-``, ``dspark-`` or ``dflash-`` for the draft model; it
looks at upper and lower case (common/preset.cpp, release 11434).
"""

import re
import shlex
from collections.abc import Mapping

from modelvault.artifact import FileSpec, Model
from modelvault.engines.base import InstallRecord
from modelvault.engines.gguf_parts import (
    base_name,
    gguf_files,
    is_draft,
    is_projector,
    loaded_files,
    served_gguf,
    why_not_gguf,
)
from modelvault.engines.plain_engine import PlainEngine

_SPELLED = re.compile(r"mmproj|\.gguf$", re.IGNORECASE)


class LlamaCppEngine(PlainEngine):
    """The adapter for llama.cpp's server."""

    name = "llamacpp"

    def accepts(self, model: Model) -> str | None:
        """One GGUF model, in one file or in all of its shards."""
        if reason := why_not_gguf(model, "llama.cpp"):
            return reason
        first = loaded_files(model)[0]
        return f"llama.cpp takes a file called {base_name(first)} for a draft model" if is_draft(first) else None

    def inside(self, model: Model) -> Mapping[str, FileSpec]:
        """The GGUF files side by side, whatever directories they had: shards are sought beside the first."""
        drafts = [file for file in gguf_files(model) if is_draft(file)]
        return {_spelled(file): file for file in (*loaded_files(model), *drafts[:1])}

    def recipe(self, record: InstallRecord) -> list[str]:
        """The server for the whole directory, and a preset of the model, for those who want settings of its own."""
        serve = ["llama-server", "--offline", "--models-dir", record.directory]
        paths = self.paths(record)
        preset = ["version = 1", "", f"[{record.installed_name}]", f"model = {served_gguf(paths)}"]
        preset += [f"mmproj = {path}" for path in paths if "mmproj" in path.rpartition("/")[2]]
        write = shlex.join(["printf", "%s\\n", *preset])
        return [shlex.join(serve), f"{write} > models.ini; llama-server --offline --models-preset models.ini"]


def _spelled(file: FileSpec) -> str:
    """Give a file's name as the server knows it."""
    name = base_name(file)
    return _SPELLED.sub(lambda match: match[0].lower(), name) if is_projector(file) else name[:-5] + name[-5:].lower()
