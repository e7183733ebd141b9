"""The values that a bundle is made of: what its index says, and what its files are called. No I/O."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from modelvault import modelpack
from modelvault.artifact import Digest, ModelName, StoredModel
from modelvault.errors import DigestMismatch, ModelvaultError, TrustRefused, UsageProblem

MAX_INDEX = 16 << 20
"""Bytes that ``bundle.json`` may have at most: room for some 20,000 files, and read in less than 250 MB of memory."""
MAX_DOCUMENT = 4 << 20
"""Bytes that a model's manifest, config or recipe may have at most in a bundle."""
MAX_MEMBER = 4 << 30
"""Bytes of data that a member may have at most; longer blobs are sliced."""
MIN_VOLUME = 2 << 20
"""The smallest ``volume_size``, in bytes of tar."""
MAX_VOLUME = 1 << 40
"""The largest ``volume_size``, in bytes of tar: the frames of a volume are all in memory while it is read."""
MAX_SEQUENCE = (1 << 53) - 1
"""The largest sequence: what every JSON reader can hold exactly."""

INDEX_FILE = "bundle.json"
SUMS_FILE = "SHA256SUMS"
"""Written last: a bundle without it is unfinished."""
SUFFIX = ".mvbundle"
OCI_LAYOUT_PATH = "oci-layout"
INDEX_PATH = "index.json"
SIGNATURE_SIZE = 64
"""Bytes of an Ed25519 signature."""
THIN = "thin/0.2.0"
"""What an index requires that leaves blobs out, because the site has them: the feature, and the first version that knows it."""
PATCH = "patch/0.2.0"
"""What an index requires that holds pieces of another bundle."""

_MAX_RUNS = 8  # that an error names
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")


class BundleRefused(TrustRefused):
    """A bundle breaks its own format, or a file of it is not what a bundle may hold."""

    slug = "bundle-refused"


class BundleTooNew(ModelvaultError):
    """A bundle needs something that this version does not know."""

    slug = "bundle-too-new"


class BundleUnfinished(DigestMismatch):
    """A bundle lacks volumes, because it was not written to its end."""

    slug = "bundle-unfinished"


def refused(reason: str) -> BundleRefused:
    """Build the error for a bundle that breaks its format."""
    return BundleRefused(f"the bundle is refused: {reason}", hint="have the bundle written again on the connected side")


class KeyIdentity(Protocol):
    """Who signed: what the bundle stage needs to know of a key."""

    @property
    def name(self) -> str:
        """The name under which the key is kept here."""
        ...

    @property
    def fingerprint(self) -> str:
        """The key's identity."""
        ...


class Signer(KeyIdentity, Protocol):
    """A key that can sign."""

    @property
    def public_pem(self) -> bytes:
        """The public half, for the copy that travels along."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Give the 64 bytes of the Ed25519 signature of ``message``."""
        ...


@dataclass(frozen=True, slots=True)
class Blob:
    """One file's bytes: digest and size."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Span:
    """``length`` bytes of a blob from ``offset`` on."""

    blob: Digest
    offset: int
    length: int

    @property
    def end(self) -> int:
        """Where in the blob the bytes end."""
        return self.offset + self.length


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Give the same bytes of the same blobs in the fewest spans, sorted by digest and offset; empty ones fall away."""
    result: list[Span] = []
    for span in sorted(spans, key=lambda span: (str(span.blob), span.offset)):
        if not span.length:
            continue
        if result and result[-1].blob == span.blob and span.offset <= result[-1].end:
            before = result.pop()
            span = Span(before.blob, before.offset, max(before.end, span.end) - before.offset)  # noqa: PLW2901 (the one that takes its place)
        result.append(span)
    return tuple(result)


@dataclass(frozen=True, slots=True)
class Member:
    """One tar member of a volume: a whole blob, a slice of one, or one of the two files of the OCI layout.

    ``digest`` is the whole blob's, ``offset`` where in the blob the member's ``size`` bytes begin.
    """

    path: str
    size: int
    digest: Digest
    offset: int = 0

    @property
    def is_blob(self) -> bool:
        """Whether the member carries (a piece of) a blob."""
        return self.path not in {OCI_LAYOUT_PATH, INDEX_PATH}


def member_path(digest: Digest, offset: int, size: int, blob_size: int) -> str:
    """Name the member that carries ``size`` bytes of a blob from ``offset`` on."""
    if size == blob_size:
        return f"blobs/sha256/{digest.hex}"
    return f"slices/sha256/{digest.hex}/{offset:016d}"


@dataclass(frozen=True)
class ModelEntry:
    """A model as the index holds it: the very bytes of its manifest and config, so that planning needs no volume."""

    name: ModelName
    manifest: bytes
    config: bytes
    recipe: str | None = None

    @cached_property
    def stored(self) -> StoredModel:
        """The model itself. Raises ``InvalidModelFile`` if the manifest is none."""
        recipe = modelpack.decode_recipe(self.recipe, what=f"recipe of {self.name}") if self.recipe else None
        what = f"manifest of {self.name}"
        model = modelpack.decode_manifest(self.manifest, self.config, self.name, recipe, what=what)
        return StoredModel(model, Digest.of_bytes(self.manifest), len(self.manifest))

    @cached_property
    def blobs(self) -> tuple[Blob, ...]:
        """Everything the model needs, each blob once: manifest, config, files in the order of their paths."""
        needed = [
            Blob(self.stored.manifest, len(self.manifest)),
            Blob(Digest.of_bytes(self.config), len(self.config)),
            *(Blob(file.digest, file.size) for file in self.stored.model.files),
        ]
        return tuple(dict.fromkeys(needed))


@dataclass(frozen=True)
class Index:
    """What a bundle holds, and where. ``volumes[0]`` is volume 1.

    A thin bundle leaves out the blobs of ``base``, which its models need and the site has. A patch holds pieces of the bundle whose
    ``bundle.json`` has the digest ``patches``: its models need more than its ``blobs``, and of those it has only what its volumes say.
    """

    label: str
    sequence: int
    volume_size: int
    models: tuple[ModelEntry, ...]
    blobs: tuple[Blob, ...]
    volumes: tuple[tuple[Member, ...], ...]
    base: tuple[Blob, ...] = ()
    patches: Digest | None = None

    @property
    def requires(self) -> tuple[str, ...]:
        """What a reader must know beyond the first format, as ``bundle.json`` says it."""
        return (*((THIN,) if self.base else ()), *((PATCH,) if self.patches else ()))

    @cached_property
    def sizes(self) -> Mapping[Digest, int]:
        """The size in bytes of each blob."""
        return {blob.digest: blob.size for blob in self.blobs}

    @property
    def directory_name(self) -> str:
        """The name of the directory that holds the bundle."""
        return f"{self.label}-{self.sequence}{SUFFIX}"

    @property
    def size(self) -> int:
        """The bytes of all blobs together."""
        return sum(blob.size for blob in self.blobs)

    def model(self, name: ModelName) -> ModelEntry:
        """Find a model by name. Raises ``UsageProblem`` when the bundle does not hold it."""
        for entry in self.models:
            if entry.name == name:
                return entry
        raise UsageProblem(
            f"the bundle holds no model {name}", hint=f"it holds: {', '.join(str(entry.name) for entry in self.models)}"
        )

    def needing(self, blobs: Collection[Digest]) -> tuple[ModelName, ...]:
        """Name the models that need any of these blobs, in the order of the index."""
        found = {name for blob in blobs for name in self._needed_by.get(blob, ())}
        return tuple(entry.name for entry in self.models if entry.name in found)

    def called(self, blob: Digest) -> str:
        """Say what people know a blob as: a file of a model that needs it, else that model's manifest or config."""
        document = f"the manifest or config of {', '.join(map(str, self._needed_by.get(blob, ())))}"
        return self._file_names.get(blob, document)

    @cached_property
    def _needed_by(self) -> Mapping[Digest, Sequence[ModelName]]:
        needed: dict[Digest, list[ModelName]] = {}
        for entry in self.models:
            for blob in entry.blobs:
                needed.setdefault(blob.digest, []).append(entry.name)
        return needed

    @cached_property
    def _file_names(self) -> Mapping[Digest, str]:
        names: dict[Digest, str] = {}
        for entry in self.models:
            for file in entry.stored.model.files:
                names.setdefault(file.digest, f"{file.path} of {entry.name}")
        return names

    def volumes_of(self, blobs: Collection[Digest]) -> tuple[int, ...]:
        """Give the numbers of the volumes that hold a piece of any of these blobs."""
        return tuple(
            number
            for number, members in enumerate(self.volumes, 1)
            if any(member.is_blob and member.size and member.digest in blobs for member in members)
        )

    def same_content(self, other: "Index") -> bool:
        """Tell whether two indexes differ in nothing but their sequence: an unfinished one can then be resumed."""
        return self == replace(other, sequence=self.sequence)


def check_label(label: str, *, what: str = "label") -> str:
    """Return ``label`` if it can be part of a file's name on any file system; else ``UsageProblem``. ``what`` it is the name of."""
    if not _LABEL.fullmatch(label):
        raise UsageProblem(
            f"not a {what}: {label[:120]!r}",
            hint=f"a {what} is letters, digits, '.', '_' and '-', at most 64, begins with a letter or digit and ends in no dot",
        )
    return label


def volume_name(number: int) -> str:
    """Name the file of a volume; ``number`` counts from 1."""
    return f"volume-{number:04d}.tar.zst"


def name_volumes(numbers: Sequence[int]) -> str:
    """Name volumes for people, as ``volume 3`` or ``volumes 1, 3 to 7``. ``numbers`` ascend."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        first = runs.pop()[0] if runs and runs[-1][1] == number - 1 else number
        runs.append((first, number))
    shown = [str(first) if first == last else f"{first} to {last}" for first, last in runs[:_MAX_RUNS]]
    more = " and others" if len(runs) > _MAX_RUNS else ""
    return f"volume{'s' if len(numbers) > 1 else ''} {', '.join(shown)}{more}"


def table_name(number: int) -> str:
    """Name the frame table of a volume."""
    return f"volume-{number:04d}.json"
