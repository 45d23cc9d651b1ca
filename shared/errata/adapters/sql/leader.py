"""One leader among processes: an advisory lock in the session of a connection that its holder keeps open."""

from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from errata.adapters.sql.databases import POSTGRESQL, open_engine
from errata.adapters.sql.failures import translated
from errata.errors import Misconfigured

IDLE_LIMIT_S = 45.0  # a holder that asks nothing for so long is frozen, and loses the lock
_LEADER_LOCK = 0x6572726174610002  # ours alone, in the catalogue's database
_IDLE_LIMIT_FROM = 140_000  # PostgreSQL 14
_LIMITS = {  # so that the server notices in time that a host has vanished
    "tcp_keepalives_idle": "5s",
    "tcp_keepalives_interval": "2s",
    "tcp_keepalives_count": "3",
}


class PostgresLeaderLock:
    """See `errata.ports.LeaderLock`. ``url`` is that of the catalogue; the role needs the right to connect, no other.

    The lock is the session's: a pooler that gives each statement another session makes it worthless, which `held`
    notices. The holder has to ask `held` more often than every 45 seconds.
    """

    def __init__(self, url: str | sa.URL, service: str = "keeper", *, idle_limit_s: float = IDLE_LIMIT_S) -> None:
        self._engine = open_engine(url, service, 0.0)
        self._idle_limit_s = idle_limit_s
        self._connection: Connection | None = None
        self._session: int | None = None  # in which the lock is held
        if self._engine.dialect.name != POSTGRESQL:
            raise Misconfigured("ERRATA_DATABASE_URL: leaders are chosen in PostgreSQL; write one with postgresql:")

    def acquire(self) -> bool:
        if self._session is not None and self.held():
            return True
        try:
            with translated():
                if self._connection is None:
                    self._connection = self._connected()
                if self._ask(f"SELECT pg_try_advisory_lock({_LEADER_LOCK})"):
                    self._session = self._ask("SELECT pg_backend_pid()")
        except BaseException:
            self._drop()
            raise
        return self._session is not None

    def held(self) -> bool:
        if self._session is None:
            return False
        try:
            if self._ask("SELECT pg_backend_pid()") == self._session:
                return True
        except SQLAlchemyError:
            pass
        self._drop()
        return False

    def release(self) -> None:
        if self._session is not None:
            self._drop()

    def close(self) -> None:
        self._drop()
        self._engine.dispose()

    def _connected(self) -> Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        limits = dict(_LIMITS)
        version = connection.execute(sa.text("SELECT current_setting('server_version_num')::int")).scalar_one()
        if version >= _IDLE_LIMIT_FROM:
            limits["idle_session_timeout"] = f"{self._idle_limit_s * 1000:.0f}ms"
        for name, value in limits.items():
            connection.execute(sa.text("SELECT set_config(:name, :value, false)"), {"name": name, "value": value})
        return connection

    def _ask(self, statement: str) -> Any:
        if self._connection is None:
            return None
        return self._connection.execute(sa.text(statement)).scalar_one()

    def _drop(self) -> None:
        """End the session, and with it the lock: nothing that is left in a pool could go on holding it."""
        connection, self._connection, self._session = self._connection, None, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.invalidate()
                connection.close()
