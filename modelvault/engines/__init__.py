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
from modelvault.engines.exllama import ExllamaEngine, TabbyApiEngine
from modelvault.engines.folder import FolderEngine
from modelvault.engines.http_client import parse_address
from modelvault.engines.llamacpp import LlamaCppEngine
from modelvault.engines.ollama import OllamaEngine
from modelvault.engines.ollama_api import OllamaApiEngine
from modelvault.engines.sglang import SglangEngine
from modelvault.engines.textgen import TextgenEngine
from modelvault.engines.tgi import TgiEngine
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
    adapters: tuple[Engine, ...] = (
        OllamaEngine(around),
        VllmEngine(around),
        FolderEngine(),
        LlamaCppEngine(),
        TgiEngine(around),
        SglangEngine(around),
        TextgenEngine(),
        TabbyApiEngine(),
        ExllamaEngine(),
        OllamaApiEngine(),
    )
    return {adapter.name: adapter for adapter in adapters}


def parse_target(text: str, known: Mapping[str, Engine]) -> Target:
    """Read ``ENGINE``, ``ENGINE=DIR`` or ``ollama=http://HOST:PORT``; ``known`` are the adapters by name.

    Without a directory: the one that is detected, else the engine's default. Raises ``UsageProblem`` for an engine that is not
    known, or one that needs a directory.
    """
    name, equals, directory = text.partition("=")
    if name not in known:
        raise UsageProblem(f"no such engine: {name!r}", hint=f"known engines: {', '.join(known)}", engine=name)
    if name in {OllamaEngine.name, OllamaApiEngine.name} and directory.startswith(("http://", "https://")):
        return Target.behind(OllamaApiEngine.name, parse_address(directory))
    if name == OllamaApiEngine.name:
        raise UsageProblem(f"engine {name} needs an address", hint="write ollama=http://HOST:11434", engine=name)
    if directory:
        return Target(name, Path(directory).expanduser().absolute())
    target = None if equals else known[name].detect() or known[name].default()
    if target is None:
        raise UsageProblem(f"engine {name} needs a directory", hint=f"write {name}=DIR", engine=name)
    return target
