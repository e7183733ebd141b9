"""The frozen results of the operations, and how any of them becomes plain JSON. One place renders them: ``cli/``."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, StrEnum
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
    """A pull, add or import under way or interrupted: ``here`` of the ``size`` bytes that it fetches; in an import, of all the bundle.

    ``name`` is the model's, or that of the bundle's directory; it is absent if unknown.
    """

    name: str | None
    here: int
    size: int


@dataclass(frozen=True, slots=True)
class ListResult:
    """What the vault holds, and what is on its way there. A model that lacks files or cannot be read is a warning.

    ``size`` is that of all files, those of the same content counted once.
    """

    vault: Path
    models: tuple[ModelSummary, ...]
    size: int
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

    @property
    def removal(self) -> str:
        """The command that removes it."""
        where = f"{self.engine}={self.directory}"
        return shlex.join(["modelvault", "uninstall", self.installed_name, "--engine", where])


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
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedDownload:
    """One file that a pull would bring; ``here`` of its bytes are in the vault or in ``partial/`` already."""

    path: str
    size: int
    here: int
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
    """What a bundle says about itself, and where it was looked at: whether it was written to its end, and which volumes are ``missing``."""

    path: Path
    label: str
    sequence: int
    signer: str | None
    fingerprint: str | None
    models: tuple[BundleModel, ...]
    volumes: int
    size: int
    finished: bool
    missing: tuple[int, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong, and where."""

    where: str
    problem: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VolumeLine:
    """A volume of a bundle: ``present``, ``damaged`` or ``missing``; ``wanted``: it holds what neither these drives nor the vault have."""

    number: int
    state: str
    wanted: bool
    places: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model of a bundle: ``present`` on these drives, ``held`` since the vault has the rest of it, or ``wanted``, and from which volumes."""

    name: str
    state: str
    volumes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RequestWritten:
    """A request for what is still wanted of a bundle; sizes in bytes."""

    path: Path
    site: str
    pieces: int
    size: int
    fingerprint: str
    spelled: tuple[str, ...]
    new_key: bool


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What a verification found; sizes in bytes. Of a bundle, also what is here of it, and the request if one was written."""

    subject: str
    signer: str | None
    unit: str
    checked: int
    size: int
    seconds: float
    damage: tuple[Damage, ...]
    volumes: tuple[VolumeLine, ...] = ()
    models: tuple[ModelLine, ...] = ()
    request: RequestWritten | None = None
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
class BundleDrive:
    """One drive of a bundle: ``path`` as the user named it, the bundle's ``directory`` on it, and which volumes it has or would get.

    ``size`` in bytes: stored ones, in a plan at most. ``file_system`` is its type, if the system can say; ``free`` is ``None`` where the
    drive is not ``here``: it was taken out, or is from an earlier run. ``finished`` drives have their sums, ``read_back`` ones were
    compared as well; ``problem`` says why one was given up.
    """

    path: Path
    directory: Path
    file_system: str | None
    free: int | None
    volumes: tuple[int, ...]
    size: int
    here: bool
    finished: bool
    read_back: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class BundlePlan:
    """What ``bundle`` would write (``--dry-run``); ``left_out`` are bytes that the site has, ``patches`` the bundle that it mends.

    ``seconds`` is an estimate of the time, from a short measured write; ``None`` where there was no room for one.
    """

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
    left_out: int = 0
    patches: Digest | None = None
    drives: tuple[BundleDrive, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class BundleResult:
    """What ``bundle`` wrote; or what it found finished on the drive (``there_already``), and left as it was.

    ``restore_sha256`` and ``public_key_sha256`` are those of the files ``restore.sh`` and ``<key>.pub``, to be carried separately.
    """

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
    drives: tuple[BundleDrive, ...]
    restore_sha256: str
    public_key_sha256: str
    warnings: tuple[str, ...]
    left_out: int = 0
    patches: Digest | None = None


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
    """One model of an import: ``new_bytes`` had to come from the medium, the rest was in the vault.

    ``received`` and ``here already`` are in the vault and in no engine, ``installed already`` in all of them before, and only verified;
    ``reason`` says why a model did not get into its engines, or not even into the vault.
    """

    name: str
    size: int
    new_bytes: int
    outcome: Outcome
    reason: str | None = None


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
    """One install: how its weights got there, and its ``problems``. ``size`` is that of the files, in bytes."""

    model: str
    engine: str
    directory: str
    installed_name: str
    installed_at: str
    link: str
    size: int
    problems: tuple[str, ...]


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


@dataclass(frozen=True, slots=True)
class CatalogLine:
    """One catalog entry; ``parameters`` as its publisher says (``8.0B``), ``context`` in tokens."""

    name: str
    title: str
    repository: str
    quant: str | None
    format: str
    parameters: str
    context: int
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
