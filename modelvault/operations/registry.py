"""``registry rebuild``: everything that the registry knows comes from the layout and the event log."""

from modelvault.artifact import FileReport, StoredModel
from modelvault.inspect import inspect_model
from modelvault.progress import Progress
from modelvault.registry import Registry
from modelvault.results import RebuildResult
from modelvault.vault import Vault, now


def reports_of(vault: Vault, stored: StoredModel) -> dict[str, FileReport]:
    """Read again what the weight files of a model say about themselves. Raises ``InvalidModelFile``."""
    files = {file.path: vault.store.blob_path(file.digest) for file in stored.model.files}
    # Whether pickle is acceptable was decided when the model came in.
    return dict(inspect_model(files, allow_pickle=True).reports)


def rebuild(vault: Vault, progress: Progress) -> RebuildResult:
    """Make the registry anew; the old one stays until the new one is whole.

    Raises ``VaultLocked`` while another process changes the vault, and whatever is wrong with a model or the log.
    """
    with vault.publishing():
        vault.close_registry()
        models = vault.store.models()
        with Registry.rebuild(vault.registry_file) as registry:
            for stored in models:
                progress.log(f"reading {stored.model.name}")
                registry.record_model(stored, reports_of(vault, stored), now())
            registry.apply_events(vault.events.read())
            return RebuildResult(
                vault=vault.root,
                models=len(models),
                events=registry.last_event(),
                installs=len(registry.installs()),
                bundles=len(registry.bundles()),
            )
