"""A writer on a real PostgreSQL that is full, locked, busy, slow, read-only or loses its sessions: it pauses, stays in
its group, and goes on where it was. What is in the catalogue afterwards are the bytes of a calm run."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import errors
from structlog.testing import capture_logs
from tests.integration.conftest import missing
from tests.integration.test_catalogue_postgres import PostgresDatabase
from tests.integration.writer_story import BATCH, RECORDS, drain, story, writer

from errata.adapters.memory import MemoryTransport
from errata.adapters.sql import SqlCatalogue
from errata.contracts.topics import PARTITIONS
from errata.runtime.backoff import FIRST_S, Backoff
from errata.runtime.health import Health
from errata_services.catalog_writer import STAGE, CatalogWriterWorker
from errata_services.dev import servers

pytestmark = pytest.mark.servers

MAX_CONNECTIONS = 12
FULL_AT = "24m"  # of the disk that fills up
OPTIONS = "-c lock_timeout=300 -c statement_timeout=1000"  # milliseconds

Outage = Callable[[PostgresDatabase], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    folder = tmp_path_factory.mktemp("outages")
    with servers.postgres(folder, settings={"max_connections": str(MAX_CONNECTIONS)}) as server:
        with closing(SqlCatalogue(f"{server.url.rpartition('/')[0]}/errata")) as catalogue:
            catalogue.migrate()
        yield server


@contextmanager
def database_of(server: servers.Server, name: str, more: str = "") -> Iterator[PostgresDatabase]:
    """A migrated, empty database."""
    root = server.url.rpartition("/")[0]
    with psycopg.connect(f"{root}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE errata {more}")
        yield PostgresDatabase(f"{root}/{name}")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def whole(server: servers.Server) -> bytes:
    """What a calm run leaves."""
    with database_of(server, "calm") as place, closing(place.open()) as catalogue:
        assert drain(writer(story(), catalogue)) == RECORDS
        return place.dump()


class Writer:
    """A writer that has written its first batch, on a clock of its own."""

    def __init__(self, catalogue: SqlCatalogue) -> None:
        self.now_s = 0.0
        self.transport: MemoryTransport = story()
        self.health = Health(stage=STAGE, instance="w0", build="1")
        self.worker = CatalogWriterWorker(
            self.transport,
            catalogue,
            "w0",
            BATCH,
            backoff=Backoff(lambda: 1.0),
            clock=lambda: self.now_s,
            health=self.health,
        )
        assert self.worker.run_once() == BATCH

    def waits(self, sqlstate: str) -> None:
        """Five tries fail, each after a longer pause; between them polls bring nothing."""
        positions = dict(self.worker.positions)
        with capture_logs() as logs:
            for _ in range(5):
                before = len(logs)
                while len(logs) == before:
                    assert self.worker.run_once() == 0
                    assert len(self.health.standing.paused) in (0, PARTITIONS)
                    self.now_s += FIRST_S
        assert {line["event"] for line in logs} == {"catalogue unavailable; waiting"}
        assert all(sqlstate in line["error"] for line in logs), logs
        pauses = [line["pause_s"] for line in logs]
        assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2]
        assert self.worker.positions == positions
        assert self.health.facts.breakers["postgresql"].state == "open"
        assert len(self.health.standing.paused) == PARTITIONS, "so no watch takes it for a stall"

    def goes_on(self) -> None:
        done = 0
        for _ in range(100):
            self.now_s += FIRST_S
            done += self.worker.run_once()
        assert done == RECORDS - BATCH
        assert self.health.facts.breakers["postgresql"].state == "closed"
        assert self.health.standing.paused == frozenset()


@contextmanager
def locked(place: PostgresDatabase) -> Iterator[None]:
    with psycopg.connect(place.url) as other:
        other.execute("LOCK TABLE failure_case IN ACCESS EXCLUSIVE MODE")
        yield


@contextmanager
def slow(place: PostgresDatabase) -> Iterator[None]:
    """A statement takes longer than it may."""
    with psycopg.connect(place.url, autocommit=True) as other:
        other.execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(5); RETURN NEW; END $$"
        )
        other.execute("CREATE TRIGGER wait BEFORE INSERT ON case_revision EXECUTE FUNCTION wait()")
        yield
        other.execute("DROP TRIGGER wait ON case_revision")
        other.execute("DROP FUNCTION wait")


@contextmanager
def all_connections_taken(place: PostgresDatabase) -> Iterator[None]:
    with ExitStack() as taken:
        with psycopg.connect(place.url, autocommit=True) as other:
            end_sessions(other)
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            connect_often(place.url, taken)
        yield


def connect_often(url: str, taken: ExitStack) -> None:
    for _ in range(MAX_CONNECTIONS + 1):
        taken.enter_context(closing(psycopg.connect(url)))


@contextmanager
def read_only(place: PostgresDatabase) -> Iterator[None]:
    """As after a failover to a standby that is not promoted yet."""
    name = place.url.rpartition("/")[2]
    with psycopg.connect(place.url, autocommit=True) as other:
        other.execute("SET default_transaction_read_only = off")
        other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        end_sessions(other)
        yield
        other.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        end_sessions(other)


def end_sessions(connection: psycopg.Connection) -> None:
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


OUTAGES: Mapping[str, tuple[str, Outage]] = {
    "locked": ("55P03", locked),
    "slow": ("57014", slow),
    "all connections taken": ("does not answer", all_connections_taken),  # the client is told no SQLSTATE
    "read-only": ("25006", read_only),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_the_writer_waits_and_goes_on_without_loss(server: servers.Server, whole: bytes, name: str) -> None:
    said, outage = OUTAGES[name]
    options = OPTIONS.replace(" ", "%20")
    with (
        database_of(server, "outage") as place,
        closing(SqlCatalogue(f"{place.url}?options={options}")) as catalogue,
    ):
        told = Writer(catalogue)
        with outage(place):
            told.waits(said)
        told.goes_on()
        assert place.dump() == whole


def test_sessions_that_the_server_ends_cost_nothing(server: servers.Server, whole: bytes) -> None:
    """As a restart or a failover does between two batches."""
    with database_of(server, "ended") as place, closing(SqlCatalogue(place.url)) as catalogue:
        told = Writer(catalogue)
        with psycopg.connect(place.url, autocommit=True) as other:
            end_sessions(other)
        told.goes_on()
        assert place.dump() == whole


@pytest.fixture
def small_disk(server: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of a few megabytes with a table space on it."""
    if os.geteuid() != 0:
        missing("a small disk: only root may mount one")
    owner = (servers.postgres_place(server.folder, durable=False) / "data").stat()
    folder = Path("/var/tmp") / f"errata-small-disk-{os.getpid()}"
    folder.mkdir(mode=0o700)
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={FULL_AT},mode=0700,uid={owner.st_uid},gid={owner.st_gid}"]
    if subprocess.run([*mounting, "tmpfs", str(folder)], check=False, capture_output=True).returncode != 0:
        folder.rmdir()
        missing("a small disk: mounting one is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def test_a_full_disk_is_waited_for_and_nothing_is_lost(server: servers.Server, whole: bytes, small_disk: Path) -> None:
    with psycopg.connect(f"{server.url.rpartition('/')[0]}/postgres", autocommit=True) as admin:
        admin.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
        with (
            database_of(server, "filling", "TABLESPACE small STRATEGY file_copy") as place,
            closing(SqlCatalogue(place.url)) as catalogue,
        ):
            told = Writer(catalogue)
            with psycopg.connect(place.url, autocommit=True) as other:
                other.execute("CREATE TABLE ballast (text text)")
                other.execute("ALTER TABLE ballast ALTER text SET STORAGE PLAIN")
                with pytest.raises(errors.DiskFull):
                    fill(other)
                told.waits("53100")
                other.execute("DROP TABLE ballast")
                other.execute("CHECKPOINT")  # the file goes at the next one
            told.goes_on()
            assert place.dump() == whole
        admin.execute("DROP TABLESPACE small")


def fill(connection: psycopg.Connection) -> None:
    """Rows of a page each until there is no room for one more."""
    while True:
        connection.execute("INSERT INTO ballast SELECT repeat('x', 8000)")
