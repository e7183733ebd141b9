"""Results about a project: ``modelvault.toml`` and ``modelvault.lock``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProjectModel:
    """What became of one wanted model. ``outcome`` is ``pulled``, ``here already``, ``would pull`` or ``failed``.

    ``size`` is that of its files, ``to_download`` what a plan still has to bring, in bytes; ``commit`` is the one that is locked now,
    ``before`` the one that was, if it is another; ``reason`` says why it failed.
    """

    name: str
    outcome: str
    repository: str | None = None
    commit: str | None = None
    before: str | None = None
    size: int | None = None
    to_download: int | None = None
    reason: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProjectResult:
    """What ``pull --all`` did or would do. ``written``: the lock file changed."""

    vault: Path
    file: Path
    lock: Path
    dry_run: bool
    written: bool
    models: tuple[ProjectModel, ...]
    warnings: tuple[str, ...] = ()
