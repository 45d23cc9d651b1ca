"""Probes: their conditions as plain functions, the facts of a loop, and the server that answers."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from time import monotonic
from typing import Any

import pytest

from errata.adapters.http_health import HealthServer, open_health_server
from errata.contracts import Receipt, ReceiptInput
from errata.contracts.topics import PREDICTIONS
from errata.errors import Misconfigured, Unavailable
from errata.runtime.health import TICK_LIMIT_S, Breaker, Facts, Health, not_live, not_ready, not_started

PLACE = (PREDICTIONS, 3)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(stage="tagger", instance="7", build="1.0", config_hash="cafe", clock=clock)


def at_work(health: Health) -> Health:
    health.started()
    health.assigned({PLACE: 5})
    return health


def reasons(health: Health, path: str) -> list[str]:
    well, body = health.pages[path]()
    found: list[str] = body["reasons"]
    assert well is (not found)
    assert body["status"] == ("ok" if well else "failing")
    return found


# Conditions.


def test_a_loop_that_turns_is_alive_and_one_that_stands_is_not(health: Health, clock: Clock) -> None:
    clock.now_s += TICK_LIMIT_S - 0.1
    assert reasons(health, "/livez") == []
    health.tick()
    clock.now_s += TICK_LIMIT_S - 0.1
    assert reasons(health, "/livez") == []
    clock.now_s += 0.2
    assert reasons(health, "/livez") == ["the loop has not turned for 30 s"]
    health.tick()
    assert reasons(health, "/livez") == []


def test_no_dependency_kills_a_process() -> None:
    worst = Facts(
        last_tick_s=100.0,
        restoring=12,
        breakers={"postgresql": Breaker("open"), "kafka": Breaker("open")},
        last_error="everything is down",
    )
    assert not_live(worst, 101.0) == []
    assert not_ready(worst) != []


def test_a_bounded_wait_counts_as_alive_and_an_endless_one_does_not(health: Health, clock: Clock) -> None:
    with health.restoring(4, limit_s=60.0):
        clock.now_s += 60.0 + TICK_LIMIT_S - 0.1
        assert reasons(health, "/livez") == []
        clock.now_s += 0.2
        assert reasons(health, "/livez") == ["the loop has not turned for 90 s (in restore)"]
    assert reasons(health, "/livez") == []
    clock.now_s += TICK_LIMIT_S + 0.1
    assert reasons(health, "/livez") != []


def test_started_when_transactions_are_initialised(health: Health) -> None:
    assert reasons(health, "/startupz") == ["transactions are not initialised yet"]
    health.failed(Unavailable("kafka: no broker answers"))
    assert reasons(health, "/startupz") == [
        "transactions are not initialised yet; last error: kafka: no broker answers"
    ]
    health.started()
    assert reasons(health, "/startupz") == []
    assert not_started(Facts(0.0)) != []


def test_ready_needs_a_share_of_the_group_be_it_empty(health: Health) -> None:
    assert reasons(health, "/readyz") == ["transactions are not initialised yet"]
    health.started()
    assert reasons(health, "/readyz") == ["the group has not assigned partitions yet"]
    health.assigned({})
    assert reasons(health, "/readyz") == []


def test_not_ready_while_state_is_restored_and_after_a_restore_that_failed(health: Health) -> None:
    at_work(health)
    with health.restoring(2):
        assert reasons(health, "/readyz") == ["the state of 2 partition(s) is being restored"]
    assert reasons(health, "/readyz") == []
    with suppress(Unavailable), health.restoring(2):
        raise Unavailable("x")
    assert reasons(health, "/readyz") != []


def test_not_ready_without_a_required_dependency_and_ready_without_another(health: Health) -> None:
    at_work(health).breaker("redis", "open", required=False)
    assert reasons(health, "/readyz") == []
    health.breaker("postgresql", "half_open")
    assert reasons(health, "/readyz") == ["postgresql is unavailable (breaker half open)"]
    health.breaker("postgresql", "closed")
    assert reasons(health, "/readyz") == []


def test_not_ready_while_a_partition_is_stopped_which_counts_as_paused(health: Health) -> None:
    at_work(health)
    other = (PREDICTIONS, 4)
    health.assigned({PLACE: 1, other: 1})
    health.paused(frozenset({other}))
    health.poisoned({PLACE: "100 dead letters in a row"})
    assert reasons(health, "/readyz") == [
        f"{PREDICTIONS} partition 3 is not read any more: 100 dead letters in a row"
        " (breaker open; SIGUSR1 or a restart closes it)"
    ]
    assert reasons(health, "/livez") == []
    assert health.status()["stopped_partitions"] == [
        {"topic": PREDICTIONS, "partition": 3, "reason": "100 dead letters in a row"}
    ]
    assert health.standing.paused == {PLACE, other}
    health.poisoned({})
    assert reasons(health, "/readyz") == []
    assert health.standing.paused == {other}


def test_not_ready_once_it_is_asked_to_end(health: Health) -> None:
    at_work(health).draining()
    assert reasons(health, "/readyz") == ["stopping"]
    assert reasons(health, "/livez") == []


# What the status shows.


def test_status_shows_where_the_process_stands(health: Health, clock: Clock) -> None:
    at_work(health)
    message = Receipt(
        stage="tagger",
        instance="7",
        build="1.0",
        inputs=[ReceiptInput(topic=PREDICTIONS, partition=3, from_=5, to=9, delivered=4)],
        out=4,
        dlq=0,
    )
    health.lag({PLACE: 11})
    health.committed({PLACE: 9}, message)
    health.paused(frozenset({PLACE}))
    clock.now_s += 2.5
    status = health.status()
    assert status["partitions"] == [{"topic": PREDICTIONS, "partition": 3, "position": 9, "lag": 11, "paused": True}]
    assert status["last_receipt"]["inputs"] == [
        {"topic": PREDICTIONS, "partition": 3, "from": 5, "to": 9, "delivered": 4}
    ]
    assert (status["stage"], status["instance"], status["build"], status["config_hash"]) == (
        "tagger", "7", "1.0", "cafe",
    )  # fmt: skip
    assert (status["live"], status["ready"], status["started"]) == (True, True, True)
    assert status["last_tick_age_s"] == 2.5
    json.dumps(status)


def test_a_partition_that_goes_takes_its_lag_and_pause_along(health: Health) -> None:
    at_work(health)
    health.lag({PLACE: 11})
    health.paused(frozenset({PLACE}))
    health.assigned({})
    health.assigned({PLACE: 5})
    assert health.status()["partitions"] == [
        {"topic": PREDICTIONS, "partition": 3, "position": 5, "lag": None, "paused": False}
    ]


def test_an_error_is_shown_until_a_batch_is_through_and_only_our_own_by_its_text(health: Health) -> None:
    at_work(health).failed(ValueError("card 4111"))
    assert health.status()["last_error"] == "ValueError"
    health.failed(Unavailable("cannot reach postgresql://errata:hunter2@db/errata"))
    assert health.status()["last_error"] == "cannot reach postgresql://***@db/errata"
    health.committed({PLACE: 6})
    assert health.status()["last_error"] is None


# The server.


@contextmanager
def served(health: Health, **options: Any) -> Iterator[Callable[..., tuple[int, dict[str, str], bytes]]]:
    """A server and a way to ask it."""
    with HealthServer(health.pages, lambda accept: ("text/plain", f"for {accept}".encode()), port=0, **options) as up:

        def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
            connection = HTTPConnection(*up.address, timeout=10)
            try:
                connection.request(method, path, headers=headers)
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()
            finally:
                connection.close()

        ask.__dict__["address"] = up.address
        yield ask


def test_probes_answer_with_their_reasons(health: Health) -> None:
    with served(health) as ask:
        code, headers, body = ask("/readyz")
        assert (code, headers["Content-Type"]) == (503, "application/json")
        assert json.loads(body) == {"status": "failing", "reasons": ["transactions are not initialised yet"]}
        at_work(health)
        assert ask("/readyz?verbose=1")[0] == ask("/livez")[0] == ask("/startupz")[0] == 200
        assert json.loads(ask("/statusz")[2])["stage"] == "tagger"
        assert ask("/metrics", Accept="openmetrics")[2] == b"for openmetrics"


def test_nothing_else_is_served_and_nothing_is_repeated(health: Health) -> None:
    with served(health) as ask:
        for path in ("/", "/livez/", "/etc/passwd", "/../pyproject.toml", "/%2e%2e/x", "/<script>"):
            code, headers, body = ask(path)
            assert (code, json.loads(body)) == (404, {"status": "error", "reasons": ["Not Found"]})
            assert headers["Content-Type"] == "application/json"
            assert headers["Server"] == "errata"


def test_it_is_read_only(health: Health) -> None:
    with served(health) as ask:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
            code, headers, _ = ask("/livez", method)
            assert (code, headers["Allow"]) == (405, "GET")
        assert ask("/livez", "BREW")[0] == 501


def test_a_page_that_fails_says_no_more_than_that(health: Health, clock: Clock) -> None:
    def broken() -> tuple[bool, dict[str, Any]]:
        raise RuntimeError("hunter2")

    with HealthServer({"/livez": broken}, lambda _: ("text/plain", b""), port=0) as server:
        connection = HTTPConnection(*server.address, timeout=10)
        connection.request("GET", "/livez")
        answer = connection.getresponse()
        assert answer.status == 500
        assert b"hunter2" not in answer.read()
        connection.close()


def test_clients_that_never_finish_are_cut_off_and_then_others_are_served(health: Health) -> None:
    with served(health, request_limit_s=0.3, max_connections=2) as ask:
        address = ask.__dict__["address"]
        idle = [socket.create_connection(address, timeout=10) for _ in range(2)]
        for one in idle:
            one.sendall(b"GET /li")
        for one in idle:
            assert one.recv(1) == b"", "it is not cut off"
            one.close()
        assert patient(ask, "/livez")[0] == 200


def patient(ask: Callable[..., tuple[int, dict[str, str], bytes]], path: str) -> tuple[int, dict[str, str], bytes]:
    """An answer within 10 s: a slot comes back a moment after its client was cut off."""
    deadline_s = monotonic() + 10
    while True:
        try:
            return ask(path)
        except ConnectionError:
            assert monotonic() < deadline_s, "no slot comes back"


def test_more_connections_than_it_has_slots_are_refused(health: Health) -> None:
    with served(health, max_connections=1) as ask, socket.create_connection(ask.__dict__["address"], timeout=10) as one:
        one.sendall(b"GET /li")
        with socket.create_connection(ask.__dict__["address"], timeout=10) as second:
            assert second.recv(1) == b""
        one.sendall(b"vez HTTP/1.0\r\n\r\n")
        assert one.recv(12) == b"HTTP/1.0 200"


def test_a_taken_port_is_said_in_one_line_and_0_is_off(health: Health) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Misconfigured, match=rf"^ERRATA_HTTP_PORT: cannot listen on port {port} of 127.0.0.1: "):
            open_health_server(health.pages, lambda _: ("", b""), port=port)
    assert open_health_server(health.pages, lambda _: ("", b""), port=0) is None


def test_it_listens_on_loopback_unless_told_otherwise_and_frees_its_port(health: Health) -> None:
    with HealthServer(health.pages, lambda _: ("", b""), port=0) as server:
        host, port = server.address
        assert host == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port), timeout=10)
