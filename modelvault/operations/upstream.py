"""From what the user typed to a repository of a source: the Hub's, found through the catalog or by its name, or an Ollama registry's."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from modelvault.artifact import ModelName, Recipe, looks_like_path
from modelvault.catalog import Catalog
from modelvault.config import Config
from modelvault.errors import UsageProblem
from modelvault.operations.catalog import recipe_of
from modelvault.operations.ollama import registry_address
from modelvault.operations.pinning import Pin
from modelvault.sources import Source
from modelvault.sources.mirrors import PATIENCE, Mirror, MirroredSource
from modelvault.sources.selection import Wish


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a model comes from: a repository of the Hub or of an Ollama registry, and what of it is wanted.

    ``name`` is the one that says so; in the vault the model is ``called`` another, if the user wants that.
    """

    name: ModelName
    repository: str
    revision: str | None
    wish: Wish
    recipe: Recipe | None = None
    verified: bool | None = None
    license: str | None = None
    notes: tuple[str, ...] = ()
    acceptance: bool = False
    pin: Pin | None = None
    called: ModelName | None = None

    @property
    def listed(self) -> ModelName:
        """The model's name in the vault."""
        return self.called or self.name

    def pinned(self, pin: Pin | None) -> "Upstream":
        """Give it at the repository and commit that are locked, if any are. Of Ollama's, the tag is still asked for first."""
        if pin is None:
            return self
        repository = pin.repository if self.name.ollama is None else self.repository
        return replace(self, repository=repository, revision=pin.commit, pin=pin)

    def settled(self, quant: str | None) -> "Upstream":
        """Give it with the quantization that was chosen meanwhile, in its name, too."""
        if quant is None:
            return self
        quant = quant.upper()
        name = ModelName(f"{self.name.hub_id}:{quant}")
        return replace(self, name=name, wish=replace(self.wish, quant=quant))

    @property
    def kind(self) -> str:
        """The kind of source."""
        return "hub" if self.name.ollama is None else "ollama"


def name_wanted(text: str) -> ModelName:
    """Read what the user wants pulled. Raises ``UsageProblem`` that says what to type for a path or the address of a page."""
    if looks_like_path(text):
        raise UsageProblem(
            f"{text} is a path, and `pull` brings models from the Hub or from Ollama's registry",
            hint=f"for what lies on this machine: modelvault add {shlex.quote(text)} --name NAME",
            path=text,
        )
    page = urlsplit(text)
    if page.scheme in {"http", "https"}:
        name = "/".join(page.path.strip("/").split("/")[:2])
        if page.hostname in {"ollama.com", "registry.ollama.ai"}:
            name = f"ollama:{name}"
        raise UsageProblem(
            f"{text} is an address, and `pull` takes a name",
            hint=f"write {name}; another hub than the usual one is named with --endpoint",
        )
    return ModelName(text)


def open_source(upstream: Upstream, endpoint: str | None, config: Config, log: Callable[[str], None]) -> Source:
    """Open the source of a model, at the ``endpoint`` that was named for this pull if there is one.

    ``log`` is told when one of several hubs stands in for another.
    """
    if (ollama := upstream.name.ollama) is not None:
        from modelvault.sources.ollama import OllamaSource  # noqa: PLC0415 (as below)

        address = endpoint or registry_address(ollama, config.ollama_registry)
        return OllamaSource(address, connections=config.connections)
    # huggingface_hub is imported here alone, and only when something is pulled: never on the isolated side.
    from modelvault.sources.hub import HubSource  # noqa: PLC0415

    addresses = (endpoint,) if endpoint else config.endpoint
    if len(addresses) < 2:  # noqa: PLR2004 (one needs nobody to stand in for it)
        return HubSource(addresses[0] if addresses else None, connections=config.connections)
    hubs = [HubSource(one, connections=config.connections, patience=PATIENCE) for one in addresses]
    mirrors = [Mirror(address, hub) for address, hub in zip(addresses, hubs, strict=True)]
    return MirroredSource(mirrors, log)


def resolve(name: ModelName, wish: Wish, revision: str | None, catalog: Catalog) -> Upstream:
    """Find out which repository a name means: Ollama's, a catalog entry, else ``org/name[:QUANT]``. Raises ``UsageProblem``."""
    if name.ollama is not None:
        if wish != Wish():
            raise UsageProblem(
                f"{name}: a model of Ollama's comes as it is, without --quant, --include or --exclude",
                hint="its tag says which quantization it is: ollama:NAME:TAG",
            )
        return Upstream(name, f"{name.ollama.repository}:{name.ollama.tag}", revision, wish)
    quant = (wish.quant or name.quant or "").upper() or None
    entry = catalog.find(name) or catalog.find(ModelName(name.hub_id))
    if entry is not None:
        own = Wish(quant or entry.quant, wish.include or entry.include, entry.exclude + wish.exclude)
        listed = entry.name if quant in {None, entry.quant} else ModelName(f"{entry.name}:{quant}")
        return Upstream(
            listed,
            entry.repository,
            revision or entry.revision,
            own,
            recipe_of(entry),
            entry.verified,
            entry.license,
            catalog.notes_on(entry),
            entry.acceptance,
        )
    if name.organization is None:
        problem = catalog.unknown(name)
        problem.hint = f"{problem.hint}; a Hub repository is written org/name, a model of Ollama's ollama:{name}"
        raise problem
    listed = ModelName(f"{name.hub_id}:{quant}") if quant else name
    return Upstream(listed, name.hub_id, revision, Wish(quant, wish.include, wish.exclude))
