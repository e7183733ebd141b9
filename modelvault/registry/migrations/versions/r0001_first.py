"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPLICATION_ID = 0x4D56_4C54  # "MVLT"


def upgrade() -> None:
    """Create all tables."""
    op.execute(f"PRAGMA application_id={APPLICATION_ID}")
    _create_models()
    _create_history()


def _create_models() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("manifest_size", sa.Integer(), nullable=False),
        sa.Column("source_kind", sa.Text(), nullable=False),
        sa.Column("source_repository", sa.Text()),
        sa.Column("source_commit", sa.Text()),
        sa.Column("license", sa.Text()),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("architecture", sa.Text()),
        sa.Column("quantization", sa.Text()),
        sa.Column("parameters", sa.Integer()),
        sa.Column("context_length", sa.Integer()),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("recipe", sa.Text()),
        sa.Column("published_at", sa.Text(), nullable=False),
    )
    op.create_table(
        "blobs",
        sa.Column("digest", sa.Text(), primary_key=True),
        sa.Column("size", sa.Integer(), nullable=False),
    )
    op.create_table(
        "files",
        sa.Column("model", sa.Text(), sa.ForeignKey("models.name", ondelete="CASCADE"), primary_key=True),
        sa.Column("path", sa.Text(), primary_key=True),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), sa.ForeignKey("blobs.digest"), nullable=False),
        sa.Column("upstream", sa.Text()),
        sa.Column("format", sa.Text()),
        sa.Column("architecture", sa.Text()),
        sa.Column("quantization", sa.Text()),
        sa.Column("tensors", sa.Integer()),
        sa.Column("parameters", sa.Integer()),
        sa.Column("warnings", sa.Text()),
    )
    op.create_index("ix_files_digest", "files", ["digest"])
    op.create_table(
        "metadata",
        sa.Column("model", sa.Text(), primary_key=True),
        sa.Column("path", sa.Text(), primary_key=True),
        sa.Column("key", sa.Text(), primary_key=True),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("value", sa.Text()),
        sa.Column("array_element", sa.Text()),
        sa.Column("array_length", sa.Integer()),
        sa.Column("array_digest", sa.Text()),
        sa.ForeignKeyConstraint(["model", "path"], ["files.model", "files.path"], ondelete="CASCADE"),
    )
    op.create_index("ix_metadata_key", "metadata", ["key"])


def _create_history() -> None:
    op.create_table(
        "checks",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("checked_at", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text()),
    )
    op.create_index("ix_checks_model", "checks", ["model", "checked_at"])
    op.create_table(
        "bundles",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("direction", sa.Text(), nullable=False),
        sa.Column("index_digest", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("key_fingerprint", sa.Text()),
        sa.Column("path", sa.Text()),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.Text(), nullable=False),
        sa.CheckConstraint("direction IN ('written', 'imported')", name="ck_bundles_direction"),
    )
    op.create_index("ix_bundles_sequence", "bundles", ["direction", "key_fingerprint", "label", "sequence"])
    op.create_table(
        "installs",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("installed_name", sa.Text(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("installed_at", sa.Text(), nullable=False),
        sa.Column("removed_at", sa.Text()),
    )
    op.create_index(
        "ux_installs_present",
        "installs",
        ["engine", "directory", "installed_name"],
        unique=True,
        sqlite_where=sa.text("removed_at IS NULL"),
    )
    op.create_index("ix_installs_model", "installs", ["model"])
    op.create_table(
        "events",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("time", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
    )
    op.create_index("ix_events_kind", "events", ["kind"])
