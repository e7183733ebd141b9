"""``catalog``: the short names."""

from modelvault.catalog import load_catalog
from modelvault.results.models import CatalogLine, CatalogResult


def list_catalog() -> CatalogResult:
    """List the catalog, sorted by name. Raises ``UsageProblem`` for an entry that breaks the schema."""
    return CatalogResult(
        tuple(
            CatalogLine(
                name=str(entry.name),
                title=entry.title,
                repository=entry.repository,
                quant=entry.quant,
                format=entry.format,
                parameters=entry.parameters,
                context=entry.context,
                license=entry.license,
                gated=entry.gated,
                verified=entry.verified,
            )
            for _, entry in sorted(load_catalog().items())
        )
    )
