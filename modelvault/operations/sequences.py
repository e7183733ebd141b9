"""Which sequence a bundle gets: never one that was given before, whatever the clock says and whoever else asks at the same moment."""

import time
from collections.abc import Sequence

from modelvault import fsio
from modelvault.bundle.journal import Unfinished, find_unfinished
from modelvault.bundle.plan import next_sequence
from modelvault.keys import Signer
from modelvault.locks import FileLock
from modelvault.vault import Vault


def choose_sequence(
    vault: Vault, label: str, pinned: int | None, signer: Signer | None, begun: Sequence[Unfinished]
) -> int:
    """Give the sequence that was pinned, else the one that is next; nothing keeps others from it."""
    if pinned is not None:
        return pinned
    last = vault.registry.last_sequence(signer.fingerprint, label, "written") if signer else None
    under_way = (unfinished.index.sequence for unfinished in begun if unfinished.index.label == label)
    return next_sequence(max(last or 0, *under_way, 0), time.time())


def reserve_sequence(vault: Vault, label: str, signer: Signer) -> int:
    """Take the next sequence for good: two processes that begin in the same second get two, whatever becomes of their bundles.

    Raises ``VaultLocked`` or ``NoSpace``.
    """
    place = vault.bundle_journals
    place.mkdir(parents=True, exist_ok=True)
    mark = place / f"{label}.sequence"
    with FileLock(place / "sequence", wait=vault.config.lock_wait, what="the sequence of bundles"):
        given = int(mark.read_bytes()) + 1 if mark.exists() else 0
        sequence = max(given, choose_sequence(vault, label, None, signer, find_unfinished(place)))
        fsio.atomic_write(mark, b"%d" % sequence)
    return sequence
