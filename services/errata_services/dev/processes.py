"""Child processes that never outlive their starter: started, asked, frozen, killed and restarted in place."""

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from platformdirs import user_cache_path

from errata.errors import Misconfigured, Unavailable

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
LOG_LINES_SHOWN = 8
LOOPBACK = "127.0.0.1"
LOWEST_PORT = 15_000
EPHEMERAL_FROM = 32_768  # Linux's default; below it the kernel gives no port to an outgoing connection
_STILL = ("T", "t", "Z", "")  # stopped, traced, ended

# Runs between fork and exec in a fresh interpreter: preexec_fn may deadlock in a process with threads, and drops the
# death signal when it changes the user afterwards. The signal is last, then the parent is looked at once more.
_SHIM = """
import ctypes, os, pwd, sys
parent, user, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
if user:
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.environ.update(HOME=entry.pw_dir, USER=user, LOGNAME=user)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != parent:
    sys.exit("its starter is gone")
os.execvp(command[0], command)
"""


def find_program(name: str, package: str, folders: Iterable[Path] = ()) -> str:
    """Path of an installed program: on PATH, else in ``folders``; ``Misconfigured`` names the package to install."""
    found = shutil.which(name) or next((p for folder in folders if (p := shutil.which(name, path=str(folder)))), None)
    if found is None:
        raise Misconfigured(f"{name}: no such program on PATH; install it (Debian: apt-get install {package})")
    return found


def run_as(user: str, command: Sequence[str]) -> list[str]:
    """``command`` as ``user`` (empty: as we are), to be started by this thread: it ends when this thread does."""
    return [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), user, *command]


def end_of(text: str) -> str:
    """The last lines of a log as one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-LOG_LINES_SHOWN:]) or "(nothing)"


def free_port() -> int:
    """A loopback port nobody listens on and no other process of ours has been given, ours until this process ends.

    It lies below those of outgoing connections: a client that retries a dead server's ephemeral port sooner or later
    connects to itself, and holds the port.
    """
    chooser = random.SystemRandom()
    for _ in range(200):
        port = chooser.randrange(LOWEST_PORT, EPHEMERAL_FROM)
        if _reserved(port) and _bindable(port):
            return port
    raise Unavailable(f"no free port on {LOOPBACK} from {LOWEST_PORT} to {EPHEMERAL_FROM}")


_RESERVATIONS: list[int] = []  # files open for as long as the process lives: each holds the lock of its port


def _reserved(port: int) -> bool:
    """Servers bind seconds after their port was chosen, several at once: looking alone would let two have the same."""
    folder = user_cache_path("errata") / "ports"
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / str(port), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    _RESERVATIONS.append(file)
    return True


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


@dataclass(slots=True)
class Child:
    """One program in its own process group, with one log file. ``ready`` asks the server and raises until it answers.

    It dies with the thread that started it (Linux): also when that process is killed.
    """

    name: str
    command: Sequence[str]
    folder: Path
    ready: Callable[[], object]
    user: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    ready_timeout_s: float = READY_TIMEOUT_S
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        if self.process is None:
            raise Unavailable(f"{self.name} is not running")
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Start and wait until it answers, 30 s at most by default; the error quotes the end of the log."""
        if self.running:
            return self
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                run_as(self.user, self.command),
                cwd=self.folder,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._await_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def _await_ready(self) -> None:
        deadline_s = time.monotonic() + self.ready_timeout_s
        last: Exception | None = None
        while time.monotonic() < deadline_s:
            if not self.running:
                raise Unavailable(f"{self.name} stopped while it started; its log ends: {self.log_end()}")
            try:
                self.ready()
            except Exception as error:  # each client has errors of its own; any of them means: not yet
                last = error
                time.sleep(POLL_S)
            else:
                return
        raise Unavailable(
            f"{self.name} did not answer within {self.ready_timeout_s:g} s ({last}); its log ends: {self.log_end()}"
        )

    @contextmanager
    def running_here(self) -> Iterator[Self]:
        """Running inside the block; stopped after it, whatever was done to it meanwhile."""
        try:
            yield self.start()
        finally:
            self.stop()

    def log_end(self) -> str:
        return end_of(self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else "")

    def stop(self) -> None:
        """Ask it to end, and make it end if it does not within 20 s."""
        if self.process is None:
            return
        if self.running:
            self.thaw()
            os.kill(self.process.pid, self.stop_signal)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._leave()

    def kill(self) -> None:
        """SIGKILL, without a chance to tidy up: as after a power cut of this one server."""
        if self.process is None:
            return
        self._signalled(signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT_S)
        self._leave()

    def _leave(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)  # what is left of its group, if anything
            self.process = None

    def freeze(self) -> None:
        """Stop it in its tracks, with every process it has: connections stay open and nothing answers."""
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while not all(_state(pid) in _STILL for pid in self._signalled(signal.SIGSTOP)):
            if time.monotonic() > deadline_s:
                raise Unavailable(f"{self.name} could not be frozen within {STOP_TIMEOUT_S:g} s")
            time.sleep(POLL_S / 10)

    def thaw(self) -> None:
        self._signalled(signal.SIGCONT)

    def _signalled(self, number: signal.Signals) -> list[int]:
        pids = family(self.pid)
        for pid in pids:
            _signal(pid, number)
        return pids


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. ``address`` and ``folder`` stay the same when it is restarted; ``pid`` does not."""

    address: str
    url: str
    folder: Path
    child: Child = field(repr=False, compare=False)

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def running(self) -> bool:
        return self.child.running

    @property
    def log(self) -> Path:
        return self.child.log

    def stop(self) -> None:
        """End it as its own service manager would; ``restart`` brings it back."""
        self.child.stop()

    def kill(self) -> None:
        self.child.kill()

    def freeze(self) -> None:
        self.child.freeze()

    def thaw(self) -> None:
        self.child.thaw()

    def restart(self) -> None:
        """Stop it if it runs, and start it on the same port and data."""
        self.child.stop()
        self.child.start()


def family(pid: int) -> list[int]:
    """A process and all its descendants, parents first. PostgreSQL's processes each have a group of their own."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        children.setdefault(int(after_name[1]), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def _state(pid: int) -> str:
    """The letter ps shows for its state; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
