"""Where models come from. A source lists the files of one revision and opens ranges of their bytes; it verifies nothing.

Only the protocol lies here; ``sources.hub`` and its heavy imports are loaded by the operation that needs them.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from modelvault.artifact import SourceFile
from modelvault.errors import DigestMismatch

__all__ = ["Snapshot", "Source", "require_same_content"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a repository at one commit, as the source lists them; ``files`` are sorted by path.

    ``license`` is its name, ``license_link`` the address of its text.
    ``gated`` says that the publisher asks for an agreement first; whether we have access shows at the first byte.
    ``parameters`` is the number of weights, where the source counts them.
    """

    repository: str
    commit: str
    files: tuple[SourceFile, ...]
    license: str | None
    gated: bool
    parameters: int | None = None
    license_link: str | None = None


class Source(Protocol):
    """A place that models are fetched from. Methods raise ``SourceUnavailable`` with a hint for the case at hand."""

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        """Pin ``revision`` (``None``: the default branch) to a commit and list its files. Downloads nothing."""
        ...

    def open_range(
        self, snapshot: Snapshot, file: SourceFile, start: int, stop: int
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Open the bytes ``start`` to ``stop`` (exclusive) of a file as chunks of at most 1 MiB; safe in any thread.

        Raises ``Transient`` where a retry may help, ``RangesIgnored`` where the source only serves whole files.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""


def require_same_content(found: SourceFile, listed: SourceFile, what: str, *, hint: str) -> None:
    """Raise ``DigestMismatch`` where two listings of a file cannot both be right; ``what`` begins the sentence about ``found``.

    Digests of two kinds, or one that is lacking, say nothing against each other.
    """
    promised = (found.digest, listed.digest)
    comparable = None not in promised and len({digest.algorithm for digest in promised if digest is not None}) == 1
    if found.size == listed.size and (not comparable or found.digest == listed.digest):
        return
    raise DigestMismatch(
        f"{what}: {found.digest} ({found.size:,} bytes), not {listed.digest} ({listed.size:,} bytes)",
        hint=hint,
        path=found.path,
        expected=str(listed.digest),
        actual=str(found.digest),
    )
