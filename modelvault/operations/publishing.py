"""The last step of every way into the vault: blobs, manifest, index, registry rows, in that order."""

from collections.abc import Mapping, Sequence

from modelvault import modelpack
from modelvault.artifact import FileReport, Model, StoredModel
from modelvault.errors import ModelvaultError
from modelvault.transfer import Fetched, Transfers
from modelvault.vault import Vault


def publish_fetched(
    vault: Vault,
    model: Model,
    reports: Mapping[str, FileReport],
    fetched: Sequence[Fetched],
    transfers: Transfers,
    revision: str | None = None,
) -> tuple[StoredModel, bool]:
    """Publish verified files and list the model; the second value says whether all that was here before.

    ``revision`` is the one that was asked for, if any was: newer versions are looked for there.

    A crash at any point leaves at worst blobs that no model refers to. Raises ``VaultLocked`` or ``NoSpace``.
    """
    wanted = modelpack.store_form(model)
    with vault.publishing():
        listed = is_published(vault, wanted)
        lacking = {item.sha256: item.data for item in fetched if not vault.store.has(item.sha256, item.size)}
        for digest, data in lacking.items():
            vault.store.publish_blob(data, digest)
        if gone := vault.store.lacks(model):
            raise ModelvaultError(
                f"{gone[0]}: another process freed it from the vault meanwhile",
                hint="run the same command again: only that file is brought once more",
            )
        stored = wanted if listed else vault.publish(model, reports, {"revision": revision} if revision else None)
        for item in fetched:
            transfers.discard(item)
        return stored, listed and not lacking


def is_published(vault: Vault, wanted: StoredModel) -> bool:
    """Whether the layout and the registry list exactly this model, recipe included, under this name."""
    name = wanted.model.name
    try:
        stored = vault.store.find(name)
    except ModelvaultError:
        return False  # its documents are damaged: published again, they are mended
    if stored != wanted:
        return False
    row = vault.registry.model(name)
    return row is not None and row.manifest == wanted.manifest
