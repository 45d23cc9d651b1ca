"""The catalogue on PostgreSQL keeps the promises of every database, and its own: fence, kills, outages, roles."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from tests.conformance.catalogue import GROUP, OWNER, PLACE, CatalogueSuite, Place, Places
from tests.integration.writer_story import RECORDS, URL_VARIABLE, PositionsApart, drain, story, writer
from tests.pipeline.case_builder import case_id, episode, tagged
from typer.testing import CliRunner

from errata.adapters.sql import SqlCatalogue, tables
from errata.adapters.sql.catalogue import SCHEMA
from errata.adapters.sql.databases import lock_migrations
from errata.contracts import TaggedCase
from errata.domain.catalogue.queries import CaseQuery
from errata.errors import ErrataError, Fenced, Misconfigured, Refused, Unavailable
from errata.ports import SinkDeadLetter
from errata.runtime.crash_points import VARIABLE
from errata_services.catalog_writer import POINTS, STAGE
from errata_services.cli import catalog
from errata_services.dev import servers

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[2]
ROLES = ROOT / "deploy" / "postgres" / "roles.sql"
WAIT_S = 20.0
PASSWORD = "wombat-4711"  # a canary as well: no message may show it
IMPATIENT = "-c lock_timeout=100"  # milliseconds


class PostgresDatabase(Place):
    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, *, patient: bool = False) -> SqlCatalogue:
        return SqlCatalogue(self.url if patient else f"{self.url}?options={IMPATIENT.replace(' ', '%20')}")

    def engine(self) -> sa.Engine:
        return sa.create_engine(self.url.replace("postgresql://", "postgresql+psycopg://"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        with self.connected() as connection:
            connection.execute(sa.text("LOCK TABLE consumer_position IN SHARE MODE"))
            yield

    def waiting(self) -> int:
        """Connections to this database that wait for a lock."""
        asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        with self.connected() as connection:
            return int(connection.execute(sa.text(asked)).scalar_one())


@contextmanager
def database(server_url: str, template: str = "template0", encoding: str = "UTF8") -> Iterator[str]:
    """The URL of a database of our own, a copy of ``template``."""
    name = f"errata_{uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        words = sql.Identifier(name), sql.Identifier(template), sql.Literal(encoding)
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} ENCODING {}").format(*words))
        try:
            yield f"{server_url.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(words[0]))


@pytest.fixture(scope="module")
def blank(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database to copy: migrating each test's anew would take longer than the tests."""
    with database(postgres_url) as url:
        with closing(SqlCatalogue(url)) as catalogue:
            catalogue.migrate()
        yield url.rpartition("/")[2]


@pytest.fixture
def places(postgres_url: str, blank: str) -> Iterator[Callable[[], PostgresDatabase]]:
    with ExitStack() as stack:
        yield lambda: PostgresDatabase(stack.enter_context(database(postgres_url, blank)))


@pytest.fixture
def place(places: Callable[[], PostgresDatabase]) -> PostgresDatabase:
    return places()


@pytest.fixture
def catalogue(place: PostgresDatabase) -> Iterator[SqlCatalogue]:
    with closing(place.open(patient=True)) as catalogue:
        yield catalogue


class TestPostgres(CatalogueSuite):
    @pytest.fixture
    def places(self, places: Places) -> Places:
        return places

    @pytest.fixture
    def empty(self, postgres_database: str) -> Place:
        return PostgresDatabase(postgres_database)


def test_the_same_story_makes_the_same_bytes_as_in_sqlite(place: PostgresDatabase, tmp_path: Path) -> None:
    from tests.pipeline.test_catalog_sql import SqliteFile

    file = SqliteFile.migrated(tmp_path / "c.sqlite")
    for there in (place, file):
        with closing(there.open()) as catalogue:
            assert drain(writer(story(), catalogue)) == RECORDS
    assert place.dump() == file.dump()
    assert b"category_vanished" in place.dump()


# owners


def test_an_owner_that_is_replaced_while_it_writes_writes_nothing(
    place: PostgresDatabase, catalogue: SqlCatalogue
) -> None:
    catalogue.claim(GROUP, "one", [PLACE])
    with closing(place.open()) as other:

        def replace(point: str) -> None:
            if point == "AFTER_ROWS":
                other.claim(GROUP, "two", [PLACE])

        with pytest.raises(Fenced, match="partition 0"):
            catalogue.apply(
                [tagged()],
                {PLACE: 1},
                GROUP,
                "one",
                crash=replace,
            )
        assert other.cases(CaseQuery()) == []
        assert other.claim(GROUP, "two", [PLACE]) == {PLACE: 0}
        assert other.apply([tagged()], {PLACE: 1}, GROUP, "two") == 1


def test_a_claim_waits_for_the_owner_that_is_about_to_commit(place: PostgresDatabase, catalogue: SqlCatalogue) -> None:
    catalogue.claim(GROUP, "one", [PLACE])
    with ThreadPoolExecutor(1) as pool, closing(place.open(patient=True)) as other:
        claims = []

        def crash(point: str) -> None:
            if point == "AFTER_POSITION":
                claims.append(pool.submit(other.claim, GROUP, "two", [PLACE]))
                eventually(lambda: place.waiting() == 1)

        catalogue.apply([tagged()], {PLACE: 1}, GROUP, "one", crash=crash)
        assert claims[0].result(WAIT_S) == {PLACE: 1}, "it sees what was committed while it waited"
    with pytest.raises(Fenced):
        catalogue.apply([tagged(seq=1, state="update")], {PLACE: 2}, GROUP, "one")


def test_of_many_claimants_one_wins_all_partitions(place: PostgresDatabase) -> None:
    partitions = [("errata.tagged.v1", number) for number in range(6)]
    owners = [f"owner-{number}" for number in range(4)]
    ready = threading.Barrier(len(owners))

    def claim(owner: str) -> bool:
        with closing(place.open(patient=True)) as catalogue:
            ready.wait(WAIT_S)
            catalogue.claim(GROUP, owner, partitions)
            ready.wait(WAIT_S)
            try:
                catalogue.apply([], dict.fromkeys(partitions, 1), GROUP, owner)
            except Fenced:
                return False
            return True

    with ThreadPoolExecutor(len(owners)) as pool:
        assert sorted(pool.map(claim, owners)) == [False, False, False, True]


def test_a_frozen_writer_does_not_hold_its_partitions_for_ever(
    place: PostgresDatabase, catalogue: SqlCatalogue
) -> None:
    limit = "-c%20idle_in_transaction_session_timeout=300"  # milliseconds
    with closing(SqlCatalogue(f"{place.url}?options={limit}")) as frozen:
        frozen.claim(GROUP, "one", [PLACE])
        taken = []

        def crash(point: str) -> None:
            if point == "AFTER_POSITION":
                taken.append(catalogue.claim(GROUP, "two", [PLACE]))  # answers when the server has cut the other off

        with pytest.raises(Unavailable):
            frozen.apply([tagged()], {PLACE: 1}, GROUP, "one", crash=crash)
        assert taken == [{PLACE: 0}]
        assert catalogue.cases(CaseQuery()) == []
        with pytest.raises(Fenced):
            frozen.apply([tagged()], {PLACE: 1}, GROUP, "one")


def eventually(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline_s, "it did not come true"
        time.sleep(0.01)


# migrations


def test_a_migration_waits_for_the_one_that_runs(postgres_database: str) -> None:
    place = PostgresDatabase(postgres_database)
    with ThreadPoolExecutor(1) as pool, closing(place.open(patient=True)) as catalogue:
        with place.connected() as connection:
            lock_migrations(connection)
            migrated = pool.submit(catalogue.migrate)
            eventually(lambda: place.waiting() == 1)
            assert not migrated.done()
            assert sa.inspect(connection).get_table_names() == []
        migrated.result(WAIT_S)
        catalogue.check()


def test_a_migration_that_fails_leaves_nothing(postgres_database: str) -> None:
    place = PostgresDatabase(postgres_database)
    with place.connected() as connection:
        connection.execute(sa.text("CREATE VIEW case_overview AS SELECT 1 AS one"))  # the last thing it makes
    with closing(place.open()) as catalogue:
        with pytest.raises(Misconfigured, match="42P07"):
            catalogue.migrate()
        assert catalogue.schema() is None
    with place.connected() as connection:
        assert sa.inspect(connection).get_table_names() == []


def test_a_database_of_another_encoding_is_refused(postgres_url: str) -> None:
    with database(postgres_url, encoding="LATIN1") as url, closing(SqlCatalogue(url)) as catalogue:
        with pytest.raises(Misconfigured, match="UTF8"):
            catalogue.migrate()
        assert catalogue.schema() is None


def test_names_are_ordered_and_found_by_bytes_whatever_the_database_was_made_for(
    place: PostgresDatabase, catalogue: SqlCatalogue
) -> None:
    collations = (
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND collation_name = 'C' AND table_name <> 'case_overview'"
    )
    with place.connected() as connection:
        found = {tuple(row) for row in connection.execute(sa.text(collations))}
        connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
        plan = connection.execute(sa.text("EXPLAIN SELECT * FROM case_tag WHERE tag LIKE 'data:%'")).scalars().all()
    dialect = sa.make_url(place.url).get_dialect()()
    wanted = {
        (table.name, column.name)
        for table in tables.metadata.sorted_tables
        for column in table.c
        if getattr(column.type.dialect_impl(dialect), "collation", None) == "C"
    }
    assert found == wanted
    assert len(wanted) == 12
    assert "tag >= " in "\n".join(plan), "a prefix is looked up in the index"


# kills


@pytest.fixture(scope="module")
def whole(postgres_url: str, blank: str) -> bytes:
    """What a run without a kill leaves."""
    with database(postgres_url, blank) as url:
        with closing(SqlCatalogue(url)) as catalogue:
            assert drain(writer(story(), catalogue)) == RECORDS
        return PostgresDatabase(url).dump()


def killed_and_resumed(place: PostgresDatabase, point: str, nth: int, *words: str) -> tuple[int, bytes]:
    """Dies at ``point`` as a process of its own, goes on here; its return code and what it left at first."""
    command = [sys.executable, "-m", "tests.integration.writer_story", *words]
    environment = os.environ | {URL_VARIABLE: place.url, VARIABLE: f"{STAGE}:{point}:{nth}"}
    code = subprocess.run(command, cwd=ROOT, env=environment, timeout=60, check=False).returncode
    left = place.dump()
    with closing((PositionsApart if words else SqlCatalogue)(place.url)) as catalogue:
        drain(writer(story(), catalogue))
    return code, left


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_writer_loses_and_doubles_nothing(place: PostgresDatabase, whole: bytes, point: str) -> None:
    code, left = killed_and_resumed(place, point, 2)
    assert code == -signal.SIGKILL
    rows = json.loads(left)["case_revision"]
    assert len(rows) == (9 if point == "AFTER_DB_COMMIT" else 4), "open transactions left nothing"
    assert place.dump() == whole


def test_with_positions_outside_the_transaction_a_kill_loses_cases(place: PostgresDatabase, whole: bytes) -> None:
    """The control: the same kill, the same comparison."""
    code, _ = killed_and_resumed(place, "AFTER_ROWS", 2, "apart")
    assert code == -signal.SIGKILL
    assert place.dump() != whole


def test_with_positions_outside_the_transaction_a_run_without_a_kill_is_right(
    place: PostgresDatabase, whole: bytes
) -> None:
    code, left = killed_and_resumed(place, "AFTER_ROWS", 9_999, "apart")
    assert (code, left) == (0, whole)


# outages


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.postgres(tmp_path) as server:
        with closing(SqlCatalogue(server.url)) as catalogue:
            catalogue.migrate()
        yield server


def test_a_server_that_goes_away_is_waited_for_and_nothing_is_lost(own_server: servers.Server, whole: bytes) -> None:
    place = PostgresDatabase(own_server.url)
    deaths = iter([own_server.kill])  # once, in the middle of a transaction

    def crash(_stage: str, point: str) -> None:
        if point == "AFTER_ROWS" and worker.cases_changed:
            next(deaths, lambda: None)()

    with closing(place.open(patient=True)) as catalogue:
        worker = writer(story(), catalogue, crash)
        worker.run_once()
        with pytest.raises(Unavailable):  # the connection breaks, or says yet that its server dies
            worker.run_once()
        with pytest.raises(Unavailable, match="does not answer"):
            worker.run_once()
        own_server.restart()
        drain(worker)
        assert place.dump() == whole

        own_server.restart()  # between two calls: nobody notices
        assert len(catalogue.cases(CaseQuery())) == 3


def test_without_the_question_before_each_use_a_restart_would_be_noticed(own_server: servers.Server) -> None:
    """The control of the transparent restart: an old connection really is dead."""
    engine = sa.create_engine(own_server.url.replace("postgresql://", "postgresql+psycopg://"))
    for _ in range(2):
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
    own_server.restart()
    with pytest.raises(sa.exc.OperationalError), engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    engine.dispose()


# errors


def failing_with(place: PostgresDatabase, state: str) -> None:
    """Make the server itself fail with this SQLSTATE whenever a case is written."""
    with place.connected() as connection:
        connection.execute(
            sa.text(
                "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
                f" $$ BEGIN RAISE EXCEPTION '{PASSWORD}' USING ERRCODE = '{state}'; END $$"
            )
        )
        connection.execute(sa.text("DROP TRIGGER IF EXISTS fail ON failure_case"))
        connection.execute(sa.text("CREATE TRIGGER fail BEFORE INSERT ON failure_case EXECUTE FUNCTION fail()"))


def test_each_sqlstate_says_what_to_do(place: PostgresDatabase, catalogue: SqlCatalogue) -> None:
    expected: dict[type[ErrataError], tuple[str, ...]] = {
        Unavailable: (
            "08006",
            "53100",
            "53200",
            "53300",
            "57P01",
            "57P03",
            "55P03",
            "40001",
            "40P01",
            "57014",
            "XX000",
        ),
        Refused: ("22001", "22003", "22021", "22P05", "23502", "23505", "54000"),
        Misconfigured: ("42P01", "42501", "42703", "28000", "28P01", "0A000", "3F000", "3D000"),
    }
    catalogue.claim(GROUP, OWNER, [PLACE])
    for kind, states in expected.items():
        for state in states:
            failing_with(place, state)
            with pytest.raises(ErrataError) as raised:
                catalogue.apply([tagged()], {PLACE: 1}, GROUP, OWNER)
            assert type(raised.value) is kind, state
            assert state in str(raised.value)
            assert PASSWORD not in str(raised.value)
    with place.connected() as connection:
        connection.execute(sa.text("DROP TRIGGER fail ON failure_case"))
    assert catalogue.apply([tagged()], {PLACE: 1}, GROUP, OWNER) == 1, "the control: it was the trigger"


def poisoned() -> dict[str, TaggedCase]:
    """Cases that the contract allows, each with a value that PostgreSQL does not keep."""
    far_too_long = "".join(uuid4().hex for _ in range(400))
    tag = {"tag": f"a:b:{far_too_long}", "rule_id": "r", "confidence": 1.0}
    return {"number": tagged("poison", count=2**70), "index": tagged("poison", tags=[tag])}


@pytest.mark.parametrize("name", ["number", "index"])
def test_a_value_that_postgresql_refuses_is_refused_and_nothing_is_written(
    place: PostgresDatabase, catalogue: SqlCatalogue, name: str
) -> None:
    catalogue.claim(GROUP, OWNER, [PLACE])
    before = place.dump()
    with pytest.raises(Refused) as raised:
        catalogue.apply([tagged("a"), poisoned()[name]], {PLACE: 2}, GROUP, OWNER)
    assert raised.value.__cause__ is None
    assert len(str(raised.value)) < 100, "the value is not quoted"
    assert place.dump() == before
    assert catalogue.apply([tagged("a")], {PLACE: 2}, GROUP, OWNER) == 1, "the same connection goes on"


@pytest.mark.parametrize("name", ["number", "index"])
def test_the_writer_finds_the_record_that_is_refused(
    place: PostgresDatabase, catalogue: SqlCatalogue, whole: bytes, name: str
) -> None:
    worker = writer(story(poisoned()[name]), catalogue)
    assert drain(worker) == RECORDS + 1
    assert {letter.refusal_class for letter in catalogue.dead_letters()} == {"decode", "sink"}
    assert [case.case_id for case in catalogue.cases(CaseQuery())] == [case_id(name) for name in "cba"]
    revisions = json.loads(place.dump())["case_revision"]
    assert revisions == json.loads(whole)["case_revision"], "it took nothing along"


@pytest.mark.parametrize("path", ["/a\0b", "/a\ud800"])
def test_a_letter_that_cannot_be_stored_is_refused_too(catalogue: SqlCatalogue, path: str) -> None:
    catalogue.claim(GROUP, OWNER, [PLACE])
    with pytest.raises(Refused) as raised:
        catalogue.apply([], {PLACE: 1}, GROUP, OWNER, dead=[SinkDeadLetter(*PLACE, 0, 1, "schema", path, "required")])
    assert raised.value.__cause__ is None
    letter = SinkDeadLetter(*PLACE, 0, 1, "schema", "/a", "required")
    catalogue.apply([], {PLACE: 1}, GROUP, OWNER, dead=[letter])
    assert catalogue.dead_letters() == [letter]


def test_a_wrong_password_user_database_or_option_is_told_from_an_outage(postgres_database: str) -> None:
    head, _, tail = postgres_database.partition("://")
    credentials, _, server = tail.rpartition("@")
    user = credentials.partition(":")[0]
    address, _, _ = server.partition("/")
    wrong = {
        f"{head}://{user}:{PASSWORD}@{server}": "user or password",
        f"{head}://nobody_{uuid4().hex}:{PASSWORD}@{server}": "user or password",
        f"{head}://{credentials}@{address}/no_such_{uuid4().hex}": "no such database",
        f"{head}://{credentials}@{server}?nonsense=1": "option",
        f"{head}://{credentials}@{server}?sslmode=require": "TLS",
    }
    for url, what in wrong.items():
        with closing(SqlCatalogue(url)) as catalogue, pytest.raises(Misconfigured, match=what) as raised:
            catalogue.check()
        assert PASSWORD not in str(raised.value)
        assert credentials.partition(":")[2] not in repr(raised.getrepr(chain=True))
    port = f"{head}://{credentials}@127.0.0.1:1/x"
    with closing(SqlCatalogue(port)) as catalogue, pytest.raises(Unavailable):
        catalogue.check()


def test_a_connection_says_whose_it_is_and_keeps_its_limits(place: PostgresDatabase) -> None:
    names = ("application_name", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    with (
        closing(SqlCatalogue(f"{place.url}?connect_timeout=3", service=STAGE)) as catalogue,
        catalogue._transaction() as connection,
    ):
        found = [connection.execute(sa.text(f"SHOW {name}")).scalar_one() for name in names]
    assert found == ["errata-catalog-writer", "30s", "10s", "1min"]
    assert PASSWORD not in repr(catalogue._engine)


@pytest.mark.parametrize("scheme", ["postgresql://", "postgresql+psycopg://", "postgres://"])
def test_each_way_to_write_the_url_works(place: PostgresDatabase, scheme: str) -> None:
    with closing(SqlCatalogue(place.url.replace("postgresql://", scheme))) as catalogue:
        catalogue.check()


# roles


class Roles(NamedTuple):
    writer: str
    owner_url: str
    writer_url: str


@pytest.fixture
def roles(postgres_database: str) -> Iterator[Roles]:
    """roles.sql as it is shipped, with names of our own: roles belong to the whole server."""
    names = {role: f"{role}_{uuid4().hex[:12]}" for role in ("errata_owner", "errata_writer")}
    script = ROLES.read_text(encoding="utf-8")
    for role, name in names.items():
        script = script.replace(role, name)
    server = postgres_database.rpartition("@")[2]
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        for _ in range(2):  # a second run changes nothing
            connection.execute(script.encode())
        for name in names.values():
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(name), sql.Literal(PASSWORD)))
        yield Roles(names["errata_writer"], *(f"postgresql://{name}:{PASSWORD}@{server}" for name in names.values()))
        for name in names.values():
            connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def refused(url: str, statement: str) -> str:
    """The SQLSTATE that the server answers a statement with."""
    with psycopg.connect(url, autocommit=True) as connection, pytest.raises(psycopg.Error) as raised:
        connection.execute(statement.encode())
    return raised.value.sqlstate or ""


def test_the_writers_role_does_all_that_the_writer_does_and_no_more(roles: Roles) -> None:
    with closing(SqlCatalogue(roles.owner_url)) as owner:
        owner.migrate(grant_to=roles.writer)
    with closing(SqlCatalogue(roles.writer_url)) as catalogue:
        catalogue.check()
        assert drain(writer(story(), catalogue)) == RECORDS
        catalogue.move("CASE-1", "ack", actor="ann", at=tagged().time)
        assert len(catalogue.revisions("CASE-1")) == 6
        assert len(catalogue.dead_letters()) == 1
        with psycopg.connect(roles.writer_url) as connection:
            row = connection.execute("SELECT model, status, document->>'subject' FROM case_overview LIMIT 1").fetchone()
        assert row == ("census", "new", "RELP")
        for statement in (
            "DROP TABLE failure_case",
            "ALTER TABLE failure_case ADD COLUMN x text",
            "CREATE TABLE mine (a text)",
            "CREATE TEMPORARY TABLE mine (a text)",
            "TRUNCATE case_tag",
            "DELETE FROM failure_case",
            "UPDATE case_revision SET actor = 'mallory'",
            "DELETE FROM case_revision",
            "DELETE FROM dead_letter",
            "UPDATE alembic_version SET version_num = 'c0001'",
        ):
            assert refused(roles.writer_url, statement) == "42501", statement
        with pytest.raises(Misconfigured, match="owns the tables"):
            catalogue.migrate(grant_to="pg_monitor")  # any other role that is there
    with psycopg.connect(roles.owner_url) as connection:
        connection.execute("DROP TABLE case_tag CASCADE")  # the control: the statements can be carried out
        connection.rollback()


def test_a_role_without_its_grants_is_told_the_command(roles: Roles) -> None:
    with closing(SqlCatalogue(roles.owner_url)) as owner:
        owner.migrate()
        with pytest.raises(Misconfigured, match="no such role"):
            owner.migrate(grant_to=f'x"; DROP TABLE failure_case; -- {uuid4().hex}')
    with closing(SqlCatalogue(roles.writer_url)) as catalogue, pytest.raises(Misconfigured, match="--grant-to ROLE"):
        catalogue.check()


# the command


def catalog_command(url: str | None, *words: str) -> tuple[int, str, BaseException | None]:
    environment = {"ERRATA_DATABASE_URL": url, "NO_COLOR": "1"}
    result = CliRunner().invoke(catalog.app, list(words), env=environment)
    return result.exit_code, result.stdout, result.exception


def test_catalog_migrate_and_check(postgres_database: str) -> None:
    _, _, error = catalog_command(postgres_database, "check")
    assert isinstance(error, Misconfigured)
    code, told, _ = catalog_command(postgres_database, "migrate", "--json")
    assert (code, json.loads(told)) == (0, {"before": None, "after": SCHEMA, "granted_to": None})
    code, told, _ = catalog_command(postgres_database, "migrate")
    assert (code, told) == (0, f"The catalogue is at schema {SCHEMA} already.\n")
    code, told, _ = catalog_command(postgres_database, "check", "--json")
    assert (code, json.loads(told)) == (0, {"schema": SCHEMA})


def test_times_and_documents_can_be_asked_for_in_sql(place: PostgresDatabase, catalogue: SqlCatalogue) -> None:
    catalogue.claim(GROUP, OWNER, [PLACE])
    catalogue.apply(episode()[:3], {PLACE: 3}, GROUP, OWNER)
    asked = (
        "SELECT opened_at, closed_at, tags, document->'severity'->>'level' FROM case_overview"
        ' WHERE document @> \'{"subject": "RELP"}\''
    )
    case = catalogue.case(case_id("a"))
    with place.connected() as connection:
        (row,) = connection.execute(sa.text(asked.replace(":", r"\:"))).all()
    assert tuple(row) == (case.opened_at, case.closed_at, ["data:population:category_vanished"], "medium")
