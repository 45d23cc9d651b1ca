"""``errata dev``: Kafka, Redis and PostgreSQL with their data in one folder, for as long as they are needed."""

import fcntl
import json
import os
import secrets
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import platformdirs

from errata.errors import Misconfigured, NotFound, Unavailable
from errata_services.dev.processes import end_of, listening
from errata_services.dev.servers import Server, kafka, made, postgres, redis, write_private
from errata_services.dev.supervisor import Supervisor

DETACH_TIMEOUT_S = 900.0  # the first time, Kafka's jars are fetched
DOWN_TIMEOUT_S = 90.0
POLL_S = 0.1
TICK_S = 1.0
STATE_FILE = "dev.json"
PORTS_FILE = "ports.json"
LOCK_FILE = "dev.lock"
LOG_FILE = "dev.log"
KEY_FILE = "errata.key"


@dataclass(frozen=True, slots=True)
class Status:
    """What is up. ``environment`` holds a password: it is for shells and children, not for logs."""

    folder: Path
    pid: int | None
    addresses: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def running(self) -> bool:
        return self.pid is not None

    def answering(self) -> dict[str, bool]:
        return {name: listening(int(address.rpartition(":")[2])) for name, address in self.addresses.items()}


def default_folder() -> Path:
    return platformdirs.user_data_path("errata") / "dev"


def exports(environment: Mapping[str, str]) -> list[str]:
    """Lines for ``eval`` in a shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def up(
    folder: Path,
    *,
    commands: Sequence[Sequence[str]] = (),
    prepare: Callable[[Mapping[str, str]], None] = lambda environment: None,
    announce: Callable[[Mapping[str, str]], None],
    say: Callable[[str], None],
) -> None:
    """Run the servers, and ``commands`` with their addresses in the environment, until SIGINT or SIGTERM.

    ``prepare`` runs when the servers answer, before anybody is told that they do and before the commands start.
    Only from the main thread. Raises ``Misconfigured`` when the folder is in use, ``Unavailable`` when a server ends.
    """
    folder = made(folder)
    with _claimed(folder), _stopping() as stop, ExitStack() as stack:
        ports = _last_ports(folder)
        servers: dict[str, Server] = {}
        for name, start in _starters(folder, ports).items():
            if stop.is_set():
                return
            servers[name] = stack.enter_context(start())
        environment = _environment(servers, folder)
        supervisor = Supervisor(commands, environment, folder, say)
        stack.callback(supervisor.stop)
        prepare(environment)
        _write_state(folder, servers, environment)
        announce(environment)
        while not stop.is_set():
            for name, server in servers.items():
                if not server.running:
                    raise Unavailable(f"{name} has ended; its log ends: {server.child.log_end()}")
            supervisor.tick(time.monotonic())
            stop.wait(TICK_S)


def up_detached(folder: Path, command: Sequence[str]) -> Status:
    """Run ``command``, which calls `up` on ``folder``, in the background; returns when all is ready. Idempotent."""
    folder = made(folder)
    if not status(folder).running:
        with (folder / LOG_FILE).open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        _await_up(folder, process)
    return status(folder)


def _await_up(folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + DETACH_TIMEOUT_S
    try:
        while not status(folder).addresses:
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = end_of((folder / LOG_FILE).read_text(encoding="utf-8", errors="replace"))
                raise Unavailable(f"the servers did not start: {said.removeprefix('errata: ')}")
            time.sleep(POLL_S)
    except BaseException:  # Ctrl-C too: nobody would know of what was half started
        process.terminate()
        raise
    process.returncode = 0  # it goes on without us: nobody waits for it here


def down(folder: Path) -> None:
    """Stop the servers of ``folder`` and wait until they have ended. Raises ``NotFound`` when none are up."""
    found = status(folder)
    if found.pid is None:
        raise NotFound(f"{folder}: no servers are up; start them with errata dev up")
    os.kill(found.pid, signal.SIGTERM)
    deadline_s = time.monotonic() + DOWN_TIMEOUT_S
    while status(folder).running:
        if time.monotonic() > deadline_s:
            raise Unavailable(f"process {found.pid} has not ended in {DOWN_TIMEOUT_S:g} s; see {folder / LOG_FILE}")
        time.sleep(POLL_S)


def status(folder: Path) -> Status:
    """Who holds the folder's lock, and the addresses once all servers answer."""
    lock = folder / LOCK_FILE
    if not lock.exists():
        return Status(folder, None)
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            return Status(folder, None)
        pid = int(file.read() or "0")
    state = _read_state(folder)
    if not pid or state.get("pid") != pid:  # it starts or stops
        return Status(folder, pid or None)
    return Status(folder, pid, state["addresses"], state["environment"])


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    with os.fdopen(os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        deadline_s = time.monotonic() + 1.0  # somebody who asks for the status holds it for an instant
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise Misconfigured(f"{folder}: its servers are up already; see errata dev status") from None
                time.sleep(POLL_S)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            (folder / STATE_FILE).unlink(missing_ok=True)


@contextmanager
def _stopping() -> Iterator[Event]:
    """An event that SIGINT and SIGTERM set instead of ending the process in the middle of a start."""
    stop = Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _starters(folder: Path, ports: Mapping[str, int]) -> dict[str, Callable[[], AbstractContextManager[Server]]]:
    return {
        "kafka": lambda: kafka(folder / "kafka", port=ports.get("kafka")),
        "redis": lambda: redis(folder / "redis", port=ports.get("redis")),
        "postgres": lambda: postgres(folder / "postgres", durable=True, port=ports.get("postgres")),
    }


def _last_ports(folder: Path) -> dict[str, int]:
    """The ports of the last time, as far as they are free: an address that stays the same can stay in a shell."""
    file = folder / PORTS_FILE
    kept: dict[str, int] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: port for name, port in kept.items() if not listening(port)}


def _environment(servers: Mapping[str, Server], folder: Path) -> dict[str, str]:
    key = folder / KEY_FILE
    if not key.exists():
        write_private(key, secrets.token_urlsafe(48))
    return {
        "ERRATA_KEY_FILE": str(key),
        "ERRATA_KAFKA__BOOTSTRAP_SERVERS": servers["kafka"].address,
        "ERRATA_REDIS_URL": servers["redis"].url,
        "ERRATA_DATABASE_URL": servers["postgres"].url,
    }


def _write_state(folder: Path, servers: Mapping[str, Server], environment: Mapping[str, str]) -> None:
    addresses = {name: server.address for name, server in servers.items()}
    ports = {name: int(address.rpartition(":")[2]) for name, address in addresses.items()}
    write_private(folder / PORTS_FILE, json.dumps(ports))
    state = {"pid": os.getpid(), "addresses": addresses, "environment": dict(environment)}
    fresh = folder / f"{STATE_FILE}.new"
    write_private(fresh, json.dumps(state))
    fresh.replace(folder / STATE_FILE)


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return state
