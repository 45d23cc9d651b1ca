"""Decoding to columns against bare ``orjson.loads``, interleaved in one run, as shares of CPU time."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from tests.benchmarks.events import events

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.ports import Record

EVENTS, BATCH, CHUNK, SEED = 20_000, 5_000, 500, 20260105
CASES = (("5 models, clean", 5, 0.0), ("5 models, 1 % bad", 5, 0.01), ("500 models, clean", 500, 0.0))


def rows(rounds: int) -> list[dict[str, Any]]:
    """One row a case: microseconds a row for both (the best round), and their ratio; above 1 errata is the faster."""
    runs: dict[str, Callable[[], None]] = {}
    for name, models, bad_share in CASES:
        records, layouts = events(models, EVENTS, SEED, bad_share)
        runs[f"errata, {name}"] = _errata(records, layouts)
        runs[f"orjson, {name}"] = _orjson(records)
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            best[name] = min(best[name], _cpu_s(run))
    us = {name: seconds / EVENTS * 1e6 for name, seconds in best.items()}
    return [
        {
            "case": name,
            "errata_us": round(us[f"errata, {name}"], 3),
            "orjson_us": round(us[f"orjson, {name}"], 3),
            "ratio_to_orjson": round(us[f"orjson, {name}"] / us[f"errata, {name}"], 3),
            "ratio_to_clean": round(us[f"errata, {CASES[0][0]}"] / us[f"errata, {name}"], 3),
        }
        for name, _, _ in CASES
    ]


def _errata(records: Sequence[Record], layouts: Any) -> Callable[[], None]:
    decoder = MsgspecDecoder()

    def run() -> None:
        for start in range(0, len(records), BATCH):
            decoder.decode(records[start : start + BATCH], layouts)

    return run


def _orjson(records: Sequence[Record]) -> Callable[[], None]:
    loads = orjson.loads

    def run() -> None:
        for start in range(0, len(records), CHUNK):
            kept = []
            for record in records[start : start + CHUNK]:
                try:
                    kept.append(loads(record.value or b""))
                except orjson.JSONDecodeError:
                    continue

    return run


def _cpu_s(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    for row in rows(7):
        print(row)
