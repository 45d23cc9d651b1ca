"""PostgreSQL stopped, crashed, full; Redis gone, slow, emptied, while events flow: time is lost, and no event."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from redis import Redis
from tests.faults.broker import began, ended, judged
from tests.faults.judge import judge
from tests.faults.rig import DRAIN_S, ENRICHER, WRITER, Rig, Row, attempted, wait
from tests.faults.story import Publisher, Story, publish
from tests.integration.chain import Chain

from errata.contracts.topics import STAGES
from errata_services.dev import servers
from errata_services.dev.servers import Server

RATE = 500.0
HOLD = 2_000
DISK_MB = 256
FILLER = "filler"
CONTROL_EVENTS = 20_000
GIVES_UP_S = 5.0  # until the broken writer has tried all that waits for it, once


def rows(rig: Rig) -> list[Row]:
    return [
        *attempted("outages of PostgreSQL", lambda: _postgres(rig)),
        *attempted("outages of Redis", lambda: _redis(rig)),
        *attempted("control of outages", lambda: [_dropping(rig)]),
    ]


def _postgres(rig: Rig) -> list[Row]:
    story, made = Story(phase=300), list[Row]()
    folder = rig.place("postgres")
    with ExitStack() as stack:
        small = stack.enter_context(small_disk(folder, DISK_MB))
        database = stack.enter_context(servers.postgres(folder, durable=True))
        with rig.chain("outages", story, database=database.url) as four:
            began(four)
            publisher = Publisher(four, story, rate=RATE).start()
            publisher.until(HOLD)
            faults: tuple[tuple[str, Callable[[], None], Callable[[], None]], ...] = (
                ("PostgreSQL stopped", database.stop, database.restart),
                ("PostgreSQL crashed", database.kill, database.restart),
                ("PostgreSQL's disk full", lambda: fill(folder), lambda: make_room(folder, database)),
            )
            if not small:
                made.append(Row("PostgreSQL's disk full: not run, mounting a small disk takes root", 0))
            for what, begin, end in faults if small else faults[:2]:
                made.append(_outage(rig, four, publisher, what, begin, end, WRITER))
            found = ended(four, publisher, story)
    return [*made, *judged("through outages of PostgreSQL", found)]


def _outage(
    rig: Rig,
    four: Chain,
    publisher: Publisher,
    what: str,
    begin: Callable[[], None],
    end: Callable[[], None],
    stage: str,
) -> Row:
    rig.progress(f"outages: {what} for {rig.scale.outage_s:g} s")
    begin()
    try:
        before = publisher.published
        wait(rig.scale.outage_s)
        flowed = publisher.published - before
    finally:
        end()
    back_s = time.monotonic()
    four.until(lambda: not four.unread(stage), f"{what}: lag of the {stage} is 0 again", DRAIN_S)
    took_s = time.monotonic() - back_s
    publisher.until(publisher.published + HOLD)
    return Row(f"{what} {rig.scale.outage_s:g} s: until lag is 0 (s)", took_s, "catch_up_s", f"{flowed:,} events then")


@contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[bool]:
    """A file system of its own on a folder, where we may mount one; whether there is."""
    mount = shutil.which("mount") if os.geteuid() == 0 else None
    command = [mount or "", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=0755", "errata-faults", str(folder)]
    mounted = mount is not None and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Until not a byte is left."""
    with (folder / FILLER).open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(64 * 1024))
            except OSError:
                break


def make_room(folder: Path, database: Server) -> None:
    (folder / FILLER).unlink()
    if not database.running:
        database.restart()


def _redis(rig: Rig) -> list[Row]:
    story, made = Story(phase=300), list[Row]()
    with servers.redis(rig.place("redis")) as redis, rig.chain("outages", story, redis=redis.url) as four:
        began(four)
        publisher = Publisher(four, story, rate=RATE).start()
        publisher.until(HOLD)
        faults: tuple[tuple[str, Callable[[], None], Callable[[], None]], ...] = (
            ("Redis gone", redis.stop, redis.restart),
            ("Redis slow", lambda: _slow(redis, rig.scale.outage_s), nothing),
            ("Redis emptied", lambda: _emptied(redis), nothing),
        )
        for what, begin, end in faults:
            made.append(_outage(rig, four, publisher, what, begin, end, ENRICHER))
        found = ended(four, publisher, story, context=False)
    return [*made, *judged("through outages of Redis", found)]


def nothing() -> None:
    """The fault is over by itself."""


def _slow(redis: Server, seconds: float) -> None:
    """It takes commands and answers none of them for so long."""
    with Redis.from_url(redis.url) as client:
        client.execute_command("CLIENT", "PAUSE", int(seconds * 1_000), "ALL")


def _emptied(redis: Server) -> None:
    with Redis.from_url(redis.url) as client:
        client.flushall()


def _dropping(rig: Rig) -> Row:
    """Control: a writer that gives up what the database does not take."""
    rig.progress("outages: control, a writer that drops")
    story = Story(phase=300)
    with ExitStack() as stack:
        database = stack.enter_context(servers.postgres(rig.place("postgres"), durable=True))
        with rig.chain("control", story, database=database.url) as four:
            for stage in STAGES[:3]:
                four.start(stage)
            four.start_broken("drops", WRITER)
            published = publish(four, story, CONTROL_EVENTS)
            four.until_drained(DRAIN_S)
            database.stop()
            published += publish(four, story, CONTROL_EVENTS)
            four.until_drained(DRAIN_S, STAGES[:3])
            wait(GIVES_UP_S)
            database.restart()
            published += publish(four, story, CONTROL_EVENTS)
            four.until_drained(DRAIN_S)
            found = judge(four, story.tables, four.folder / "oracle", published=published)
    return Row("control: a writer that drops what it cannot write", found.size, "control", found.said)
