"""``list``: what the vault holds."""

from modelvault.config import sudo_hint
from modelvault.operations.summaries import summarize
from modelvault.results import ListResult, PartialModel
from modelvault.transfer.held import under_way
from modelvault.vault import Vault


def list_models(vault: Vault) -> ListResult:
    """Sum up every model, sorted by name. Reads the layout, so it is right even where the registry is not."""
    models, damaged = vault.store.survey()
    warnings = tuple(f"{entry.name} cannot be read: {error.message}; {error.hint}" for entry, error in damaged.items())
    hint = None if models else sudo_hint(vault.root)
    warnings += (hint,) if hint else ()
    return ListResult(vault.root, tuple(summarize(stored) for stored in models), _partial(vault), warnings)


def _partial(vault: Vault) -> tuple[PartialModel, ...]:
    """Sum up the transfers under way, by the models that they are for."""
    files = list(under_way(vault.partial))
    return tuple(
        PartialModel(
            name,
            sum(file.here for file in files if file.model == name),
            sum(file.size for file in files if file.model == name),
        )
        for name in dict.fromkeys(file.model for file in files)
    )
