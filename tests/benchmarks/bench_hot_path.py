"""Bytes to findings beside bare ``orjson.loads``."""

from collections.abc import Sequence

import orjson

from errata.ports import Record
from tests.benchmarks.measure import Row, Variant, cost, interleaved, speed_ratio
from tests.benchmarks.stages import LAP, Detecting, Stream

CHUNK = 500


def scan(records: Sequence[Record]) -> int:
    """The baseline: every value to Python objects in chunks of 500, and dropped."""
    loads = orjson.loads
    values = [record.value or b"" for record in records]
    for at in range(0, len(values), CHUNK):
        _ = [loads(value) for value in values[at : at + CHUNK]]
    return len(values)


def rows(rounds: int) -> list[Row]:
    stages = {
        "5 models": Detecting(Stream(5)),
        "5 models, 1 % bad": Detecting(Stream(5, 0.01)),
        "whole stage": Detecting(Stream(5, 0.01), packed=True),
        "50 models": Detecting(Stream(50)),
        "500 models": Detecting(Stream(500)),
    }
    clean = Stream(5).take(LAP)
    variants = {"orjson": Variant(lambda _: scan(clean))}
    variants |= {name: Variant(one.lap, one.ready) for name, one in stages.items()}
    taken = interleaved(variants, rounds)
    made = [Row("orjson.loads", 1.0, None, cost(taken, "orjson"))]
    for name, one in stages.items():
        made.append(Row(f"{name} / orjson", speed_ratio(taken, name, "orjson"), None, cost(taken, name)))
        print(name, one.dead, one.dropped, one.opened().most_common(3), len(one.opened()), list(one.signals())[:3])
    return made
