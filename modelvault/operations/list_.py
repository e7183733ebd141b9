"""``list``: what the vault holds."""

from collections.abc import Iterator

from modelvault.config import sudo_hint
from modelvault.errors import ModelvaultError
from modelvault.operations.summaries import lack_warning, summarize
from modelvault.results.models import ListResult, PartialModel
from modelvault.transfer.begun import under_way
from modelvault.vault import Vault


def list_models(vault: Vault) -> ListResult:
    """Sum up every model, sorted by name. Reads the layout, so it is right even where the registry is not."""
    models, damaged = vault.store.survey()
    warnings = tuple(f"{entry.name} cannot be read: {error.message}; {error.hint}" for entry, error in damaged.items())
    warnings += tuple(warning for stored in models for warning in lack_warning(vault, stored))
    hint = None if models else sudo_hint(vault.root)
    warnings += (hint,) if hint else ()
    return ListResult(
        vault=vault.root,
        models=tuple(summarize(stored) for stored in models),
        size=sum({file.digest: file.size for stored in models for file in stored.model.files}.values()),
        partial=(*_transfers(vault), *_imports(vault)),
        bundles=tuple(_bundles(vault)),
        warnings=warnings,
    )


def _transfers(vault: Vault) -> tuple[PartialModel, ...]:
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


def _imports(vault: Vault) -> Iterator[PartialModel]:
    """Sum up the imports under way, by the bundles that they are of."""
    for staging in sorted(vault.partial.glob("import-*")):
        # What reads bundles is slow to import, and few vaults have an import under way.
        from modelvault.bundle.reader import open_bundle  # noqa: PLC0415
        from modelvault.bundle.staging import Staging  # noqa: PLC0415

        try:
            index = open_bundle(staging, None).index
        except ModelvaultError:
            continue  # it has just begun or ended: what would be there is not said yet, or not any more
        wanted = {blob.digest: blob.size for blob in index.blobs if not vault.store.has(blob.digest, blob.size)}
        here = sum(
            length for blob, ranges in Staging(staging).ranges().items() if blob in wanted for _, length in ranges
        )
        yield PartialModel(index.directory_name, here, sum(wanted.values()))


def _bundles(vault: Vault) -> Iterator[PartialModel]:
    """Sum up the bundles that were begun and not finished."""
    journals = vault.bundle_journals
    if not journals.is_dir() or not any(path.is_dir() for path in journals.iterdir()):
        return
    from modelvault.bundle.journal import Journal, find_unfinished  # noqa: PLC0415 (as above)
    from modelvault.bundle.layout import volume_length  # noqa: PLC0415

    for unfinished in find_unfinished(journals):
        journal, volumes = Journal(unfinished.journal), unfinished.index.volumes
        written = sum(frame.length for number in range(1, len(volumes) + 1) for frame in journal.frames(number))
        yield PartialModel(unfinished.index.directory_name, written, sum(map(volume_length, volumes)))
