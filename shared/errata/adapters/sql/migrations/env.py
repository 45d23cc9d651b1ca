"""Run by Alembic: migrates the connection it is given, inside the caller's transaction."""

from alembic import context

from errata.adapters.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
