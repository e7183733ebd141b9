"""``rm``: take a model out of the vault's list. Its bytes go with ``gc``."""

from modelvault.artifact import ModelName
from modelvault.operations.summaries import install_line
from modelvault.results import RemoveResult
from modelvault.vault import Vault


def remove(vault: Vault, name: ModelName) -> RemoveResult:
    """Unlist a model; installs of it stay, since the engines have links or copies of their own.

    Raises ``UsageProblem`` if there is no such model, ``VaultLocked`` while a bundle is being written.
    """
    with vault.removing():
        # The list alone, not the model's documents: a model that is damaged can be removed, too.
        entry = vault.entry(name)
        registry = vault.registry
        installs = tuple(map(install_line, registry.installs(entry.name)))
        vault.store.remove(entry.name)
        registry.forget_model(entry.name)
        vault.record("model-removed", {"model": entry.name.text, "manifest": str(entry.manifest)})
        _, damaged = vault.store.survey()
        return RemoveResult(
            vault=vault.root,
            model=entry.name.text,
            freeable=None if damaged else sum(vault.store.unneeded().values()),
            installs=installs,
        )
