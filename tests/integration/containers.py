"""The same servers as containers, where a Docker engine answers."""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from errata_services.dev.processes import LOOPBACK, free_port
from errata_services.dev.servers import ask_kafka, ask_postgres, ask_redis

PROBE_TIMEOUT_S = 3.0
START_TIMEOUT_S = 300.0  # an image may have to be fetched
ANSWER_TIMEOUT_S = 60.0
POLL_S = 0.2


@cache
def docker_answers() -> bool:
    """Whether there is an engine: a client without one is common, and may hang."""
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@contextmanager
def kafka_container() -> Iterator[str]:
    port, controller_port = free_port(), free_port()
    environment = {
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_NODE_ID": "1",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": f"1@{LOOPBACK}:{controller_port}",
        "KAFKA_LISTENERS": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://{LOOPBACK}:{port}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "1",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_LOG_SEGMENT_BYTES": "16777216",
    }
    with _container("apache/kafka:4.3.1", environment, [], lambda: ask_kafka(port)):
        yield f"{LOOPBACK}:{port}"


@contextmanager
def redis_container() -> Iterator[str]:
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", LOOPBACK, "--save", "", "--appendonly", "no"]
    with _container("redis:7", {}, command, lambda: ask_redis(port)):
        yield f"redis://{LOOPBACK}:{port}/0"


@contextmanager
def postgres_container() -> Iterator[str]:
    port = free_port()
    environment = {"POSTGRES_USER": "errata", "POSTGRES_DB": "errata", "POSTGRES_PASSWORD": "errata"}
    url = f"postgresql://errata:errata@{LOOPBACK}:{port}/errata"
    command = ["postgres", "-c", f"port={port}", "-c", f"listen_addresses={LOOPBACK}", "-c", "fsync=off"]
    with _container("postgres:15", environment, command, lambda: ask_postgres(url)):
        yield url


@contextmanager
def _container(
    image: str, environment: Mapping[str, str], command: list[str], ask: Callable[[], object]
) -> Iterator[None]:
    variables = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
    run = ["docker", "run", "--detach", "--rm", "--network", "host", *variables, image, *command]
    started = subprocess.run(run, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=True)
    container = started.stdout.strip()
    try:
        _await(ask, image)
        yield
    finally:
        subprocess.run(["docker", "rm", "--force", container], capture_output=True, check=False)


def _await(ask: Callable[[], object], image: str) -> None:
    deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            ask()
        except Exception:  # each client has errors of its own; any of them means: not yet
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the container of {image} does not answer") from None
            time.sleep(POLL_S)
        else:
            return
