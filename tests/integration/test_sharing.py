"""Sharing a server between the workers of a test run, and what happens where no server can be had."""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from tests.integration.conftest import missing
from tests.integration.sharing import shared


def server(log: list[str]) -> Callable[[], AbstractContextManager[str]]:
    @contextmanager
    def start() -> Iterator[str]:
        log.append("started")
        yield "here:1"
        log.append("stopped")

    return start


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """Another process that lives until it is killed."""
    process = subprocess.Popen(["sleep", "600"])
    with process:
        yield process
        process.kill()


def test_the_first_starts_it_and_a_later_run_starts_it_anew(tmp_path: Path) -> None:
    log: list[str] = []
    for _ in range(2):
        with shared(tmp_path, "kafka", server(log)) as address:
            assert address == "here:1"
    assert log == ["started", "stopped"] * 2


def test_a_second_worker_takes_the_server_of_the_first_and_says_so(
    tmp_path: Path, worker: subprocess.Popen[bytes]
) -> None:
    log: list[str] = []
    entry = tmp_path / "kafka.json"
    entry.write_text(json.dumps({"owner": worker.pid, "address": "there:2"}))
    with shared(tmp_path, "kafka", server(log)) as address:
        assert address == "there:2"
        assert (tmp_path / "kafka.users" / str(os.getpid())).exists()
    assert not (tmp_path / "kafka.users" / str(os.getpid())).exists()
    assert log == []
    worker.kill()
    worker.wait()
    with shared(tmp_path, "kafka", server(log)) as address:
        assert address == "here:1", "the server of a dead worker died with it"


def test_the_first_waits_for_the_last(tmp_path: Path, worker: subprocess.Popen[bytes]) -> None:
    log: list[str] = []
    leaves = threading.Event()

    def first() -> None:
        with shared(tmp_path, "kafka", server(log)):
            (tmp_path / "kafka.users" / str(worker.pid)).touch()
            leaves.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert leaves.wait(10)
    thread.join(0.5)
    assert log == ["started"], "stopped under the feet of another worker"
    worker.kill()
    worker.wait()
    thread.join(10)
    assert log == ["started", "stopped"]


def test_without_a_server_tests_are_skipped_and_under_ci_they_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="kafka: no java"):
        missing("kafka: no java")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="kafka: no java"):
        missing("kafka: no java")
