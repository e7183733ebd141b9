"""What Alembic runs for every command; the connection comes from ``modelvault.registry.migrate``, already in a transaction."""

from alembic import context

from modelvault.registry.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite can roll back DDL, and our connections begin transactions themselves; Alembic would not expect it.
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
