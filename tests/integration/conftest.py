"""Real servers for the tests: an address in the environment, Docker, what is installed; else skipped loudly."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from tests.integration.containers import docker_answers, kafka_container, postgres_container, redis_container
from tests.integration.sharing import shared

from errata.errors import Misconfigured
from errata_services.dev import servers


@dataclass(frozen=True, slots=True)
class PrometheusBinaries:
    prometheus: str
    promtool: str
    alertmanager: str


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "servers: needs a real Kafka, Redis, PostgreSQL or Prometheus; in make test")


def missing(reason: str) -> None:
    """Skip with the reason; where every server has to be there (CI=true) that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kafka_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a broker that other tests use too: prefix topics, groups and transactional ids."""
    installed = partial(servers.kafka, heap_mb=1_024)  # all tests together make ten thousand partitions
    with _server(tmp_path_factory, "kafka", kafka_container, lambda at: _address(installed(at))) as address:
        yield address


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis that other tests use too: prefix keys, and never flush it."""
    with _server(tmp_path_factory, "redis", redis_container, lambda at: _url(servers.redis(at))) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A superuser's URL of a PostgreSQL that other tests use too; ``postgres_database`` is one of your own in it."""
    with _server(tmp_path_factory, "postgres", postgres_container, lambda at: _url(servers.postgres(at))) as url:
        yield url


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The URL of a fresh, empty database, dropped after the test."""
    with _fresh(postgres_url) as database:
        yield database


@pytest.fixture(scope="module")
def module_database(postgres_url: str) -> Iterator[str]:
    """As ``postgres_database``, for all tests of a module."""
    with _fresh(postgres_url) as database:
        yield database


@contextmanager
def _fresh(postgres_url: str) -> Iterator[str]:
    name = f"errata_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield f"{postgres_url.rpartition('/')[0]}/{name}"
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def prometheus_binaries() -> PrometheusBinaries:
    found = {name: shutil.which(name) or "" for name in ("prometheus", "promtool")}
    try:
        found["alertmanager"] = servers.find_alertmanager()
    except Misconfigured:
        found["alertmanager"] = ""
    absent = [name for name, path in found.items() if not path]
    if absent:
        missing(f"not installed: {', '.join(absent)} (tools/servers.sh installs them)")
    return PrometheusBinaries(**found)


@contextmanager
def _server(
    folders: pytest.TempPathFactory,
    name: str,
    container: Callable[[], AbstractContextManager[str]],
    installed: Callable[[Path], AbstractContextManager[str]],
) -> Iterator[str]:
    given = os.environ.get(f"ERRATA_TEST_{name.upper()}")
    if given:
        yield given
        return

    def start() -> AbstractContextManager[str]:
        return container() if docker_answers() else installed(folders.mktemp(name))

    several_workers = "PYTEST_XDIST_WORKER" in os.environ
    with ExitStack() as stack:
        try:
            server = shared(folders.getbasetemp().parent, name, start) if several_workers else start()
            address = stack.enter_context(server)
        except Misconfigured as error:
            missing(f"{name}: {error}; or set ERRATA_TEST_{name.upper()}")
        else:
            yield address


@contextmanager
def _address(server: AbstractContextManager[servers.Server]) -> Iterator[str]:
    with server as running:
        yield running.address


@contextmanager
def _url(server: AbstractContextManager[servers.Server]) -> Iterator[str]:
    with server as running:
        yield running.url
