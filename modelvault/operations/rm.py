"""``rm``: take a model out of the vault's list. Its bytes go with ``gc``."""

from modelvault.artifact import ModelName
from modelvault.errors import VaultDamaged
from modelvault.operations.summaries import install_line
from modelvault.results.models import RemoveResult
from modelvault.vault import Vault


def remove(vault: Vault, name: ModelName, *, dry_run: bool = False) -> RemoveResult:
    """Unlist a model; installs of it stay, since the engines have links or copies of their own. With ``dry_run`` only say what that frees.

    Raises ``UsageProblem`` if there is no such model, ``VaultLocked`` while a bundle is being written.
    """
    with vault.removing():
        # The list alone, not the model's documents: a model that is damaged can be removed, too.
        entry = vault.entry(name)
        registry = vault.registry
        installs = tuple(map(install_line, registry.installs(entry.name)))
        if not dry_run:
            # The event first: what the list no longer has, the log must not bring back where the list is lost.
            vault.record("model-removed", {"model": entry.name.text, "manifest": str(entry.manifest)})
            vault.store.remove(entry.name)
            registry.forget_model(entry.name)
        try:
            freeable = vault.store.freeable(without=entry.name)
        except VaultDamaged:
            freeable = None
        return RemoveResult(vault.root, entry.name.text, freeable, installs, dry_run)
