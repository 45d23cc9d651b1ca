"""The detector's process with transactions beside the same stage at least once, by batch size; client CPU, interleaved.

At least once: an idempotent producer without a transactional id, flushed, then the offsets committed synchronously,
per batch (`kafka_detector.AtLeastOnceProducer`).
"""

from statistics import median

from tests.benchmarks.kafka_detector import GUARANTEES
from tests.benchmarks.kafka_lap import make_lap, tables
from tests.benchmarks.kafka_rig import Taken, broker, round_of
from tests.benchmarks.measure import Row, Scale, speed_ratio

GOALS = {size: f"transactions_{size}" for size in (5_000, 2_000, 500)}
WINDOWS, QUICK_WINDOWS = 40, 8  # of each of five models: 100,000 and 20,000 events
ROUNDS, QUICK_ROUNDS = 5, 1


def rows(scale: Scale) -> list[Row]:
    lap = make_lap(QUICK_WINDOWS if scale.quick else WINDOWS)
    variants = [(size, guarantee) for size in GOALS for guarantee in GUARANTEES]
    taken: dict[tuple[int, str], list[Taken]] = {variant: [] for variant in variants}
    with broker() as address:
        for turn in range(QUICK_ROUNDS if scale.quick else ROUNDS):
            order = variants if turn % 2 == 0 else variants[::-1]
            for size, guarantee in order:
                with round_of(address, lap.events, tables()) as one:
                    made = one.detector(len(lap.events), batch_size=size, guarantee=guarantee)
                taken[size, guarantee].append(made)
    return [_row(size, goal, taken[size, "exactly_once"], taken[size, "at_least_once"]) for size, goal in GOALS.items()]


def _row(size: int, goal: str, ours: list[Taken], other: list[Taken]) -> Row:
    cpu = {"ours": [one.cpu_us for one in ours], "other": [one.cpu_us for one in other]}
    detail = f"CPU {_both(cpu['ours'], cpu['other'])} µs an event, wall " + _both(
        [one.per_s / 1_000 for one in ours], [one.per_s / 1_000 for one in other]
    )
    name = f"exactly once / at least once, batches of {size:,}"
    return Row(name, speed_ratio(cpu, "ours", "other"), goal, f"{detail} k events/s")


def _both(ours: list[float], other: list[float]) -> str:
    return f"{median(ours):.1f} / {median(other):.1f}"
