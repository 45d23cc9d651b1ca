"""Errors of the databases as the class that says what to do. Their texts hold values, so they are never quoted."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DatabaseError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from errata.errors import ErrataError, Misconfigured, Refused, StateDamaged, Unavailable


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        meaning = _meaning(error)
        if isinstance(meaning, Refused):
            raise meaning from None  # the driver quotes the value, and a log would print the chain
        raise meaning from error
    except PoolTimeout as error:
        raise Unavailable("catalogue: all connections of this process are in use") from error
    except (OverflowError, UnicodeEncodeError):
        raise Refused("", "a number or text that the database cannot keep") from None


def _meaning(error: DBAPIError | sqlite3.Error) -> ErrataError:
    orig = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(orig, sqlite3.Error):
        return _of_sqlite(error, getattr(orig, "sqlite_errorcode", None))
    state: str | None = getattr(orig, "sqlstate", None)
    if state is not None:
        return of_sqlstate(state)
    if isinstance(error, OperationalError | InterfaceError):
        return _of_connection(str(orig))
    if isinstance(error, DatabaseError) and type(orig).__name__ == "DataError":
        return Refused("", "a value that PostgreSQL's driver cannot send")
    if type(orig).__name__ == "ProgrammingError":
        return Misconfigured("catalogue: ERRATA_DATABASE_URL has an option that PostgreSQL's client does not know")
    return Unavailable("catalogue: the database failed")


_MIGRATE = "run `errata catalog migrate`"
# The longest prefix counts. What is not here may pass: wait, and try again.
_MISCONFIGURED = {
    "0A": "the server cannot do what errata asks for; use PostgreSQL 13 or newer",
    "28": "the server refuses this user or password; correct ERRATA_DATABASE_URL",
    "3D": "the server has no such database; create it, or correct the name in ERRATA_DATABASE_URL",
    "3F": "the search_path names no schema that is there; create it, or correct the role's search_path",
    "42": f"the database has not the tables this errata expects; {_MIGRATE} with the owner's URL",
    "42501": "this role may not do that; as the owner run `errata catalog migrate --grant-to ROLE`",
}
# 22 and 23: the value. 54000: it is too long for an index, which only the value can be at fault for.
_REFUSED = ("22", "23", "54000")


def of_sqlstate(state: str) -> ErrataError:
    """What an SQLSTATE of PostgreSQL means to the caller."""
    if state.startswith(_REFUSED):
        return Refused("", f"a value that the database cannot keep (SQLSTATE {state})")
    for prefix in (state, state[:2]):
        if prefix in _MISCONFIGURED:
            return Misconfigured(f"catalogue: {_MISCONFIGURED[prefix]} (SQLSTATE {state})")
    return Unavailable(f"catalogue: the database cannot do it now (SQLSTATE {state})")


# A connection that was refused has no SQLSTATE in the client, only a text, in the server's language. In another
# language than English these are taken for an outage: a service then waits instead of stopping.
_REFUSED_CONNECTION = (
    (r"password authentication failed|no password supplied|no pg_hba\.conf entry", "28"),
    (r"role \".*\" does not exist|not permitted to log in|permission denied for database", "28"),
    (r"database \".*\" does not exist", "3D"),
)
_TLS = re.compile(r"certificate|SSL was required|sslmode|SSL error", re.IGNORECASE)


def _of_connection(text: str) -> ErrataError:
    for pattern, state in _REFUSED_CONNECTION:
        if re.search(pattern, text):
            return Misconfigured(f"catalogue: {_MISCONFIGURED[state]}")
    if _TLS.search(text) and "connection" in text and "closed" not in text:
        return Misconfigured("catalogue: no TLS to the database as ERRATA_DATABASE_URL asks for; look at its sslmode")
    return Unavailable("catalogue: the database does not answer; it is stopped, starting, or not to be reached")


_NOT_OURS = {
    sqlite3.SQLITE_NOTADB: "the file is not a database; give errata another data folder",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; the folder must exist and allow writing",
    sqlite3.SQLITE_READONLY: "the file cannot be written; give this user the right to, or another data folder",
    sqlite3.SQLITE_PERM: "the file cannot be opened by this user",
    sqlite3.SQLITE_ERROR: "the database has not the tables this errata expects",
}


def _of_sqlite(error: DBAPIError | sqlite3.Error, code: int | None) -> ErrataError:
    if code is not None and code & 0xFF == sqlite3.SQLITE_CORRUPT:
        return StateDamaged("catalogue: the database file is damaged; restore it from a backup")
    if code is not None and code & 0xFF in _NOT_OURS:
        return Misconfigured(f"catalogue: {_NOT_OURS[code & 0xFF]}")
    if isinstance(error, OperationalError | InterfaceError | sqlite3.OperationalError):
        return Unavailable("catalogue: the database does not answer; it is locked, full or gone")
    if isinstance(error, DatabaseError):  # data, integrity: the value is at fault
        return Refused("", "a value that the database cannot keep")
    return Unavailable("catalogue: the database failed")
