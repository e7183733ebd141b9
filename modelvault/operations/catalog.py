"""``catalog``: the short names, those of the site and of the user among them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from modelvault.artifact import ModelName, Recipe
from modelvault.catalog import Catalog, CatalogEntry, combined, search
from modelvault.config import Config, config_directory
from modelvault.engines.chat_templates import families
from modelvault.errors import UsageProblem
from modelvault.results.catalog import CatalogLine, CatalogResult, CatalogShow

FOLDER = "catalog"
"""The folder of a user's own entries, in the directory of his configuration."""


def the_catalog(config: Config) -> Catalog:
    """Read the catalog that came with modelvault, the shared one that the configuration names, and the user's own, in this order.

    Raises ``UsageProblem`` where the configured folder is none: without it, names might mean something else.
    """
    folders = []
    if config.catalog:
        shared = Path(config.catalog).expanduser()
        if not shared.is_dir():
            raise UsageProblem(
                f"the catalog {shared} is not a directory",
                hint="mount it, or change `catalog` in config.toml or MODELVAULT_CATALOG",
            )
        folders.append(shared)
    return combined([*folders, config_directory() / FOLDER])


def list_catalog(config: Config) -> CatalogResult:
    """List all short names. What is wrong with single files of the user or the site is a warning."""
    catalog = the_catalog(config)
    return _result(catalog, catalog.entries.values())


def search_catalog(config: Config, words: Sequence[str]) -> CatalogResult:
    """List the short names that every word fits."""
    catalog = the_catalog(config)
    return _result(catalog, search(catalog.entries.values(), words))


def show_entry(config: Config, name: ModelName) -> CatalogShow:
    """Say everything about one short name, with the other formats of its model. Raises ``UsageProblem`` with the nearest names."""
    catalog = the_catalog(config)
    entry = catalog.find(name)
    if entry is None:
        raise catalog.unknown(name)
    recipe = recipe_of(entry)
    others = (line(other) for other in catalog.entries.values() if other.model == entry.model and other != entry)
    return CatalogShow(
        entry=line(entry),
        others=tuple(others),
        modelfile=recipe.modelfile if recipe else None,
        vllm_arguments=recipe.vllm_arguments if recipe else (),
        warnings=catalog.notes_on(entry),
    )


def recipe_of(entry: CatalogEntry) -> Recipe | None:
    """Write down how engines serve a model: what travels with it. Raises ``UsageProblem`` for a chat family that nobody knows."""
    if entry.ollama is None:
        return Recipe(vllm_arguments=entry.vllm_arguments) if entry.vllm_arguments else None
    given = entry.ollama
    template, stop = given.template, given.stop
    if template is None:
        known = {family.name: family for family in families()}
        if given.family not in known:
            raise UsageProblem(
                f"{entry.file}: ollama.family: there is no family {given.family!r}",
                hint=f"known families: {', '.join(known)}",
            )
        template, stop = known[given.family].template, stop or known[given.family].stop
    return Recipe(given.name, given.modelfile(template, stop), entry.vllm_arguments)


def _result(catalog: Catalog, entries: Iterable[CatalogEntry]) -> CatalogResult:
    warnings = (*catalog.notes, *(f"not read: {problem.message}" for problem in catalog.problems.values()))
    return CatalogResult(tuple(map(line, entries)), warnings)


def line(entry: CatalogEntry) -> CatalogLine:
    """Sum an entry up."""
    return CatalogLine(
        name=str(entry.name),
        model=entry.model,
        title=entry.title,
        repository=entry.repository,
        revision=entry.revision,
        quant=entry.quant,
        format=entry.format,
        parameters=entry.parameters,
        size=entry.size,
        context=entry.context,
        languages=entry.languages,
        license=entry.license,
        gated=entry.gated,
        acceptance=entry.acceptance,
        verified=entry.verified,
        file=entry.file,
    )
