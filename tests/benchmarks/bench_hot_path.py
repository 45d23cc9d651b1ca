"""Bytes to columns and bytes to findings, beside bare ``orjson.loads``."""

from collections.abc import Sequence

import orjson
from tests.benchmarks import bench_decode
from tests.benchmarks.measure import Row, Scale, Variant, cost, interleaved, speed_ratio
from tests.benchmarks.stages import LAP, Detecting, Stream

from errata.ports import Record

CHUNK = 500


def scan(records: Sequence[Record]) -> int:
    """The baseline: every value to Python objects in chunks of 500, each chunk dropped before the next."""
    for at in range(0, len(records), CHUNK):
        _parse(records[at : at + CHUNK])
    return len(records)


def _parse(chunk: Sequence[Record]) -> int:
    loads = orjson.loads
    return len([loads(record.value or b"") for record in chunk])


def rows(scale: Scale) -> list[Row]:
    return [*_decode_rows(scale), *_stage_rows(scale)]


def _decode_rows(scale: Scale) -> list[Row]:
    """The cases of `bench_decode`, all in one interleaved run."""
    variants = {name: Variant(run) for name, run in bench_decode.runs().items()}
    taken = interleaved(variants, scale.rounds)
    names = [name for name, _, _ in bench_decode.CASES]
    clean, bad = names[0], names[1]
    made = [
        Row(
            f"decode / orjson.loads, {name}",
            speed_ratio(taken, f"errata, {name}", f"orjson, {name}"),
            "decode" if name == clean else None,
            cost(taken, f"errata, {name}"),
        )
        for name in names
    ]
    ratio = speed_ratio(taken, f"errata, {bad}", f"errata, {clean}")
    return [*made, Row("decode, 1 % bad rows / none", ratio, "decode_bad_rows")]


def _stage_rows(scale: Scale) -> list[Row]:
    stages = {
        "hot path, 1 % bad rows": Detecting(Stream(5, 0.01), warm=scale.warm),
        "hot path, clean": Detecting(Stream(5), warm=scale.warm),
        "whole stage with changelog, 1 % bad rows": Detecting(Stream(5, 0.01), warm=scale.warm, packed=True),
    }
    baseline = Stream(5).take(LAP)
    variants = {"orjson": Variant(lambda: scan(baseline))} | {name: one.variant() for name, one in stages.items()}
    taken = interleaved(variants, scale.rounds)
    made = [Row("orjson.loads", 1.0, None, cost(taken, "orjson"))]
    for name in stages:
        goal = None if name.startswith("whole") else "hot_path"
        made.append(Row(f"{name} / orjson.loads", speed_ratio(taken, name, "orjson"), goal, cost(taken, name)))
    opened = sum(sum(one.opened().values()) for one in stages.values())
    return [*made, Row("hot path: cases where nothing is planted", opened, "false_findings")]
