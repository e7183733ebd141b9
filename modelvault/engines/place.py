"""Placing bytes in an engine's directories: the one helper that all adapters share.

Owner and mode belong to the inode, not to the name. A hard link to a vault's blob whose owner were changed would let the
engine's user rewrite the blob through it. Hence the rule: same owner, hard link; else reflink (a new inode that shares blocks);
else copy. A linked inode is never chowned or chmodded.

The rule is for weights, which nobody edits by hand. A ``config.json`` that is edited in place would change the vault's blob and
every other engine's file, if it were linked: what is not weights is always copied.
"""

import contextlib
import hashlib
import os
import shlex
import stat
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from modelvault import filesystem, fsio
from modelvault.artifact import FileRole, FileSpec
from modelvault.engines.base import InstallRequest, LinkKind, LinkMode, Owner
from modelvault.engines.caretaker import Caretaker, readable, resolve_owner
from modelvault.engines.checks import is_changed
from modelvault.engines.ground import in_the_way, refusals, staging_name
from modelvault.errors import DigestMismatch, EngineRefused


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file of a model that an engine shall get, and where the vault has its bytes."""

    source: Path
    file: FileSpec

    @classmethod
    def of(cls, request: InstallRequest, file: FileSpec) -> Self:
        """Say where the vault has a file of the request's model."""
        return cls(request.blob_path(file.digest), file)


class Placer(Caretaker):
    """Brings files of the vault into one engine's directory, by one link rule."""

    def __init__(self, request: InstallRequest, *, claimed: Mapping[str, str] | None = None) -> None:
        """Take the owner and the rule from a request.

        ``claimed`` says how files (by path in the engine's directory) were placed by us before; else the ``previous`` record does.
        Raises ``EngineRefused`` where only root could give files to the owner.
        """
        directory = request.target.directory
        super().__init__(resolve_owner(directory, request.owner))
        self._request = request
        self._before = {directory / file.path: file for file in request.previous.files} if request.previous else {}
        if claimed is None:
            claimed = {file.path: file.link for file in self._before.values()}
        self._claimed = {path: kind for path, kind in claimed.items() if kind != LinkKind.PRESENT}

    # -- looking -------------------------------------------------------------------------------------------------------

    def predict(self, wanted: Wanted, directory: Path) -> LinkKind:
        """Say how ``bring`` would place a file in ``directory``, which need not exist yet. Nothing on disk changes.

        Nor need the blob be in the vault yet: an import is planned before anything was received.
        """
        if wanted.source.exists():
            check_source(wanted)
        mode = self._mode(wanted)
        if mode is LinkMode.COPY:
            return LinkKind.COPY
        parent = filesystem.existing_parent(directory)
        with refusals(parent):
            reason = hard_link_refused(wanted.source, parent, self.owner)
        if mode is LinkMode.HARD and reason:
            raise _no_hard_link(wanted.source, directory, reason)
        if mode is not LinkMode.REFLINK and not reason:
            return LinkKind.HARD
        if fsio.can_reflink(wanted.source, parent):
            return LinkKind.REFLINK
        if mode is LinkMode.REFLINK:
            raise _no_reflink(directory)
        return LinkKind.COPY

    def _mode(self, wanted: Wanted) -> LinkMode:
        return self._request.link if wanted.file.role is FileRole.WEIGHT else LinkMode.COPY

    def look(self, path: Path, wanted: Wanted, *, hashed: bool) -> LinkKind | None:
        """Say what is at ``path``: our hard link, the same bytes from elsewhere (``PRESENT``), or nothing (a dangling link too).

        Without ``hashed`` the size alone decides for weights. Raises ``EngineRefused`` for anything else that is in the way.
        """
        received = wanted.source.exists()
        if received:
            check_source(wanted)
        with refusals(path):
            try:
                status = path.stat()
            except FileNotFoundError:
                return None
            if received and not path.is_symlink() and os.path.samestat(status, wanted.source.stat()):
                return LinkKind.HARD
            if not stat.S_ISREG(status.st_mode) or status.st_size != wanted.file.size:
                raise in_the_way(path, f"expected {wanted.file.size:,} bytes, found {status.st_size:,}")
            hashed = hashed or wanted.file.role is not FileRole.WEIGHT
            if hashed and fsio.hash_file(path, self._request.on_bytes) != wanted.file.digest:
                raise in_the_way(path, f"its content is not {wanted.file.digest}")
            if not readable(status, self.owner):
                raise EngineRefused(
                    f"{path} is there, but the user that the engine's files belong to ({self.owner.uid}) may not read it",
                    hint=f"let that user read it: chmod a+r {shlex.quote(str(path.resolve()))}",
                    path=str(path),
                )
            return LinkKind.PRESENT

    def standing(self, path: Path, wanted: Wanted, relative: str, *, hashed: bool) -> LinkKind | None:
        """Say how the file at ``path`` got there, if it is right; ``None`` if it has to be brought.

        A wrong file that we placed ourselves is to be replaced, and the request's ``on_changed`` hears of it unless it is just an older
        version; anybody else's raises ``EngineRefused``.
        """
        try:
            kind = self.look(path, wanted, hashed=hashed)
        except EngineRefused:
            if not self.was_placed(relative):
                raise
            before = self._before.get(path)
            if before is None or before.digest == str(wanted.file.digest) or is_changed(path, before):
                self._request.on_changed(wanted.file.path)
            return None
        if kind is not LinkKind.PRESENT or not self.was_placed(relative):
            return kind
        recorded = LinkKind(self._claimed[relative])
        if recorded is not LinkKind.HARD:
            return recorded
        # The vault has the blob under another inode by now. Linked anew, its bytes lie there once and not twice.
        return None if self.predict(wanted, path.parent) is LinkKind.HARD else LinkKind.COPY

    def was_placed(self, relative: str) -> bool:
        """Tell whether an earlier install of ours put the file there."""
        return relative in self._claimed

    # -- placing -------------------------------------------------------------------------------------------------------

    def bring(self, wanted: Wanted, path: Path) -> LinkKind:
        """Place a file of the vault at ``path``, durably, replacing what is there; give how it was done.

        Raises ``DigestMismatch`` if the vault's blob turns out to be damaged while it is copied, ``EngineRefused`` or ``NoSpace``.
        """
        check_source(wanted)
        with refusals(path), self.on(path.parent) as here:
            temporary = staging_name(here)
            try:
                kind = self._bring(wanted, temporary, path.parent)
                temporary.rename(here / path.name)
                fsio.fsync_directory(here)
            finally:
                # After a rename onto another name of the same inode, both names are still there (rename(2)).
                temporary.unlink(missing_ok=True)
        return kind

    def _bring(self, wanted: Wanted, temporary: Path, directory: Path) -> LinkKind:
        mode = self._mode(wanted)
        reason = hard_link_refused(wanted.source, temporary.parent, self.owner)
        if mode in {LinkMode.AUTO, LinkMode.HARD} and not reason:
            try:
                # Ollama prunes unreferenced blobs by age: the shared inode gets a fresh time before it gets the name.
                os.utime(wanted.source)
                os.link(wanted.source, temporary)
            except OSError as error:
                if error.errno not in fsio.CANNOT_LINK:
                    raise
                reason = (error.strerror or "the file system has no hard links").lower()
            else:
                return LinkKind.HARD
        if mode is LinkMode.HARD:
            raise _no_hard_link(wanted.source, directory, reason or "")
        if mode is not LinkMode.COPY and fsio.reflink(wanted.source, temporary):
            self._adopt(temporary)
            return LinkKind.REFLINK
        if mode is LinkMode.REFLINK:
            raise _no_reflink(directory)
        self._copy(wanted, temporary)
        self._adopt(temporary)
        return LinkKind.COPY

    def _copy(self, wanted: Wanted, temporary: Path) -> None:
        state = hashlib.sha256()
        # Hashing lets go of the interpreter: it keeps a second processor busy while the next block is read and written.
        with ThreadPoolExecutor(1) as beside:
            hashed: Future[None] | None = None

            def note(block: bytes) -> None:
                nonlocal hashed
                if hashed is not None:
                    hashed.result()
                hashed = beside.submit(state.update, block)
                self._request.on_bytes(len(block))

            fsio.copy_bytes(wanted.source, temporary, on_bytes=note)
        if state.hexdigest() != wanted.file.digest.hex:
            raise damaged(wanted)

    def refresh(self, path: Path) -> None:
        """Give a file that was there before a fresh time, so that Ollama's pruning by age spares it."""
        # Somebody else's file keeps its time; should pruning take it, the look after the manifest was written notices.
        with contextlib.suppress(PermissionError):
            os.utime(path, follow_symlinks=False)


def hard_link_refused(source: Path, directory: Path, owner: Owner) -> str | None:
    """Say why a file of the vault cannot be hard-linked into an engine's directory for its owner; ``None`` if it can. Raises ``OSError``."""
    # What comes into the vault later will belong to whom the directory belongs.
    if (source if source.exists() else source.parent).stat().st_uid != owner.uid:
        return "the vault and the engine belong to different users, and a link would share the vault's own file"
    if _mount(source.parent) != _mount(directory):
        return "they lie on different file systems"
    return None


def damaged(wanted: Wanted) -> DigestMismatch:
    """Build the error for a blob of the vault that turned out not to be what its name says while it was read."""
    return DigestMismatch(
        f"{wanted.source}: the vault's copy no longer has the digest {wanted.file.digest}",
        hint="run `modelvault verify`, and pull or import the model again",
        path=str(wanted.source),
    )


def check_source(wanted: Wanted) -> None:
    """Raise ``DigestMismatch`` where the vault lacks a file, or has another size of it."""
    try:
        size = wanted.source.stat().st_size
    except FileNotFoundError as error:
        raise DigestMismatch(
            f"{wanted.file.path} ({wanted.file.digest}) is missing from the vault",
            hint="run `modelvault verify` to see what else is missing, and pull or import the model again",
            path=str(wanted.source),
        ) from error
    if size != wanted.file.size:
        raise DigestMismatch(
            f"{wanted.source} has {size:,} bytes, not {wanted.file.size:,}",
            hint="run `modelvault verify`, and pull or import the model again",
            path=str(wanted.source),
        )


def _no_hard_link(source: Path, directory: Path, reason: str) -> EngineRefused:
    return EngineRefused(
        f"cannot hard-link from {source.parent} into {directory}: {reason}",
        hint="use --link auto, which makes a reflink or a copy instead",
        path=str(directory),
    )


def _no_reflink(directory: Path) -> EngineRefused:
    return EngineRefused(
        f"cannot reflink into {directory}: the file system cannot share blocks with the vault's",
        hint="use --link auto, which copies instead",
        path=str(directory),
    )


def _mount(directory: Path) -> tuple[int, bytes]:
    """Identify the mount that ``directory`` lies on: link(2) refuses to cross bind mounts of one device, too."""
    descriptor = os.open(directory, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        device = os.fstat(descriptor).st_dev
        try:
            lines = Path(f"/proc/self/fdinfo/{descriptor}").read_bytes().splitlines()
        except FileNotFoundError:  # not Linux: the device alone has to do
            lines = []
    finally:
        os.close(descriptor)
    return device, next((line for line in lines if line.startswith(b"mnt_id:")), b"")
