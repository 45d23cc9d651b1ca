"""Event streams of fixed seed, a contract and a reference for them, and runners of the detector's stage over them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
import numpy as np

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.memory import MemoryTransport
from errata.contracts import Anomaly, Contract, PredictionEvent, Reference
from errata.contracts.strict import instant, instant_us
from errata.contracts.topics import CONTRACTS, OUTCOMES, PREDICTIONS, REFERENCES, TOPICS, model_key
from errata.domain.columns import PURPOSES, Batch, Layout
from errata.domain.detection.engine import DETECTORS, LABEL_DETECTORS, Engine, Judged
from errata.domain.detection.error_rate import ErrorRate
from errata.domain.detection.profile import Profile, compile_profile
from errata.domain.detection.state import State
from errata.domain.detection.wave import Detector
from errata.domain.layouts import compile_layout
from errata.domain.profiles import build_reference, content_hash
from errata.ports import Record, StepResult
from errata_services.anomaly_detector import AnomalyDetector
from errata_services.bootstrap import publish_tables

Event = dict[str, Any]

MODEL = "loans"
WINDOW = 500
START_US = instant_us("2026-01-05T12:00:00Z")
SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
REFERENCE_EVENTS = 10_000
CITIES = ("ascot", "berlin", "cork", "delft")


def contract(model: str = MODEL, **changes: Any) -> Contract:
    """What the events of `clean` obey; ``changes`` are fields of the contract."""
    plain: dict[str, Any] = {
        "model": model,
        "features": {
            "amount": {"type": "number", "range": {"min": 0, "max": 1000}},
            "age": {"type": "integer", "range": {"min": 0, "max": 120}, "policy": "bucket", "bucket": {"edges": [50]}},
            "colour": {"type": "category", "categories": ["blue", "green", "red", "violet"], "required": True},
            "city": {"type": "category", "policy": "hash"},
            "owner": {"type": "category", "categories": list(CITIES), "policy": "drop"},
            "note": {"type": "text", "policy": "drop"},
        },
        "output": {"type": "class", "classes": ["never", "no", "yes"]},
        "slos": {"latency_ms": {"max": 400}},
        "policies": [{"id": "no-never", "forbidden": ["never"]}],
    } | changes
    made = Contract.model_validate_json(json.dumps(plain))
    return made.model_copy(update={"content_hash": content_hash(made)})


def clean(n: int, seed: int = 1, *, model: str = MODEL, start_us: int = START_US, name: str = "e") -> list[Event]:
    """``n`` events of one distribution, a second apart, each with its label: 10 % wrong, amounts missing at 1 %."""
    events: list[Event] = msgspec.json.decode(_clean(n, seed, model, start_us, name))
    return events


@cache
def _clean(n: int, seed: int, model: str, start_us: int, name: str) -> bytes:
    draw = np.random.default_rng(seed)
    amount, age = draw.gamma(4, 40, n).clip(0, 999), draw.integers(18, 90, n)
    colour, city = draw.choice(["blue", "green", "red"], n, p=[0.5, 0.3, 0.2]), draw.choice(CITIES, (2, n))
    score, latency = draw.beta(8, 2, n), draw.lognormal(4, 0.5, n)
    said, wrong, missing = draw.random(n) < 0.4, draw.random(n) < 0.1, draw.random(n) < 0.01
    events = [
        {
            "event_id": f"{name}-{i}",
            "time": instant(start_us + i * SECOND_US).isoformat(),
            "model": {"name": model},
            "prediction": "yes" if said[i] else "no",
            "scores": {"yes" if said[i] else "no": round(float(score[i]), 4)},
            "features": {
                "amount": None if missing[i] else round(float(amount[i]), 2),
                "age": int(age[i]),
                "colour": str(colour[i]),
                "city": str(city[0, i]),
                "owner": str(city[1, i]),
                "note": "as agreed",
            },
            "latency_ms": round(float(latency[i].clip(0, 399)), 2),
            "outcome": {"value": "yes" if bool(said[i]) != bool(wrong[i]) else "no"},
        }
        for i in range(n)
    ]
    return msgspec.json.encode(events)


def tick(at_us: int, name: str = "") -> Event:
    return {"event_id": f"tick-{name or at_us}", "time": instant(at_us).isoformat(), "purpose": "tick"}


def outcome(i: int, wrong: bool, *, model: str = MODEL, start_us: int = START_US, name: str = "o") -> Event:
    """An outcome that carries its own prediction."""
    return {
        "outcome_id": f"{name}-{i}",
        "prediction_id": f"p-{i}",
        "model": {"name": model},
        "observed_time": instant(start_us + i * SECOND_US).isoformat(),
        "predicted": "yes",
        "value": "no" if wrong else "yes",
    }


def reference(model: str = MODEL, seed: int = 1000) -> Reference:
    """The reference of clean events; that of another model differs in its name only."""
    return _reference(model, seed)


@cache
def _reference(model: str, seed: int) -> Reference:
    if model != MODEL:
        made = _reference(MODEL, seed).model_copy(update={"model": model})
        return made.model_copy(update={"content_hash": content_hash(made)})
    events = clean(REFERENCE_EVENTS, seed)
    return build_reference(
        (PredictionEvent.model_validate_json(msgspec.json.encode(event)) for event in events),
        contract(),
        dataset="clean",
    )


def time_us(event: Mapping[str, Any]) -> int:
    return _us(event.get("time") or event["observed_time"])


_us = cache(instant_us)


def records(events: Iterable[Event], received_us: Callable[[Event], int] | None = None) -> list[Record]:
    """Events as they are read from one partition, half a second after they happened unless told otherwise."""
    offsets: Counter[str] = Counter()
    made = []
    for event in events:
        topic = OUTCOMES if "outcome_id" in event else PREDICTIONS
        at_us = received_us(event) if received_us else time_us(event) + SECOND_US // 2
        model = event.get("model")
        key = model_key(event.get("tenant", "default"), model["name"]) if model else None
        made.append(Record(topic, 0, offsets[topic], at_us, key, msgspec.json.encode(event)))
        offsets[topic] += 1
    return made


def each(events: Sequence[Event], rows: Iterable[int], change: Callable[[Event], object]) -> list[Event]:
    """The events with ``change`` applied to copies of some."""
    copies: list[Event] = msgspec.json.decode(msgspec.json.encode(events))
    for row in rows:
        change(copies[row])
    return copies


# -- the stage --------------------------------------------------------------------------------------------------------


def stage(
    kind: type[AnomalyDetector] = AnomalyDetector, models: Sequence[str] = (MODEL,), **changes: Any
) -> AnomalyDetector:
    """A detector that knows the contract and reference of these models and has taken over partition 0, empty."""
    made = kind(transport(models, **changes), MsgspecDecoder(b"0" * 32))
    made.restore(0, {})
    return made


def transport(models: Sequence[str] = (MODEL,), **changes: Any) -> MemoryTransport:
    made = MemoryTransport(TOPICS)
    for model in models:
        publish_tables(made, {CONTRACTS: contract(model, **changes), REFERENCES: reference(model)})
    return made


@dataclass(slots=True)
class Ran:
    """What a stage made of records. Moves come with the place of their record in the whole stream."""

    outputs: list[tuple[bytes | None, bytes | None]] = field(default_factory=list)
    moves: list[tuple[int, Anomaly]] = field(default_factory=list)
    entries: dict[bytes, bytes] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    dead: int = 0
    findings: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    late: int = 0
    clamped: int = 0

    def of(self, *states: str) -> list[tuple[int, Anomaly]]:
        return [(at, said) for at, said in self.moves if said.episode.state in states]

    def opened(self) -> list[tuple[int, str, str]]:
        """Which finding opened an episode, at which record."""
        return [(at, said.detector.id, said.subject) for at, said in self.of("open")]

    def first(self, detector: str, subject: str) -> int:
        """The record at which a signal first moved an episode."""
        return min(at for at, said in self.moves if (said.detector.id, said.subject) == (detector, subject))


def run(detector: AnomalyDetector, stream: Sequence[Record], size: int, ran: Ran | None = None, place: int = 0) -> Ran:
    """Step and commit a stage over a stream in batches of ``size``; goes on with ``ran`` when there is one."""
    ran = ran or Ran()
    for start in range(0, len(stream), size):
        batch = stream[start : start + size]
        _book(ran, place + start, step(detector, batch), detector.judged)
        detector.commit()
    return ran


def step(detector: AnomalyDetector, batch: Sequence[Record]) -> StepResult:
    detector.prepare(batch)
    return detector.step(batch, None)


def _book(ran: Ran, start: int, result: StepResult, judged: Judged) -> None:
    ran.outputs += [(out.key, out.value) for out in result.outputs]
    cases = [out for out in result.outputs if out.key is not None]  # the others are heartbeats
    for (_, move), out in zip(judged.moves, cases, strict=True):
        ran.moves.append((start + move.record, Anomaly.model_validate_json(out.value or b"")))
    ran.entries |= {change.key: change.value for change in result.changes if change.value is not None}
    ran.dropped.update(result.dropped)
    ran.dead += len(result.dead)
    ran.findings.update(judged.findings)
    ran.late += judged.late
    ran.clamped += judged.clamped


def detect(events: Sequence[Event], size: int = 5_000, **changes: Any) -> Ran:
    return run(stage(**changes), records(events), size)


# -- the bare engine --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Bare:
    """The engine over one model without the stage around it, so that single parts can be exchanged."""

    detectors: Sequence[Detector] = DETECTORS
    labels: Sequence[ErrorRate] = LABEL_DETECTORS
    keep: Callable[[Batch], np.ndarray[tuple[int], np.dtype[np.bool_]]] = lambda batch: np.ones(
        len(batch.predictions), np.bool_
    )
    state: State = field(default_factory=State)

    def steps(self, stream: Sequence[Record], size: int) -> Iterator[tuple[int, Judged]]:
        layout = compile_layout("default", MODEL, contract(), reference())
        layouts: dict[bytes, Layout] = {model_key("default", MODEL): layout}
        profile: Profile = compile_profile(layout)
        slots = {p: self.state.add("default", MODEL, p, 0, profile).index for p in PURPOSES}
        engine, decoder = Engine(self.state, self.detectors, self.labels), MsgspecDecoder(b"0" * 32)
        for start in range(0, len(stream), size):
            batch = decoder.decode(stream[start : start + size], layouts)
            of_purpose = np.array([slots[p] for p in PURPOSES])
            yield (
                start,
                engine.step(
                    batch,
                    of_purpose[batch.predictions.purpose],
                    of_purpose[batch.outcomes.purpose],
                    self.keep(batch),
                    np.ones(len(batch.outcomes), np.bool_),
                    lambda record, slot, start=start: f"{slot}@{start + record}",  # type: ignore[misc]
                ),
            )
