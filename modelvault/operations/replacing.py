"""What is put in the place of what: said before it is done and afterwards, so that no version gives way unseen."""

from modelvault.artifact import Digest, ModelName
from modelvault.bundle.index import Index, ModelEntry
from modelvault.vault import Vault


def version_of(vault: Vault, name: ModelName, manifest: Digest) -> str:
    """Say which version of a model that is: by how it came, as far as the log knows, and by its manifest."""
    row = vault.registry.published(name, manifest)
    bundle = row.bundle if row else None
    came = f"that bundle {bundle.label}/{bundle.sequence} brought" if bundle else "that came in no bundle"
    return f"the version {came} ({manifest.short})"


def replaced_by(vault: Vault, entry: ModelEntry) -> str | None:
    """Say which version of a bundle's model the vault lists, if that is another one and gives way."""
    there = _listed(vault, entry)
    return None if there is None else version_of(vault, entry.name, there)


def step_back(vault: Vault, entry: ModelEntry, index: Index) -> str | None:
    """Warn where the version that gives way came in a bundle of a higher sequence: each key and label has its own protection.

    Sequences of different keys and labels are seconds since 1970 unless somebody chose them, hence a warning, and no more.
    """
    there = _listed(vault, entry)
    row = None if there is None else vault.registry.published(entry.name, there)
    brought = row.bundle if row else None
    if brought is None or brought.sequence <= index.sequence:
        return None
    return (
        f"{entry.name}: bundle {index.label}/{index.sequence} is older, by its sequence, than {brought.label}/{brought.sequence}, "
        "whose version it replaces; importing that one again brings it back"
    )


def _listed(vault: Vault, entry: ModelEntry) -> Digest | None:
    """Give the manifest that the vault lists under a model's name, unless it is the same."""
    return next(
        (
            there.manifest
            for there in vault.store.entries()
            if there.name == entry.name and there.manifest != entry.stored.manifest
        ),
        None,
    )
