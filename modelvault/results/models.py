"""Results about models: on their way into a vault, in it, and out of it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelvault.artifact import ArraySummary, Digest, Scalar
from modelvault.results.bundles import Damage


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One line of ``list``."""

    name: str
    format: str
    architecture: str | None
    quantization: str | None
    parameters: int | None
    files: int
    size: int
    source: str
    commit: str | None
    license: str | None
    manifest: Digest


@dataclass(frozen=True, slots=True)
class PartialModel:
    """A pull, add or import under way or interrupted: ``here`` of the ``size`` bytes that it fetches; in an import, of all the bundle.

    ``name`` is the model's, or that of the bundle's directory; it is absent if unknown.
    """

    name: str | None
    here: int
    size: int


@dataclass(frozen=True, slots=True)
class ListResult:
    """What the vault holds, and what is on its way there. A model that lacks files or cannot be read is a warning.

    ``size`` is that of all files, those of the same content counted once; ``bundles`` were begun, and ``here`` is what is written of them.
    """

    vault: Path
    models: tuple[ModelSummary, ...]
    size: int
    partial: tuple[PartialModel, ...] = ()
    bundles: tuple[PartialModel, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileLine:
    """One file of a model, with the digest that the source promised for it."""

    path: str
    size: int
    digest: Digest
    upstream: Digest | None


@dataclass(frozen=True, slots=True)
class InstallLine:
    """One install of a model; ``last_smoke`` says when it was last tried out as it is now, and with what outcome."""

    model: str
    engine: str
    directory: str
    installed_name: str
    installed_at: str
    last_smoke: str | None = None

    @property
    def removal(self) -> str:
        """The command that removes it."""
        where = f"{self.engine}={self.directory}"
        return shlex.join(["modelvault", "uninstall", self.installed_name, "--engine", where])


@dataclass(frozen=True, slots=True)
class ShowResult:
    """Everything that the vault knows about one model.

    Of its license: the address that the source gives, the files that hold the text, and who ``accepted`` it here, when and how.
    ``brought_by`` is the bundle that it came in, and who signed that; absent if it did not come in one.
    """

    vault: Path
    model: ModelSummary
    files: tuple[FileLine, ...]
    metadata: Mapping[str, Scalar | ArraySummary]
    modelfile: str | None
    installs: tuple[InstallLine, ...]
    published_at: str | None
    last_check: str | None
    license_link: str | None = None
    license_files: tuple[str, ...] = ()
    accepted: str | None = None
    pickle_scan: str | None = None
    brought_by: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QuantChoice:
    """One quantization of a GGUF repository. ``name`` is what ``--quant`` takes, ``size`` in bytes; ``bits`` per weight, if that can be computed."""

    name: str
    size: int
    files: int
    bits: float | None
    judgement: str


@dataclass(frozen=True, slots=True)
class PlannedDownload:
    """One file that a pull would bring; ``here`` of its bytes are in the vault or in ``partial/`` already, or all in a ``copy`` on this machine."""

    path: str
    size: int
    here: int
    digest: Digest | None
    copy: str | None = None


@dataclass(frozen=True, slots=True)
class PullPlan:
    """What a pull would do (``--dry-run``). ``license_page`` is where the license can be read; ``fits`` says how it fits the cards that were named."""

    vault: Path
    name: str
    repository: str
    commit: str
    license: str | None
    license_page: str | None
    verified: bool | None
    files: tuple[PlannedDownload, ...]
    left_out: tuple[str, ...]
    total: int
    to_download: int
    free: int
    warnings: tuple[str, ...]
    fits: str | None = None


@dataclass(frozen=True, slots=True)
class PullResult:
    """What a pull did; sizes in bytes."""

    plan: PullPlan
    model: ModelSummary
    received: int
    reused: int
    seconds: float
    unchanged: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AddResult:
    """What ``add`` did. ``replaced``: another model had this name before. ``linked`` bytes lie on the disk once, for the vault and for where they came from."""

    vault: Path
    model: ModelSummary
    unchanged: bool
    replaced: bool
    linked: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemoveResult:
    """What ``rm`` took out of the vault or would take, what it left in engines, and how many bytes ``gc`` would then free, if that is known."""

    vault: Path
    model: str
    freeable: int | None
    installs: tuple[InstallLine, ...]
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class GcResult:
    """What ``gc`` freed, or would free; ``linked`` bytes stay on the disk until engines that have hard links let go of them."""

    vault: Path
    dry_run: bool
    blobs: int
    size: int
    partial: tuple[str, ...]
    partial_size: int
    linked: int = 0


@dataclass(frozen=True, slots=True)
class RebuildResult:
    """What ``registry rebuild`` restored; ``listed`` are models that are listed again, where the list itself was lost."""

    vault: Path
    listed: tuple[str, ...]
    models: int
    events: int
    installs: int
    bundles: int
    damage: tuple[Damage, ...] = ()
