"""Decoding to columns beside bare ``orjson.loads``: the cases and what is run of each."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import orjson
from tests.benchmarks.events import events

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.ports import Record, Records, columns_of

EVENTS, BATCH, CHUNK, SEED = 20_000, 5_000, 500, 20260105
CASES = (("5 models, clean", 5, 0.0), ("5 models, 1 % bad", 5, 0.01), ("500 models, clean", 500, 0.0))


def runs() -> dict[str, Callable[[], int]]:
    """By ``errata, <case>`` and ``orjson, <case>``: each call takes the next batch, and returns its size."""
    made: dict[str, Callable[[], int]] = {}
    for name, models, bad_share in CASES:
        records, layouts = events(models, EVENTS, SEED, bad_share)
        batches = [records[start : start + BATCH] for start in range(0, EVENTS, BATCH)]
        handed_out = [Records(columns_of(batch)) for batch in batches]  # by a consumer on Kafka
        made[f"errata, {name}"] = _errata(handed_out, layouts)
        made[f"orjson, {name}"] = _orjson(batches)
    return made


def _errata(batches: Sequence[Sequence[Record]], layouts: Any) -> Callable[[], int]:
    decoder, turn = MsgspecDecoder(), cycle(batches)

    def run() -> int:
        batch = next(turn)
        decoder.decode(batch, layouts)
        return len(batch)

    return run


def _orjson(batches: Sequence[Sequence[Record]]) -> Callable[[], int]:
    loads, turn = orjson.loads, cycle(batches)

    def run() -> int:
        batch = next(turn)
        for start in range(0, len(batch), CHUNK):
            kept = []
            for record in batch[start : start + CHUNK]:
                try:
                    kept.append(loads(record.value or b""))
                except orjson.JSONDecodeError:
                    continue
        return len(batch)

    return run
