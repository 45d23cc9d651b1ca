"""``errata dev up|status|down``: the servers of a person's own machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import psycopg
import pytest
from redis import Redis
from typer.testing import CliRunner

from errata.adapters.sql import SqlCatalogue
from errata.client import KafkaPublisher
from errata.contracts import FailureCase
from errata.domain.catalogue.queries import CaseQuery
from errata.errors import Misconfigured, NotFound
from errata_services.cli.dev import app
from errata_services.dev import workplace
from errata_services.dev.servers import postgres_place

pytestmark = pytest.mark.servers

UP = """
import sys
from pathlib import Path
from errata_services.dev import workplace
workplace.up(
    Path(sys.argv[1]),
    commands=[["sh", "-c", "echo $ERRATA_REDIS_URL; exec sleep 600", "service"]],
    announce=lambda environment: print(environment["ERRATA_REDIS_URL"], flush=True),
    say=print,
)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    place = postgres_place(tmp_path / "postgres", durable=True)
    if place != tmp_path / "postgres":
        rmtree(place)


def test_up_in_the_background_then_status_and_down(folder: Path) -> None:
    runner = CliRunner()
    data = ["--data", str(folder)]
    assert json.loads(runner.invoke(app, ["status", "--json", *data]).stdout)["running"] is False
    done = runner.invoke(app, ["up", "--detach", "--servers-only", *data], catch_exceptions=False)
    try:
        environment = dict(line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines())
        assert sorted(environment) == [
            "ERRATA_DATABASE_URL",
            "ERRATA_KAFKA__BOOTSTRAP_SERVERS",
            "ERRATA_KEY_FILE",
            "ERRATA_REDIS_URL",
        ]
        with Redis.from_url(environment["ERRATA_REDIS_URL"]) as client:
            assert client.ping()
        with psycopg.connect(environment["ERRATA_DATABASE_URL"]) as connection:
            connection.execute("CREATE TABLE kept (n int)")
        said = runner.invoke(app, ["status", "--json", *data], catch_exceptions=False)
        status = json.loads(said.stdout)
        assert said.exit_code == 0
        assert {name: server["answers"] for name, server in status["servers"].items()} == {
            "kafka": True,
            "redis": True,
            "postgres": True,
        }
        password = environment["ERRATA_DATABASE_URL"].split(":")[2].split("@")[0]
        assert password not in said.stdout
        assert (folder / "dev.json").stat().st_mode & 0o077 == 0
        again = runner.invoke(app, ["up", "--detach", "--servers-only", *data], catch_exceptions=False)
        assert again.stdout == done.stdout
        with pytest.raises(Misconfigured, match="up already"):
            workplace.up(folder, announce=print, say=print)
    finally:
        assert runner.invoke(app, ["down", *data], catch_exceptions=False).exit_code == 0
    _, end = os.waitpid(status["pid"], 0)  # our own child here, as the command ran in this process
    assert os.waitstatus_to_exitcode(end) == 0
    assert runner.invoke(app, ["status", *data]).exit_code == 1
    with pytest.raises(NotFound, match="errata dev up"):
        workplace.down(folder)


def test_up_runs_the_whole_chain(folder: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["up", "--detach", "--data", str(folder)], catch_exceptions=False)
    try:
        environment = dict(line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines())
        with KafkaPublisher(environment["ERRATA_KAFKA__BOOTSTRAP_SERVERS"]) as publisher:
            publisher.prediction(model="fraud", status={"code": "timeout"})
        deadline_s = time.monotonic() + 60
        while not cases(environment["ERRATA_DATABASE_URL"]):
            logs = "\n".join(log.read_text() for log in folder.glob("*.log"))
            assert time.monotonic() < deadline_s, f"no case came\n{logs}"
            os.sched_yield()
    finally:
        pid = workplace.status(folder).pid
        assert runner.invoke(app, ["down", "--data", str(folder)], catch_exceptions=False).exit_code == 0
    assert pid is not None
    _, end = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(end) == 0


def cases(database: str) -> list[FailureCase]:
    catalogue = SqlCatalogue(database)
    try:
        return catalogue.cases(CaseQuery())
    finally:
        catalogue.close()


def test_up_in_the_foreground_runs_the_services_until_it_is_stopped_and_keeps_data_and_ports(folder: Path) -> None:
    first, second = one_foreground_run(folder), one_foreground_run(folder)
    assert first[0] == second[0]
    assert (first[1], second[1]) == (1, 2)


def one_foreground_run(folder: Path) -> tuple[str, int]:
    """The database's URL, and how many runs have left a row in it."""
    log = folder / "service.log"
    log.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", UP, str(folder)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        redis_url = process.stdout.readline().strip()
        url = workplace.status(folder).environment["ERRATA_DATABASE_URL"]
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
            connection.execute("INSERT INTO kept VALUES (1)")
            row = connection.execute("SELECT count(*) FROM kept").fetchone()
        deadline_s = time.monotonic() + 20
        while not (log.exists() and log.read_text()):
            assert time.monotonic() < deadline_s, "the service was not started"
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert log.read_text().strip() == redis_url
    assert not workplace.status(folder).running
    assert row is not None
    return url, row[0]
