"""The catalogue in a SQL database: SQLAlchemy Core and Alembic, on SQLite or PostgreSQL."""

from errata.adapters.sql.catalogue import SqlCatalogue

__all__ = ["SqlCatalogue"]
