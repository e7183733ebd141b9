"""Copies of what is wanted that lie on this machine already."""

from pathlib import Path

from modelvault.artifact import Algorithm, FileRole, SourceFile, file_role
from modelvault.engines import engines
from modelvault.errors import UsageProblem
from modelvault.sources.hub_cache import HubCache


def hub_cache_here() -> Path:
    """Find the cache of the Hub's client as the engines that read it do. Raises ``UsageProblem``."""
    target = engines()["vllm"].default()
    if target is None:
        raise UsageProblem("no cache of the Hub's client was found", hint="HF_HUB_CACHE names it")
    return target.directory


def downloaded(repository: str, file: SourceFile) -> Path | None:
    """Find weights that the Hub's client has downloaded, by their digest alone: nothing is read. What is small somebody may edit."""
    promised = file.digest is not None and file.digest.algorithm is Algorithm.SHA256
    if not promised or file_role(file.path) is not FileRole.WEIGHT:
        return None
    return HubCache(hub_cache_here()).blob(repository, file)
