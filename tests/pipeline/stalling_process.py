"""A worker that stands still once, as a process: ``stalling_process.py STALL_S KIND FOLDER``.

It copies what the folder's journal holds. Amid its work it comes to stand still in the way of ``KIND``, unless it did
so before: then a file in the folder says when. ``STALL_S`` 0: nobody watches it.
"""

import ctypes
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from errata.adapters.journal import Journal
from errata.adapters.memory import MemoryTransport
from errata.contracts.topics import ENRICHED, TAGGED, TOPICS
from errata.errors import Aborted
from errata.ports import Outgoing, Record, StepResult
from errata.runtime.health import Health
from errata.runtime.logging import configure_logging
from errata.runtime.service import serve
from errata.runtime.stall import Limits, StallWatch
from errata.runtime.telemetry import NoTelemetry
from errata.runtime.worker import Worker

RECORDS, PARTITIONS, BATCH, NTH = 240, 4, 10, 6
STALLED = "stalled"  # the file with the time of the stall, seconds since 1970
QUIET_PARTITION = 2
ALARM_S = 4.0


def journal_of(folder: Path) -> Journal:
    return Journal(folder / "journal.bin")


def publish(folder: Path) -> None:
    transport = MemoryTransport(TOPICS, journal=journal_of(folder))
    producer = transport.producer("publisher")
    producer.begin()
    for at in range(RECORDS):
        producer.produce(Outgoing(ENRICHED, b"%d" % at, b"%d" % at, partition=at % PARTITIONS))
    producer.commit()
    transport.close()


def never() -> None:
    Event().wait()


def spin() -> None:
    while True:
        pass


def lock() -> None:
    held = threading.Lock()
    held.acquire()
    held.acquire()


def c_call() -> None:
    ctypes.CDLL(None).sleep(3_600)


def gil() -> None:
    """In C, with the interpreter's lock in hand: no thread of Python runs any more."""
    ctypes.PyDLL(None).sleep(3_600)


def answer_that_never_comes() -> None:
    here, _there = socket.socketpair()
    here.recv(1)


def full_pipe() -> None:
    _reads, writes = os.pipe()
    while True:
        os.write(writes, b"x" * 65_536)


def log_lock() -> None:
    import logging

    for handler in logging.getLogger().handlers:
        handler.acquire()
    never()


IN_STEP: Mapping[str, Callable[[], None]] = {
    "step": never,
    "spin": spin,
    "lock": lock,
    "c-call": c_call,
    "gil": gil,
    "socket": answer_that_never_comes,
    "pipe": full_pipe,
    "log": log_lock,
}
IN_PRODUCER = ("begin", "produce", "send_offsets", "commit", "abort")
IN_LOOP = ("poll", "deaf", "silent", "paused", "prepare", "report", "tick")
KINDS = (*IN_STEP, *IN_PRODUCER, *IN_LOOP)


class Stall:
    """Comes once, at the ``NTH`` passage of the place of its kind."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._kind, self._file = kind, folder / STALLED
        self._before = self._file.exists()
        self._passed = 0
        self.begun = False

    def due(self, *kinds: str) -> bool:
        """Whether this is the place and the time; from then on always."""
        if self._before or self._kind not in kinds:
            return False
        self._passed += 1
        if self._passed >= NTH and not self.begun:
            self.begun = True
            self._file.write_text(repr(time.time()))
        return self.begun


class Consumer:
    def __init__(self, inner: Any, stall: Stall) -> None:
        self.inner, self._stall = inner, stall

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def poll(self, most: int, timeout_s: float = 0.0) -> Sequence[Record]:
        if self._stall.due("poll"):
            never()
        if self._stall.due("deaf"):
            time.sleep(timeout_s)
            return []
        if self._stall.due("paused"):
            self.inner.pause({(ENRICHED, QUIET_PARTITION)})
        found = self.inner.poll(most, timeout_s)
        if self._stall.due("silent"):
            found = [record for record in found if record.partition != QUIET_PARTITION]
        if not found:
            time.sleep(timeout_s)
        return found  # type: ignore[no-any-return]


class Producer:
    def __init__(self, inner: Any, stall: Stall) -> None:
        self._inner, self._stall = inner, stall

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            if self._stall.due(name):
                never()
            getattr(self._inner, name)(*arguments)

        return call

    def send_offsets(self, offsets: dict[Any, int], consumer: Consumer) -> None:
        if self._stall.due("send_offsets"):
            never()
        self._inner.send_offsets(offsets, consumer.inner)

    def abort(self) -> None:
        if self._stall.begun:
            never()
        self._inner.abort()

    def commit(self) -> None:
        if self._stall.due("commit"):
            never()
        if self._stall.due("abort"):
            raise Aborted("this transaction is void")
        self._inner.commit()


class Transport(MemoryTransport):
    def __init__(self, folder: Path, stall: Stall) -> None:
        super().__init__(TOPICS, journal=journal_of(folder))
        self._stall = stall

    def consumer(self, *arguments: Any, **named: Any) -> Any:
        return Consumer(super().consumer(*arguments, **named), self._stall)

    def producer(self, transactional_id: str) -> Any:
        return Producer(super().producer(transactional_id), self._stall)


class Copy:
    """The simplest stage there is."""

    name = "tagger"
    input = ENRICHED
    side_inputs: tuple[str, ...] = ()

    def __init__(self, kind: str, stall: Stall) -> None:
        self._kind, self._stall = kind, stall

    def restore(self, partition: int, entries: Mapping[bytes, bytes]) -> None:
        pass

    def revoke(self, partition: int) -> None:
        pass

    def prepare(self, batch: Sequence[Record]) -> None:
        if self._stall.due("prepare"):
            never()

    def step(self, batch: Sequence[Record], prepared: object) -> StepResult:
        if self._kind in IN_STEP and self._stall.due(self._kind):
            IN_STEP[self._kind]()
        return StepResult([Outgoing(TAGGED, one.key, one.value, partition=one.partition) for one in batch])

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass


class OwnLog:
    """The watch's look into the journal's log: one of the same process."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.end_offsets, self._transport = transport.end_offsets, transport

    def read_from(self, *place: Any, timeout_s: float | None = None) -> Iterator[Record]:
        return self._transport.read_from(*place)

    def close(self) -> None:
        pass


def main(stall_s: str, kind: str, folder: str) -> None:
    configure_logging("tagger", "0", json=True)
    stall, stopping = Stall(kind, Path(folder)), Event()
    transport = Transport(Path(folder), stall)
    health = Health(stage="tagger", instance="0", build="test")

    def report(_receipt: object) -> None:
        if stall.due("report"):
            never()

    stage = Copy(kind, stall)
    worker = Worker(
        stage, transport, instance="0", build="test", cipher=None, batch_size=BATCH, health=health, on_progress=report
    )

    def tick() -> None:
        health.tick()
        if stall.due("tick"):
            never()
        if sum(transport.end_offset((TAGGED, number)) for number in range(PARTITIONS)) == RECORDS:
            stopping.set()

    limits, watch = Limits.of(float(stall_s)), None
    if limits.end_s:
        own = Limits(limits.tell_s, limits.end_s, limits.every_s, limits.answer_s, alarm_s=ALARM_S)
        watch = StallWatch(health, NoTelemetry(), OwnLog(transport), own)
    serve(worker, stopping, tick, watch)


if __name__ == "__main__":
    main(*sys.argv[1:])
