"""The events that all stages on Kafka read: five models, faults planted in each, every window of 500 complete.

What is planted shows in each event or in the counts of a window, so that a plain loop can find exactly the same.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass

from tests.benchmarks.stages import Stream, name_of

from errata.contracts import Contract, Reference
from errata.contracts.models import LatencySlo, Slos
from errata.domain.detection.statistics import WINDOW

MODELS, SEED = 5, 20_260_105
LATENCY_LIMIT_MS = 800.0
BAD_SHARE = 0.001  # of refused rows, and as many again that come twice
PLANTED = {
    0: ("bad_status|error", 0.005),
    1: ("missing_values|m1_age", 0.06),
    2: ("contract_violation|m2_amount", 0.06),
    3: ("latency_limit|latency_ms", 0.05),
    4: ("invalid_output|prediction", 0.005),
}  # by model: the signal, and its share of the events of the middle half
_BROKEN = {
    0: (re.compile(rb',"prediction":'), b',"status":{"code":"error"},"prediction":'),
    1: (re.compile(rb'"m1_age":[-0-9.]+'), b'"m1_age":null'),
    2: (re.compile(rb'"m2_amount":[-0-9.]+'), b'"m2_amount":"many"'),
    3: (re.compile(rb'"latency_ms":[0-9.]+'), b'"latency_ms":900.5'),
    4: (re.compile(rb'"prediction":"[a-z]+"'), b'"prediction":"maybe"'),
}
SHIFTED = 1, "distribution_shift|m1_balance"  # in every event of the middle half
_SHIFT = re.compile(rb'"m1_balance":([-0-9.]+)')
_ID = re.compile(rb'"event_id":"[0-9a-f]{32}",')


@dataclass(frozen=True, slots=True)
class Lap:
    """Keys and values in their order, and what was planted: events by (model, signal), refused rows, duplicates."""

    events: list[tuple[bytes, bytes]]
    planted: Counter[tuple[str, str]]
    refused: int
    duplicates: int


def tables() -> list[tuple[Contract, Reference]]:
    """The contract and reference of each model, with a limit for latencies that none of the clean events reaches."""
    slos = Slos(latency_ms=LatencySlo(max=LATENCY_LIMIT_MS))
    return [
        (contract.model_copy(update={"slos": slos}), reference) for _, contract, reference in Stream(MODELS).tables()
    ]


def make_lap(windows: int) -> Lap:
    """``windows`` whole windows of each model, models in turn at random; the same for the same number."""
    stream, rng = Stream(MODELS), random.Random(SEED)
    order = [number for number in range(MODELS) for _ in range(windows * WINDOW)]
    rng.shuffle(order)
    lap = Lap([], Counter(), 0, 0)
    refused = duplicates = 0
    done: Counter[int] = Counter()
    for number in order:
        record = stream.record(number)
        key, raw = record.key or b"", record.value or b""
        signal, share = PLANTED[number]
        if windows // 4 <= done[number] // WINDOW < windows - windows // 4 and rng.random() < share:
            pattern, fault = _BROKEN[number]
            raw = pattern.sub(fault, raw, count=1)
            lap.planted[name_of(number), signal] += 1
        if number == SHIFTED[0] and windows // 4 <= done[number] // WINDOW < windows - windows // 4:
            raw = _SHIFT.sub(lambda found: b'"m1_balance":%.3f' % (float(found[1]) + 1_000), raw, count=1)
            lap.planted[name_of(number), SHIFTED[1]] += 1
        done[number] += 1
        lap.events.append((key, raw))
        luck = rng.random()
        if luck < BAD_SHARE:
            lap.events.append((key, _ID.sub(b"", raw, count=1)))
            refused += 1
        elif luck < 2 * BAD_SHARE:
            lap.events.append((key, raw))
            duplicates += 1
    return Lap(lap.events, lap.planted, refused, duplicates)
