"""The vault's models as the Hub would show them: repositories, commits, files with git and LFS identities. No network here."""

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelvault.artifact import Algorithm, Digest, FileRole, FileSpec, ModelName, StoredModel
from modelvault.errors import ModelvaultError
from modelvault.modelpack import IndexEntry

_LOG = logging.getLogger(__name__)

LARGEST_PLAIN = 10_000_000
"""The Hub keeps files above 10 MB in LFS; of a file without an upstream digest we assume the same. In bytes."""

COMMIT_LENGTH = 40  # hex digits of a git commit


class Shelf(Protocol):
    """What serving needs of a vault; ``modelvault.store.Store`` is one. Called from several threads at once."""

    def entries(self) -> Sequence[IndexEntry]:
        """Name all models and their manifests as they are now. Asked for every request: cheap."""
        ...

    def load(self, entry: IndexEntry) -> StoredModel:
        """Read one model. Asked once for each manifest. Raises ``ModelvaultError`` or ``OSError`` for a damaged one."""
        ...

    def blob_path(self, digest: Digest) -> Path:
        """Tell where the bytes of a model's file, or its manifest, lie."""
        ...


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the Hub lists it.

    ``oid`` is the git blob hash: of the bytes, or for an LFS file of its pointer, whose size in bytes is ``pointer_size``.
    """

    path: str
    size: int
    blob: Digest
    oid: str
    pointer_size: int | None

    @property
    def is_lfs(self) -> bool:
        """Tell whether the Hub would keep this file in LFS."""
        return self.pointer_size is not None

    @property
    def etag(self) -> str:
        """The identity that the cache of huggingface_hub names its blob by: SHA-256 for LFS, else the git blob hash."""
        return self.blob.hex if self.is_lfs else self.oid


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One repository at one commit: the files of all models that came from there, by path."""

    repository: str
    commit: str
    files: Mapping[str, FileSpec]
    license: str | None
    tags: tuple[str, ...]


def commit_of(stored: StoredModel) -> str:
    """Give the commit of a model's source; where git knows none, the first 40 hex of its manifest digest stand for it."""
    commit = stored.model.origin.commit or ""
    return commit if len(commit) == COMMIT_LENGTH else stored.manifest.hex[:COMMIT_LENGTH]


def repository_ids(stored: StoredModel) -> tuple[str, ...]:
    """Tell under which repository ids a model answers: its own name and the Hub repository that it came from."""
    origin = stored.model.origin
    upstream = [origin.repository] if origin.kind == "hub" and origin.repository else []
    return tuple(dict.fromkeys([*upstream, stored.model.name.hub_id]))


def repositories(models: Sequence[StoredModel]) -> list[str]:
    """Name every repository that can be asked for, sorted."""
    return sorted({repository for stored in models for repository in repository_ids(stored)})


def snapshots(models: Sequence[StoredModel], repository: str) -> list[Snapshot]:
    """Give the commits of a repository that the vault holds, the newest last; empty if it holds none.

    ``models`` come the newest last, see ``Models``; the last commit is the repository's ``main``. Models of the same commit (several quantizations, say) show as one snapshot. Equal paths of one commit are equal files.
    """
    by_commit: dict[str, list[StoredModel]] = {}
    for stored in models:
        if repository in repository_ids(stored):
            commit = commit_of(stored)
            # Taken out and put in again: a commit is as new as the newest of its models.
            by_commit[commit] = [*by_commit.pop(commit, []), stored]
    return [_snapshot(repository, commit, members) for commit, members in by_commit.items()]


def _snapshot(repository: str, commit: str, members: Sequence[StoredModel]) -> Snapshot:
    files: dict[str, FileSpec] = {}
    for stored in members:
        for file in stored.model.files:
            files.setdefault(file.path, file)
    licenses = [stored.model.license for stored in members if stored.model.license]
    formats = sorted({stored.model.traits.format for stored in members})
    tags = [*formats, *(f"license:{name}" for name in licenses[:1])]
    return Snapshot(repository, commit, dict(sorted(files.items())), licenses[0] if licenses else None, tuple(tags))


def at_revision(found: Sequence[Snapshot], revision: str) -> Snapshot | None:
    """Pick the snapshot of ``main`` or of a full commit; ``None`` for any other revision."""
    if revision == "main":
        return found[-1] if found else None
    return next((snapshot for snapshot in found if snapshot.commit == revision), None)


def is_lfs(file: FileSpec) -> bool:
    """Tell whether the Hub keeps a file in LFS: what its source said, else by its size and kind."""
    if file.upstream is not None:
        return file.upstream.algorithm is not Algorithm.GIT_SHA1
    return file.size > LARGEST_PLAIN or file.role is FileRole.WEIGHT


def lfs_pointer(digest: Digest, size: int) -> bytes:
    """Write the text that git holds in place of an LFS file (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
    return f"version https://git-lfs.github.com/spec/v1\noid {digest}\nsize {size}\n".encode()


def git_hash(kind: str, data: bytes) -> bytes:
    """Hash an object as git does; gives the 20 bytes."""
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(data)) + data, usedforsecurity=False).digest()


def tree_hashes(files: Mapping[str, str]) -> dict[str, str]:
    """Give git's hash of every directory by path, the root as ``""``; ``files`` are the blob hashes (hex) by path."""
    # What lies in each directory, by the name that git sorts it under: a directory as if its name ended in a slash.
    content: dict[str, dict[str, bytes]] = {"": {}}
    for path, oid in files.items():
        folder, _, name = path.rpartition("/")
        above = folder
        while above not in content:
            content[above] = {}
            above = above.rpartition("/")[0]
        content[folder][name] = f"100644 {name}".encode() + b"\0" + bytes.fromhex(oid)
    hashes: dict[str, str] = {}
    for folder in sorted(content, key=len, reverse=True):  # the inner ones first
        entries = content[folder]
        digest = git_hash("tree", b"".join(entries[key] for key in sorted(entries, key=str.encode)))
        hashes[folder] = digest.hex()
        if folder:
            parent, _, name = folder.rpartition("/")
            content[parent][name + "/"] = f"40000 {name}".encode() + b"\0" + digest
    return hashes


class Models:
    """The models of a shelf, each read once: decoding the manifests of a full vault takes longer than answering. Safe in threads."""

    def __init__(self, shelf: Shelf) -> None:
        """Read from ``shelf``."""
        self._shelf = shelf
        self._loaded: dict[tuple[ModelName, Digest], tuple[int, StoredModel]] = {}
        self._damaged: set[Digest] = set()
        self._lock = threading.Lock()

    def by_age(self) -> list[StoredModel]:
        """Give all models, the newest last: a model is as old as its manifest in the vault.

        A model whose documents are damaged is left out, so that the others can be served, and named in the log, once.
        """
        entries = self._shelf.entries()
        with self._lock:
            known = self._loaded
            loaded = {}
            for entry in entries:
                key = (entry.name, entry.manifest)
                found = known.get(key) or self._load(entry)
                if found is not None:
                    loaded[key] = found
            self._loaded = loaded
        return [stored for _, stored in sorted(loaded.values(), key=lambda aged: (aged[0], aged[1].model.name))]

    def _load(self, entry: IndexEntry) -> tuple[int, StoredModel] | None:
        try:
            stored = self._shelf.load(entry)
            return self._shelf.blob_path(entry.manifest).stat().st_mtime_ns, stored
        except (ModelvaultError, OSError) as error:
            if entry.manifest not in self._damaged:
                self._damaged.add(entry.manifest)
                _LOG.error("%s is not served: %s", entry.name, error)
            return None


class FileViews:
    """Files as the Hub lists them. Git hashes that no source gave are computed from the bytes, once. Safe in threads."""

    def __init__(self, shelf: Shelf) -> None:
        """Read bytes, where they are needed, from ``shelf``."""
        self._shelf = shelf
        self._computed: dict[Digest, str] = {}
        self._lock = threading.Lock()

    def view(self, file: FileSpec) -> HubFile:
        """Give one file with its identities. Raises ``OSError`` if its bytes are needed and cannot be read."""
        if is_lfs(file):
            pointer = lfs_pointer(file.digest, file.size)
            return HubFile(file.path, file.size, file.digest, git_hash("blob", pointer).hex(), len(pointer))
        oid = file.upstream.hex if file.upstream is not None else self._git_oid(file.digest)
        return HubFile(file.path, file.size, file.digest, oid, None)

    def _git_oid(self, digest: Digest) -> str:
        with self._lock:
            known = self._computed.get(digest)
        if known is None:
            known = git_hash("blob", self._shelf.blob_path(digest).read_bytes()).hex()
            with self._lock:
                self._computed[digest] = known
        return known
