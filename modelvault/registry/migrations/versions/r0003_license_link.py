"""The address of a license's text, as the source states it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; models that are there already have none until they are pulled again."""
    with op.batch_alter_table("models", recreate="always") as batch:
        batch.add_column(sa.Column("license_link", sa.Text()))
