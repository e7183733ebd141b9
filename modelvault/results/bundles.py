"""Results about bundles and drives, and about what was verified or inspected."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelvault.artifact import ArraySummary, Digest, Scalar


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
    """A volume of a bundle: ``present``, ``damaged``, ``missing``, or ``mended`` where a patch has what is damaged or missing of it.

    ``wanted``: it holds what neither these drives nor the vault have.
    """

    number: int
    state: str
    wanted: bool
    places: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model of a bundle: ``present`` on these drives, ``held`` since the vault has the rest of it, or ``wanted``, and from which volumes.

    One that is ``incomplete`` wants nothing from the volumes, but its bundle is thin: it leaves out files that the vault does not have.
    """

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
    """What a verification found; sizes in bytes. Of a bundle, also what is here of it, and the request if one was written.

    ``mended`` is what is damaged in the bundle, and whole in a patch that is here; it is not part of the ``damage``.
    """

    subject: str
    signer: str | None
    unit: str
    checked: int
    size: int
    seconds: float
    damage: tuple[Damage, ...]
    mended: tuple[Damage, ...] = ()
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
