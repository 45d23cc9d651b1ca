"""What the supervisor does about each exit code. The processes are real; the time is ours."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from errata_services.dev.supervisor import LONGEST_PAUSE_S, RUNBOOK, SETTLED_S, Supervisor

PATIENCE_S = 20.0

ROOT = Path(__file__).parents[2]


def exiting(code: int) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", f"print('the reason is written here'); raise SystemExit({code})"]


@contextmanager
def supervised(folder: Path, *commands: list[str], **environment: str) -> Iterator[tuple[Supervisor, list[str]]]:
    said: list[str] = []
    supervisor = Supervisor(commands, environment, folder, said.append)
    try:
        yield supervisor, said
    finally:
        supervisor.stop()


def tick_until(supervisor: Supervisor, now_s: float, condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        supervisor.tick(now_s)
        time.sleep(0.01)  # the process needs the time, not we


def has_lines(said: list[str], lines: int) -> bool:
    return len(said) == lines


@pytest.mark.parametrize("code", [75, 1, 42])
def test_a_service_that_may_try_again_is_started_again_after_growing_pauses(tmp_path: Path, code: int) -> None:
    with supervised(tmp_path, exiting(code)) as (supervisor, said):
        service = supervisor.services[0]
        now_s, pauses = 100.0, []
        for starts in range(1, 4):
            tick_until(supervisor, now_s, partial(has_lines, said, starts))
            assert service.starts == starts
            assert service.due_s is not None
            pauses.append(service.due_s - now_s)
            supervisor.tick(service.due_s - 0.01)
            assert service.starts == starts, "it was started before its pause was over"
            now_s = service.due_s
        assert pauses == [1.0, 2.0, 4.0]
        assert said[0].startswith(f"{service.name} ended with {code}: again in 1 s")


def test_the_pause_has_a_ceiling_and_starts_anew_for_a_service_that_had_settled(tmp_path: Path) -> None:
    with supervised(tmp_path, exiting(75)) as (supervisor, said):
        service = supervisor.services[0]
        service.pause_s = LONGEST_PAUSE_S
        tick_until(supervisor, 0.0, lambda: len(said) == 1)
        assert service.due_s == LONGEST_PAUSE_S
        assert service.pause_s == LONGEST_PAUSE_S
        supervisor.tick(LONGEST_PAUSE_S)
        tick_until(supervisor, LONGEST_PAUSE_S + SETTLED_S, lambda: len(said) == 2)
        assert "again in 1 s" in said[1]


@pytest.mark.parametrize("code", [70, 78])
def test_a_service_that_cannot_go_on_stays_down_and_its_runbook_is_named(tmp_path: Path, code: int) -> None:
    with supervised(tmp_path, exiting(code), exiting(75)) as (supervisor, said):
        tick_until(supervisor, 0.0, lambda: len(said) == 2)
        supervisor.tick(1e6)
        assert [service.starts for service in supervisor.services] == [1, 2]
        assert [service.exit_code for service in supervisor.given_up] == [code]
        line = next(line for line in said if f"ended with {code}" in line)
        assert RUNBOOK in line
        assert (ROOT / RUNBOOK).is_file()
        assert "the reason is written here" in line


def test_a_service_that_is_done_is_not_started_again(tmp_path: Path) -> None:
    with supervised(tmp_path, exiting(0)) as (supervisor, said):
        tick_until(supervisor, 0.0, lambda: len(said) == 1)
        supervisor.tick(1e6)
        assert supervisor.services[0].starts == 1
        assert supervisor.given_up == []


def test_services_get_the_addresses_and_end_with_the_supervisor(tmp_path: Path) -> None:
    script = tmp_path / "service.py"
    script.write_text("import os, time\nprint(os.environ['ERRATA_REDIS_URL'], flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, str(script)]
    with supervised(tmp_path, command, command, ERRATA_REDIS_URL="redis://here") as (supervisor, said):
        logs = [service.log for service in supervisor.services if service.log is not None]
        assert [log.name for log in logs] == ["service-py-1.log", "service-py-2.log"]
        tick_until(supervisor, 0.0, lambda: all(log.exists() and log.read_text() == "redis://here\n" for log in logs))
        processes = [service.process for service in supervisor.services]
    assert [process is not None and process.returncode for process in processes] == [-15, -15]
    assert said == []


LISTENING = """
import pathlib, signal, sys
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(0))
pathlib.Path("listens").touch()
while True:
    signal.pause()
"""


def test_asking_to_read_again_reaches_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with supervised(tmp_path, [sys.executable, "-I", "-S", "-c", LISTENING]) as (supervisor, said):
        tick_until(supervisor, 0.0, (tmp_path / "listens").exists)
        assert said == []
        supervisor.read_again()
        tick_until(supervisor, 0.0, lambda: len(said) == 1)
        assert said[0].endswith(": done")
        supervisor.read_again()  # to nobody
