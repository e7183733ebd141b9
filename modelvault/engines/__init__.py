"""One adapter per serving engine: where it keeps models, how one gets there, and how it goes again."""

from collections.abc import Mapping
from pathlib import Path

from modelvault.engines.base import (
    Engine,
    InstalledFile,
    InstallPlan,
    InstallRecord,
    InstallRequest,
    LinkKind,
    LinkMode,
    Owner,
    PlannedFile,
    Removal,
    Surroundings,
    Target,
)
from modelvault.engines.folder import FolderEngine
from modelvault.engines.ollama import OllamaEngine
from modelvault.engines.vllm import VllmEngine
from modelvault.errors import UsageProblem

__all__ = [
    "Engine",
    "InstallPlan",
    "InstallRecord",
    "InstallRequest",
    "InstalledFile",
    "LinkKind",
    "LinkMode",
    "Owner",
    "PlannedFile",
    "Removal",
    "Surroundings",
    "Target",
    "engines",
    "parse_target",
]


def engines(surroundings: Surroundings | None = None) -> Mapping[str, Engine]:
    """Give every adapter by name. ``surroundings`` default to this process's environment and home."""
    around = surroundings or Surroundings()
    adapters: tuple[Engine, ...] = (OllamaEngine(around), VllmEngine(around), FolderEngine())
    return {adapter.name: adapter for adapter in adapters}


def parse_target(text: str, known: Mapping[str, Engine]) -> Target:
    """Read ``ollama``, ``ollama=DIR``, ``vllm=DIR`` or ``folder=DIR``; ``known`` are the adapters by name.

    Without a directory: the one that is detected, else the engine's default. Raises ``UsageProblem`` for an engine that is not
    known, or one that needs a directory.
    """
    name, equals, directory = text.partition("=")
    if name not in known:
        raise UsageProblem(f"no such engine: {name!r}", hint=f"known engines: {', '.join(known)}", engine=name)
    if directory:
        return Target(name, Path(directory).expanduser().absolute())
    target = None if equals else known[name].detect() or known[name].default()
    if target is None:
        raise UsageProblem(f"engine {name} needs a directory", hint=f"write {name}=DIR", engine=name)
    return target
