"""The catalogue in a SQL database: SQLAlchemy Core and Alembic, on SQLite or PostgreSQL."""

from errata.adapters.sql.catalogue import SqlCatalogue
from errata.adapters.sql.leader import PostgresLeaderLock

__all__ = ["PostgresLeaderLock", "SqlCatalogue"]
