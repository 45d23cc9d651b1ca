"""Generated prediction events: models with feature names of their own, their contracts and references, bad rows."""

import json
import math
import random
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise

from errata.contracts import Contract, Reference
from errata.contracts.strict import EPOCH
from errata.contracts.topics import PREDICTIONS, model_key
from errata.domain.columns import Layout
from errata.domain.layouts import compile_layout
from errata.ports import Record

NUMBERS, CATEGORIES, BINS, REFERENCE_EVENTS = 12, 4, 16, 10_000
START_US = 1_767_571_200_000_000
CLASSES = ("approve", "decline")
_WORDS = (
    "amount",
    "age",
    "balance",
    "clicks",
    "delay",
    "income",
    "ratio",
    "score",
    "speed",
    "tenure",
    "usage",
    "volume",
)
_THINGS = ("channel", "country", "device", "segment")


class _Model:
    """What one model's events are drawn from."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.name = f"model-{number:03d}"
        self.numbers = {f"m{number}_{word}": (rng.uniform(-50, 200), rng.uniform(1, 40)) for word in _WORDS}
        self.categories = {
            f"m{number}_{thing}": [f"{thing[:3]}{at}" for at in range(rng.randint(4, 8))] for thing in _THINGS
        }

    def event(self, at: int, rng: random.Random) -> dict[str, object]:
        time = (EPOCH + timedelta(microseconds=START_US + at * 1_000_000)).replace(tzinfo=None)
        confidence = round(rng.betavariate(8, 2), 4)
        predicted = CLASSES[rng.random() < 0.3]
        features: dict[str, object] = {
            name: round(rng.gauss(middle, spread), 3) for name, (middle, spread) in self.numbers.items()
        }
        features |= {name: rng.choice(values) for name, values in self.categories.items()}
        event: dict[str, object] = {
            "event_id": f"{rng.getrandbits(128):032x}",
            "time": time.isoformat(timespec="milliseconds") + "Z",
            "model": {"name": self.name, "version": "3"},
            "prediction": predicted,
            "confidence": confidence,
            "latency_ms": round(rng.lognormvariate(3.5, 0.4), 2),
            "features": features,
            "segments": {"region": "eu", "channel": "web"},
            "deployment": {"endpoint": "score", "variant": "primary"},
            "producer": {"id": "svc-1", "seq": at},
        }
        if rng.random() < 0.5:
            truth = predicted if rng.random() < confidence else CLASSES[predicted == CLASSES[0]]
            event["outcome"] = {"value": truth}
        return event

    def contract(self) -> Contract:
        numbers = {name: {"type": "number"} for name in self.numbers}
        categories = {name: {"type": "category", "categories": values} for name, values in self.categories.items()}
        return Contract.model_validate(
            {
                "model": self.name,
                "features": numbers | categories,
                "output": {"type": "class", "classes": list(CLASSES)},
            }
        )

    def reference(self, rng: random.Random) -> Reference:
        sketches: dict[str, object] = {
            name: _number_sketch([rng.gauss(middle, spread) for _ in range(500)])
            for name, (middle, spread) in self.numbers.items()
        }
        for name, values in self.categories.items():
            share = REFERENCE_EVENTS // len(values)
            counts = dict.fromkeys(values, share) | {values[0]: REFERENCE_EVENTS - share * (len(values) - 1)}
            sketches[name] = {"kind": "category", "n": REFERENCE_EVENTS, "counts": counts}
        latencies = _number_sketch([rng.lognormvariate(3.5, 0.4) for _ in range(2_000)])
        return Reference.model_validate(
            {
                "model": self.name,
                "events": REFERENCE_EVENTS,
                "sketches": sketches,
                "output": {"kind": "category", "n": REFERENCE_EVENTS, "counts": {"approve": 7_000, "decline": 3_000}},
                "confidence": _number_sketch([rng.betavariate(8, 2) for _ in range(2_000)]),
                "latency_ms": latencies | {"p95_ms": math.exp(3.5 + 1.6449 * 0.4), "over_p95": 500},
                "statuses": {"ok": REFERENCE_EVENTS},
                "error": {"outcomes": 5_000, "wrong": 1_000},
            }
        )


def events(models: int, n: int, seed: int, bad_share: float) -> tuple[list[Record], dict[bytes, Layout]]:
    """``n`` records of ``models`` models in turn at random, about ``bad_share`` of them malformed, and the layouts.

    A malformed row is cut off, lacks ``event_id``, or has a text for a number, in turn. The good rows of a seed are
    the same whatever the share.
    """
    rng, spoiler = random.Random(seed), random.Random(seed + 1)
    makers = [_Model(number, rng) for number in range(models)]
    layouts = {
        model_key("default", one.name): compile_layout(
            "default", one.name, one.contract(), one.reference(random.Random(seed + number))
        )
        for number, one in enumerate(makers)
    }
    records = []
    bad = 0
    for at in range(n):
        maker = rng.choice(makers)
        event = maker.event(at, rng)
        raw = json.dumps(event, separators=(",", ":")).encode()
        if spoiler.random() < bad_share:
            raw = _spoilt(event, raw, bad, spoiler)
            bad += 1
        key = model_key("default", maker.name)
        records.append(Record(PREDICTIONS, 0, at, START_US + at * 1_000_000 + 50_000, key, raw))
    return records, layouts


def _spoilt(event: dict[str, object], raw: bytes, kind: int, rng: random.Random) -> bytes:
    if kind % 3 == 0:
        return raw[: rng.randrange(len(raw) // 2, len(raw) - 1)]
    if kind % 3 == 1:
        return json.dumps({name: value for name, value in event.items() if name != "event_id"}).encode()
    features = event["features"]
    assert isinstance(features, dict)
    return json.dumps(event | {"features": features | {next(iter(features)): "many"}}).encode()


def _number_sketch(sample: Sequence[float]) -> dict[str, object]:
    ordered = sorted(sample)
    edges = [ordered[len(ordered) * at // BINS] for at in range(1, BINS)]
    inner = [-math.inf, *edges, math.inf]
    counts = [
        sum(low <= value < high for value in ordered) * REFERENCE_EVENTS // len(ordered)
        for low, high in pairwise(inner)
    ]
    counts[0] += REFERENCE_EVENTS - sum(counts)
    quantiles = {
        name: ordered[int(len(ordered) * share)] for name, share in (("p05", 0.05), ("p50", 0.5), ("p95", 0.95))
    }
    return {"kind": "number", "n": REFERENCE_EVENTS, "edges": edges, "counts": counts, "quantiles": quantiles}
