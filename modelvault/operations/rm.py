"""``rm``: take a model out of the vault's list. Its bytes go with ``gc``."""

from modelvault.artifact import ModelName
from modelvault.results import RemoveResult
from modelvault.vault import Vault


def remove(vault: Vault, name: ModelName) -> RemoveResult:
    """Unlist a model; installs of it stay, since the engines have links or copies of their own.

    Raises ``UsageProblem`` if there is no such model, ``VaultLocked`` while a bundle is being written.
    """
    with vault.removing():
        stored = vault.model(name)
        registry = vault.registry
        vault.store.remove(stored.model.name)
        registry.forget_model(stored.model.name)
        vault.record("model-removed", {"model": stored.model.name.text, "manifest": str(stored.manifest)})
        return RemoveResult(vault.root, stored.model.name.text, sum(vault.store.unneeded().values()))
