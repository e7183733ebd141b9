"""The marker: a small JSON file that says which files of a directory modelvault placed, and how.

Written before the first file is placed, it makes an install that was killed repeatable without forgetting what was ours. The
registry's record says the same, but is written only when an install is complete. Ollama needs none: its manifests count references.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from modelvault import fsio
from modelvault.artifact import Digest, check_relative_path
from modelvault.engines.base import LinkKind
from modelvault.engines.ground import in_the_way

FORMAT = "modelvault-install-v1"
_MAX_MARKER = 16 << 20


@dataclass(frozen=True, slots=True)
class Marker:
    """Which model's files lie here. ``files`` maps paths to how they got there; ``before`` is the commit that ``refs/main`` named."""

    model: str
    manifest: Digest
    files: Mapping[str, str]
    before: str | None = None

    def encode(self) -> bytes:
        """Write the marker; equal markers give equal bytes."""
        table = {
            "format": FORMAT,
            "model": self.model,
            "manifest": str(self.manifest),
            "files": dict(sorted(self.files.items())),
            "before": self.before,
        }
        return (json.dumps(table, indent=1) + "\n").encode("utf-8")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a marker. Raises ``ValueError`` for anything that ``encode`` would not have written."""
        try:
            table = json.loads(data)
        except RecursionError as error:
            raise ValueError("not a marker") from error
        if not isinstance(table, dict) or set(table) != {"format", "model", "manifest", "files", "before"}:
            raise ValueError("not a marker")
        model, files, before = table["model"], table["files"], table["before"]
        well_typed = (
            table["format"] == FORMAT
            and isinstance(model, str)
            and isinstance(table["manifest"], str)
            and isinstance(files, dict)
            and isinstance(before, str | None)
        )
        if not well_typed:
            raise ValueError("not a marker that this version understands")
        kinds = {check_relative_path(path): LinkKind(kind).value for path, kind in files.items()}
        return cls(model, Digest.parse(table["manifest"]), kinds, before)


def read_marker(path: Path) -> Marker | None:
    """Read a marker if there is one. Raises ``EngineRefused`` for a file of that name that is none, else ``OSError``."""
    try:
        return Marker.decode(fsio.read_regular(path, limit=_MAX_MARKER))
    except FileNotFoundError:
        return None
    except (ValueError, fsio.NotRegular, fsio.TooLarge) as error:
        raise in_the_way(path, "it has the name of our marker, but is none") from error
