"""Results about keys and receipts."""

from dataclasses import dataclass
from pathlib import Path

from modelvault.artifact import Digest


@dataclass(frozen=True, slots=True)
class ReceiptWritten:
    """A receipt that this site wrote: of how many models, files and bytes, and the key that has to be trusted on the other side."""

    vault: Path
    path: Path
    site: str
    sequence: int
    models: int
    blobs: int
    size: int
    fingerprint: str
    spelled: tuple[str, ...]
    new_key: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReceiptLine:
    """The newest receipt of a site; ``added_at`` is when it was added here, if that is known."""

    site: str
    sequence: int
    models: int
    blobs: int
    fingerprint: str
    added_at: str | None


@dataclass(frozen=True, slots=True)
class ReceiptsResult:
    """What sites have told. A receipt that cannot be used is a warning."""

    vault: Path
    receipts: tuple[ReceiptLine, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SiteModel:
    """A model that a site holds; ``here`` is whether this vault has the ``same``, another one of that name (``other``), or ``none``."""

    name: str
    manifest: Digest
    here: str


@dataclass(frozen=True, slots=True)
class ReceiptResult:
    """One receipt, with what it says."""

    vault: Path
    receipt: ReceiptLine
    models: tuple[SiteModel, ...]
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class KeyLine:
    """One key: what it signs (``role``), whether it is this vault's ``own`` or a trusted one; ``spelled`` is for people to type."""

    name: str
    role: str
    own: bool
    fingerprint: str
    spelled: tuple[str, ...]
    file: Path


@dataclass(frozen=True, slots=True)
class KeysResult:
    """The keys of a vault."""

    vault: Path
    keys: tuple[KeyLine, ...]
    revoked: KeyLine | None = None
    warnings: tuple[str, ...] = ()
