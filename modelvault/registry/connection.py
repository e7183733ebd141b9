"""Connections to the database file: how they are opened, and what SQLite's errors mean to the user."""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, NullPool, QueuePool, create_engine, event
from sqlalchemy.exc import DBAPIError

from modelvault.errors import ModelvaultError, VaultLocked
from modelvault.filesystem import free_space, no_space

WRITE = "modelvault_write"
"""The execution option that makes a transaction take the write lock at once."""

_PRIMARY = 0xFF  # the low byte of an extended result code
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT}
_DENIED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
_FULL = 1 << 16  # bytes; with less free than this an I/O error means a full disk (a quota, or the shared-memory file)


class RegistryDamaged(ModelvaultError):
    """The registry's file is no database, or not one that we wrote. It is derived and can be rebuilt."""

    slug = "registry-damaged"


class RegistryUnreadable(ModelvaultError):
    """The registry cannot be opened or written: permissions, a read-only medium, an I/O error."""

    slug = "registry-unreadable"


def damaged(path: Path, detail: object) -> RegistryDamaged:
    """Build the error for a registry that does not hold what it should."""
    return RegistryDamaged(
        f"the registry {path} is damaged: {detail}",
        hint="modelvault registry rebuild makes it anew from the vault",
        path=str(path),
    )


@dataclass(frozen=True, slots=True)
class Access:
    """How to open the database. ``wait`` is in seconds; ``look``: whoever opens it wants to change nothing, not even what could be mended."""

    path: Path
    wait: float
    network: Callable[[Path], bool]
    look: bool = False

    @property
    def read_only(self) -> bool:
        """Whether this user may only read, as another user's vault or on a read-only mount, or wants to do no more."""
        return self.look or (
            self.path.exists() and not (os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK))
        )

    @property
    def _unlocked(self) -> bool:
        """Whether SQLite has to read without locks: to lock a WAL database it would create files beside it.

        While a -wal file is there, its owner has it open, and the files are there, too.
        """
        return self.read_only and not self.path.with_name(self.path.name + "-wal").exists()

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """Have what is read inside the block count only if nobody wrote the file meanwhile, where no lock keeps them from it."""
        if not self._unlocked:
            yield
            return
        before = self._stamp()
        try:
            yield
        finally:
            if self._stamp() != before:
                raise self._in_use()

    def _stamp(self) -> tuple[int, int, int]:
        status = self.path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _in_use(self) -> VaultLocked:
        return VaultLocked(
            f"the registry {self.path} is in use by another process",
            hint="wait for it to end, or end it, and run the same command again",
            path=str(self.path),
        )

    @property
    def journal_mode(self) -> str:
        """The journal that is safe here: WAL needs memory shared by all processes, which network file systems lack."""
        return "delete" if self.network(self.path) else "wal"

    def connect(self) -> sqlite3.Connection:
        """Open one connection; transactions begin and end only where we say so."""
        mode = "rwc"
        if self.read_only:
            mode = "ro&immutable=1" if self._unlocked else "ro"
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(self.path))}?mode={mode}",
            uri=True,
            timeout=self.wait,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            connection.close()
            raise
        return connection

    def engine(self) -> Engine:
        """Make the pool of connections. Writers take the lock when they begin, so that none fails half way for being late."""
        # A connection that locks nothing never looks whether what it has cached still holds: every query gets a fresh one.
        engine = create_engine("sqlite://", creator=self.connect, poolclass=NullPool if self.read_only else QueuePool)
        event.listen(engine, "begin", _begin)
        return engine

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn SQLite's errors inside the block into ours."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._meaning(error) from error
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                raise self._meaning(error.orig) from error
            raise
        except OverflowError as error:
            raise RegistryUnreadable(
                f"the registry {self.path} cannot hold a number of more than 63 bits", path=str(self.path)
            ) from error

    def _meaning(self, error: sqlite3.Error) -> ModelvaultError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY
        if code in _BUSY:
            return self._in_use()
        full = code == sqlite3.SQLITE_IOERR and free_space(self.path.parent) < _FULL
        if full or code == sqlite3.SQLITE_FULL:
            return no_space(self.path.parent)
        if code in _DAMAGED:
            return damaged(self.path, error)
        hint = "run the command as the vault's owner" if code in _DENIED else "look at the system's log for the disk"
        return RegistryUnreadable(f"the registry {self.path} cannot be used: {error}", hint=hint, path=str(self.path))


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
