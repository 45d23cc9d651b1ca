"""Ten times the load for a while: nothing is lost, and the chain has caught up soon after."""

import time

from tests.faults.broker import ended, ends_of, past
from tests.faults.rig import DETECTOR, DRAIN_S, Rig, Row, wait
from tests.faults.story import Publisher, Story
from tests.integration.chain import Chain

from errata.contracts.topics import PARTITIONS, PREDICTIONS, STAGES

CALM_RATE, TIMES = 300.0, 10
CALM_S = 5.0
LIMIT = 2.0  # the goal's, of which the control must be above


def rows(rig: Rig) -> list[Row]:
    story = Story()
    with rig.chain("spike", story) as four:
        for stage in STAGES:
            four.start(stage)
        publisher = Publisher(four, story, rate=CALM_RATE).start()
        publisher.until(int(CALM_RATE * CALM_S))
        four.until(lambda: sum(four.offsets(DETECTOR).values()) > 0, "the detector works")
        rig.progress(f"spike: {TIMES} times {CALM_RATE:g} events a second for {rig.scale.spike_s:g} s")
        reached, ratio = _spike(four, publisher, rig.scale.spike_s, DRAIN_S)
        found = ended(four, publisher, story)
    what = f"{reached:,.0f} events a second for {rig.scale.spike_s:g} s"
    return [
        Row("load of the spike, times that before", reached / CALM_RATE, "spike_times", what),
        Row("caught up after the spike, in its lengths", ratio, "spike_ratio"),
        Row("lost, doubled or wrong through the spike", found.size, "wrong", f"{found.said}; {found.held}"),
        _too_slow(rig),
    ]


def _spike(four: Chain, publisher: Publisher, spike_s: float, limit_s: float) -> tuple[float, float]:
    """The rate that was reached, and after what part of the spike's length all of it was through."""
    before, began_s = publisher.published, time.monotonic()
    publisher.rate = CALM_RATE * TIMES
    wait(spike_s)
    publisher.rate = CALM_RATE
    ended_s = time.monotonic()
    reached = (publisher.published - before) / (ended_s - began_s)
    ends = ends_of(four, ended_s)
    four.until(lambda: past(four, ends) or time.monotonic() - ended_s > limit_s, "the spike is through", limit_s + 60)
    return reached, (time.monotonic() - ended_s) / spike_s


def _too_slow(rig: Rig) -> Row:
    """Control: a detector that takes one event a transaction does not catch up."""
    rig.progress("spike: control, one event a transaction")
    story, spike_s = Story(), min(10.0, rig.scale.spike_s)
    with rig.chain("control", story) as four:
        four.start(DETECTOR, ERRATA_BATCH_SIZE="1")
        publisher = Publisher(four, story, rate=CALM_RATE).start()
        four.until(lambda: sum(four.offsets(DETECTOR).values()) > 0, "the detector works")
        _, ratio = _spike(four, publisher, spike_s, (LIMIT + 0.5) * spike_s)
        publisher.stop()
        left = sum(four.transport.end_offset((PREDICTIONS, number)) for number in range(PARTITIONS))
        left -= sum(four.offsets(DETECTOR).values())
    said = f"not caught up after {ratio:.1f} lengths, {left:,} records behind"
    return Row("control: a detector of one event a transaction", float(ratio > LIMIT), "control", said)
