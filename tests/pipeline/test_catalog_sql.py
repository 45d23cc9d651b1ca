"""The catalogue on SQLite keeps the promises of every database, and its own."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from threading import Barrier

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from tests.conformance.catalogue import GROUP, OWNER, PLACE, CatalogueSuite, Place, Places
from tests.pipeline.case_builder import blank_catalogue, tagged

from errata.adapters.sql import SqlCatalogue
from errata.adapters.sql import catalogue as sql_module
from errata.adapters.sql.databases import WRITES, open_engine
from errata.errors import Misconfigured


class SqliteFile(Place):
    def __init__(self, file: Path) -> None:
        self.file = file

    @classmethod
    def migrated(cls, file: Path) -> "SqliteFile":
        file.write_bytes(blank_catalogue())
        with closing(SqlCatalogue.of_file(file)) as catalogue:
            catalogue.check()
        return cls(file)

    def open(self, *, patient: bool = False) -> SqlCatalogue:
        return SqlCatalogue(f"sqlite:///{self.file}", busy_timeout_s=30.0 if patient else 0.01)

    def engine(self) -> sa.Engine:
        return sa.create_engine(f"sqlite:///{self.file}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        with closing(sqlite3.connect(self.file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")


class TestSqlite(CatalogueSuite):
    @pytest.fixture
    def places(self, tmp_path: Path) -> Places:
        numbers = count()
        return lambda: SqliteFile.migrated(tmp_path / f"{next(numbers)}.sqlite")

    @pytest.fixture
    def empty(self, tmp_path: Path) -> Place:
        return SqliteFile(tmp_path / "empty.sqlite")


def test_the_schema_in_the_code_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(sql_module.__file__).with_name("migrations")))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [sql_module.SCHEMA]
    assert sorted(script.revision for script in scripts.walk_revisions()) == list(sql_module.SCHEMAS)


def test_two_that_open_a_new_file_at_once_both_can(tmp_path: Path) -> None:
    """The first turns the file to WAL, which SQLite refuses the other meanwhile: every sixth time, if nobody waits."""
    together = Barrier(2)

    def journal_of(engine: sa.Engine) -> str:
        together.wait()
        with engine.connect() as connection:
            connection = connection.execution_options(**{WRITES: True})
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS mine (id INTEGER)")
            connection.commit()
            return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())

    with ThreadPoolExecutor(2) as pool:
        for turn in range(60):
            both = [open_engine(f"sqlite:///{tmp_path / f'{turn}.sqlite'}", "test", 30.0) for _ in range(2)]
            assert list(pool.map(journal_of, both)) == ["wal", "wal"]
            for engine in both:
                engine.dispose()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("no database, but long enough to look like one" * 40)
    catalogue = SqlCatalogue(f"sqlite:///{tmp_path / 'text.sqlite'}")
    with pytest.raises(Misconfigured, match="not a database"):
        catalogue.migrate()
    catalogue.close()


def test_a_folder_that_is_not_there_is_named_as_the_reason(tmp_path: Path) -> None:
    catalogue = SqlCatalogue(f"sqlite:///{tmp_path / 'no' / 'folder' / 'c.sqlite'}")
    with pytest.raises(Misconfigured, match="folder must exist"):
        catalogue.migrate()
    catalogue.close()


def test_a_catalogue_in_memory_is_one_for_all_threads() -> None:
    catalogue = SqlCatalogue("sqlite://")
    catalogue.migrate()
    catalogue.claim(GROUP, OWNER, [PLACE])
    catalogue.apply([tagged()], {PLACE: 1}, GROUP, OWNER)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(catalogue.case, "CASE-1").result().rev == 1
    catalogue.close()


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://localhost/x", "oracle+none://x"])
def test_a_url_of_another_database_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured, match="sqlite:"):
        SqlCatalogue(url)


def test_sqlite_keeps_a_log_of_writes(tmp_path: Path) -> None:
    file = SqliteFile.migrated(tmp_path / "c.sqlite").file
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
