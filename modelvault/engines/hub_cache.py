"""The Hugging Face hub's cache as it lies on disk (huggingface_hub 2.4.0), and which of its files are ours.

``models--org--name/{blobs/<etag>,snapshots/<commit>/<path>,refs/main}``: names in a snapshot are relative links to blobs, or real
files where there are no symbolic links; a reference holds a commit and no newline, which would make it unreadable.
"""

import errno
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Algorithm, Digest, FileSpec
from modelvault.engines.base import InstalledFile, InstallRecord, InstallRequest, LinkKind
from modelvault.engines.caretaker import Caretaker
from modelvault.engines.ground import in_the_way, refusals, staging_name
from modelvault.engines.marker import Marker, read_marker
from modelvault.errors import UsageProblem

_REPOSITORY_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_SYMLINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_REF_LIMIT = 256  # bytes; a commit has 40


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the model: where its blob and its name lie, relative to the engine's directory, and how each got there (``None``: to do)."""

    file: FileSpec
    blob: str
    name: str
    blob_kind: LinkKind | None = None
    name_kind: LinkKind | None = None
    direct: bool = False

    @property
    def target(self) -> str:
        """The text of the symbolic link."""
        return os.path.relpath(self.blob, Path(self.name).parent)


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Where one model's files lie, relative to the engine's directory, in which the cache may lie ``below`` (as ``hub/``)."""

    repository: str
    commit: str
    manifest: Digest
    below: str = ""

    @property
    def folder(self) -> str:
        """The repository's directory in the cache."""
        return folder_of(self.repository, self.below)

    @property
    def snapshot(self) -> str:
        """The directory of the commit's files."""
        return f"{self.folder}/snapshots/{self.commit}"

    @property
    def reference(self) -> str:
        """The file that says which commit ``main`` is."""
        return f"{self.folder}/refs/main"

    @property
    def marker(self) -> str:
        """Our own file: which files we placed for this model."""
        return f"{self.folder}/.modelvault-{self.manifest.short}.json"

    def entry(self, file: FileSpec) -> Entry:
        """Place one file: blobs are named by the Hub's etag, the SHA-256 of large files and git's hash of small ones."""
        git = file.upstream if file.upstream and file.upstream.algorithm is Algorithm.GIT_SHA1 else None
        etag = git.hex if git else file.digest.hex
        return Entry(file, f"{self.folder}/blobs/{etag}", f"{self.snapshot}/{file.path}")


def folder_of(repository: str, below: str = "") -> str:
    """Name a repository's directory in a cache, or in a directory that has the cache ``below`` it."""
    return f"{below}models--" + repository.replace("/", "--")


def check_repository(text: str) -> str:
    """Return a repository's name if huggingface_hub would take it; raises ``UsageProblem`` otherwise."""
    parts = text.split("/")
    fits = len(parts) <= 2 and all(_REPOSITORY_PART.fullmatch(part) for part in parts)  # noqa: PLR2004 (organization, name)
    if not fits or "--" in text or ".." in text or text.endswith(".git"):
        raise UsageProblem(
            f"not a repository name that the hub's cache can hold: {text[:120]!r}",
            hint="choose one with --as, such as --as org/name",
        )
    return text


def layout_of(record: InstallRecord) -> CacheLayout:
    """Read from a record where its files lie."""
    folder, _, name = next(file.path.partition("/snapshots/") for file in record.files if "/snapshots/" in file.path)
    return CacheLayout(
        record.installed_name,
        name.partition("/")[0],
        Digest.parse(record.manifest),
        folder[: folder.rindex("models--")],
    )


def read_reference(path: Path) -> str | None:
    """Read what ``refs/main`` says; ``None`` if there is none. Raises ``EngineRefused`` if it is no small regular file."""
    with refusals(path):
        try:
            return fsio.read_regular(path, limit=_REF_LIMIT).decode("utf-8", "replace")
        except FileNotFoundError:
            return None
        except (fsio.NotRegular, fsio.TooLarge) as error:
            raise in_the_way(path, "it is not a reference") from error


def can_symlink(directory: Path) -> bool:
    """Try whether the file system of ``directory`` has symbolic links (FAT, exFAT and some SMB shares have none)."""
    probe = staging_name(directory)
    try:
        probe.symlink_to("nowhere")
    except OSError as error:
        if error.errno not in _NO_SYMLINKS:
            raise
        return False
    probe.unlink()
    return True


def intend(
    request: InstallRequest, layout: CacheLayout, entries: Iterable[Entry], marker: Marker | None, before: str | None
) -> Marker:
    """Say what is about to be placed, so that a second run after a crash knows it for ours. The kinds are filled in at the end."""
    kinds: dict[str, str] = {}
    for entry in entries:
        if not entry.direct:
            kinds.setdefault(entry.blob, entry.blob_kind or LinkKind.COPY)
        kinds[entry.name] = entry.name_kind or (LinkKind.COPY if entry.direct else LinkKind.SYMLINK)
    kept = marker.files.get(layout.reference) if marker else None
    kinds[layout.reference] = kept or (LinkKind.PRESENT if before == layout.commit else LinkKind.WRITE)
    if before == layout.commit:
        before = marker.before if marker else None
    return Marker(str(request.model.name), request.stored.manifest, kinds, before)


def installed_files(entries: Iterable[Entry], intent: Marker) -> list[InstalledFile]:
    """List the blobs and the names of a finished install."""
    files: dict[str, InstalledFile] = {}
    for entry in entries:
        digest, size = str(entry.file.digest), entry.file.size
        if not entry.direct:
            files.setdefault(entry.blob, InstalledFile(entry.blob, digest, size, str(entry.blob_kind)))
        kind = entry.name_kind or intent.files[entry.name]
        files[entry.name] = InstalledFile(entry.name, digest, size, str(kind))
    return list(files.values())


def hand_over(directory: Path, layout: CacheLayout, kinds: Mapping[str, str]) -> set[str]:
    """Give other models of the same repository what they share with us: from now on it is theirs to remove."""
    shared: set[str] = set()
    for path in sorted((directory / layout.folder).glob(".modelvault-*.json")):
        other = read_marker(path) if path.name != Path(layout.marker).name else None
        if other is None:
            continue
        common = {name: kind for name, kind in kinds.items() if kind != LinkKind.PRESENT and name in other.files}
        shared |= set(common)
        inherited = {name: kind for name, kind in common.items() if other.files[name] == LinkKind.PRESENT}
        if inherited:
            caretaker = Caretaker.keeping(directory, layout.marker)
            caretaker.write(path, replace(other, files={**other.files, **inherited}).encode())
    return shared
