"""Where SQLite and PostgreSQL part: how each is opened, what its writes and migrations wait for, who may do what."""

import sqlite3
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, Table, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError

from errata.adapters.sql import tables
from errata.errors import Misconfigured

SQLITE, POSTGRESQL = "sqlite", "postgresql"
WRITES = "errata_writes"  # the execution option of a transaction that will write

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 30
LOCK_TIMEOUT_S = 10
IDLE_TIMEOUT_S = 60  # in a transaction: a frozen writer must not hold its rows for ever
MIGRATION_LOCK_TIMEOUT_S = 300
_MIGRATION_LOCK = 0x6572726174610001  # ours alone, in the database that is migrated
_OLDEST_POSTGRESQL = 13
_TURNS_TO_WAL = 100  # two meet once or twice: each waits for the other, and one of them has turned it then

_URL = "catalogue url: write one that begins with sqlite: or postgresql:"
_PSYCOPG = "postgresql+psycopg"
_DRIVERS = {"sqlite": SQLITE, "postgres": _PSYCOPG, "postgresql": _PSYCOPG, _PSYCOPG: _PSYCOPG}

# What the writer and the commands for people do, and no more. Revisions and dead letters are only ever added.
GRANTS = {
    tables.failure_case.name: "SELECT, INSERT, UPDATE",
    tables.case_tag.name: "SELECT, INSERT, DELETE",
    tables.case_revision.name: "SELECT, INSERT",
    tables.case_edit.name: "SELECT, INSERT, UPDATE",
    tables.consumer_position.name: "SELECT, INSERT, UPDATE",
    tables.short_id_counter.name: "SELECT, INSERT, UPDATE",
    tables.dead_letter.name: "SELECT, INSERT",
    tables.CASE_OVERVIEW: "SELECT",
    "alembic_version": "SELECT",
}


def open_engine(url: str | sa.URL, service: str, busy_timeout_s: float) -> Engine:
    """The engine of a URL as libpq or SQLAlchemy writes it. No error holds the URL: there may be a password in it."""
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number, which quotes what stands there
        raise Misconfigured(_URL) from None
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise Misconfigured(_URL)
    parsed = parsed.set(drivername=driver)
    return _sqlite(parsed, busy_timeout_s) if driver == SQLITE else _postgresql(parsed, service)


def insert(connection: Connection, table: Table) -> Any:
    """An INSERT that knows ON CONFLICT."""
    return postgresql.insert(table) if is_postgresql(connection) else sqlite.insert(table)


def is_postgresql(connection: Connection) -> bool:
    return connection.dialect.name == POSTGRESQL


def lock_migrations(connection: Connection) -> None:
    """Wait until nobody else migrates; held to the end of the transaction. SQLite's BEGIN has done that already."""
    if not is_postgresql(connection):
        return
    for statement in (
        "SET LOCAL statement_timeout = 0",  # an index of many rows takes as long as it takes
        f"SET LOCAL lock_timeout = '{MIGRATION_LOCK_TIMEOUT_S}s'",
        f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})",
    ):
        connection.execute(sa.text(statement))
    version, encoding = connection.execute(
        sa.text("SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding')")
    ).one()
    if version < _OLDEST_POSTGRESQL:
        raise Misconfigured(f"catalogue: PostgreSQL {version} is too old; use {_OLDEST_POSTGRESQL} or newer")
    if encoding != "UTF8":
        raise Misconfigured(f"catalogue: the database's encoding is {encoding}; make it with ENCODING 'UTF8'")


def grant(connection: Connection, role: str) -> None:
    """Give a role of PostgreSQL what a writer needs; the role has to be there."""
    if not is_postgresql(connection):
        raise Misconfigured("--grant-to: SQLite has no roles; leave it out")
    known = connection.execute(sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}).first()
    if known is None:
        raise Misconfigured("--grant-to: the server has no such role; deploy/postgres/roles.sql makes two")
    quoted = connection.dialect.identifier_preparer.quote_identifier
    for table, rights in GRANTS.items():
        for statement in (f"REVOKE ALL ON {quoted(table)} FROM", f"GRANT {rights} ON {quoted(table)} TO"):
            connection.execute(sa.text(f"{statement} {quoted(role)}".replace(":", r"\:")))
        for right in rights.split(", "):  # a GRANT of somebody who may not is only a warning
            asked = sa.func.has_table_privilege(role, table, right)
            if not connection.execute(sa.select(asked)).scalar_one():
                raise Misconfigured("--grant-to: this user may not grant; use the URL of the role that owns the tables")


def _postgresql(url: sa.URL, service: str) -> Engine:
    """One connection and one to spare. It is asked before each use, so that a restarted server is not noticed.

    What the URL says of a connection wins over what stands here.
    """
    limits = {
        "statement_timeout": STATEMENT_TIMEOUT_S,
        "lock_timeout": LOCK_TIMEOUT_S,
        "idle_in_transaction_session_timeout": IDLE_TIMEOUT_S,
    }
    options = " ".join(f"-c {name}={seconds}s" for name, seconds in limits.items())
    ours: dict[str, str | int] = {
        "application_name": f"errata-{service}",
        "client_encoding": "utf8",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 10,  # seconds, as the next; a host that vanished is noticed within half a minute
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 25_000,  # milliseconds
    }
    given = {name: value for name, value in ours.items() if name not in url.query}
    theirs = url.query.get("options", "")
    given["options"] = f"{options} {theirs if isinstance(theirs, str) else ' '.join(theirs)}".strip()
    return sa.create_engine(
        url,
        connect_args=given,
        pool_size=1,
        max_overflow=1,
        pool_timeout=LOCK_TIMEOUT_S,
        pool_pre_ping=True,
        hide_parameters=True,
    )


def _sqlite(url: sa.URL, busy_timeout_s: float) -> Engine:
    """WAL, foreign keys, and transactions that begin when we say so.

    A writer takes its lock at BEGIN: one that upgrades from reading in mid-transaction is refused at once, without
    waiting, when another has written meanwhile.
    """
    if url.database in (None, "", ":memory:"):
        # A database in memory lives in its one connection, so all threads share it.
        engine = sa.create_engine(
            url, poolclass=sa.StaticPool, connect_args={"check_same_thread": False}, hide_parameters=True
        )
    else:
        engine = sa.create_engine(url, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN leaves DDL and reads outside of transactions
        connection.execute(f"PRAGMA busy_timeout={int(busy_timeout_s * 1000)}").close()
        _write_ahead(connection)
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "case_sensitive_like=ON"):  # the last as PostgreSQL's
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(WRITES) else "BEGIN")

    return engine


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn a database to WAL, once and for all; where somebody else has it open meanwhile, wait as a BEGIN would.

    SQLite refuses this change at once, without waiting: of two that open a new file together one was told that it
    is locked. So whoever is refused waits for the file to be free, by a transaction of its own, and asks again.
    """
    for turn in range(1, _TURNS_TO_WAL + 1):
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or turn == _TURNS_TO_WAL:
                raise
        connection.execute("BEGIN EXCLUSIVE").close()
        connection.execute("COMMIT").close()
