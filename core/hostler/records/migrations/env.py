"""Alembic's entry: runs the scripts on the connection, and in the transaction, that records/upgrade.py hands over."""

from alembic import context

from hostler.records.revisions import VERSION_TABLE
from hostler.records.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # SQLite changes tables in a transaction as well as PostgreSQL does; Alembic assumes the driver's old habits.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
