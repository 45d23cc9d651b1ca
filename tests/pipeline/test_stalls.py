"""Twenty ways to stand still, each in a process of its own under the supervisor: found, ended, and nothing is lost."""

import json
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from tests.pipeline.stalling_process import (
    ALARM_S,
    KINDS,
    PARTITIONS,
    RECORDS,
    STALLED,
    journal_of,
    publish,
)

from errata.adapters.memory import MemoryTransport
from errata.contracts import Receipt
from errata.contracts.topics import LEDGER, TAGGED, TOPICS
from errata.domain.ledger import audit
from errata.runtime.stall import Limits
from errata_services.dev.supervisor import Supervisor

pytestmark = pytest.mark.whole

SCRIPT = Path(__file__).with_name("stalling_process.py")
STALL_S = 3.0  # a thirtieth of what services have
LIMITS = Limits.of(STALL_S)
NOISE_S = 1.5  # of a machine with other work; a stall is found in half of STALL_S
ENDS_S = 120.0


def command(kind: str, folder: Path, stall_s: float = STALL_S) -> list[str]:
    return [sys.executable, str(SCRIPT), str(stall_s), kind, str(folder)]


def made(folder: Path) -> Path:
    folder.mkdir()
    publish(folder)
    return folder


def copied(folder: Path) -> tuple[list[int], list[Receipt]]:
    """What is in the output, in the order of the input, and all receipts."""
    with closing(MemoryTransport(TOPICS, journal=journal_of(folder))) as transport:
        out = [int(one.value or b"") for number in range(PARTITIONS) for one in transport.read_from((TAGGED, number))]
        places = [(LEDGER, number) for number in range(transport.partitions(LEDGER))]
        receipts = [
            Receipt.model_validate_json(one.value or b"") for place in places for one in transport.read_from(place)
        ]
    return sorted(out), receipts


def test_there_are_twenty() -> None:
    assert len(set(KINDS)) == 20


def test_each_stall_is_found_and_healed_by_the_next_process_without_loss(tmp_path: Path) -> None:
    said: list[str] = []
    folders = {kind: made(tmp_path / kind) for kind in KINDS}
    logs = tmp_path / "logs"
    logs.mkdir()
    supervisor = Supervisor([command(kind, folder) for kind, folder in folders.items()], {}, logs, said.append)
    deadline_s = time.monotonic() + ENDS_S
    try:
        while not all(f"{kind}: done" in said for kind in KINDS):
            supervisor.tick(time.monotonic())
            assert time.monotonic() < deadline_s, said
            assert not supervisor.given_up, said
            time.sleep(0.05)
    finally:
        supervisor.stop()
    for kind, folder in folders.items():
        ends = [line.partition("ended with ")[2].partition(":")[0] for line in said if line.startswith(f"{kind} ended")]
        # What holds the interpreter's lock is ended from outside of it, which can only be done with 1.
        assert ends == ["1" if kind == "gil" else "75"], (kind, ends)
        out, receipts = copied(folder)
        assert out == list(range(RECORDS)), kind
        assert audit(receipts).faults == [], kind
        found_s = told_after_s(kind, folder, (logs / f"{kind}.log").read_text())
        assert found_s <= (ALARM_S if kind == "gil" else LIMITS.tell_s + 2 * LIMITS.every_s) + NOISE_S, (kind, found_s)


def told_after_s(kind: str, folder: Path, log: str) -> float:
    """From the stall to its stacks in the log; one in the log's own lock can be told by its end alone."""
    begun = float((folder / STALLED).read_text())
    if kind in ("gil", "log"):
        assert kind == "log" or "Timeout" in log, "the timer outside of the interpreter shows the stacks"
        return 0.0
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    told = next(line for line in lines if line["event"] == "stands still")
    ended = next(line for line in lines if line["event"].startswith("stood still"))
    assert ended["exit_code"] == 75
    assert any(name.startswith("MainThread") for name in told["stacks"])
    if kind not in ("deaf", "silent", "paused"):  # there the loop turns
        assert any("stalling_process.py" in place for frames in told["stacks"].values() for place in frames), kind
        assert told["loop_stands_s"] >= LIMITS.tell_s
    return datetime.fromisoformat(told["time"]).timestamp() - begun


def test_without_the_watch_they_stand_still_for_good(tmp_path: Path) -> None:
    """Negative control."""
    folders = {kind: made(tmp_path / kind) for kind in ("step", "paused")}
    running = [subprocess.Popen(command(kind, folder, stall_s=0)) for kind, folder in folders.items()]
    try:
        deadline_s = time.monotonic() + ENDS_S
        while not all((folder / STALLED).exists() for folder in folders.values()):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        time.sleep(2 * STALL_S)  # how long nothing happens
        assert [process.poll() for process in running] == [None, None]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert all(len(copied(folder)[0]) < RECORDS for folder in folders.values())
