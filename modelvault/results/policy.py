"""Results about the policy: what holds here, and which models break it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """One rule: its key in the file and what it says; ``exceptions`` are the models that it does not apply to, with why."""

    rule: str
    value: str
    exceptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One place where rules may be written; ``present``: there is a file."""

    path: Path
    present: bool
    rules: tuple[PolicyLine, ...]


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """What holds here."""

    vault: Path
    files: tuple[PolicyFile, ...]


@dataclass(frozen=True, slots=True)
class ViolationLine:
    """One rule that one model breaks: the key, the value that breaks it, the file that the rule is in, and all of it in words."""

    model: str
    rule: str
    value: str
    file: Path | None
    detail: str


@dataclass(frozen=True, slots=True)
class PolicyCheck:
    """Which of the ``checked`` models of the vault break a rule."""

    vault: Path
    files: tuple[Path, ...]
    checked: tuple[str, ...]
    violations: tuple[ViolationLine, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LicenseAccepted:
    """A license that was accepted for a model, by whom and when; ``already``: before this command."""

    model: str
    license: str
    page: str | None
    user: str
    how: str
    accepted_at: str
    already: bool


@dataclass(frozen=True, slots=True)
class AcceptResult:
    """The licenses that were accepted."""

    vault: Path
    accepted: tuple[LicenseAccepted, ...]
