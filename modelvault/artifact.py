"""The frozen values that the stages exchange: names, digests, files, models.

Standard library only; imports nothing of modelvault but its errors.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Self

from modelvault.errors import UsageProblem
from modelvault.ollama_name import DEFAULT_NAMESPACE, OllamaName


class Algorithm(StrEnum):
    r"""How a digest was computed. ``GIT_SHA1`` is git's blob hash: ``sha1("blob <size>\\0" + bytes)``."""

    SHA256 = "sha256"
    GIT_SHA1 = "git-sha1"


_HEX_LENGTH = {Algorithm.SHA256: 64, Algorithm.GIT_SHA1: 40}
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A digest, written ``sha256:<64 lower-case hex>`` or ``git-sha1:<40 lower-case hex>``."""

    algorithm: Algorithm
    hex: str

    def __post_init__(self) -> None:
        """Refuse anything but lower-case hex of the algorithm's length: the hex becomes a file name."""
        if len(self.hex) != _HEX_LENGTH[self.algorithm] or not _HEX.fullmatch(self.hex):
            raise ValueError(f"not a {self.algorithm} digest: {self.hex[:80]!r}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``algorithm:hex``; ``ValueError`` if it is anything else."""
        algorithm, colon, hexdigest = text.partition(":")
        if not colon:
            raise ValueError(f"not a digest: {text[:80]!r}")
        return cls(Algorithm(algorithm), hexdigest)

    @classmethod
    def sha256(cls, hexdigest: str) -> Self:
        """Wrap a SHA-256 given as hex."""
        return cls(Algorithm.SHA256, hexdigest)

    @classmethod
    def of_bytes(cls, data: bytes) -> Self:
        """Compute the SHA-256 of bytes in memory."""
        return cls(Algorithm.SHA256, hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        """Give the ``algorithm:hex`` form."""
        return f"{self.algorithm}:{self.hex}"

    @property
    def short(self) -> str:
        """The first twelve hex digits, for tables."""
        return self.hex[:12]


_NAME_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_NAME = re.compile(rf"(?:(?P<organization>{_NAME_PART})/)?(?P<repository>{_NAME_PART})(?::(?P<quant>{_NAME_PART}))?")
_NAME_MAX = 255  # bytes in one path component on every common file system
_PATH_MAX = 1024  # bytes; leaves room for the directories above within PATH_MAX
_LINK_MAX = 2048  # characters
PATH_SUFFIXES = (".mvbundle", ".gguf", ".safetensors")
_OLLAMA = "ollama:"
_OLLAMA_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?::[0-9]{1,5})?")
_OLLAMA_MAX = 200  # characters; leaves room for what a file name has in place of a slash


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    """What a user calls a model: ``short-name``, ``org/name``, ``org/name:QUANT`` or ``ollama:`` and a name as Ollama has it.

    Of the ways to write an Ollama name, ``text`` is the one that ``ollama list`` shows: ``ollama:llama3.1:latest``.
    """

    text: str

    def __post_init__(self) -> None:
        """Refuse what could not be a directory name of an engine or a reference of a registry."""
        if self.text.startswith(_OLLAMA):
            object.__setattr__(self, "text", _OLLAMA + str(_ollama_name(self.text)))
            return
        if not _NAME.fullmatch(self.text):
            raise UsageProblem(
                f"not a model name: {self.text[:120]!r}",
                hint="names look like llama-3.1-8b, org/name, org/name:Q4_K_M or ollama:llama3.1:8b, in ASCII letters, digits and . _ -, "
                "up to 96 of them in each part; paths start with /, ./, ../ or ~",
            )
        if looks_like_path(self.text):
            raise UsageProblem(
                f"not a model name: {self.text!r} would be taken for a file",
                hint=f"choose one that does not end in {', '.join(PATH_SUFFIXES)}; org/name.gguf can be pulled as org/name.gguf:QUANT",
            )

    def __str__(self) -> str:
        """Give the name as typed."""
        return self.text

    def _group(self, name: str) -> str | None:
        match = _NAME.fullmatch(self.text)
        return match.group(name) if match else None

    @property
    def ollama(self) -> OllamaName | None:
        """The name in Ollama's own terms, if it is one of Ollama's."""
        return OllamaName.parse(self.text.removeprefix(_OLLAMA)) if self.text.startswith(_OLLAMA) else None

    @property
    def organization(self) -> str | None:
        """The part before the slash, if there is one; of an Ollama name the namespace, but for that of Ollama's own library."""
        if (name := self.ollama) is not None:
            return name.namespace if name.namespace.lower() != DEFAULT_NAMESPACE else None
        return self._group("organization")

    @property
    def repository(self) -> str:
        """The part after the slash and before the colon."""
        return self.ollama.model if self.ollama else self._group("repository") or ""

    @property
    def quant(self) -> str | None:
        """The part after the colon, if there is one; of an Ollama name the tag."""
        return self.ollama.tag if self.ollama else self._group("quant")

    @property
    def hub_id(self) -> str:
        """``org/name`` without the quantisation; for an Ollama name, all of it as a repository of an organization ``ollama``."""
        if self.ollama:
            return "ollama/" + re.sub("[:/]", "-", self.text.removeprefix(_OLLAMA))
        return f"{self.organization}/{self.repository}" if self.organization else self.repository

    @property
    def file_name(self) -> str:
        """A form that is one safe path component, and no other name's: ``org--name``, ``org--name--QUANT``, else ``name@QUANT``.

        No part of a name begins with ``-`` or has a ``+`` or ``@``, so what is a ``--`` of the name itself becomes ``-+``. An Ollama
        name has two ``@`` or more: ``ollama@llama3.1@8b``.
        """
        colon = "--" if self.organization and not self.ollama else "@"
        return self.text.replace("--", "-+").replace("/", "--").replace(":", colon)


def _ollama_name(text: str) -> OllamaName:
    """Read ``ollama:[[host[:port]/]namespace/]model[:tag]``. Raises ``UsageProblem``."""
    hint = "names look like ollama:llama3.1:8b, ollama:namespace/model:tag or ollama:host:5000/namespace/model:tag"
    try:
        name = OllamaName.parse(text.removeprefix(_OLLAMA))
    except UsageProblem as error:
        raise UsageProblem(error.message, hint=hint) from error
    if not _OLLAMA_HOST.fullmatch(name.host) or len(text) > _OLLAMA_MAX:
        raise UsageProblem(f"not a model name: {text[:120]!r}: its host is none, or it is too long", hint=hint)
    return name


def looks_like_path(argument: str) -> bool:
    """Decide the design's rule: is this command-line argument a path rather than a name? A tag of Ollama's may end like a file."""
    if argument.startswith(_OLLAMA):
        return False
    return argument in {".", ".."} or argument.startswith(("/", "./", "../", "~")) or argument.endswith(PATH_SUFFIXES)


def check_relative_path(text: str) -> str:
    """Return ``text`` if it is a plain relative POSIX path that stays inside its root.

    Raises ``ValueError`` for absolute paths, ``.`` and ``..`` parts, empty parts, backslashes, control characters and parts
    longer than 255 bytes: such a name never reaches a file system.
    """
    parts = text.split("/")
    bad = (
        any(part in {"", ".", ".."} or len(os.fsencode(part)) > _NAME_MAX for part in parts)
        or len(os.fsencode(text)) > _PATH_MAX
        or "\\" in text
        or any(unicodedata.category(character).startswith("C") for character in text)
    )
    if bad:
        raise ValueError(f"not a safe relative path: {text[:120]!r}")
    return text


class FileRole(StrEnum):
    """What a file is for within a model; decides its ModelPack media type."""

    WEIGHT = "weight"
    CONFIG = "config"
    CODE = "code"
    DOC = "doc"


_WEIGHT_SUFFIXES = {
    ".gguf",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".onnx",
    ".msgpack",
    ".h5",
    ".npz",
    ".pkl",
    ".pickle",
}
_DOC_SUFFIXES = {".md", ".pdf", ".png", ".jpg", ".jpeg", ".svg", ".gif", ".webp"}


_LICENSE_NAMES = ("license", "licence", "copying", "notice", "use_policy", "usage_policy")


def license_files(paths: Iterable[str]) -> tuple[str, ...]:
    """Choose the files, outside any folder, that hold a license's text and terms."""
    return tuple(path for path in paths if "/" not in path and path.lower().startswith(_LICENSE_NAMES))


def file_role(path: str) -> FileRole:
    """Tell from a file's name what it is for."""
    name = PurePosixPath(path)
    suffix = name.suffix.lower()
    if suffix in _WEIGHT_SUFFIXES:
        return FileRole.WEIGHT
    if suffix in {".py", ".ipynb", ".sh"}:
        return FileRole.CODE
    if suffix in _DOC_SUFFIXES or name.name.lower().startswith(("readme", *_LICENSE_NAMES)):
        return FileRole.DOC
    return FileRole.CONFIG


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file as a source lists it, before a byte was read. ``digest`` is what the source promises."""

    path: str
    size: int
    digest: Digest | None

    def __post_init__(self) -> None:
        """Refuse paths that would leave the model's folder."""
        check_relative_path(self.path)


@dataclass(frozen=True, slots=True, order=True)
class FileSpec:
    """One file of a model in the vault: its path within the model, size in bytes, SHA-256, upstream digest."""

    path: str
    size: int
    digest: Digest
    upstream: Digest | None = None

    def __post_init__(self) -> None:
        """Refuse paths that would leave the model's folder."""
        check_relative_path(self.path)

    @property
    def role(self) -> FileRole:
        """What the file is for."""
        return file_role(self.path)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model came from. ``repository`` and ``commit`` are ``None`` for a folder."""

    kind: str
    repository: str | None = None
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class Traits:
    """What the files say about the model as a whole. Unknown facts are ``None``."""

    format: str
    architecture: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an engine should be told to serve a model; travels with the model. From a catalog entry or the user.

    ``modelfile`` is Ollama's, without FROM; ``vllm_arguments`` are flags for ``vllm serve``.
    """

    ollama_name: str | None = None
    modelfile: str | None = None
    vllm_arguments: tuple[str, ...] = ()


def check_license(text: str) -> str:
    """Give the name of a license if it is one line that can be printed. Raises ``UsageProblem``."""
    if not text or not text.isprintable():
        raise UsageProblem(f"not the name of a license: {text[:120]!r}", hint="write one line, as apache-2.0")
    return text


def check_link(text: str) -> str:
    """Give the address of a license if it is one that can be printed and opened. Raises ``UsageProblem``."""
    if not text.startswith(("https://", "http://")) or not text.isprintable() or len(text) > _LINK_MAX or " " in text:
        raise UsageProblem(f"not the address of a license: {text[:120]!r}", hint="addresses begin with https://")
    return text


def check_distinct(name: ModelName, paths: Iterable[str]) -> None:
    """Refuse two files that one directory could not hold side by side, on file systems that ignore case. ``UsageProblem``."""
    seen: dict[str, str] = {}
    for path in paths:
        folded = path.casefold()
        if folded in seen:
            raise UsageProblem(
                f"{name}: {path} and {seen[folded]} differ only in case or not at all",
                hint="leave one of them out, or rename it: some file systems cannot hold both",
            )
        seen[folded] = path


@dataclass(frozen=True, slots=True)
class Model:
    """A named, immutable set of files at one source revision. ``files`` are sorted by path.

    ``license`` is its name, ``license_link`` the address of its text as the source states it; the text itself is among the files.
    """

    name: ModelName
    origin: Origin
    files: tuple[FileSpec, ...]
    traits: Traits
    license: str | None = None
    recipe: Recipe | None = None
    license_link: str | None = None

    def __post_init__(self) -> None:
        """Keep the order canonical; refuse two files that one directory could not hold side by side, and a garbled license."""
        object.__setattr__(self, "files", tuple(sorted(self.files)))
        check_distinct(self.name, [file.path for file in self.files])
        if self.license is not None:
            check_license(self.license)
        if self.license_link is not None:
            check_link(self.license_link)

    @property
    def license_files(self) -> tuple[str, ...]:
        """The files that hold the license's text and terms."""
        return license_files(file.path for file in self.files)

    @property
    def size(self) -> int:
        """The bytes of all files together."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model as the vault holds it, with the digest (its identity) and size of its manifest."""

    model: Model
    manifest: Digest
    manifest_size: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a weight file. ``offset`` is in bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


Scalar = str | int | float | bool | None
"""What a metadata key may hold in the registry; arrays are kept as ``ArraySummary``."""


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """A metadata array, reduced to element type, length and the SHA-256 of its encoded bytes."""

    element: str
    length: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class FileReport:
    """What one weight file says about itself, after the strict checks passed."""

    format: str
    metadata: Mapping[str, Scalar | ArraySummary]
    tensors: int
    parameters: int
    architecture: str | None = None
    quantization: str | None = None
    warnings: tuple[str, ...] = field(default=())
