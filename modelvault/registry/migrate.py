"""Bring a database to this version's schema, or refuse one that is newer.

A new one gets the schema at once, and says so as Alembic does; Alembic itself is imported only where an older one has to be migrated.
"""

import contextlib
import sqlite3
from pathlib import Path

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from modelvault.errors import UsageProblem
from modelvault.filesystem import no_space_at
from modelvault.locks import FileLock
from modelvault.registry.connection import WRITE, Access, RegistryUnreadable, damaged
from modelvault.registry.schema import APPLICATION_ID, HEAD, REVISIONS, Base

_MIGRATIONS = Path(__file__).with_name("migrations")


def prepare(access: Access) -> None:
    """Create or migrate the database and set its journal mode, where either is needed.

    Raises ``UsageProblem`` for a newer schema, ``RegistryDamaged`` for a foreign database, ``RegistryUnreadable`` for an older
    schema that this user may not write, and what ``Access.errors`` makes of SQLite's.
    """
    with access.errors():
        if _ready(access):
            return
        if access.read_only:
            raise RegistryUnreadable(
                f"the registry {access.path} was written by an older modelvault and has to be brought up to date",
                hint="run any modelvault command once as the vault's owner",
                path=str(access.path),
            )
        access.path.parent.mkdir(parents=True, exist_ok=True)
        lock = access.path.with_name(f".{access.path.name}.lock")
        with (
            no_space_at(access.path.parent),
            FileLock(lock, wait=access.wait, what=f"the registry {access.path}"),
        ):
            if not _ready(access):
                _upgrade(access)


def _ready(access: Access) -> bool:
    """Whether there is nothing to do."""
    if not access.path.exists() or access.path.stat().st_size == 0:
        return False
    with contextlib.closing(access.connect()) as connection:
        revision = _revision(access.path, connection)
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    return revision == HEAD and (mode == access.journal_mode or access.read_only)


def _revision(path: Path, connection: sqlite3.Connection) -> str | None:
    """Read which schema the database has; ``None`` for an empty one."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables == 0:
        return None
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise damaged(path, "it is some other program's database")
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    if row is None:
        raise damaged(path, "it does not say which schema it has")
    revision = str(row[0])
    if revision not in REVISIONS:
        raise UsageProblem(
            f"the registry {path} was written by a newer modelvault (schema {revision}, this one knows {HEAD})",
            hint="use the newer version, or make the registry anew with: modelvault registry rebuild",
            path=str(path),
            schema=revision,
        )
    return revision


def _upgrade(access: Access) -> None:
    with contextlib.closing(access.connect()) as connection:
        revision = _revision(access.path, connection)
        connection.execute(f"PRAGMA journal_mode={access.journal_mode}")
    if revision is None:
        _create(access)
    elif revision != HEAD:
        engine = access.engine()
        event.listen(engine, "connect", _without_foreign_keys)
        try:
            run_migrations(engine, access.path, HEAD)
        finally:
            engine.dispose()


def _create(access: Access) -> None:
    """Make all tables as they are declared, which is what all migrations lead to."""
    engine = access.engine()
    try:
        with engine.connect().execution_options(**{WRITE: True}) as connection, connection.begin():
            connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
            Base.metadata.create_all(connection)
            connection.exec_driver_sql(
                "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
            )
            connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (HEAD,))
    finally:
        engine.dispose()


def _without_foreign_keys(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    """Let migrations rebuild a table without emptying those that refer to it; possible only outside a transaction."""
    connection.cursor().execute("PRAGMA foreign_keys=OFF")


def run_migrations(engine: Engine, path: Path, revision: str) -> None:
    """Run the migrations up to ``revision``: all of them and their record in one transaction, or none."""
    from alembic import command  # noqa: PLC0415 (an eighth of a second that an up-to-date registry need not pay)
    from alembic.config import Config  # noqa: PLC0415 (as above)

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with engine.connect().execution_options(**{WRITE: True}) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken is not None:
            raise damaged(path, f"a migration left a reference from {broken[0]} to nothing")
