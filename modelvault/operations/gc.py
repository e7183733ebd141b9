"""``gc``: free the blobs that no model needs, what cannot be gone on with and, if asked to, what could."""

import contextlib
import shutil
from pathlib import Path

from modelvault.errors import ModelvaultError, VaultDamaged, VaultLocked
from modelvault.locks import FileLock
from modelvault.results.models import GcResult
from modelvault.transfer import beside
from modelvault.vault import Vault


def collect(vault: Vault, *, dry_run: bool = False, partial: bool = False) -> GcResult:
    """Delete unneeded blobs, and what nobody goes on with: imports that a newer one overtook, bundles that were finished, second transfers.

    With ``partial`` also unfinished transfers and imports that no process holds (they could be gone on with).

    Raises ``VaultLocked`` while another process publishes or bundles, ``VaultDamaged`` where it is not known what is needed.
    """
    with vault.removing(), contextlib.ExitStack() as locks:
        if foreign := len(vault.store.foreign()):
            index = vault.root / "index.json"
            raise VaultDamaged(
                f"{index}: {foreign} of its entries name no model of modelvault's: which blobs they need is not known",
                hint="if another program wrote there, remove its entries first; if the file was damaged, put a copy back",
                path=str(index),
            )
        unneeded = vault.store.unneeded()
        leftovers = tuple(vault.store.leftovers())
        unfinished = _transfers(vault) if partial else [*_overtaken(vault), *_void(vault), *beside(vault.partial)]
        idle = [path for path in unfinished if _take(path, locks, dry_run=dry_run)]
        freed = vault.store.freed_by(unneeded)
        size, linked = freed + sum(path.stat().st_size for path in leftovers), sum(unneeded.values()) - freed
        partial_size = sum(_disk_usage(path) for path in idle)
        if not dry_run:
            _forget_unlisted(vault)
            for digest in unneeded:
                vault.store.delete_blob(digest)
            for path in leftovers:
                path.unlink()
            for path in idle:
                shutil.rmtree(path)
            _forget_locks(vault.bundle_journals)
            if unneeded or leftovers or idle:
                vault.record("collected", {"blobs": len(unneeded), "size": size, "partial": len(idle)})
    names = tuple(path.name for path in idle)
    return GcResult(vault.root, dry_run, len(unneeded) + len(leftovers), size, names, partial_size, linked)


def _forget_unlisted(vault: Vault) -> None:
    """Take models out of the registry that the layout does not list, as after a crash in the middle of ``rm``."""
    listed = {entry.name for entry in vault.store.entries()}
    for row in vault.registry.models():
        if row.name not in listed:
            vault.registry.forget_model(row.name)


def _transfers(vault: Vault) -> list[Path]:
    """List what is under way: transfers and imports, each a directory with a lock, and the journals of bundles."""
    journals = vault.bundle_journals
    paths = [path for path in vault.partial.glob("*") if path != journals]
    # A bundle under way would hold the vault, which is ours alone now.
    paths += journals.iterdir() if journals.is_dir() else []
    return sorted(path for path in paths if path.is_dir())


def _overtaken(vault: Vault) -> list[Path]:
    """List imports under way that would be refused now: of the same key and label, a newer bundle was imported completely."""
    found = sorted(vault.partial.glob("import-*"))
    if not found:
        return []
    from modelvault.bundle.reader import open_bundle  # noqa: PLC0415 (zstandard and cryptography, for this rare case)

    marks = vault.events.high_water()
    overtaken = []
    for path in found:
        try:
            bundle = open_bundle(path, vault.keys.verify)
        except ModelvaultError:
            continue  # whose it is cannot be told: --partial collects it
        if bundle.signer and bundle.index.sequence < marks.get((bundle.signer.fingerprint, bundle.index.label), 0):
            overtaken.append(path)
    return overtaken


def _void(vault: Vault) -> list[Path]:
    """List what a crash left of the journals of bundles that were finished: without its index it says nothing."""
    journals = (vault.partial / "bundles").glob("*")
    return [path for path in journals if path.is_dir() and not (path / "bundle.json").exists()]


def _take(path: Path, locks: contextlib.ExitStack, *, dry_run: bool) -> bool:
    """Lock a transfer until we are done with it; ``False`` if another process has it, or had it and is done with it."""
    lock = path / "lock"
    if dry_run and not lock.exists():
        return True  # nobody has it, and to take it would make the file
    try:
        locks.enter_context(FileLock(lock))
    except (VaultLocked, FileNotFoundError):
        return False
    return True


def _forget_locks(journals: Path) -> None:
    """Remove the locks of bundles that were finished, or given up just now."""
    for lock in journals.glob("*.lock"):
        if not lock.with_suffix("").exists():
            # The vault is ours alone, but a process that is about to wait for it may hold the bundle's lock already.
            with contextlib.suppress(VaultLocked), FileLock(lock):
                lock.unlink()


def _disk_usage(path: Path) -> int:
    """The bytes that a directory really takes: partial files are preallocated, but not on every file system."""
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())
