"""The servers of tests and of ``errata dev``: each starts, answers, and comes back on the same port and data."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from redis import Redis
from redis.exceptions import TimeoutError as RedisTimeout
from tests.integration.conftest import PrometheusBinaries, missing

from errata.errors import Misconfigured, Unavailable
from errata_services.dev import servers
from errata_services.dev.processes import EPHEMERAL_FROM, Child, free_port

pytestmark = pytest.mark.servers


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def topics(address: str, more: Mapping[str, str] | None = None, timeout_s: float = 10) -> set[str]:
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0, **(more or {})})
    return set(admin.list_topics(timeout=timeout_s).topics)


def make_topic(address: str, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(timeout=20)


def test_two_kafkas_side_by_side_keep_their_topics_apart_and_over_a_restart(tmp_path: Path) -> None:
    with servers.kafka(tmp_path / "one", heap_mb=256) as one, servers.kafka(tmp_path / "two", heap_mb=256) as two:
        make_topic(one.address, "of-one")
        assert "of-one" not in topics(two.address)
        pid = one.pid
        one.restart()
        assert one.pid != pid
        assert "of-one" in topics(one.address)
        pids = one.pid, two.pid
    assert not any(alive(pid) for pid in pids)


def test_kafka_takes_tls_and_sasl_clients_and_refuses_strangers(tmp_path: Path) -> None:
    with servers.kafka(tmp_path, tls=True, sasl=True, heap_mb=256) as server:
        make_topic(server.address, "seen-by-all")
        trust = {"ssl.ca.location": str(server.ca_file)}
        assert "seen-by-all" in topics(server.tls_address, trust | {"security.protocol": "SSL"})
        sasl = trust | {"security.protocol": "SASL_SSL", "sasl.username": server.username}
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
            right = {"sasl.mechanism": mechanism, "sasl.password": server.password}
            assert "seen-by-all" in topics(server.sasl_address, sasl | right)
        wrong = {"sasl.mechanism": "SCRAM-SHA-256", "sasl.password": "guessed"}
        with pytest.raises(KafkaException, match=r"_TRANSPORT|_TIMED_OUT|_AUTHENTICATION"):
            topics(server.sasl_address, sasl | wrong, timeout_s=2)
        server.freeze()
        with pytest.raises(KafkaException):
            topics(server.address, timeout_s=1)
        server.thaw()
        assert "seen-by-all" in topics(server.address)
        server.kill()
        server.restart()
        assert "seen-by-all" in topics(server.address)
        assert server.password not in repr(server)
        assert (server.folder / "server.properties").stat().st_mode & 0o077 == 0


def test_redis_freezes_thaws_and_comes_back_empty_on_the_same_port(tmp_path: Path) -> None:
    with servers.redis(tmp_path, maxmemory="32mb", policy="allkeys-lru") as server, redis_client(server.url) as client:
        client.set("key", "value")
        assert client.config_get("maxmemory") == {"maxmemory": str(32 * 2**20)}
        server.freeze()
        with pytest.raises(RedisTimeout):
            client.get("key")
        server.thaw()
        assert client.get("key") == b"value"
        server.kill()
        assert not server.running
        server.restart()
        assert client.get("key") is None


@contextmanager
def redis_client(url: str) -> Iterator[Redis]:
    with Redis.from_url(url, socket_timeout=0.3) as client:
        yield client


def test_postgres_keeps_its_rows_over_a_kill_and_a_restart(tmp_path: Path) -> None:
    with servers.postgres(tmp_path) as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            connection.execute("INSERT INTO kept VALUES (7)")
        for end in (server.kill, server.stop):
            end()
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(server.url, connect_timeout=2)
            server.restart()
            with psycopg.connect(server.url) as connection:
                assert connection.execute("SELECT n FROM kept").fetchall() == [(7,)]


def test_postgres_frozen_answers_no_open_connection_either(tmp_path: Path) -> None:
    with servers.postgres(tmp_path) as server, psycopg.connect(server.url, autocommit=True) as connection:
        backend = connection.info.backend_pid
        server.freeze()
        assert state(server.pid) == "T"
        assert state(backend) == "T"
        server.thaw()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_postgres_wants_its_password(tmp_path: Path) -> None:
    with servers.postgres(tmp_path) as server, pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(server.url.replace("errata:", "errata:not-", 1), connect_timeout=2)


def test_prometheus_and_alertmanager_answer_and_restart(
    prometheus_binaries: PrometheusBinaries, tmp_path: Path
) -> None:
    (tmp_path / "prometheus.yml").write_text("global: {scrape_interval: 1s}\n")
    (tmp_path / "alertmanager.yml").write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    with (
        servers.prometheus(tmp_path / "p", tmp_path / "prometheus.yml") as prometheus,
        servers.alertmanager(tmp_path / "a", tmp_path / "alertmanager.yml") as alertmanager,
    ):
        for server in (prometheus, alertmanager):
            pid = server.pid
            server.restart()  # returns once it is ready
            assert server.pid != pid
            server.kill()
            assert not server.running


def test_databases_of_tests_are_their_own(postgres_url: str, postgres_database: str) -> None:
    assert postgres_database != postgres_url
    with psycopg.connect(postgres_database) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (postgres_database.rpartition("/")[2],)


def test_the_shared_servers_answer(kafka_address: str, redis_url: str) -> None:
    assert isinstance(topics(kafka_address), set)
    with redis_client(redis_url) as client:
        assert client.ping()


def test_a_port_is_given_once_among_all_processes(tmp_path: Path) -> None:
    port = free_port()
    script = (
        "import sys\nfrom errata_services.dev.processes import _reserved\n"
        "sys.exit(0 if _reserved(int(sys.argv[1])) else 9)"
    )
    other = [sys.executable, "-c", script]
    assert subprocess.run([*other, str(port)], check=False).returncode == 9
    neighbour = subprocess.run([*other, str(EPHEMERAL_FROM)], check=False)  # one that nobody is ever given
    assert neighbour.returncode == 0


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match=r"^redis-server: no such program on PATH; .*apt-get install redis-server"):
        servers.redis(tmp_path).__enter__()
    with pytest.raises(Misconfigured, match=r"^java: .*openjdk-17-jre-headless"):
        servers.kafka(tmp_path).__enter__()


def test_a_server_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text("scrape_configs: 7\n")
    with pytest.raises(Unavailable, match=r"^prometheus stopped while it started; its log ends: .*cannot unmarshal"):
        servers.prometheus(tmp_path, tmp_path / "prometheus.yml").__enter__()


def test_a_server_dies_with_a_killed_starter(tmp_path: Path) -> None:
    """The starter is killed without a chance to tidy up, as when a test run is."""
    script = tmp_path / "starter.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\nfrom errata_services.dev import servers\n"
        "with servers.redis(Path(sys.argv[1])) as server:\n"
        "    print(server.pid, flush=True)\n    sys.stdin.read()\n"
    )
    starter = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "r")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert alive(pid)
        starter.kill()
        starter.wait(10)
    wait_until_gone(pid)


def wait_until_gone(pid: int) -> None:
    deadline_s = time.monotonic() + 10
    while alive(pid) and state(pid) != "Z":
        assert time.monotonic() < deadline_s, "the server outlives its starter"
        os.sched_yield()


def test_a_child_that_never_answers_is_ended(tmp_path: Path) -> None:
    def never() -> None:
        raise ConnectionError("it does not listen yet")

    child = Child("sleeper", ["sleep", "600"], tmp_path, ready=never, ready_timeout_s=0.3)
    with pytest.raises(Unavailable, match=r"sleeper did not answer within 0.3 s \(it does not listen yet\)"):
        child.start()
    assert not child.running


SCRIPT = Path(__file__).parents[2] / "tools" / "servers.sh"


def servers_script(path: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": path, **environment}
    return subprocess.run(["/bin/sh", str(SCRIPT)], capture_output=True, text=True, env=given, timeout=60, check=False)


def test_the_script_is_silent_when_all_is_there(prometheus_binaries: PrometheusBinaries) -> None:
    for program in ("java", "mvn", "redis-server", "kcat"):
        if shutil.which(program) is None:
            missing(f"{program} is not installed")
    done = servers_script(os.environ["PATH"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_script_says_what_is_missing_where_it_cannot_install_it(tmp_path: Path) -> None:
    for program in ("id", "sort"):  # no apt-get: nothing is installed, whoever runs this
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    done = servers_script(str(tmp_path))
    assert done.returncode == 1
    for package in ("openjdk-17-jre-headless", "maven", "redis-server", "prometheus-alertmanager", "kcat"):
        assert package in done.stderr
    served = servers_script(str(tmp_path), ERRATA_TEST_KAFKA="broker:9092", ERRATA_TEST_REDIS="redis://cache")
    assert "kcat" in served.stderr
    assert "openjdk" not in served.stderr
    assert "redis-server" not in served.stderr
