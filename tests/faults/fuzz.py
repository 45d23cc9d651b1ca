"""Hostile inputs by the million through the detector, each judged by the published contract beside it.

``python tests/faults/fuzz.py [--inputs 1000000] [--seed 1]``; the same seed gives the same inputs. Every input must
come out as an event or as a dead letter, exactly once, with the class and pointer that the contract's own parser gives
it, through crashes and restarts of the worker; and nothing that is not finite may get into the state.
"""

import argparse
import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final

if __name__ == "__main__":  # run as a file: the package "tests" is not on the path
    sys.path[:0] = [str(Path(__file__).parents[2])]

import msgspec
from tests.detectors.streams import MODEL, SECOND_US, START_US, clean, contract, outcome, reference

from errata.adapters.aead import KEY_BYTES, Aead
from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.memory import MemoryTransport
from errata.contracts import Anomaly, Outcome, PredictionEvent, Receipt
from errata.contracts.cloudevents import IS_HEARTBEAT
from errata.contracts.refusals import parse_outcome, parse_prediction
from errata.contracts.strict import instant
from errata.contracts.topics import (
    ANOMALIES,
    CONTRACTS,
    LEDGER,
    OUTCOMES,
    PREDICTIONS,
    REFERENCES,
    STAGES,
    TOPICS,
    dead_letter_topic,
    model_key,
    state_topic,
)
from errata.contracts.versions import refused_version
from errata.domain.array_codec import CODEC_ARRAYS, CODEC_JSON, open_envelope, unpack_arrays, unpack_json
from errata.domain.detection import state as at
from errata.domain.detection.identity import GENERATION
from errata.domain.ledger import audit
from errata.domain.partitioner import partition_of
from errata.errors import Refused
from errata.ports import Headers, Outgoing, Record, TopicPartition
from errata.runtime.crash_points import POINTS, CrashPoint, CrashPoints
from errata.runtime.dead_letters import read_dead_letter
from errata.runtime.worker import Worker
from errata_services.anomaly_detector import REKEYED, AnomalyDetector
from errata_services.bootstrap import publish_tables

DETECTOR = STAGES[0]
ROUND: Final = 10_000  # inputs between two looks at what became of them
MODELS = (MODEL, *(f"{MODEL}-{i}" for i in range(2, 12)))
STRANGERS = ("nobody", "é" * 100, "a/b", "<script>", "x" * 200, "=1+1", "\u202egnp", " ", "default")
PLAIN_SHARE = 0.35  # of inputs that are left as they are, so that there is a state to damage
BATCH_SIZES = (64, 500, 1_000, 5_000)
MAX_VALUE_BYTES: Final = 900_000  # Kafka takes no more than 1 MB

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Input:
    kind: str
    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    headers: Headers = ()


@dataclass(slots=True)
class Figures:
    """What became of the inputs. ``faults`` is empty when every one became what the contract says, once."""

    inputs: int = 0
    seed: int = 0
    dispositions: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    starts: int = 0
    receipts: int = 0
    anomalies: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def dead(self) -> int:
        return sum(n for name, n in self.dispositions.items() if name.startswith("dead: "))

    def fault(self, text: str) -> None:
        if len(self.faults) < 50:
            self.faults.append(text)


# -- inputs -----------------------------------------------------------------------------------------------------------


class Fuzzer:
    """An endless stream of inputs. Ids are fresh but where duplicates are meant."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._seed = seed
        self._made = 0
        self._events = clean(2_000, seed=seed % 1_000 + 1)
        self._recent: list[Input] = []

    def __iter__(self) -> Iterator[Input]:
        while True:
            yield self._next()

    def _next(self) -> Input:
        draw = self._random
        self._made += 1
        if self._recent and draw.random() < 0.02:
            return self._again(draw.choice(self._recent))
        topic = OUTCOMES if draw.random() < 0.12 else PREDICTIONS
        event = self._outcome() if topic == OUTCOMES else self._prediction()
        kinds: list[str] = []
        if draw.random() >= PLAIN_SHARE:
            for _ in range(draw.choice((1, 1, 1, 2, 3))):
                name = draw.choice(_CHANGE_NAMES)
                kinds.append(name)
                _CHANGES[name](draw, event)
        value: bytes | None = _written(draw, event)
        if not kinds or draw.random() < 0.4:
            value = self._damaged(value or b"", kinds) if draw.random() < 0.4 else value
        made = self._placed(kinds, topic, event, value)
        if len(self._recent) < 500:
            self._recent.append(made)
        else:
            self._recent[draw.randrange(500)] = made
        return made

    def _again(self, before: Input) -> Input:
        return replace(before, kind="duplicate")

    def _prediction(self) -> Event:
        draw = self._random
        text = json.dumps(self._events[self._made % len(self._events)])
        event: Event = json.loads(text)
        event["event_id"] = f"{self._seed}-{self._made}"
        event["time"] = instant(START_US + self._made * 1_000 - draw.randrange(SECOND_US)).isoformat()
        event["model"] = {"name": draw.choice(MODELS)}
        return event

    def _outcome(self) -> Event:
        draw = self._random
        event = outcome(0, draw.random() < 0.1, model=draw.choice(MODELS))
        event["outcome_id"] = f"{self._seed}-{self._made}"
        event["observed_time"] = instant(START_US + self._made * 1_000).isoformat()
        return event

    def _damaged(self, raw: bytes, kinds: list[str]) -> bytes | None:
        name = self._random.choice(_DAMAGE_NAMES)
        kinds.append(name)
        return _DAMAGES[name](self._random, raw)

    def _placed(self, kinds: list[str], topic: str, event: Event, value: bytes | None) -> Input:
        """By the key of its model as publishers do it; of some the key is wrong, or the partition by chance."""
        draw = self._random
        key, partition = _key(event), None
        lot = draw.random()
        if lot < 0.01:
            key = draw.choice((None, b"", b"nobody", b"\xff\x00", MODEL.encode()))
            kinds.append("wrong key")
        elif lot < 0.02:
            partition = draw.randrange(TOPICS[topic].partitions)
            kinds.append("wrong partition")
        if value is not None and len(value) > MAX_VALUE_BYTES:
            value = value[:MAX_VALUE_BYTES]
        headers: Headers = ()
        if draw.random() < 0.02:
            headers = (draw.choice(_HEADERS),)
            kinds.append("header")
        return Input(" + ".join(kinds) or "plain", topic, key, value, partition, headers)


def _key(event: Event) -> bytes | None:
    """The key that a publisher would give an event, as far as one can."""
    model, tenant = event.get("model"), event.get("tenant", "default")
    name = model.get("name") if isinstance(model, dict) else None
    if not isinstance(name, str) or not isinstance(tenant, str):
        return None
    return (name if tenant == "default" else f"{tenant}/{name}").encode("utf-8", "replace")


Change = Callable[[Random, Event], None]
Damage = Callable[[Random, bytes], "bytes | None"]

_WRONG: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e300, 5e-324, 2**53, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30,
    "", " ", "x", "0.5", "true", "live", "2026-01-05T12:00:00Z", "yes", [], [1], ["x"], [None], [[1]], [0] * 4_097,
    {}, {"a": 1}, {"name": "x"}, {"code": "ok"}, {"code": "party"}, {"value": "yes"}, {"name": None},
    math.nan, math.inf, -math.inf, "\0", "a\0b", "\ud800", "\udfff\ud800", "\ufeff", "\u2028", "x" * 201, "é" * 200,
    "x" * 5_000, "@huge integer@", "@huge number@", "@tiny number@",
)  # fmt: skip
_RAW = {  # written in place of the texts above: what json.dumps does not write
    b'"@huge integer@"': b"9" * 5_000, b'"@huge number@"': b"1e400", b'"@tiny number@"': b"1e-400",
}  # fmt: skip
_TIMES: tuple[Any, ...] = (
    "2026-01-05T12:00:00", "2026-01-05", "now", "", 0, 1_767_614_400, None, "1970-01-01T00:00:00Z",
    "2090-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
    "2026-01-05T12:05:00Z", "2026-01-05T12:20:00Z", "2026-01-06T11:00:00Z", "2026-01-07T12:00:00Z",
    "2026-01-04T12:00:00Z", "2026-01-05T11:00:00Z", "2026-01-05T12:00:60Z", "2026-01-05T12:00:00.123456789Z",
    "2026-01-05T12:00:00+14:00", "2026-01-05T12:00:00-23:59", "2026-13-01T00:00:00Z", "٢٠٢٦-01-05T12:00:00Z",
    "2026-01-05T12:00:00Z\0", ["2026-01-05T12:00:00Z"],
)  # fmt: skip
_HEADERS = (
    *(("schema", text) for text in (
        b"prediction-event/1.0", b"prediction-event/1.9", b"prediction-event/2.0", b"prediction-event/1",
        b"prediction-event/x.y", b"outcome/1.0", b"outcome/9.9", b"change-event/1.0", b"1", b"", b"\xff",
    )),
    ("traceparent", b"00-1-1-00"), ("x", b"\x00\xff"), ("ce_type", b"errata.heartbeat.v1"), ("hops", b"3"),
)  # fmt: skip
_FIELDS: tuple[str, ...] = (*PredictionEvent.model_fields, *Outcome.model_fields)


def _any_place(draw: Random, event: Event) -> tuple[Event, str]:
    """A field of the event or of an object in it, there or not."""
    holder = event
    inner = [value for value in event.values() if isinstance(value, dict)]
    if inner and draw.random() < 0.5:
        holder = draw.choice(inner)
    names = sorted(holder) or ["new"]
    return holder, draw.choice(_FIELDS if holder is event and draw.random() < 0.4 else names)


def _wrong_value(draw: Random) -> Any:
    value = draw.choice(_WRONG)
    return value.copy() if isinstance(value, dict | list) else value  # the next change may change it


def _wrong(draw: Random, event: Event) -> None:
    holder, name = _any_place(draw, event)
    holder[name] = _wrong_value(draw)


def _missing(draw: Random, event: Event) -> None:
    holder, name = _any_place(draw, event)
    holder.pop(name, None)


def _swapped(draw: Random, event: Event) -> None:
    holder, name = _any_place(draw, event)
    other, source = _any_place(draw, event)
    if source in other:
        holder[name] = json.loads(json.dumps(other[source]))


def _nested(draw: Random, event: Event) -> None:
    value: Any = draw.choice((1, "x", None))
    for _ in range(draw.choice((2, 5, 29, 30, 31, 32, 33, 40, 200))):
        value = [value] if draw.random() < 0.5 else {"a": value}
    holder, name = _any_place(draw, event)
    holder[name] = value


def _hostile_name(draw: Random, event: Event) -> None:
    holder, _ = _any_place(draw, event)
    name = draw.choice(("", "\0", "a\0", "\ud800", "a/b~c", "__proto__", "x" * 1_000, "'; DROP TABLE cases; --", "é"))
    holder[name] = _wrong_value(draw)


def _features(draw: Random, event: Event) -> None:
    event["features"] = {f"f{i}": draw.choice(_WRONG[:20]) for i in range(draw.choice((0, 1, 50, 1_999, 2_000, 2_001)))}


def _stranger(draw: Random, event: Event) -> None:
    event["model"] = {"name": draw.choice(STRANGERS)}
    if draw.random() < 0.3:
        event["tenant"] = draw.choice(("acme", "é", "default", "a/b"))


def _purpose(draw: Random, event: Event) -> None:
    event["purpose"] = draw.choice(("live", "drill", "backfill", "heartbeat", "tick", "LIVE", "", None, "party"))
    if event["purpose"] in ("tick", "heartbeat") and draw.random() < 0.7:
        for name in [name for name in event if name not in ("event_id", "outcome_id", "time", "purpose")]:
            if event["purpose"] == "tick" or name not in ("model", "prediction"):
                del event[name]


def _clock(draw: Random, event: Event) -> None:
    name = draw.choice([name for name in ("time", "observed_time") if name in event] or ["time"])
    event[name] = draw.choice(_TIMES)


def _other_id(draw: Random, event: Event) -> None:
    """An id that others have had, or of another source or type."""
    name = "outcome_id" if "outcome_id" in event else "event_id"
    lot = draw.random()
    if lot < 0.4:
        event[name] = draw.choice(("e1", "0", "é", "x" * 200, " "))
    elif lot < 0.7:
        event["source"] = draw.choice((None, "", "svc", MODEL, 5))
    else:
        event["type"] = draw.choice(("errata.prediction.v1", "t.v1", "", None))


def _failure(draw: Random, event: Event) -> None:
    """A fault that a detector is to find."""
    features = event.get("features")
    lot = draw.randrange(5)
    if lot == 0 and isinstance(features, dict):
        features["amount"] = None
    elif lot == 1 and isinstance(features, dict):
        features["age"] = 500
    elif lot == 2:
        event["latency_ms"] = draw.choice((401, 1e9, 1e300))
    elif lot == 3:
        event["prediction"] = draw.choice(("never", "perhaps", 3, [1, 2], True))
    else:
        event["status"] = {"code": draw.choice(("error", "timeout", "fallback", "missing_response"))}
        event.pop("prediction", None)


_CHANGES: dict[str, Change] = {
    "wrong": _wrong,
    "missing": _missing,
    "swapped": _swapped,
    "nested": _nested,
    "hostile name": _hostile_name,
    "stranger": _stranger,
    "purpose": _purpose,
    "clock": _clock,
    "other id": _other_id,
    "failure": _failure,
}
_CHANGE_NAMES = (*_CHANGES, *("wrong", "missing", "failure") * 2)


def _written(draw: Random, event: Event) -> bytes:
    if draw.random() < 0.002:
        _features(draw, event)
    raw = json.dumps(event, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    if b'"@' in raw:
        for marker, literal in _RAW.items():
            raw = raw.replace(marker, literal)
    return raw


def _bit_flip(draw: Random, raw: bytes) -> bytes:
    changed = bytearray(raw or b"{}")
    for _ in range(draw.choice((1, 1, 2, 5))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(draw: Random, raw: bytes) -> bytes:
    return raw[: draw.randrange(len(raw) + 1)]


def _gap(draw: Random, raw: bytes) -> bytes:
    start = draw.randrange(len(raw) + 1)
    return raw[:start] + raw[start + draw.randrange(1, 20) :]


def _insert(draw: Random, raw: bytes) -> bytes:
    bits = (b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"\\", b"\\u0000", b"\\ud800", b"{", b"[", b",", b"NaN", b" ", b"\n")
    start = draw.randrange(len(raw) + 1)
    return raw[:start] + draw.choice(bits) + raw[start:]


def _number(draw: Random, raw: bytes) -> bytes:
    """Another number in place of the first behind a place drawn: some are no JSON, some no number that can be kept."""
    literals = (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"01", b"+1", b".5", b"1.", b"0x1", b"1_0",
                b"7" * 5_000, b"-" + b"7" * 30, b"1e5", b"1E+2", b"-0", b"9223372036854775808")  # fmt: skip
    start = draw.randrange(len(raw) + 1)
    places = [at for at in range(start, min(len(raw), start + 200)) if raw[at : at + 1].isdigit()]
    if not places:
        return raw
    return raw[: places[0]] + draw.choice(literals) + raw[places[0] + 1 :]


def _duplicate_key(draw: Random, raw: bytes) -> bytes:
    name = draw.choice(("event_id", "time", "prediction", "features", "model", "purpose", "new")).encode()
    value = draw.choice((b"1", b'"x"', b"null", b'"\\u0000"', b"NaN", b"{}", b'{"name": "loans"}', b'"tick"'))
    if draw.random() < 0.5:
        return b'{"' + name + b'": ' + value + b", " + raw[1:]
    return raw[:-1] + b', "' + name + b'": ' + value + b"}"


def _encoded(draw: Random, raw: bytes) -> bytes:
    text = raw.decode("utf-8", "replace")
    return text.encode(draw.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-7", "cp037")), "replace")


def _padded(draw: Random, raw: bytes) -> bytes:
    """To around 256 KiB, where an input becomes too large."""
    size = draw.choice((262_143, 262_144, 262_145, 300_000))
    if draw.random() < 0.5:
        return raw + b" " * (size - len(raw))
    return raw[:-1] + b', "pad": "' + b"p" * (size - len(raw) - 11) + b'"}'


def _deep(draw: Random, raw: bytes) -> bytes:
    depth = draw.choice((33, 1_000, 100_000))
    opening, closing = draw.choice(((b"[", b"]"), (b'{"a":', b"}")))
    whole = opening * depth + b"1" + closing * (depth if draw.random() < 0.7 else 0)
    return whole if draw.random() < 0.5 else raw[:-1] + b', "deep": ' + whole + b"}"


def _noise(draw: Random, raw: bytes) -> bytes:
    return draw.randbytes(draw.choice((0, 1, 2, 7, 100)))


_DAMAGES: dict[str, Damage] = {
    "bit flip": _bit_flip,
    "cut": _cut,
    "gap": _gap,
    "insert": _insert,
    "number": _number,
    "duplicate key": _duplicate_key,
    "BOM": lambda draw, raw: b"\xef\xbb\xbf" + raw,
    "encoded": _encoded,
    "padded": _padded,
    "deep": _deep,
    "noise": _noise,
    "twice": lambda draw, raw: raw + draw.choice((b"", b"\n", b",", b"}")) + raw,
    "no object": lambda draw, raw: draw.choice((b"[]", b"1", b'"x"', b"null", b"true", b"", b" ", b"[" + raw + b"]")),
    "no value": lambda draw, raw: None,
}
_RARE = ("padded", "deep")  # they cost as much as hundreds of others
_DAMAGE_NAMES = (*(name for name in _DAMAGES if name not in _RARE for _ in range(20)), *_RARE)


# Reasons for which a stage may drop a record, and what the contract calls it.
_DROPPED = {
    "duplicate": "duplicate", "rekeyed": "rekeyed", "waiting": "waiting", "feedback": "feedback",
    "tick": "outcome of purpose tick", "heartbeat": "outcome of purpose heartbeat",
}  # fmt: skip

# -- the run ----------------------------------------------------------------------------------------------------------


class Fuzzed:
    """One detector over one log, and the contract's word on every record beside it."""

    def __init__(self, seed: int, stage: type[AnomalyDetector], worker: type[Worker]) -> None:
        self.figures = Figures(seed=seed)
        self._random = Random(f"run {seed}")
        self._inputs = iter(Fuzzer(seed))
        self._stage_kind, self._worker_kind = stage, worker
        self._transport = MemoryTransport(TOPICS)
        for model in MODELS:
            publish_tables(self._transport, {CONTRACTS: contract(model), REFERENCES: reference(model)})
        for topic in (PREDICTIONS, OUTCOMES, ANOMALIES, dead_letter_topic(DETECTOR)):
            self._transport.retain(topic, ROUND)
        self._producer = self._transport.producer("fuzzer")
        self._read: dict[TopicPartition, int] = {}
        self._ids: dict[int, _Ids] = defaultdict(_Ids)
        self._rows: Counter[tuple[str, str, str]] = Counter()  # predictions a slot must have taken
        self._lettered: set[tuple[str, int, int]] = set()  # of this round
        self._receipts: list[Receipt] = []
        self._beats = 0  # passed on
        self._start()

    def _start(self) -> None:
        """A new member takes over, killed at some point later or not at all; what it restores is checked on the way."""
        draw = self._random
        crash = CrashPoints.raising(DETECTOR, draw.choice(POINTS), draw.randrange(1, 12))
        decoder = MsgspecDecoder(b"0" * KEY_BYTES)
        self._stage = self._stage_kind(self._transport, decoder, rekeys=True)
        self._worker = self._worker_kind(
            self._stage,
            self._transport,
            instance="0",
            build="fuzz",
            cipher=Aead(b"k" * KEY_BYTES),
            batch_size=draw.choice(BATCH_SIZES),
            crash=crash,
        )
        self.figures.starts += 1

    def round(self, inputs: int) -> None:
        self._publish(list(islice(self._inputs, inputs)))
        self._drain()
        self._lettered = self._dead_letters()
        for topic in (PREDICTIONS, OUTCOMES):
            self._judge(self._new(topic))
        self._anomalies()
        self._receipts += [Receipt.model_validate_json(record.value or b"") for record in self._new(LEDGER)]

    def _publish(self, inputs: Sequence[Input]) -> None:
        self.figures.inputs += len(inputs)
        for start in range(0, len(inputs), 100):
            batch = inputs[start : start + 100]
            now_us = START_US + (self.figures.inputs + start) * 1_000 + SECOND_US
            self._transport.advance_record_time(now_us)
            self._producer.begin()
            for one in batch:
                self._producer.produce(Outgoing(one.topic, one.key, one.value, one.headers, one.partition))
            self._producer.commit()
        self.figures.kinds.update(name for one in inputs for name in one.kind.split(" + "))

    def _drain(self) -> None:
        while True:
            try:
                if not self._worker.run_once():
                    return
            except CrashPoint:
                self.figures.kills += 1
                self._start()

    def _new(self, topic: str) -> list[Record]:
        """What was committed to a topic since the last look, partition by partition."""
        found: list[Record] = []
        for number in range(self._transport.partitions(topic)):
            place = topic, number
            found += self._transport.read_from(place, self._read.get(place, 0))
            self._read[place] = self._transport.end_offset(place)
        return found

    def _dead_letters(self) -> set[tuple[str, int, int]]:
        """The letters of a round by place, each counted by its class; their reasons are kept for `_judge`."""
        self._letters: dict[tuple[str, int, int], tuple[str, str]] = {}
        for record in self._new(dead_letter_topic(DETECTOR)):
            letter = read_dead_letter(record)
            place = letter.topic, letter.partition, letter.offset
            if place in self._letters:
                self.figures.fault(f"two dead letters of {place}")
            self._letters[place] = letter.class_, letter.path
            self.figures.dispositions[f"dead: {letter.class_}"] += 1
            if letter.class_ == "handler":
                self.figures.fault(f"the stage failed on {place}: {letter.error}")
        return set(self._letters)

    def _judge(self, records: Sequence[Record]) -> None:
        for record in records:
            place = record.topic, record.partition, record.offset
            said, event = verdict(record)
            self._lettered.discard(place)
            if said != self._letters.get(place):
                self.figures.fault(f"{place}: the contract says {said}, the dead letter {self._letters.get(place)}")
            elif event is not None:
                self.figures.dispositions[self._taken(record, event)] += 1
        if records and records[0].topic == OUTCOMES and self._lettered:
            self.figures.fault(f"dead letters of records that nobody wrote: {sorted(self._lettered)[:3]}")

    def _taken(self, record: Record, event: PredictionEvent | Outcome) -> str:
        """What becomes of an event that the contract takes."""
        purpose = event.purpose
        if isinstance(event, PredictionEvent) and purpose in ("tick", "heartbeat"):
            return purpose
        if isinstance(event, Outcome):
            if purpose in ("tick", "heartbeat"):
                return f"outcome of purpose {purpose}"
            if event.kind != "ground_truth":
                return "feedback"
            if event.predicted is None:
                return "waiting"
        assert event.model is not None
        name = event.model.name
        home = partition_of(model_key(event.tenant, name), self._transport.partitions(record.topic))
        elsewhere = home != record.partition or record.key != model_key(event.tenant, name)
        if elsewhere and all(header != REKEYED for header, _ in record.headers):
            return "rekeyed"
        if not self._ids[record.partition].is_new(event):
            return "duplicate"
        if isinstance(event, Outcome):
            return "outcome"
        self._rows[event.tenant, name, purpose] += 1
        return "event"

    def _anomalies(self) -> None:
        for record in self._new(ANOMALIES):
            if IS_HEARTBEAT in record.headers:
                self._beats += 1
            else:
                Anomaly.model_validate_json(record.value or b"")
                self.figures.anomalies += 1

    def finish(self) -> None:
        """The sums of the whole run: receipts, slots, and the state as the changelog has it."""
        figures, dispositions = self.figures, self.figures.dispositions
        figures.receipts = len(self._receipts)
        for fault in audit(self._receipts).faults:
            figures.fault(f"ledger: {fault}")
        delivered = sum(part.delivered for one in self._receipts for part in one.inputs)
        if delivered != sum(dispositions.values()):
            figures.fault(f"{delivered} records delivered, {sum(dispositions.values())} with a disposition")
        if delivered != figures.inputs + dispositions["rekeyed"]:
            figures.fault(
                f"{delivered} records delivered of {figures.inputs} inputs and {dispositions['rekeyed']} moved"
            )
        if sum(one.dlq for one in self._receipts) != figures.dead:
            figures.fault(f"receipts count {sum(one.dlq for one in self._receipts)} dead letters, not {figures.dead}")
        dropped: Counter[str] = Counter()
        for one in self._receipts:
            dropped.update(one.dropped)
        for reason, name in _DROPPED.items():
            if dropped.pop(reason, 0) != dispositions[name]:
                figures.fault(f"the receipts' count of {reason} is not {dispositions[name]}")
        if dropped:
            figures.fault(f"receipts drop records for reasons of their own: {dict(dropped)}")
        if self._beats != dispositions["heartbeat"]:
            figures.fault(f"{self._beats} heartbeats passed on, not {dispositions['heartbeat']}")
        self._start()  # restored from the changelog, digest and position checked
        self._drain()
        held = {slot.key: int(self._stage.state.fixed[slot.index, at.EVENTS]) for slot in self._stage.slots}
        wrong = [key for key in held.keys() | self._rows.keys() if held.get(key, 0) != self._rows.get(key, 0)]
        for tenant, model, purpose in sorted(wrong)[:5]:
            key = tenant, model, purpose
            figures.fault(f"slot {key}: {held.get(key, 0)} events in its state, {self._rows.get(key, 0)} taken")
        self._check_finite()

    def _check_finite(self) -> None:
        topic = state_topic(DETECTOR)
        for number in range(self._transport.partitions(topic)):
            for record in self._transport.read_from((topic, number)):
                if record.value is not None and not is_finite(record.value):
                    self.figures.fault(f"state of partition {number}, key {record.key!r}: not finite")


class _Ids:
    """The ids that a partition remembers, by plain sets: at least the last 131,072, in two generations."""

    def __init__(self) -> None:
        self._newer: set[int] = set()
        self._older: set[int] = set()

    def is_new(self, event: PredictionEvent | Outcome) -> bool:
        assert event.model is not None
        if isinstance(event, Outcome):
            who = [event.tenant, event.outcome_id]
        else:
            source = event.model.name if event.source is None else event.source
            who = [event.tenant, source, event.type or "errata.prediction.v1", event.event_id]
        hashed = int.from_bytes(blake2b(json.dumps(who).encode(), digest_size=8).digest(), "little")
        if hashed in self._newer or hashed in self._older:
            return False
        self._newer.add(hashed)
        if len(self._newer) == GENERATION:
            self._older, self._newer = self._newer, set()
        return True


def verdict(record: Record) -> tuple[tuple[str, str] | None, PredictionEvent | Outcome | None]:
    """What the published contract says of a record: class and pointer of a refusal, or the event."""
    if (foreign := refused_version(record.topic, record.headers)) is not None:
        return (foreign.refusal_class, foreign.path), None
    if record.value is None:
        return ("decode", ""), None
    try:
        if record.topic == PREDICTIONS:
            return None, parse_prediction(record.value, record_time_us=record.timestamp_us)
        return None, parse_outcome(record.value, record_time_us=record.timestamp_us)
    except Refused as refusal:
        return (refusal.refusal_class, refusal.path), None


def is_finite(value: bytes) -> bool:
    """Whether a value of the changelog holds finite numbers only."""
    codec, _, _ = open_envelope(value)
    if codec == CODEC_JSON:
        return _finite_plain(unpack_json(value)[1])
    if codec == CODEC_ARRAYS:
        _, meta, arrays = unpack_arrays(value)
        floats = [array for array in arrays.values() if array.dtype.kind == "f"]
        return _finite_plain(meta) and all(bool((abs(array) < math.inf).all()) for array in floats)
    return True  # a list of parts: no numbers of the stage


def _finite_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_finite_plain, value.values()))
    return all(map(_finite_plain, value)) if isinstance(value, list) else True


def run(
    inputs: int,
    seed: int,
    *,
    stage: type[AnomalyDetector] = AnomalyDetector,
    worker: type[Worker] = Worker,
    on_progress: Callable[[int], None] | None = None,
) -> Figures:
    """Fuzz a detector with ``inputs`` inputs. ``stage`` and ``worker`` may be exchanged for broken ones."""
    began_s = time.perf_counter()
    fuzzed = Fuzzed(seed, stage, worker)
    while fuzzed.figures.inputs < inputs:
        fuzzed.round(min(ROUND, inputs - fuzzed.figures.inputs))
        if on_progress is not None:
            on_progress(fuzzed.figures.inputs)
    fuzzed.finish()
    fuzzed.figures.seconds = time.perf_counter() - began_s
    return fuzzed.figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(arguments)

    def tell(done: int) -> None:
        if sys.stderr.isatty() or done % 100_000 == 0:
            print(
                f"\r{done:,} of {given.inputs:,}", end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True
            )

    figures = run(given.inputs, given.seed, on_progress=tell)
    print(f"\n{figures.inputs:,} inputs of seed {figures.seed} in {figures.seconds:.0f} s: {figures.kills} kills,"
          f" {figures.starts} starts, {figures.receipts:,} receipts, {figures.anomalies:,} anomalies")  # fmt: skip
    for name, n in sorted(figures.dispositions.items(), key=lambda pair: -pair[1]):
        print(f"{n:>10,}  {name}")
    for fault in figures.faults:
        print(f"FAULT: {fault}")
    if given.json is not None:
        given.json.write_bytes(msgspec.json.encode(figures))
    return 1 if figures.faults else 0


if __name__ == "__main__":
    sys.exit(main())
