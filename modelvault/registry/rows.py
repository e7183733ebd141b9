"""What the registry's queries return: frozen values, no object of the database's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelvault.artifact import ArraySummary, Digest, ModelName, Scalar, StoredModel

Direction = Literal["written", "imported"]


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that the vault holds. ``published_at`` is UTC."""

    stored: StoredModel
    published_at: str

    @property
    def name(self) -> ModelName:
        """What the user calls it."""
        return self.stored.model.name

    @property
    def manifest(self) -> Digest:
        """Its identity."""
        return self.stored.manifest

    @property
    def size(self) -> int:
        """The bytes of all its files together."""
        return self.stored.model.size


@dataclass(frozen=True, slots=True)
class MetadataRow:
    """One metadata key of a weight file."""

    model: ModelName
    path: str
    key: str
    value: Scalar | ArraySummary


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One time that a model was looked at.

    Hashed again: ``outcome`` is ``ok`` or ``damaged``. Its pickles scanned: ``pickle-clean``, ``pickle-suspicious`` or ``pickle-dangerous``.
    """

    model: str
    checked_at: str
    outcome: str
    detail: str | None = None

    @property
    def hashed(self) -> bool:
        """Whether the bytes were hashed again."""
        return not self.outcome.startswith("pickle-")


@dataclass(frozen=True, slots=True)
class AcceptanceRow:
    """One time that a ``user`` accepted a license, for a model; ``how`` is ``prompt`` or the option that was typed."""

    license: str
    model: str
    user: str
    how: str
    accepted_at: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """The bundle that brought a model. ``key_fingerprint`` is ``None`` for one imported unsigned."""

    label: str
    sequence: int
    key_fingerprint: str | None


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """How a model came to be listed as it is now: the ``bundle`` that brought it, or the ``revision`` that was asked for."""

    bundle: Delivered | None
    revision: str | None


@dataclass(frozen=True, slots=True)
class BundleRow:
    """A bundle that was written or completely imported. ``key_fingerprint`` is ``None`` for one imported unsigned."""

    direction: Direction
    index_digest: str
    label: str
    sequence: int
    key_fingerprint: str | None
    recorded_at: str
    path: str | None = None
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InstallRow:
    """A model in an engine. ``record`` is what the engine's adapter wrote down; ``removed_at`` is ``None`` while it is there."""

    engine: str
    directory: str
    model: str
    manifest: str
    installed_name: str
    record: Mapping[str, Any]
    installed_at: str
    removed_at: str | None


@dataclass(frozen=True, slots=True)
class SmokeRow:
    """One time that an installed model was tried out. ``outcome`` is ``ok`` or ``failed``; seconds, and tokens per second."""

    engine: str
    directory: str
    model: str
    manifest: str
    installed_name: str
    outcome: str
    smoked_at: str
    address: str | None = None
    detail: str | None = None
    first_token: float | None = None
    rate: float | None = None

    def is_of(self, install: InstallRow) -> bool:
        """Tell whether it was of this install, as it lies there now."""
        mine = (self.engine, self.directory, self.installed_name, self.manifest)
        theirs = (install.engine, install.directory, install.installed_name, install.manifest)
        return mine == theirs and self.smoked_at >= install.installed_at
