"""The stream of the demo: census rows as prediction events, planted failures, and a few changes around them.

Features, predictions, scores and outcomes are real (see ``census_employment.md``). Simulated are the times (one event
a second; the real failure begins 30 days after the clean part), the latencies (log-normal) and the changes. A planted
row carries no mark: the plan alone knows where the failures are.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from heapq import merge
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import numpy as np

from errata.contracts import Contract
from errata.contracts.models import (
    Bucket,
    FeatureContract,
    LatencySlo,
    Limit,
    OutputContract,
    Owner,
    Range,
    Slos,
)
from errata.contracts.strict import instant, instant_us, rfc3339
from errata.domain.columns import Floats
from errata.domain.profiles import content_hash

FailureKind = Literal["schl_absent", "agep_times_12", "latency_times_3", "classes_swapped"]
Part = Literal["reference", "clean", "vanished"]

MODEL = "employment-ma"
MODEL_VERSION = "2015.1"
OTHER_MODEL = "churn-ma"
LABELS = ("not_employed", "employed")  # by the code of the source
KINDS: tuple[FailureKind, ...] = ("schl_absent", "agep_times_12", "latency_times_3", "classes_swapped")

CLEAN_ROWS = 24_000
REFERENCE_ROWS = 10_000
VANISHED_ROWS = 20_000
MIN_CLEAN_ROWS = 2_000  # before, between and after planted failures
MIN_FAILURE_ROWS, MAX_FAILURE_ROWS = 600, 1_200
BLOCK = range(133_619, 143_890)  # rows of the analysis set in which RELP is 16 or 17 only

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
START_US = instant_us("2025-03-03T08:00:00Z")
REFERENCE_START_US = instant_us("2025-02-01T08:00:00Z")
VANISHED_START_US = START_US + CLEAN_ROWS * SECOND_US + 30 * DAY_US

LATENCY_MEDIAN_MS, LATENCY_SIGMA = 40.0, 0.5
PLACES, LATENCIES, REFERENCE_LATENCIES = 1, 2, 3  # streams of random numbers, independent under any seed
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)
_SOURCE_PARTS: dict[str, Part] = {"r": "reference", "c": "clean", "v": "vanished"}


class Row(NamedTuple):
    """One census row; ``number`` is its place in the source file, ``employed_ppm`` the score of *employed* × 10⁶."""

    number: int
    features: tuple[int, ...]
    employed_ppm: int
    employed: int


@dataclass(frozen=True, slots=True)
class Planted:
    """``rows`` consecutive rows of the clean part, from ``start`` on, that fail in one way."""

    kind: FailureKind
    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What the stream holds. Changes stand at the same times whether or not the failures are planted."""

    seed: int
    failures: tuple[Planted, ...]
    plant: bool = True
    real_block: bool = True


@dataclass(frozen=True, slots=True)
class Truth:
    """A failure that is in the stream; ``kind`` is one of ``KINDS`` or ``relp_vanished``."""

    kind: str
    first: datetime
    last: datetime


def plan(seed: int, *, plant: bool = True, real_block: bool = True) -> DemoPlan:
    """One failure of each kind, order, places and lengths by ``seed``.

    >>> [failure.kind for failure in plan(7).failures] == [failure.kind for failure in plan(7, plant=False).failures]
    True
    """
    draw = np.random.default_rng([seed, PLACES])
    kinds = [KINDS[i] for i in draw.permutation(len(KINDS))]
    lengths = draw.integers(MIN_FAILURE_ROWS, MAX_FAILURE_ROWS, len(kinds), endpoint=True).tolist()
    spare = CLEAN_ROWS - sum(lengths) - (len(kinds) + 1) * MIN_CLEAN_ROWS
    cuts = sorted(draw.integers(0, spare, len(kinds), endpoint=True).tolist())
    failures, at = [], 0
    for i, (kind, rows) in enumerate(zip(kinds, lengths, strict=True)):
        at += MIN_CLEAN_ROWS
        failures.append(Planted(kind, at + cuts[i], rows))
        at += rows
    return DemoPlan(seed, tuple(failures), plant, real_block)


def truth(plan: DemoPlan) -> list[Truth]:
    """The failures in the stream of ``plan`` with the times of their first and last rows, in order."""
    planted = [
        Truth(f.kind, instant(_clean_us(f.start)), instant(_clean_us(f.start + f.rows - 1)))
        for f in sorted(plan.failures, key=lambda f: f.start)
        if plan.plant
    ]
    last_us = VANISHED_START_US + (len(_vanished(plan)) - 1) * SECOND_US
    return [*planted, Truth("relp_vanished", instant(VANISHED_START_US), instant(last_us))]


def events(plan: DemoPlan) -> Iterator[bytes]:
    """The stream: one JSON line an event, predictions and changes in the order of their times."""
    lines = merge(_changes(plan), _predictions(plan), key=lambda timed: timed[0])
    return (_line(message) for _, message in lines)


def count(plan: DemoPlan) -> int:
    """How many lines ``events`` gives."""
    return CLEAN_ROWS + len(_vanished(plan)) + len(list(_changes(plan)))


def reference_events() -> Iterator[bytes]:
    """10,000 rows of 2015 as prediction events, with simulated times and latencies."""
    rows = _rows()["reference"]
    latencies = _latencies_ms((2015, REFERENCE_LATENCIES), len(rows))
    for i, row in enumerate(rows):
        at_us = REFERENCE_START_US + i * SECOND_US
        yield _line(_prediction(f"census-2015-{row.number}", at_us, row, float(latencies[i])))


def contract() -> Contract:
    """What the demo's model promises. Categories are the codes of the survey's dictionary (0: not applicable)."""
    written = Contract(
        model=MODEL,
        owner=Owner(team="demo", contact="demo@example.org"),
        features={
            "AGEP": FeatureContract(
                type="integer",
                required=True,
                range=Range(min=0, max=104),
                unit="years",
                sensitivity="personal",
                policy="bucket",
                bucket=Bucket(edges=[18, 30, 45, 65]),
            ),
            "SCHL": _codes(0, 24),
            "MAR": _codes(1, 5, sensitivity="personal"),
            "RELP": _codes(0, 17),
            "DIS": _codes(1, 2, sensitivity="personal", policy="drop"),
            "ESP": _codes(0, 8),
            "CIT": _codes(1, 5, sensitivity="personal", policy="hash"),
            "MIG": _codes(0, 3),
            "MIL": _codes(0, 4),
            "ANC": _codes(1, 4),
            "NATIVITY": _codes(1, 2, sensitivity="personal", policy="hash"),
            "DEAR": _codes(1, 2, sensitivity="personal", policy="drop"),
            "DEYE": _codes(1, 2, sensitivity="personal", policy="drop"),
            "DREM": _codes(0, 2, sensitivity="personal", policy="drop"),
            "SEX": _codes(1, 2, sensitivity="personal"),
            "RAC1P": _codes(1, 9, sensitivity="personal", policy="hash"),
        },
        output=OutputContract(type="class", classes=sorted(LABELS)),
        protected=["SEX", "RAC1P"],
        slos=Slos(latency_ms=LatencySlo(p95=250, max=2_000), error_rate=Limit(max=0.20)),
        admission={
            "policy_violation": "open",
            "personal_data": "open",
            "invalid_output": "open",
            "bad_status": "if_reference_has_none",
            "contract_violation": "count",
            "wrong_answer": "count",
        },
    )
    return written.model_copy(update={"content_hash": content_hash(written)})


def _codes(
    first: int, last: int, *, sensitivity: str | None = None, policy: Literal["keep", "hash", "drop"] = "keep"
) -> FeatureContract:
    return FeatureContract(
        type="category",
        required=True,
        categories=[str(code) for code in range(first, last + 1)],
        sensitivity=sensitivity,
        policy=policy,
    )


@cache
def _source() -> tuple[tuple[str, ...], dict[Part, list[Row]]]:
    packed = files("errata_services.demo").joinpath("census_employment.csv.gz").read_bytes()
    header, *lines = gzip.decompress(packed).decode().splitlines()
    parts: dict[Part, list[Row]] = {"reference": [], "clean": [], "vanished": []}
    for line in lines:
        part, *cells = line.split(",")
        number, *features, employed_ppm, employed = map(int, cells)
        parts[_SOURCE_PARTS[part]].append(Row(number, tuple(features), employed_ppm, employed))
    return tuple(header.split(",")[2:-2]), parts


def _rows() -> Mapping[Part, list[Row]]:
    return _source()[1]


def feature_names() -> tuple[str, ...]:
    return _source()[0]


def _vanished(plan: DemoPlan) -> list[Row]:
    rows = _rows()["vanished"]
    return rows if plan.real_block else [row for row in rows if row.number not in BLOCK]


def _clean_us(place: int) -> int:
    return START_US + place * SECOND_US


def _latencies_ms(seed: tuple[int, int], rows: int) -> Floats:
    """Log-normal; the first n of a seed are the same however many rows follow."""
    draw = np.random.default_rng(seed)
    return np.round(LATENCY_MEDIAN_MS * np.exp(LATENCY_SIGMA * draw.standard_normal(rows)), 3)


def _predictions(plan: DemoPlan) -> Iterator[tuple[int, dict[str, Any]]]:
    clean, vanished = _rows()["clean"], _vanished(plan)
    latencies = _latencies_ms((plan.seed, LATENCIES), len(clean) + len(vanished))
    kinds = _kinds_by_place(plan.failures if plan.plant else ())
    for i, row in enumerate(clean):
        at_us = _clean_us(i)
        event = _prediction(f"census-{row.number}", at_us, row, float(latencies[i]))
        if i in kinds:
            _fail(event, kinds[i])
        yield at_us, event
    for i, row in enumerate(vanished):
        at_us = VANISHED_START_US + i * SECOND_US
        yield at_us, _prediction(f"census-{row.number}", at_us, row, float(latencies[len(clean) + i]))


def _kinds_by_place(failures: Iterable[Planted]) -> dict[int, FailureKind]:
    return {place: f.kind for f in failures for place in range(f.start, f.start + f.rows)}


def _prediction(event_id: str, at_us: int, row: Row, latency_ms: float) -> dict[str, Any]:
    """Age is a number, every other feature the text of its code."""
    age, *codes = row.features
    names = feature_names()
    return {
        "event_id": event_id,
        "time": rfc3339(instant(at_us)),
        "model": {"name": MODEL, "version": MODEL_VERSION},
        "features": {names[0]: age, **dict(zip(names[1:], map(str, codes), strict=True))},
        "prediction": LABELS[row.employed_ppm >= 500_000],
        "scores": {"employed": row.employed_ppm / 1e6, "not_employed": (1_000_000 - row.employed_ppm) / 1e6},
        "latency_ms": latency_ms,
        "outcome": {"value": LABELS[row.employed]},
    }


def _fail(event: dict[str, Any], kind: FailureKind) -> None:
    """Break the event as a fault upstream or in serving would; what the model said is not computed anew."""
    if kind == "schl_absent":
        del event["features"]["SCHL"]
    elif kind == "agep_times_12":  # years read as months
        event["features"]["AGEP"] *= 12
    elif kind == "latency_times_3":
        event["latency_ms"] = round(event["latency_ms"] * 3, 3)
    else:
        scores = event["scores"]
        event["prediction"] = LABELS[event["prediction"] == LABELS[0]]
        event["scores"] = {"employed": scores["not_employed"], "not_employed": scores["employed"]}


def _changes(plan: DemoPlan) -> Iterator[tuple[int, dict[str, Any]]]:
    """The deploy 20 minutes before the last planted failure, and three decoys; in the order of their times."""
    yield _deploy(START_US - 3 * DAY_US, MODEL, "serving-40", "serving-41")
    if not plan.failures:
        return
    last = max(plan.failures, key=lambda failure: failure.start)
    onset_us, end_us = _clean_us(last.start), _clean_us(last.start + last.rows - 1)
    yield _deploy(onset_us - 20 * 60 * SECOND_US, MODEL, "serving-41", "serving-42")
    yield _deploy(onset_us - 15 * 60 * SECOND_US, OTHER_MODEL, "serving-7", "serving-8")
    yield _deploy(end_us + 10 * 60 * SECOND_US, MODEL, "serving-42", "serving-43")


def _deploy(at_us: int, subject: str, before: str, after: str) -> tuple[int, dict[str, Any]]:
    change = {
        "change_id": f"deploy-{subject}-{after}",
        "kind": "deploy",
        "subject": subject,
        "time": rfc3339(instant(at_us)),
        "from": before,
        "to": after,
        "actor": "pipeline",
    }
    return at_us, change


def _line(message: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(message).encode()
