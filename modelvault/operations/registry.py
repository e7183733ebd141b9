"""``registry rebuild``: everything that the registry knows comes from the layout and the event log."""

import contextlib
from collections.abc import Mapping

from modelvault.artifact import FileReport, StoredModel
from modelvault.errors import ModelvaultError, PartlyDone
from modelvault.inspect import inspect_model
from modelvault.progress import Progress
from modelvault.registry import Registry
from modelvault.results.bundles import Damage
from modelvault.results.models import RebuildResult
from modelvault.vault import Vault


def rebuild(vault: Vault, progress: Progress) -> RebuildResult:
    """Make the registry anew, and before it the list of models if that is lost; the old registry stays until the new one is whole.

    Raises ``VaultLocked`` while another process changes the vault, ``PartlyDone`` with the result if models could not be read
    (everything else is restored), ``UsageProblem`` if there is no vault, or what is wrong with the event log.
    """
    damage = []
    vault.require()
    with vault.publishing():
        listed = () if vault.store.listed else vault.restore_list()
    vault.create()
    with vault.publishing():
        with contextlib.suppress(ModelvaultError):  # where it can still be opened, it notes what the log has lost since
            _ = vault.registry
        vault.close_registry()
        models, damaged = vault.store.survey()
        damage += [Damage(str(entry.name), error.message, (str(entry.name),)) for entry, error in damaged.items()]
        with Registry.rebuild(vault.registry_file) as registry:
            for stored in models:
                progress.log(f"reading {stored.model.name}")
                reports: Mapping[str, FileReport] = {}
                try:
                    reports = _reports_of(vault, stored)
                except (ModelvaultError, OSError) as error:
                    name = str(stored.model.name)
                    damage.append(Damage(name, getattr(error, "message", str(error)), (name,)))
                registry.record_model(stored, reports, vault.events.now())
            with registry.history() as history:
                history.follow(vault.events.read)
                events = history.last
            result = RebuildResult(
                vault=vault.root,
                listed=listed,
                models=len(models),
                events=events,
                installs=len(registry.installs()),
                bundles=len(registry.bundles()),
                damage=tuple(damage),
            )
    if damage:
        names = ", ".join(item.where for item in damage[:5])
        raise PartlyDone(
            f"the registry was rebuilt, but {len(damage)} models could not be read: {names}",
            hint="pull or import them again, or take them out with `modelvault rm`",
            result=result,
        )
    return result


def _reports_of(vault: Vault, stored: StoredModel) -> Mapping[str, FileReport]:
    """Read again what the weight files of a model say about themselves. Raises ``InvalidModelFile`` or ``OSError``."""
    files = {file.path: vault.store.blob_path(file.digest) for file in stored.model.files}
    # Whether pickle is acceptable was decided when the model came in.
    return inspect_model(files, allow_pickle=True).reports
