"""The catalog: short names, each with a reviewed source and install recipe. One TOML file per model in ``manifests/``.

The schema is strict: a key that nobody reads is an error, since a misspelled one would otherwise be a setting that silently does
not hold. It is documented in ``docs/reference/catalog.md``.
"""

from modelvault.catalog.entries import CatalogEntry, OllamaRecipe, read_entries
from modelvault.catalog.folders import Catalog, combined, find_entry, load_catalog, packaged_manifests, suggest
from modelvault.catalog.search import search

__all__ = [
    "Catalog",
    "CatalogEntry",
    "OllamaRecipe",
    "combined",
    "find_entry",
    "load_catalog",
    "packaged_manifests",
    "read_entries",
    "search",
    "suggest",
]
