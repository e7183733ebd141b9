"""The tables of the registry, as SQLAlchemy sees them. ``docs/reference/registry.md`` says what each column means.

Natural keys throughout (a model's name, a blob's digest), so that ``sqlite3`` on the command line needs few joins. What is history
(checks, bundles, installs, smokes, events) refers to models by name without a foreign key: it outlives them.
"""

from sqlalchemy import REAL, CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, Text, TypeDecorator, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

REVISIONS = ("0001", "0002", "0003")
"""Every schema this version knows, oldest first: the revisions in ``migrations/versions``."""

HEAD = REVISIONS[-1]

APPLICATION_ID = 0x4D56_4C54
"""``PRAGMA application_id`` of a registry: ``MVLT``."""


class SafeText(TypeDecorator[str]):
    """Text in which what UTF-8 cannot hold (a directory name in another encoding) is written as an escape.

    SQLite would refuse it, and one odd directory must not keep an install from being recorded.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 (SQLAlchemy's signature)
        """Escape lone surrogates on the way in; queries pass through here too, so they match."""
        return None if value is None else value.encode("utf-8", "backslashreplace").decode("utf-8")


class Base(DeclarativeBase):
    """The base of all tables."""

    type_annotation_map = {str: SafeText}  # noqa: RUF012 (SQLAlchemy's way to set it)


class ModelTable(Base):
    """The models that the vault holds."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(primary_key=True)
    manifest: Mapped[str]
    manifest_size: Mapped[int]
    source_kind: Mapped[str]
    source_repository: Mapped[str | None]
    source_commit: Mapped[str | None]
    license: Mapped[str | None]
    format: Mapped[str]
    architecture: Mapped[str | None]
    quantization: Mapped[str | None]
    parameters: Mapped[int | None]
    context_length: Mapped[int | None]
    size: Mapped[int]
    recipe: Mapped[str | None]
    published_at: Mapped[str]
    license_link: Mapped[str | None]

    files: Mapped[list["FileTable"]] = relationship(order_by="FileTable.path", passive_deletes=True)


class BlobTable(Base):
    """The blobs that files of models consist of."""

    __tablename__ = "blobs"

    digest: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]


class FileTable(Base):
    """The files of the models, with what a weight file says about itself."""

    __tablename__ = "files"

    model: Mapped[str] = mapped_column(ForeignKey("models.name", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)
    upstream: Mapped[str | None]
    format: Mapped[str | None]
    architecture: Mapped[str | None]
    quantization: Mapped[str | None]
    tensors: Mapped[int | None]
    parameters: Mapped[int | None]
    warnings: Mapped[str | None]


class MetadataTable(Base):
    """The metadata keys of weight files: scalars as text, arrays by element type, length and digest."""

    __tablename__ = "metadata"
    __table_args__ = (
        ForeignKeyConstraint(["model", "path"], ["files.model", "files.path"], ondelete="CASCADE"),
        Index("ix_metadata_key", "key"),
    )

    model: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    value: Mapped[str | None]
    array_element: Mapped[str | None]
    array_length: Mapped[int | None]
    array_digest: Mapped[str | None]


class CheckTable(Base):
    """When a model was hashed again, and what came of it."""

    __tablename__ = "checks"
    __table_args__ = (Index("ix_checks_model", "model", "checked_at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str]
    checked_at: Mapped[str]
    outcome: Mapped[str]
    detail: Mapped[str | None]


class BundleTable(Base):
    """Bundles that were written here or completely imported here."""

    __tablename__ = "bundles"
    __table_args__ = (
        CheckConstraint("direction IN ('written', 'imported')", name="ck_bundles_direction"),
        Index("ix_bundles_sequence", "direction", "key_fingerprint", "label", "sequence"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    direction: Mapped[str]
    index_digest: Mapped[str]
    label: Mapped[str]
    sequence: Mapped[int]
    key_fingerprint: Mapped[str | None]
    path: Mapped[str | None]
    models: Mapped[str]
    recorded_at: Mapped[str]


class InstallTable(Base):
    """What was installed into which engine, and when it was removed again."""

    __tablename__ = "installs"
    __table_args__ = (
        # One model at a time has a name in an engine's directory; those removed stay as history.
        Index(
            "ux_installs_present",
            "engine",
            "directory",
            "installed_name",
            unique=True,
            sqlite_where=text("removed_at IS NULL"),
        ),
        Index("ix_installs_model", "model"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    engine: Mapped[str]
    directory: Mapped[str]
    model: Mapped[str]
    manifest: Mapped[str]
    installed_name: Mapped[str]
    record: Mapped[str]
    installed_at: Mapped[str]
    removed_at: Mapped[str | None]


class SmokeTable(Base):
    """When an installed model was tried out in its engine, and what came of it."""

    __tablename__ = "smokes"
    __table_args__ = (Index("ix_smokes_install", "engine", "directory", "installed_name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    engine: Mapped[str]
    directory: Mapped[str]
    model: Mapped[str]
    manifest: Mapped[str]
    installed_name: Mapped[str]
    address: Mapped[str | None]
    outcome: Mapped[str]
    detail: Mapped[str | None]
    first_token: Mapped[float | None] = mapped_column(REAL)
    rate: Mapped[float | None] = mapped_column(REAL)
    smoked_at: Mapped[str]


class EventTable(Base):
    """The event log, mirrored so that it can be queried."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_kind", "kind"),)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    time: Mapped[str]
    kind: Mapped[str]
    data: Mapped[str]
