"""The cache of the Hub's own client on this machine as a source: what others downloaded already. Nothing in it is changed.

A blob is named by the digest that the Hub gave it: the SHA-256 of a large file, git's hash of a small one. A blob may itself be a link
into ``blobs/`` of the whole cache, where newer clients share what several repositories have.
"""

import difflib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Algorithm, Digest, SourceFile
from modelvault.errors import SourceUnavailable, UsageProblem
from modelvault.sources import Snapshot

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_BLOBS = {64: Algorithm.SHA256, 40: Algorithm.GIT_SHA1}  # by the length of the name
_HEX = re.compile(r"[0-9a-f]+")
_MAX_REF = 256
_MOST_NAMED = 5


class HubCache:
    """The repositories of one cache (``HF_HUB_CACHE``)."""

    def __init__(self, directory: Path) -> None:
        """Look at a cache; it need not exist."""
        self.directory = Path(os.path.normpath(directory))  # targets of links are compared with it

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        """List the files of a cached revision: a branch or tag, as the client noted it, or a commit; else the main branch, or the only one.

        Raises ``SourceUnavailable`` for what is not here, with what is.
        """
        folder = self._folder(repository)
        if not folder.is_dir():
            raise self._unknown(repository)
        commit = self._commit(folder, repository, revision)
        root = folder / "snapshots" / commit
        return Snapshot(repository, commit, tuple(self._files(folder, root)), license=None, gated=False)

    def blob(self, repository: str, file: SourceFile) -> Path | None:
        """Find a file of a repository by its digest, whichever commits are here; it is only as good as its name."""
        if file.digest is None:
            return None
        path = self._folder(repository) / "blobs" / file.digest.hex
        try:
            return path if path.stat().st_size == file.size else None
        except OSError:
            return None

    def place_of(self, snapshot: Snapshot, file: SourceFile) -> Path:
        """Say where a file lies."""
        return self._folder(snapshot.repository) / "snapshots" / snapshot.commit / file.path

    def repositories(self) -> list[str]:
        """Name what is here."""
        found = sorted(path.name for path in self.directory.glob("models--*") if (path / "snapshots").is_dir())
        return [name.removeprefix("models--").replace("--", "/") for name in found]

    def _folder(self, repository: str) -> Path:
        return self.directory / f"models--{repository.replace('/', '--')}"

    def _unknown(self, repository: str) -> SourceUnavailable:
        names = self.repositories()
        near = difflib.get_close_matches(repository, names, n=_MOST_NAMED) or names[:_MOST_NAMED]
        hint = f"did you mean {' or '.join(near)}?" if near else "it holds no models at all"
        return SourceUnavailable(f"the cache {self.directory} has no model {repository}", hint=hint)

    def _commit(self, folder: Path, repository: str, revision: str | None) -> str:
        snapshots = folder / "snapshots"
        here = sorted(path.name for path in snapshots.iterdir() if path.is_dir()) if snapshots.is_dir() else []
        wanted = revision or "main"
        if wanted in here and _COMMIT.fullmatch(wanted):
            return wanted
        noted = self._noted(folder, wanted)
        if noted in here:
            return noted
        if revision is None and len(here) == 1:
            return here[0]
        shown = ", ".join(here[:_MOST_NAMED])
        raise SourceUnavailable(
            f"the cache {self.directory} has {repository}, but not its {wanted}",
            hint=f"name one that is there with --revision: {shown}" if here else "no download of it was finished",
        )

    def _noted(self, folder: Path, revision: str) -> str:
        """Read the commit that a branch or tag had when it was downloaded."""
        path = folder / "refs" / revision
        if ".." in Path(revision).parts:
            return ""
        try:
            return fsio.read_regular(path, limit=_MAX_REF).decode("ascii", "replace").strip()
        except (OSError, fsio.NotRegular, fsio.TooLarge):
            return ""

    def _files(self, folder: Path, root: Path) -> Iterator[SourceFile]:
        for directory, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                path = Path(directory, name)
                yield self._file(folder, path, path.relative_to(root).as_posix())

    def _file(self, folder: Path, path: Path, relative: str) -> SourceFile:
        try:
            status = path.stat()
            file = SourceFile(relative, status.st_size, _promised(folder, path))
        except FileNotFoundError as error:
            raise SourceUnavailable(
                f"{relative} is not whole in the cache: {path} leads to nothing",
                hint="download it again with the Hub's client, or remove the broken link",
                path=str(path),
            ) from error
        except ValueError as error:
            raise UsageProblem(f"{path}: {error}", hint="remove the file from the cache") from error
        if not stat.S_ISREG(status.st_mode):
            raise UsageProblem(f"{path} is no file", hint="remove it from the cache")
        return file


def _promised(folder: Path, path: Path) -> Digest | None:
    """Read the digest out of the name of the blob that a file of a snapshot leads to; a file of its own promises nothing."""
    if not path.is_symlink():
        return None
    target = Path(os.path.normpath(path.parent / path.readlink()))
    name = target.name
    if target.parent != folder / "blobs" or not _HEX.fullmatch(name) or len(name) not in _BLOBS:
        return None
    return Digest(_BLOBS[len(name)], name)
