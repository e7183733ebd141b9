"""Results about imports, and about models in engines."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from modelvault.results.bundles import BundleSummary
from modelvault.results.papers import ReceiptWritten


@dataclass(frozen=True, slots=True)
class EngineStep:
    """One model going into one engine: planned or done; ``already``: before this command, which only verified it.

    ``replaces`` is the version of the model that was installed there until now, where that is another one.
    """

    model: str
    engine: str
    directory: str
    installed_name: str
    link: str
    extra_bytes: int
    already: bool
    warnings: tuple[str, ...]
    next_steps: tuple[str, ...]
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class DiskLine:
    """One file system that a plan writes to, with the directory that it was met at; sizes in bytes."""

    path: Path
    needed: int
    free: int


class Outcome(StrEnum):
    """What became of one model of an import, or would (``--dry-run``)."""

    INSTALLED = "installed"
    INSTALLED_ALREADY = "installed already"
    RECEIVED = "received"
    HERE = "here already"
    WAITING = "waiting"
    REFUSED = "refused"
    WOULD_BE_INSTALLED = "would be installed"
    WOULD_BE_RECEIVED = "would be received"
    WOULD_WAIT = "would wait"
    WOULD_BE_REFUSED = "would be refused"


@dataclass(frozen=True, slots=True)
class ImportModel:
    """One model of an import: ``new_bytes`` came off the medium this time; the rest was here, or is still to come.

    ``received`` and ``here already`` are in the vault and in no engine, ``installed already`` in all of them before, and only verified;
    ``reason`` says why a model did not get into its engines, or not even into the vault; ``replaces`` is the version that the vault had of it.
    """

    name: str
    size: int
    new_bytes: int
    outcome: Outcome
    reason: str | None = None
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did, or would do; ``disks`` are of a plan.

    ``received`` bytes came off the drives in this run, ``resumed`` ones in an earlier one; the volumes ``wanted`` are still to come.
    """

    vault: Path
    bundle: BundleSummary
    dry_run: bool
    models: tuple[ImportModel, ...]
    installs: tuple[EngineStep, ...]
    disks: tuple[DiskLine, ...]
    received: int
    resumed: int
    wanted: tuple[int, ...]
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImportsResult:
    """The outcome of one or several bundles, and the receipt that was written afterwards if one was asked for."""

    imports: tuple[ImportResult, ...]
    receipt: "ReceiptWritten | None" = None


@dataclass(frozen=True, slots=True)
class InstallResult:
    """What ``install`` did, or would do."""

    vault: Path
    dry_run: bool
    installs: tuple[EngineStep, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InstallState:
    """One install: how its weights got there, and its ``problems``. ``size`` is that of the files, in bytes.

    ``last_smoke`` says when it was last tried out as it is now, and with what outcome.
    """

    model: str
    engine: str
    directory: str
    installed_name: str
    installed_at: str
    link: str
    size: int
    problems: tuple[str, ...]
    last_smoke: str | None = None


@dataclass(frozen=True, slots=True)
class InstallsResult:
    """What is installed where. ``checked``: every byte was read again; else only presence and sizes were looked at."""

    vault: Path
    checked: bool
    installs: tuple[InstallState, ...]


@dataclass(frozen=True, slots=True)
class UninstallResult:
    """What ``uninstall`` removed, and what it ``kept`` since it was changed after the install."""

    vault: Path
    model: str
    engine: str
    directory: str
    removed: tuple[str, ...]
    kept: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
