"""Smoke tests of installs."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TEXTS = ("engine", "directory", "model", "manifest", "installed_name", "outcome")
_OTHERS = ("address", "detail", "first_token", "rate")


def upgrade() -> None:
    """Create the table, and fill it from events that an older version mirrored without understanding them."""
    op.create_table(
        "smokes",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("directory", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("installed_name", sa.Text(), nullable=False),
        sa.Column("address", sa.Text()),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text()),
        sa.Column("first_token", sa.REAL()),
        sa.Column("rate", sa.REAL()),
        sa.Column("smoked_at", sa.Text(), nullable=False),
    )
    op.create_index("ix_smokes_install", "smokes", ["engine", "directory", "installed_name"])
    connection = op.get_bind()
    mirrored = connection.execute(sa.text("SELECT time, data FROM events WHERE kind = 'smoke' ORDER BY number"))
    rows = [_row(json.loads(data), when) for when, data in mirrored]
    if rows:
        names = (*_TEXTS, *_OTHERS, "smoked_at")
        op.bulk_insert(sa.table("smokes", *(sa.column(name) for name in names)), rows)


def _row(data: dict[str, Any], when: str) -> dict[str, Any]:
    """Lay an event out as a row; what UTF-8 cannot hold is escaped, as in all tables."""
    row = {name: data.get(name) for name in (*_TEXTS, *_OTHERS)} | {"smoked_at": when}
    return {
        name: value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value
        for name, value in row.items()
    }
