"""``list``: what the vault holds."""

from modelvault.config import sudo_hint
from modelvault.operations.summaries import summarize
from modelvault.results import ListResult
from modelvault.vault import Vault


def list_models(vault: Vault) -> ListResult:
    """Sum up every model, sorted by name. Reads the layout, so it is right even where the registry is not."""
    models, damaged = vault.store.survey()
    warnings = tuple(f"{entry.name} cannot be read: {error.message}; {error.hint}" for entry, error in damaged.items())
    hint = None if models else sudo_hint(vault.root)
    warnings += (hint,) if hint else ()
    return ListResult(vault.root, tuple(summarize(stored) for stored in models), warnings)
