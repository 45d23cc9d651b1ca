"""SIGKILL at every crash point of every stage, while events flow: nothing lost, nothing doubled, state by its bytes."""

import random
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.faults.judge import Judgement, judge
from tests.faults.rig import DETECTOR, DRAIN_S, ENRICHER, TAGGER, WRITER, Rig, Row, attempted
from tests.faults.story import Publisher, Story, chooser
from tests.integration.chain import KILLED, Chain, armed

from errata.contracts.topics import STAGES
from errata.runtime import crash_points
from errata_services import catalog_writer

POINTS = dict.fromkeys(STAGES[:3], crash_points.POINTS) | {WRITER: catalog_writer.POINTS}
SIZES = {DETECTOR: (700, 1_900, 5_000), ENRICHER: (1, 2, 5), TAGGER: (1, 2, 5), WRITER: (1, 2, 5)}  # records of a batch
PASSAGES = {DETECTOR: (1, 2, 3), ENRICHER: (1, 2), TAGGER: (1, 2), WRITER: (1, 2)}
KILL_S = 300.0
CONTROL_EVENTS = 40_000
CONTROLS = (
    ("offsets outside the transaction", "outside", TAGGER, crash_points.AFTER_OFFSETS),
    ("offsets after the transaction", "after", TAGGER, crash_points.AFTER_COMMIT),
    ("detector without its changelog", "forgetful", DETECTOR, crash_points.AFTER_COMMIT),
)


@dataclass
class Kills:
    """How often each stage was killed at each point."""

    at: "Counter[tuple[str, str]]" = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.at.total()


def rows(rig: Rig) -> list[Row]:
    made = attempted("kills", lambda: _kills(rig))
    for what, *more in CONTROLS:
        made += attempted(f"control: {what}", lambda what=what, more=more: [control(rig, what, *more)])  # type: ignore[misc]
    return made


def _kills(rig: Rig) -> list[Row]:
    kills, found = killed(rig)
    fewest = min(kills.at.values())
    return [
        Row("crash-point kills over the four stages", kills.total, "kills", f"{len(kills.at)} points, ≥ {fewest} each"),
        Row("events in the run with kills", found.events, "kill_events", found.held),
        Row("lost under client crash", found.lost, "lost", found.said),
        Row("doubled under client crash", found.doubled, "doubled"),
        Row("findings, cases, order not as in the oracle", found.wrong, "wrong"),
        Row("entries of state not byte-equal to the oracle", found.state, "state_differs", f"of {found.entries:,}"),
    ]


def killed(rig: Rig) -> tuple[Kills, Judgement]:
    story, kills = Story(), Kills()
    with rig.chain("kills", story) as four:
        publisher = Publisher(four, story).start()
        with ThreadPoolExecutor(len(STAGES)) as pool:
            due = _shares(rig.scale.kills)
            running = [pool.submit(_kill, rig, four, stage, due[stage], kills) for stage in STAGES]
            _watch(rig, publisher, running, kills)
        try:
            publisher.until(rig.scale.kill_events, DRAIN_S)
        finally:
            published = publisher.stop()
        four.until_drained(DRAIN_S)
        rig.progress(f"kills: all {published:,} events are through; the oracle runs")
        found = judge(four, story.tables, four.folder / "oracle", published=published)
        rig.progress(f"kills: {found.said}; {found.held}")
        return kills, found


def _shares(kills: int) -> dict[str, int]:
    """As many at each point: the writer has three, the others five."""
    points = sum(map(len, POINTS.values()))
    each = -(-kills // points)
    return {stage: each * len(POINTS[stage]) for stage in STAGES}


def _kill(rig: Rig, four: Chain, stage: str, kills: int, done: Kills) -> None:
    """Let a stage die as often, at its points in turn, then start it for good."""
    chance = chooser(f"kills {stage}")
    for at in range(kills):
        point = POINTS[stage][at % len(POINTS[stage])]
        die(four, stage, point, chance)
        done.at[stage, point] += 1
    four.start(stage)


def die(four: Chain, stage: str, point: str, chance: random.Random, broken: str = "") -> None:
    """Start a stage that is to die at a point, and see it die of that."""
    size, nth = chance.choice(SIZES[stage]), chance.choice(PASSAGES[stage])
    variables = {"ERRATA_BATCH_SIZE": str(size), **armed(stage, point, nth)}
    service = four.start_broken(broken, stage, **variables) if broken else four.start(stage, **variables)
    code = service.process.wait(KILL_S)
    assert code == KILLED, f"{stage} at {point}: ended with {code}, not by our kill: {service.logged()[-1500:]}"
    four.running.remove(service)
    service.log.unlink()


def _watch(rig: Rig, publisher: Publisher, running: "list[Future[None]]", kills: Kills) -> None:
    told_s = time.monotonic()
    while not all(one.done() for one in running):
        if any(one.done() and one.exception() for one in running):
            publisher.four.stop()  # else the others would wait for what does not come any more
            break
        if time.monotonic() - told_s > 15:
            told_s = time.monotonic()
            rig.progress(f"kills: {kills.total} kills, {publisher.published:,} events published")
        time.sleep(0.2)
    for one in running:
        one.result()


def control(rig: Rig, what: str, kind: str, stage: str, point: str) -> Row:
    """The same judgement over a stage that is wrong on purpose; the figure is how much it finds."""
    rig.progress(f"kills: control, {what}")
    story, chance = Story(), chooser(what)
    with rig.chain("control", story) as four:
        publisher = Publisher(four, story).start()
        for other in STAGES:
            if other != stage:
                four.start(other)
        for _ in range(4):
            die(four, stage, point, chance, kind)
        four.start_broken(kind, stage)
        publisher.until(CONTROL_EVENTS, DRAIN_S)
        published = publisher.stop()
        four.until_drained(DRAIN_S)
        found = judge(four, story.tables, four.folder / "oracle", published=published)
    return Row(f"control: {what}", found.size, "control", found.said)
