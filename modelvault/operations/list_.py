"""``list``: what the vault holds."""

from modelvault.operations.summaries import summarize
from modelvault.results import ListResult
from modelvault.vault import Vault


def list_models(vault: Vault) -> ListResult:
    """Sum up every model, sorted by name. Reads the layout, so it is right even where the registry is not."""
    return ListResult(vault.root, tuple(summarize(stored) for stored in vault.store.models()))
