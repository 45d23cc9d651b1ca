"""Keeps the services of one machine running, as a service manager would: by their exit codes alone."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from errata_services.dev.processes import STOP_TIMEOUT_S, end_of, run_as

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
SETTLED_S = 60.0  # who ran this long starts again with the first pause
RUNBOOK = "deploy/runbooks/ErrataServiceDown.md"
FINAL = {  # starting again would not help: what it is; the runbook tells what does
    70: "an invariant is broken: damaged state, or a bug",
    78: "a setting is wrong, or a newer instance has taken over",
}


@dataclass(slots=True)
class Service:
    """One supervised command. ``due_s`` is when it starts next; none while it runs or once it is given up."""

    name: str
    command: Sequence[str]
    log: Path | None
    process: subprocess.Popen[bytes] | None = None
    due_s: float | None = 0.0
    started_s: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    starts: int = 0
    exit_code: int | None = None


@dataclass(slots=True)
class Supervisor:
    """Runs ``commands`` with ``environment`` on top of ours; ``say`` gets a line whenever one ends.

    Each writes to a log in ``folder``; without one, to where we do.

    Call ``tick`` with the monotonic time about every second, always from the same thread. A service that ends with 0
    has done its work, one that ends with 70 or 78 stays down, any other starts again after a pause that doubles.
    """

    commands: Sequence[Sequence[str]]
    environment: Mapping[str, str]
    folder: Path | None
    say: Callable[[str], None]
    services: list[Service] = field(init=False)

    def __post_init__(self) -> None:
        names = _names(self.commands)
        self.services = [
            Service(name, command, None if self.folder is None else self.folder / f"{name}.log")
            for name, command in zip(names, self.commands, strict=True)
        ]

    def tick(self, now_s: float) -> None:
        for service in self.services:
            if service.process is not None and (code := service.process.poll()) is not None:
                self._ended(service, code, now_s)
            if service.due_s is not None and service.due_s <= now_s:
                self._start(service, now_s)

    def _start(self, service: Service, now_s: float) -> None:
        with nullcontext() if service.log is None else service.log.open("ab") as log:
            service.process = subprocess.Popen(
                run_as("", service.command),
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=None if log is None else subprocess.STDOUT,
                start_new_session=True,
            )
        service.started_s, service.due_s, service.exit_code = now_s, None, None
        service.starts += 1

    def _ended(self, service: Service, code: int, now_s: float) -> None:
        service.process, service.exit_code = None, code
        if code == 0:
            self.say(f"{service.name}: done")
            return
        end = f"{service.name} ended with {code}"
        if code in FINAL:
            said = "" if service.log is None else f"; its log ends: {_log_end(service.log)}"
            self.say(f"{end}: {FINAL[code]}; it stays down, see {RUNBOOK}{said}")
            return
        if now_s - service.started_s >= SETTLED_S:
            service.pause_s = FIRST_PAUSE_S
        service.due_s = now_s + service.pause_s
        where = "" if service.log is None else f"; its log: {service.log}"
        self.say(f"{end}: again in {service.pause_s:g} s{where}")
        service.pause_s = min(2 * service.pause_s, LONGEST_PAUSE_S)

    @property
    def given_up(self) -> list[Service]:
        """Services that stay down with an error."""
        return [s for s in self.services if s.process is None and s.due_s is None and s.exit_code not in (0, None)]

    def read_again(self) -> None:
        """Pass SIGUSR1 on: have what a breaker has stopped read again. May be called from a signal handler."""
        for service in self.services:
            if service.process is not None:
                service.process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """Ask all to end at once, and make those end that have not within 20 s."""
        running = [service.process for service in self.services if service.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for process in running:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_TIMEOUT_S)
        for service in self.services:
            service.process = service.due_s = None


def _names(commands: Sequence[Sequence[str]]) -> list[str]:
    """A file name for each: its last word, with a number when several share it."""
    words = [re.sub(r"[^A-Za-z0-9_-]+", "-", Path(command[-1]).name).strip("-")[:60] for command in commands]
    return [
        word if words.count(word) == 1 else f"{word}-{words[: at + 1].count(word)}" for at, word in enumerate(words)
    ]


def _log_end(log: Path) -> str:
    return end_of(log.read_text(encoding="utf-8", errors="replace"))
