"""``gc``: free the blobs that no model needs, and transfers that nobody goes on with."""

import shutil
from pathlib import Path

from modelvault import fsio
from modelvault.errors import InvalidModelFile, VaultLocked
from modelvault.results import GcResult
from modelvault.vault import Vault


def collect(vault: Vault, *, dry_run: bool = False, partial: bool = False) -> GcResult:
    """Delete unneeded blobs; with ``partial`` also unfinished transfers that no process holds (they could be gone on with).

    Raises ``VaultLocked`` while another process publishes or bundles, ``InvalidModelFile`` for an index that lists what is no model.
    """
    with vault.removing():
        if foreign := vault.store.foreign():
            raise InvalidModelFile(
                str(vault.root / "index.json"),
                "oci-index",
                f"{foreign} of its entries name no model of modelvault's: which blobs they need is not known",
                hint="if another program wrote there, remove its entries first; if the file was damaged, put a copy back",
            )
        _forget_unlisted(vault)
        unneeded = vault.store.unneeded()
        idle = (
            [path for path in sorted(vault.partial.iterdir()) if path.is_dir() and not _in_use(path)] if partial else []
        )
        partial_size = sum(_disk_usage(path) for path in idle)
        if not dry_run:
            for digest in unneeded:
                vault.store.delete_blob(digest)
            for path in idle:
                shutil.rmtree(path)
            if unneeded or idle:
                size = sum(unneeded.values())
                vault.record("collected", {"blobs": len(unneeded), "size": size, "partial": len(idle)})
    names = tuple(path.name for path in idle)
    return GcResult(vault.root, dry_run, len(unneeded), sum(unneeded.values()), names, partial_size)


def _forget_unlisted(vault: Vault) -> None:
    """Take models out of the registry that the layout does not list, as after a crash in the middle of ``rm``."""
    listed = {entry.name for entry in vault.store.entries()}
    for row in vault.registry.models():
        if row.name not in listed:
            vault.registry.forget_model(row.name)


def _in_use(path: Path) -> bool:
    lock = path / "lock"
    if not lock.exists():
        return False
    try:
        with fsio.FileLock(lock):
            return False
    except VaultLocked:
        return True


def _disk_usage(path: Path) -> int:
    """The bytes that a directory really takes: partial files are preallocated, but not on every file system."""
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())
