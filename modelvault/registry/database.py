"""The registry: one object over the database file, values in and values out, one transaction per call."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session, selectinload

from modelvault.artifact import Digest, FileReport, ModelName, StoredModel
from modelvault.errors import ModelvaultError
from modelvault.filesystem import on_network_file_system
from modelvault.fsio import fsync_directory, temporary_beside
from modelvault.registry import convert, replay
from modelvault.registry.connection import WRITE, Access, damaged
from modelvault.registry.migrate import prepare
from modelvault.registry.rows import (
    AcceptanceRow,
    BundleRow,
    CheckRow,
    Direction,
    InstallRow,
    MetadataRow,
    ModelRow,
    PublishedRow,
    SmokeRow,
)
from modelvault.registry.schema import (
    BlobTable,
    BundleTable,
    CheckTable,
    EventTable,
    FileTable,
    InstallTable,
    MetadataTable,
    ModelTable,
    SmokeTable,
)


class Registry:
    """The registry of one vault. Every method may raise ``VaultLocked``, ``NoSpace``, ``RegistryDamaged``, ``RegistryUnreadable``."""

    def __init__(self, access: Access) -> None:
        """Use ``Registry.open``."""
        self._access = access
        self._engine = access.engine()
        self._writer = self._engine.execution_options(**{WRITE: True})

    @classmethod
    def open(cls, path: Path, *, wait: float = 10.0, network: Callable[[Path], bool] = on_network_file_system) -> Self:
        """Open the registry, made if it is not there and migrated if it is older; read-only where this user may only read.

        ``wait`` is how many seconds a call waits for another process; ``network`` tells whether a path lies on a network file
        system. Raises ``UsageProblem`` if a newer modelvault wrote it.
        """
        access = Access(path, wait, network)
        prepare(access)
        return cls(access)

    @classmethod
    def look(cls, path: Path, *, wait: float = 10.0, network: Callable[[Path], bool] = on_network_file_system) -> Self:
        """Open a registry that is there to look at it: nothing is made, migrated or written.

        Raises ``UsageProblem`` if a newer modelvault wrote it, ``RegistryUnreadable`` if an older one did.
        """
        access = Access(path, wait, network, look=True)
        prepare(access)
        return cls(access)

    @classmethod
    @contextlib.contextmanager
    def rebuild(cls, path: Path, *, network: Callable[[Path], bool] = on_network_file_system) -> Iterator["Registry"]:
        """Fill an empty registry beside ``path``; it takes the place of the old one, whatever that was, when the block succeeds.

        The caller keeps other processes out (the vault's lock): what they write to the old file meanwhile is lost.
        """
        temporary = temporary_beside(path)
        try:
            with cls.open(temporary, network=network) as registry:
                yield registry
            # A journal that survived the old database would be replayed into the new one.
            for suffix in ("-wal", "-shm", "-journal"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            temporary.rename(path)
            fsync_directory(path.parent)
        finally:
            for name in (
                *(temporary.name + suffix for suffix in ("", "-wal", "-shm", "-journal")),
                f".{temporary.name}.lock",
            ):
                temporary.with_name(name).unlink(missing_ok=True)

    @property
    def path(self) -> Path:
        """The database file."""
        return self._access.path

    @property
    def read_only(self) -> bool:
        """Whether this user may only read it."""
        return self._access.read_only

    def close(self) -> None:
        """Close all connections; the last process to do so folds the write-ahead log into the database."""
        with self._access.errors():
            self._engine.dispose()

    def __enter__(self) -> Self:
        """Give the registry itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Session]:
        """Run a block in one transaction that holds the write lock from its beginning."""
        with self._access.errors(), Session(self._writer) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Session]:
        """Run a block of queries that see one state of the database; what they find must be what we would write."""
        with self._access.steady(), self._access.errors(), Session(self._engine) as session:
            try:
                yield session
            except (ValueError, TypeError, ModelvaultError) as error:
                raise damaged(self.path, error) from error

    # ── models ──

    def record_model(self, stored: StoredModel, reports: Mapping[str, FileReport], published_at: str) -> None:
        """Record a model, in place of one of the same name. ``reports`` are by path, for the weight files; the time is UTC."""
        model = stored.model
        unknown = sorted(set(reports) - {file.path for file in model.files})
        if unknown:
            raise ValueError(f"reports of files that {model.name} does not have: {', '.join(unknown)}")
        blobs = [{"digest": str(file.digest), "size": file.size} for file in model.files]
        files = [convert.file_values(model.name, file, reports.get(file.path)) for file in model.files]
        metadata = [
            row for path, report in sorted(reports.items()) for row in convert.metadata_values(model.name, path, report)
        ]
        with self._writing() as session:
            session.execute(delete(ModelTable).where(ModelTable.name == model.name.text))
            session.execute(insert(ModelTable), [convert.model_values(stored, published_at)])
            for table, rows in ((BlobTable, blobs), (FileTable, files), (MetadataTable, metadata)):
                if rows:
                    # Two files, or two models, may have the same blob; nothing else here is there already.
                    session.execute(insert(table).on_conflict_do_nothing(), rows)
            _forget_orphans(session)

    def forget_model(self, name: ModelName) -> None:
        """Forget a model, its files and the blobs that no other model has; its history stays. Unknown names are no error."""
        with self._writing() as session:
            session.execute(delete(ModelTable).where(ModelTable.name == name.text))
            _forget_orphans(session)

    def models(self) -> tuple[ModelRow, ...]:
        """Give all models, by name."""
        query = select(ModelTable).options(selectinload(ModelTable.files)).order_by(ModelTable.name)
        with self._reading() as session:
            return tuple(convert.model_row(row) for row in session.scalars(query))

    def model(self, name: ModelName) -> ModelRow | None:
        """Give one model, or ``None`` if there is none of that name."""
        query = select(ModelTable).options(selectinload(ModelTable.files)).where(ModelTable.name == name.text)
        with self._reading() as session:
            row = session.scalar(query)
            return None if row is None else convert.model_row(row)

    def metadata(self, name: ModelName) -> tuple[MetadataRow, ...]:
        """Give every metadata key of a model's weight files, by path and key."""
        query = (
            select(MetadataTable)
            .where(MetadataTable.model == name.text)
            .order_by(MetadataTable.path, MetadataTable.key)
        )
        with self._reading() as session:
            return tuple(convert.metadata_row(row) for row in session.scalars(query))

    # ── history ──

    @contextlib.contextmanager
    def history(self) -> Iterator[replay.History]:
        """Change the history, in one transaction that holds the write lock from its beginning.

        An event is logged and applied within it, so that of several processes none applies its own before an older one.
        """
        with self._writing() as session:
            yield replay.History(session)

    def ends_with(self, event: replay.LoggedEvent | None) -> bool:
        """Whether this, the log's last event, is the newest that was applied."""
        with self._reading() as session:
            return replay.History(session).ends_with(event)

    @property
    def last_event(self) -> int:
        """The number of the newest event that was applied; 0: none."""
        with self._reading() as session:
            return replay.History(session).last

    def checks(self, name: ModelName) -> tuple[CheckRow, ...]:
        """Give the checks of a model, the newest first."""
        query = select(CheckTable).where(CheckTable.model == name.text)
        with self._reading() as session:
            rows = session.scalars(query.order_by(CheckTable.checked_at.desc(), CheckTable.id.desc()))
            return tuple(convert.check_row(row) for row in rows)

    def acceptances(self) -> tuple[AcceptanceRow, ...]:
        """Give the licenses that were accepted, the newest first."""
        query = select(EventTable).where(EventTable.kind == "license-accepted").order_by(EventTable.number.desc())
        with self._reading() as session:
            return tuple(convert.acceptance_row(row) for row in session.scalars(query))

    def published(self, name: ModelName, manifest: Digest) -> PublishedRow | None:
        """Say how a model came to be listed as it is now; ``None`` where the log does not say."""
        query = (
            select(EventTable)
            .where(
                EventTable.kind == "model-published",
                func.json_extract(EventTable.data, "$.model") == name.text,
                func.json_extract(EventTable.data, "$.manifest") == str(manifest),
            )
            .order_by(EventTable.number.desc())
            .limit(1)
        )
        with self._reading() as session:
            row = session.scalars(query).first()
            return convert.published_row(row) if row is not None else None

    def bundles(self) -> tuple[BundleRow, ...]:
        """Give the bundles written and imported, in the order recorded."""
        with self._reading() as session:
            return tuple(
                convert.bundle_row(row) for row in session.scalars(select(BundleTable).order_by(BundleTable.id))
            )

    def last_sequence(self, key_fingerprint: str, label: str, direction: Direction) -> int | None:
        """Give the newest sequence that was written (or completely imported) under a key and label."""
        query = select(func.max(BundleTable.sequence)).where(
            BundleTable.key_fingerprint == key_fingerprint,
            BundleTable.label == label,
            BundleTable.direction == direction,
        )
        with self._reading() as session:
            return session.scalar(query)

    def installs(self, model: ModelName | None = None, *, removed: bool = False) -> tuple[InstallRow, ...]:
        """Give what is installed, of one model or all, in the order recorded; with ``removed``, also what was."""
        query = select(InstallTable).order_by(InstallTable.id)
        if model is not None:
            query = query.where(InstallTable.model == model.text)
        if not removed:
            query = query.where(InstallTable.removed_at.is_(None))
        with self._reading() as session:
            return tuple(convert.install_row(row) for row in session.scalars(query))

    def smokes(self, model: ModelName | None = None) -> tuple[SmokeRow, ...]:
        """Give the smoke tests of one model's installs or of all, the newest first."""
        query = select(SmokeTable).order_by(SmokeTable.id.desc())
        if model is not None:
            query = query.where(SmokeTable.model == model.text)
        with self._reading() as session:
            return tuple(convert.smoke_row(row) for row in session.scalars(query))


def _forget_orphans(session: Session) -> None:
    """Remove the blobs that no file refers to."""
    used = select(FileTable.digest)
    session.execute(delete(BlobTable).where(BlobTable.digest.not_in(used)).execution_options(synchronize_session=False))
