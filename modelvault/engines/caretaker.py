"""Working in an engine's directory for whom it belongs to.

The directory may belong to a user who is not trusted while we run as root. So ownership is only ever given through an open
descriptor of a file that we made ourselves and that has no second name, never through a path that could be swapped.
"""

import contextlib
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Self

from modelvault import filesystem, fsio
from modelvault.engines.base import Owner
from modelvault.engines.ground import keeper, refusals, staging_name, standing_on
from modelvault.errors import EngineRefused

FILE_MODE = 0o644
DIRECTORY_MODE = 0o755


def resolve_owner(directory: Path, requested: Owner | None) -> Owner:
    """Decide who the engine's files shall belong to: as requested, else the owner of the engine's directory.

    Root takes the owner of the nearest directory that exists; another user who makes the directory owns it. Raises ``EngineRefused``
    where only root could give files to that owner.
    """
    uid, gids = os.geteuid(), {os.getegid(), *os.getgroups()}
    if requested is None:
        if uid and not directory.exists():
            return Owner(uid, os.getegid())
        status = filesystem.existing_parent(directory).stat()
        group = status.st_gid if uid == 0 or status.st_gid in gids else os.getegid()
        requested = Owner(status.st_uid, group)
    if uid and (requested.uid != uid or requested.gid not in gids):
        raise EngineRefused(
            f"{directory}: its files would have to belong to {requested.uid}:{requested.gid}, which only root can arrange",
            hint=f"run the command as root or as that user, or add --owner {uid}:{os.getegid()} to keep the files yours",
            path=str(directory),
        )
    return requested


def readable(status: os.stat_result, owner: Owner) -> bool:
    """Tell by its mode whether a file can be read by the user whom an engine's files belong to, in whichever of the user's groups."""
    if owner.uid in {0, status.st_uid}:
        return owner.uid == 0 or bool(status.st_mode & stat.S_IRUSR)
    try:
        groups = os.getgrouplist(pwd.getpwuid(owner.uid).pw_name, owner.gid)
    except KeyError:
        groups = [owner.gid]
    return bool(status.st_mode & (stat.S_IRGRP if status.st_gid in groups else stat.S_IROTH))


class Caretaker:
    """Makes files, links and directories that belong to one owner."""

    def __init__(self, owner: Owner) -> None:
        """Remember whom to work for."""
        self.owner = owner

    @classmethod
    def keeping(cls, directory: Path, relative: str) -> Self:
        """Make one that mends ``relative`` in an engine's directory for whom it belongs to."""
        owner = keeper(directory, relative) if os.geteuid() == 0 else None
        return cls(resolve_owner((directory / relative).parent, owner))

    def on(self, directory: Path) -> contextlib.AbstractContextManager[Path]:
        """Hold on to a directory for the owner; see ``standing_on``."""
        return standing_on(directory, self.owner.uid)

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

    def make(self, directory: Path, fill: Callable[[Path], str]) -> str:
        """Have ``fill`` write a large file under a temporary name in ``directory``; it gives the name by which the file is kept."""
        with refusals(directory), self.on(directory) as here:
            temporary = staging_name(here)
            try:
                name = fill(temporary)
                self._adopt(temporary)
                temporary.rename(here / name)
                fsio.fsync_directory(here)
            finally:
                temporary.unlink(missing_ok=True)
        return name

    def symlink(self, target: str, path: Path, *, via: Path) -> None:
        """Make a symbolic link that belongs to the owner, by way of a temporary one in ``via``; replaces what is there."""
        with refusals(path), self.on(path.parent) as here, self.on(via) as staging:
            temporary = staging_name(staging)
            try:
                temporary.symlink_to(target)
                if os.geteuid() == 0:
                    os.lchown(temporary, self.owner.uid, self.owner.gid)
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
                    os.fchown(descriptor, self.owner.uid, self.owner.gid)
            finally:
                os.close(descriptor)
            fsio.fsync_directory(here)

    def _adopt(self, path: Path) -> None:
        """Give a file that we made to the owner, durably."""
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
        if (status.st_uid, status.st_gid) != (self.owner.uid, self.owner.gid):
            os.fchown(descriptor, self.owner.uid, self.owner.gid)
