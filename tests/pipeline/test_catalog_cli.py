"""``errata catalog`` on an embedded catalogue; on PostgreSQL in tests/integration."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from errata.adapters.sql.catalogue import SCHEMA
from errata.errors import Misconfigured
from errata_services.bootstrap import CATALOGUE_FILE, open_catalogue
from errata_services.cli import catalog


def command(*words: str, **environment: str) -> Result:
    blank: dict[str, str | None] = {"ERRATA_DATABASE_URL": None, "ERRATA_DATABASE_URL_FILE": None}
    return CliRunner().invoke(catalog.app, list(words), env=blank | environment)


def told(*words: str) -> str:
    result = command(*words)
    assert result.exception is None, result.exception
    return result.stdout


def refusal(*words: str, **environment: str) -> str:
    error = command(*words, **environment).exception
    assert isinstance(error, Misconfigured), error
    return str(error)


def test_migrate_makes_a_catalogue_once(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    assert json.loads(told("migrate", "--data", data, "--json")) == {
        "before": None,
        "after": SCHEMA,
        "granted_to": None,
    }
    assert told("migrate", "--data", data) == f"The catalogue is at schema {SCHEMA} already.\n"
    assert json.loads(told("check", "--data", data, "--json")) == {"schema": SCHEMA}
    assert SCHEMA in told("check", "--data", data)


def test_an_older_schema_is_checked_and_migrated(tmp_path: Path) -> None:
    open_catalogue(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / CATALOGUE_FILE)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'c0001'")
    assert "run `errata catalog migrate`" in refusal("check", "--data", str(tmp_path))
    assert told("migrate", "--data", str(tmp_path)) == f"The catalogue is migrated from c0001 to {SCHEMA}.\n"
    assert SCHEMA in told("check", "--data", str(tmp_path))


def test_check_makes_nothing(tmp_path: Path) -> None:
    assert "no catalogue" in refusal("check", "--data", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_without_a_database_it_says_how_to_name_one() -> None:
    for name in ("migrate", "check"):
        assert "ERRATA_DATABASE_URL: is missing; give postgresql://" in refusal(name)


def test_sqlite_has_no_roles(tmp_path: Path) -> None:
    assert "SQLite has no roles" in refusal("migrate", "--data", str(tmp_path), "--grant-to", "writer")


@pytest.mark.parametrize("url", ["postgresql://u:wombat-4711@h:port/x", "mysql://u:wombat-4711@h/x", "wombat-4711"])
def test_no_message_shows_the_password(url: str) -> None:
    said = refusal("check", ERRATA_DATABASE_URL=url)
    assert "begins with sqlite: or postgresql:" in said
    assert "wombat" not in said
