"""Results about engines: what was found of them on this machine, and whether a model runs in one."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Level(StrEnum):
    """How good or bad a finding is."""

    OK = "ok"
    NOTE = "note"
    DANGER = "danger"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that ``doctor`` looked at, and what to do about it.

    ``blocks``: as long as it is so, an install there fails, or the engine does not find what was installed.
    """

    subject: str
    level: Level
    what: str
    advice: str | None = None
    blocks: bool = False


@dataclass(frozen=True, slots=True)
class EngineFound:
    """One engine's directory of models: how it was ``found``, whose it is, and how weights of the vault would get there.

    ``version`` is that of the running server, else of the program; ``link`` is absent where an install would fail; ``free`` in bytes.
    """

    engine: str
    directory: Path
    found: str
    exists: bool
    version: str | None
    owner: str | None
    free: int | None
    link: str | None


@dataclass(frozen=True, slots=True)
class DoctorResult:
    """What ``doctor`` found. The vault need not exist."""

    vault: Path
    user: str
    engines: tuple[EngineFound, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class SmokeResult:
    """What came of asking a server for a few tokens of an installed model. Seconds from the request on, and tokens per second.

    ``started``: modelvault started the server itself; ``loading`` is the part of ``first_token`` in which the engine loaded the model, if it
    says so; ``served_as`` is the server's name for the model; ``problem`` says why it failed.
    """

    vault: Path
    model: str
    engine: str
    directory: str
    installed_name: str
    address: str | None
    started: bool
    served_as: str | None = None
    text: str = ""
    tokens: int = 0
    first_token: float | None = None
    loading: float | None = None
    rate: float | None = None
    problem: str | None = None
    warnings: tuple[str, ...] = ()
