"""``add --from-ollama``: a model that Ollama has on this machine already becomes one of the vault's, without a network."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelvault.artifact import ModelName, Origin
from modelvault.engines import engines
from modelvault.errors import UsageProblem
from modelvault.ollama_name import OllamaName
from modelvault.operations.adopt import Adoption, take_over
from modelvault.operations.licenses import Asking, Terms
from modelvault.operations.ollama import check_layers, license_of, recipe_in_layers
from modelvault.progress import Progress
from modelvault.results.models import AddResult
from modelvault.sources.ollama_store import OllamaStore
from modelvault.vault import Vault


@dataclass(frozen=True, slots=True)
class OllamaAdoption:
    """What the user asked for: a model by Ollama's name; in the vault it gets ``name``, else that one after ``ollama:``."""

    ollama_name: OllamaName
    store: Path | None = None
    name: ModelName | None = None
    license: str | None = None
    accept_license: bool = False
    consent: Callable[[str], bool] | None = None


def ollama_name(text: str) -> OllamaName:
    """Read a name as ``ollama list`` shows it, or as the vault does. Raises ``UsageProblem``."""
    name = ModelName(f"ollama:{text.removeprefix('ollama:')}").ollama
    if name is None:
        raise UsageProblem(f"not a name that Ollama takes: {text[:120]!r}", hint="write one as `ollama list` does")
    return name


def adopt_from_ollama(vault: Vault, request: OllamaAdoption, progress: Progress) -> AddResult:
    """Take a model over from an Ollama store. Raises ``SourceUnavailable`` for a model that the store lacks, and as ``take_over`` does."""
    store = OllamaStore(request.store or _store_here())
    name = store.find(request.ollama_name)
    snapshot = store.snapshot(name)
    check_layers(str(name), snapshot.files)
    listed_as = request.name or ModelName(f"ollama:{name}")
    adoption = Adoption(
        terms=Terms(listed_as, request.license, pending=request.license is None),
        origin=Origin("ollama", snapshot.repository, snapshot.commit),
        files=snapshot.files,
        place=functools.partial(store.place_of, name),
        remedy=f"remove it, bring it again with ollama pull {name}, and run the same command again",
        license_of=lambda report: request.license or license_of(report.reports),
        recipe_in=functools.partial(recipe_in_layers, name),
    )
    return take_over(vault, adoption, Asking(request.accept_license, request.consent), progress)


def _store_here() -> Path:
    """Find the store as the engine does, else Ollama's default."""
    engine = engines()["ollama"]
    target = engine.detect() or engine.default()
    if target is None:
        raise UsageProblem("no store of Ollama's was found on this machine", hint="name it with --store DIR")
    return target.directory
