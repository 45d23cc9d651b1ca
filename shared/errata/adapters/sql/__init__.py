"""The catalogue in a SQL database: SQLAlchemy Core and Alembic, SQLite now; nothing in it is SQLite's alone."""

from errata.adapters.sql.catalogue import SqlCatalogue

__all__ = ["SqlCatalogue"]
