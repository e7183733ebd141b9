"""The frozen results of the operations, and how any of them becomes plain JSON. One place renders them: ``cli/``."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from modelvault.artifact import ArraySummary, Digest, ModelName, Scalar

SCHEMA = "modelvault/1"
"""The version of the ``--json`` envelope and of every result in it."""


def plain(value: object) -> Any:
    """Turn a result into what ``json.dumps`` takes: dataclasses become objects, digests, names and paths text."""
    if isinstance(value, Digest | ModelName | Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


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
    """A pull or add under way or interrupted: ``here`` of the ``size`` bytes that it fetches; ``name`` is absent if unknown."""

    name: str | None
    here: int
    size: int


@dataclass(frozen=True, slots=True)
class ListResult:
    """What the vault holds, and what is on its way there. A model that cannot be read is a warning."""

    vault: Path
    models: tuple[ModelSummary, ...]
    partial: tuple[PartialModel, ...] = ()
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
    """One install of a model."""

    model: str
    engine: str
    directory: str
    installed_name: str
    installed_at: str


@dataclass(frozen=True, slots=True)
class ShowResult:
    """Everything that the vault knows about one model."""

    vault: Path
    model: ModelSummary
    files: tuple[FileLine, ...]
    metadata: Mapping[str, Scalar | ArraySummary]
    modelfile: str | None
    installs: tuple[InstallLine, ...]
    published_at: str | None
    last_check: str | None


@dataclass(frozen=True, slots=True)
class PlannedDownload:
    """One file that a pull would bring; ``held`` bytes of it are here already."""

    path: str
    size: int
    held: int
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class PullPlan:
    """What a pull would do (``--dry-run``)."""

    vault: Path
    name: str
    repository: str
    commit: str
    license: str | None
    verified: bool | None
    files: tuple[PlannedDownload, ...]
    left_out: tuple[str, ...]
    total: int
    to_download: int
    free: int
    warnings: tuple[str, ...]


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
    """What ``add`` did."""

    vault: Path
    model: ModelSummary
    unchanged: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspected:
    """What one path says about itself."""

    path: Path
    kind: str
    format: str
    architecture: str | None
    quantization: str | None
    parameters: int | None
    tensors: int
    size: int
    metadata: Mapping[str, Scalar | ArraySummary]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BundleModel:
    """One model of a bundle."""

    name: str
    format: str
    quantization: str | None
    files: int
    size: int
    manifest: Digest


@dataclass(frozen=True, slots=True)
class BundleSummary:
    """What a bundle says about itself."""

    path: Path
    label: str
    sequence: int
    signer: str | None
    fingerprint: str | None
    models: tuple[BundleModel, ...]
    volumes: int
    size: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong, and where."""

    where: str
    problem: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What a verification found; sizes in bytes."""

    subject: str
    signer: str | None
    unit: str
    checked: int
    size: int
    seconds: float
    damage: tuple[Damage, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InspectResult:
    """What the given paths say about themselves."""

    items: tuple[Inspected | BundleSummary, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RemoveResult:
    """What ``rm`` took out of the vault, what it left in engines, and how many bytes ``gc`` would now free, if that is known."""

    vault: Path
    model: str
    freeable: int | None
    installs: tuple[InstallLine, ...]


@dataclass(frozen=True, slots=True)
class GcResult:
    """What ``gc`` freed, or would free."""

    vault: Path
    dry_run: bool
    blobs: int
    size: int
    partial: tuple[str, ...]
    partial_size: int


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """What ``bundle`` would write (``--dry-run``)."""

    vault: Path
    directory: Path
    label: str
    models: tuple[BundleModel, ...]
    volumes: tuple[int, ...]
    size: int
    free: int
    key: str | None
    resumes: bool
    there_already: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BundleResult:
    """What ``bundle`` wrote; or what it found finished on the drive (``there_already``), and left as it was."""

    vault: Path
    directory: Path
    label: str
    sequence: int
    models: tuple[BundleModel, ...]
    volumes: int
    content_size: int
    stored_size: int
    seconds: float
    read_back: bool
    read_back_seconds: float
    resumed: int
    key: str
    fingerprint: str
    spelled: tuple[str, ...]
    new_key: bool
    there_already: bool


@dataclass(frozen=True, slots=True)
class EngineStep:
    """One model going into one engine: planned or done; ``already``: before this command, which only verified it."""

    model: str
    engine: str
    directory: str
    installed_name: str
    link: str
    extra_bytes: int
    already: bool
    warnings: tuple[str, ...]
    next_steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DiskLine:
    """One file system that a plan writes to, with the directory that it was met at; sizes in bytes."""

    path: Path
    needed: int
    free: int


@dataclass(frozen=True, slots=True)
class ImportModel:
    """One model of an import: ``new_bytes`` had to come from the medium, the rest was in the vault."""

    name: str
    size: int
    new_bytes: int
    outcome: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did, or would do. ``resumed`` are the bytes that an earlier run had received; ``disks`` are of a plan."""

    vault: Path
    bundle: BundleSummary
    dry_run: bool
    models: tuple[ImportModel, ...]
    installs: tuple[EngineStep, ...]
    disks: tuple[DiskLine, ...]
    resumed: int
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImportsResult:
    """The outcome of one or several bundles."""

    imports: tuple[ImportResult, ...]


@dataclass(frozen=True, slots=True)
class InstallResult:
    """What ``install`` did, or would do."""

    vault: Path
    dry_run: bool
    installs: tuple[EngineStep, ...]
    warnings: tuple[str, ...]


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


@dataclass(frozen=True, slots=True)
class KeyLine:
    """One key; ``spelled`` is the fingerprint in groups, to be read out and typed."""

    name: str
    role: str
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


@dataclass(frozen=True, slots=True)
class CatalogLine:
    """One catalog entry."""

    name: str
    title: str
    repository: str
    quant: str | None
    format: str
    license: str
    gated: bool
    verified: bool


@dataclass(frozen=True, slots=True)
class CatalogResult:
    """The catalog."""

    entries: tuple[CatalogLine, ...]


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
