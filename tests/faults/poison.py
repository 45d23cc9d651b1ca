"""One record of 201 is poison, of nine kinds, while the detector is killed: each is a dead letter once.

From one of a hundred on the detector would stop reading the partition, which is another test's. Poison comes at random
to a partition: with one of 125 there are 101 among 10,000 of its records sooner or later.
"""

from tests.faults.judge import judge
from tests.faults.kills import die
from tests.faults.rig import DETECTOR, DRAIN_S, Rig, Row, attempted
from tests.faults.story import POISON, Publisher, Story, chooser

from errata.contracts.topics import STAGES
from errata.runtime import crash_points

EVERY = 201  # shares no factor with the number of models: poison comes to all of them alike
KILLS = 15


def rows(rig: Rig) -> list[Row]:
    return [
        *attempted("poison", lambda: _poisoned(rig)),
        *attempted("control of dead letters", lambda: [_letters_outside(rig)]),
    ]


def _poisoned(rig: Rig) -> list[Row]:
    story, chance = Story(poison_every=EVERY), chooser("poison")
    kills = 5 if rig.scale.quick else 2 * KILLS
    with rig.chain("poison", story) as four:
        publisher = Publisher(four, story).start()
        for stage in STAGES[1:]:
            four.start(stage)
        for at in range(kills):
            die(four, DETECTOR, crash_points.POINTS[at % len(crash_points.POINTS)], chance)
            if at % 5 == 4:
                rig.progress(f"poison: {at + 1} of {kills} kills")
        four.start(DETECTOR)
        publisher.until(rig.scale.poison_events, DRAIN_S)
        published = publisher.stop()
        four.until_drained(DRAIN_S)
        found = judge(four, story.tables, four.folder / "oracle", published=published)
    expected = published // EVERY
    made = f"{len(POISON)} kinds, {kills} kills, {expected:,} records poisoned"
    return [
        Row(f"dead letters of poison, one record of {EVERY}", found.dead, "poison", made),
        Row("poisoned records without their dead letter", max(0, expected - found.dead), "lost"),
        Row("lost beside poison", found.lost, "lost", found.said),
        Row("doubled beside poison", found.doubled, "doubled", found.held),
        Row("findings, cases, state wrong beside poison", found.wrong + found.state, "wrong"),
    ]


def _letters_outside(rig: Rig) -> Row:
    rig.progress("poison: control, dead letters outside the transaction")
    story, chance = Story(poison_every=EVERY), chooser("letters")
    with rig.chain("control", story) as four:
        publisher = Publisher(four, story).start()
        for stage in STAGES[1:]:
            four.start(stage)
        for _ in range(3):
            die(four, DETECTOR, crash_points.AFTER_OFFSETS, chance, "letters")
        four.start(DETECTOR)
        published = publisher.stop()
        four.until_drained(DRAIN_S)
        found = judge(four, story.tables, four.folder / "oracle", published=published)
    return Row("control: dead letters outside the transaction", found.size, "control", found.said)
