"""Results about newer versions of what the vault holds."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from modelvault.results.project import ProjectModel


class Freshness(StrEnum):
    """How a model compares with its source."""

    CURRENT = "up to date"
    OUTDATED = "outdated"
    UNFOLLOWED = "no source"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class OutdatedLine:
    """One model of the vault. ``commit`` is the one that is here, ``newest`` that of the source; ``changed`` files differ there, are new or gone.

    ``to_download`` is what they would take, in bytes; ``reason`` says why it is not known, or has no source to follow. One that is ``held``
    has a name of its own, and is updated by that name alone.
    """

    model: str
    state: Freshness
    source: str
    commit: str | None = None
    newest: str | None = None
    changed: tuple[str, ...] = ()
    to_download: int = 0
    reason: str | None = None
    held: bool = False


@dataclass(frozen=True, slots=True)
class OutdatedResult:
    """What ``outdated`` found out."""

    vault: Path
    models: tuple[OutdatedLine, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What ``pull --update`` did or would do."""

    vault: Path
    dry_run: bool
    models: tuple[ProjectModel, ...]
    warnings: tuple[str, ...] = ()
