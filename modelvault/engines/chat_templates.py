"""Templates in Ollama's language for the chat families whose GGUF says how it is talked to only in Jinja.

Ollama before 0.30 does not read the GGUF's own chat template. The templates are data: ``templates/<name>.tmpl``, and
``families.toml`` with the marks by which a family is known and the words at which its turns end.
"""

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib.resources import files

from modelvault.formats.modelfile import Instruction, Modelfile


@dataclass(frozen=True, slots=True)
class Family:
    """One chat family. ``markers`` are all found in its models' chat templates, ``without`` never."""

    name: str
    title: str
    markers: tuple[str, ...]
    without: tuple[str, ...]
    stop: tuple[str, ...]

    @property
    def template(self) -> str:
        """The template in Ollama's language."""
        return (files(__package__) / "templates" / f"{self.name}.tmpl").read_text(encoding="utf-8").removesuffix("\n")

    def knows(self, jinja: str) -> bool:
        """Tell whether a GGUF's chat template is one of this family's."""
        return all(re.search(mark, jinja) for mark in self.markers) and not any(
            re.search(mark, jinja) for mark in self.without
        )

    def added_to(self, modelfile: Modelfile) -> Modelfile:
        """Put the template into a Modelfile and, where that has no stop words of its own, those of the family."""
        added = [Instruction("TEMPLATE", self.template)]
        if "stop" not in modelfile.parameters:
            added += [Instruction("PARAMETER", word, "stop") for word in self.stop]
        return Modelfile((*modelfile.instructions, *added))


@functools.cache
def families() -> tuple[Family, ...]:
    """Read the families, in the order in which they are tried."""
    table = tomllib.loads((files(__package__) / "templates" / "families.toml").read_text(encoding="utf-8"))
    return tuple(
        Family(
            entry["name"],
            entry["title"],
            tuple(entry["markers"]),
            tuple(entry.get("without", ())),
            tuple(entry["stop"]),
        )
        for entry in table["family"]
    )


def recognize(jinja: str) -> Family | None:
    """Find the family that a GGUF's chat template belongs to."""
    return next((family for family in families() if family.knows(jinja)), None)
