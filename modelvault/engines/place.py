"""Placing bytes in an engine's directories: the one helper that all adapters share.

Owner and mode belong to the inode, not to the name. A hard link to a vault's blob whose owner were changed would let the
engine's user rewrite the blob through it. Hence the rule: same owner, hard link; else reflink (a new inode that shares blocks);
else copy. A linked inode is never chowned or chmodded.

An engine's directory may belong to a user who is not trusted while we run as root. So ownership is only ever given through an open
descriptor of a file that we made ourselves and that has no second name, never through a path that could be swapped.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.engines.base import InstallRequest, LinkKind, LinkMode, Owner
from modelvault.engines.ground import in_the_way, keeper, refusals, staging_name, standing_on
from modelvault.errors import DigestMismatch, EngineRefused, ModelvaultError

FILE_MODE = 0o644
DIRECTORY_MODE = 0o755
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file of the vault that an engine shall get: where its bytes are and what they must be."""

    source: Path
    digest: Digest
    size: int


def resolve_owner(directory: Path, requested: Owner | None) -> Owner:
    """Decide who the engine's files shall belong to: as requested, else the owner of the engine's directory.

    Root takes the owner of the nearest directory that exists; another user who makes the directory owns it. Raises ``EngineRefused``
    where only root could give files to that owner.
    """
    uid, gids = os.geteuid(), {os.getegid(), *os.getgroups()}
    if requested is None:
        if uid and not directory.exists():
            return Owner(uid, os.getegid())
        status = fsio.existing_parent(directory).stat()
        group = status.st_gid if uid == 0 or status.st_gid in gids else os.getegid()
        requested = Owner(status.st_uid, group)
    if uid and (requested.uid != uid or requested.gid not in gids):
        raise EngineRefused(
            f"{directory}: its files would have to belong to {requested.uid}:{requested.gid}, which only root can arrange",
            hint=f"run the command as root or as that user, or add --owner {uid}:{os.getegid()} to keep the files yours",
            path=str(directory),
        )
    return requested


class Placer:
    """Puts files into one engine's directory, on behalf of one owner, by one link rule."""

    def __init__(
        self,
        owner: Owner,
        *,
        link: LinkMode = LinkMode.AUTO,
        claimed: Mapping[str, str] | None = None,
        on_bytes: Callable[[int], object] | None = None,
    ) -> None:
        """Remember the owner and the rule; ``claimed`` says how files (by path in the engine's directory) were placed by us before."""
        self._owner = owner
        self._mode = link
        self._on_bytes = on_bytes
        self._claimed = {path: kind for path, kind in (claimed or {}).items() if kind != LinkKind.PRESENT}

    @classmethod
    def of(cls, request: InstallRequest, *, claimed: Mapping[str, str] | None = None) -> Self:
        """Make one for a request; ``claimed`` defaults to what the request's ``previous`` record says.

        Raises ``EngineRefused`` where only root could give files to the owner.
        """
        if claimed is None:
            claimed = {file.path: file.link for file in request.previous.files} if request.previous else {}
        owner = resolve_owner(request.target.directory, request.owner)
        return cls(owner, link=request.link, claimed=claimed, on_bytes=request.on_bytes)

    @classmethod
    def keeping(cls, directory: Path, relative: str) -> Self:
        """Make one that mends ``relative`` in an engine's directory for whom it belongs to."""
        owner = keeper(directory, relative) if os.geteuid() == 0 else None
        return cls(resolve_owner((directory / relative).parent, owner))

    def on(self, directory: Path) -> contextlib.AbstractContextManager[Path]:
        """Hold on to a directory for the owner; see ``standing_on``."""
        return standing_on(directory, self._owner.uid)

    # -- looking -------------------------------------------------------------------------------------------------------

    def predict(self, wanted: Wanted, directory: Path) -> LinkKind:
        """Say how ``bring`` would place a file in ``directory``, which need not exist yet. Nothing on disk changes.

        Nor need the blob be in the vault yet: an import is planned before anything was received.
        """
        if wanted.source.exists():
            _check_source(wanted)
        parent = fsio.existing_parent(directory)
        with refusals(parent):
            reason = self._hard_link_refused(wanted.source, parent)
        if self._mode is LinkMode.HARD and reason:
            raise _no_hard_link(wanted.source, directory, reason)
        if self._mode in {LinkMode.AUTO, LinkMode.HARD} and not reason:
            return LinkKind.HARD
        if self._mode is not LinkMode.COPY and fsio.can_reflink(wanted.source, parent):
            return LinkKind.REFLINK
        if self._mode is LinkMode.REFLINK:
            raise _no_reflink(directory)
        return LinkKind.COPY

    def look(self, path: Path, wanted: Wanted, *, hashed: bool) -> LinkKind | None:
        """Say what is at ``path``: our hard link, the same bytes from elsewhere (``PRESENT``), or nothing (a dangling link too).

        Without ``hashed`` the size alone decides. Raises ``EngineRefused`` for anything else that is in the way.
        """
        received = wanted.source.exists()
        if received:
            _check_source(wanted)
        with refusals(path):
            try:
                status = path.stat()
            except FileNotFoundError:
                return None
            if received and not path.is_symlink() and os.path.samestat(status, wanted.source.stat()):
                return LinkKind.HARD
            if not stat.S_ISREG(status.st_mode) or status.st_size != wanted.size:
                raise in_the_way(path, f"expected {wanted.size:,} bytes, found {status.st_size:,}")
            if hashed and fsio.hash_file(path, self._on_bytes) != wanted.digest:
                raise in_the_way(path, f"its content is not {wanted.digest}")
            return LinkKind.PRESENT

    def standing(self, path: Path, wanted: Wanted, relative: str, *, hashed: bool) -> LinkKind | None:
        """Say how the file at ``path`` got there, if it is right; ``None`` if it has to be brought.

        A wrong file that we placed ourselves is to be replaced; anybody else's raises ``EngineRefused``.
        """
        try:
            kind = self.look(path, wanted, hashed=hashed)
        except EngineRefused:
            if not self.was_placed(relative):
                raise
            return None
        if kind is not LinkKind.PRESENT or not self.was_placed(relative):
            return kind
        recorded = LinkKind(self._claimed[relative])
        # The vault has the blob under another inode by now: what was a link is a copy.
        return LinkKind.COPY if recorded is LinkKind.HARD else recorded

    def was_placed(self, relative: str) -> bool:
        """Tell whether an earlier install of ours put the file there."""
        return relative in self._claimed

    def _hard_link_refused(self, source: Path, directory: Path) -> str | None:
        # What comes into the vault later will belong to whom the directory belongs.
        if (source if source.exists() else source.parent).stat().st_uid != self._owner.uid:
            return "the vault and the engine belong to different users, and a link would share the vault's own file"
        if _mount(source.parent) != _mount(directory):
            return "they lie on different file systems"
        return None

    # -- placing -------------------------------------------------------------------------------------------------------

    def bring(self, wanted: Wanted, path: Path) -> LinkKind:
        """Place a file of the vault at ``path``, durably, replacing what is there; give how it was done.

        Raises ``DigestMismatch`` if the vault's blob turns out to be damaged while it is copied, ``EngineRefused`` or ``NoSpace``.
        """
        _check_source(wanted)
        with refusals(path), self.on(path.parent) as here:
            temporary = staging_name(here)
            try:
                kind = self._bring(wanted, temporary)
                temporary.rename(here / path.name)
                fsio.fsync_directory(here)
            finally:
                # After a rename onto another name of the same inode, both names are still there (rename(2)).
                temporary.unlink(missing_ok=True)
        return kind

    def _bring(self, wanted: Wanted, temporary: Path) -> LinkKind:
        reason = self._hard_link_refused(wanted.source, temporary.parent)
        if self._mode in {LinkMode.AUTO, LinkMode.HARD} and not reason:
            try:
                # Ollama prunes unreferenced blobs by age: the shared inode gets a fresh time before it gets the name.
                os.utime(wanted.source)
                os.link(wanted.source, temporary)
            except OSError as error:
                if error.errno not in _CANNOT_LINK:
                    raise
                reason = (error.strerror or "the file system has no hard links").lower()
            else:
                return LinkKind.HARD
        if self._mode is LinkMode.HARD:
            raise _no_hard_link(wanted.source, temporary.parent, reason or "")
        if self._mode is not LinkMode.COPY and fsio.reflink(wanted.source, temporary):
            self._adopt(temporary)
            return LinkKind.REFLINK
        if self._mode is LinkMode.REFLINK:
            raise _no_reflink(temporary.parent)
        self._copy(wanted, temporary)
        self._adopt(temporary)
        return LinkKind.COPY

    def _copy(self, wanted: Wanted, temporary: Path) -> None:
        state = hashlib.sha256()

        def note(block: bytes) -> None:
            state.update(block)
            if self._on_bytes is not None:
                self._on_bytes(len(block))

        fsio.copy_bytes(wanted.source, temporary, on_bytes=note)
        if state.hexdigest() != wanted.digest.hex:
            raise DigestMismatch(
                f"{wanted.source}: the vault's copy no longer has the digest {wanted.digest}",
                hint="run `modelvault verify`, and pull or import the model again",
                path=str(wanted.source),
            )

    def refresh(self, path: Path) -> None:
        """Give a file that was there before a fresh time, so that Ollama's pruning by age spares it."""
        # Somebody else's file keeps its time; should pruning take it, the look after the manifest was written notices.
        with contextlib.suppress(PermissionError):
            os.utime(path, follow_symlinks=False)

    def _adopt(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._adopt_descriptor(descriptor, path)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _adopt_descriptor(self, descriptor: int, path: Path) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_uid != os.geteuid():
            raise EngineRefused(f"{path} was exchanged while it was being written", path=str(path))
        os.fchmod(descriptor, FILE_MODE)
        if (status.st_uid, status.st_gid) != (self._owner.uid, self._owner.gid):
            os.fchown(descriptor, self._owner.uid, self._owner.gid)

    def write(self, path: Path, data: bytes, *, via: Path | None = None) -> None:
        """Write a small file atomically; ``via`` is the directory of its temporary file where ``path``'s own will not do."""
        with refusals(path), self.on(path.parent) as here, self.on(via or path.parent) as staging:
            temporary = staging_name(staging)
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    fsio.write_all(descriptor, data, 0)
                    self._adopt_descriptor(descriptor, temporary)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                temporary.rename(here / path.name)
                fsio.fsync_directory(here)
            finally:
                temporary.unlink(missing_ok=True)

    def symlink(self, target: str, path: Path, *, via: Path) -> None:
        """Make a symbolic link that belongs to the owner, by way of a temporary one in ``via``; replaces what is there."""
        with refusals(path), self.on(path.parent) as here, self.on(via) as staging:
            temporary = staging_name(staging)
            try:
                temporary.symlink_to(target)
                if os.geteuid() == 0:
                    os.lchown(temporary, self._owner.uid, self._owner.gid)
                temporary.rename(here / path.name)
                fsio.fsync_directory(here)
            finally:
                temporary.unlink(missing_ok=True)

    def make_directories(self, path: Path) -> None:
        """Make ``path`` and what is missing above it, readable for all, belonging to the owner."""
        missing = []
        with refusals(path):
            while not path.exists():
                missing.append(path)
                path = path.parent
            for made in reversed(missing):
                self._make_directory(made)

    def _make_directory(self, path: Path) -> None:
        with self.on(path.parent) as here:
            directory = here / path.name
            directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # The umask may have taken bits away that the engine's user needs.
                os.fchmod(descriptor, DIRECTORY_MODE)
                if os.geteuid() == 0:
                    os.fchown(descriptor, self._owner.uid, self._owner.gid)
            finally:
                os.close(descriptor)
            fsio.fsync_directory(here)


def _check_source(wanted: Wanted) -> None:
    try:
        size = wanted.source.stat().st_size
    except FileNotFoundError as error:
        raise ModelvaultError(
            f"{wanted.digest} is missing from the vault", hint="run `modelvault verify` to see what else is missing"
        ) from error
    if size != wanted.size:
        raise DigestMismatch(
            f"{wanted.source} has {size:,} bytes, not {wanted.size:,}",
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
