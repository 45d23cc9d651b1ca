"""The detector stage over a stream of generated events, as it runs in production: warm, windows in progress."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta

from tests.benchmarks.events import START_US, events
from tests.benchmarks.measure import Variant

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.memory import MemoryTransport
from errata.contracts import Anomaly, Contract, Reference
from errata.contracts.strict import EPOCH
from errata.contracts.topics import CONTRACTS, PREDICTIONS, REFERENCES, TOPICS, model_key
from errata.domain.columns import Layout
from errata.domain.detection.statistics import WINDOW
from errata.ports import Outgoing, Record, Records, StateChange, StepResult, columns_of
from errata_services.anomaly_detector import AnomalyDetector

BATCH = 5_000  # records, the most of one transaction
LAP = 5_000  # events, timed at once: one batch, so that what slows the machine for a while slows all variants
MADE_EVENTS = 20_000
MADE_MODELS, SEED = 5, 20_260_105
_HEAD = re.compile(rb'^\{"event_id":"[0-9a-f]{32}","time":"[^"]{24}"')

Fault = Callable[[int, bytes], bytes]  # (number of the model, value) -> value


class HotPath(AnomalyDetector):
    """The stage without its state as changelog entries: bytes to findings."""

    def _changes(self, batch: Sequence[Record], taken: Mapping[int, int]) -> list[StateChange]:
        return []


class Stream:
    """Events of ``models`` models in turn at random, one a second, without end.

    Values are drawn in a circle from 4,000 made for each of five models; the others are these five under other names,
    each from a place of its own on. So a window holds no event twice, whatever the number of models.
    """

    def __init__(self, models: int, bad_share: float = 0.0) -> None:
        records, layouts = _made(bad_share)
        self._pools = [[_compact(r.value or b"") for r in records if r.key == key] for key in layouts]
        self._made = list(layouts.values())
        self._next = [number * 37 for number in range(models)]
        self._keys = [model_key("default", name_of(number)) for number in range(models)]
        self._rng = random.Random(SEED + models)
        self._count = 0
        self.fault: Fault | None = None

    @property
    def models(self) -> int:
        return len(self._keys)

    def tables(self) -> Iterator[tuple[bytes, Contract, Reference]]:
        for number, key in enumerate(self._keys):
            made = self._made[number % MADE_MODELS]
            assert made.contract is not None
            assert made.reference is not None
            yield (
                key,
                Contract.model_validate_json(_renamed(made.contract.to_json(), number)),
                Reference.model_validate_json(_renamed(made.reference.to_json(), number)),
            )

    def record(self, number: int) -> Record:
        """The next event of model ``number``."""
        pool = self._pools[number % MADE_MODELS]
        raw = _renamed(pool[self._next[number] % len(pool)], number)
        self._next[number] += 1
        if self.fault:
            raw = self.fault(number, raw)
        at_us = START_US + self._count * 1_000_000
        time = (EPOCH + timedelta(microseconds=at_us)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        name = f"{self._count * 0x9E3779B97F4A7C15 % 2**64:016x}{self._count:016x}"
        raw = _HEAD.sub(f'{{"event_id":"{name}","time":"{time}"'.encode(), raw)
        made = Record(PREDICTIONS, 0, self._count, at_us + 50_000, self._keys[number], raw)
        self._count += 1
        return made

    def take(self, n: int) -> list[Record]:
        return [self.record(self._rng.randrange(self.models)) for _ in range(n)]

    def staggered(self) -> list[Record]:
        """Events that bring the windows of the models to different fillings, as they are after a while."""
        return [self.record(m) for m in range(self.models) for _ in range(WINDOW * m // self.models)]


class Detecting:
    """A stage that judges a stream, and what it said so far."""

    def __init__(self, stream: Stream, *, warm: int, packed: bool = False) -> None:
        transport = MemoryTransport(TOPICS)
        producer = transport.producer("setup")
        producer.begin()
        for key, contract, reference in stream.tables():
            producer.produce(Outgoing(CONTRACTS, key, contract.to_json()))
            producer.produce(Outgoing(REFERENCES, key, reference.to_json()))
        producer.commit()
        self.stream = stream
        self.said: list[Anomaly] = []
        self.dead = 0
        self.dropped: Counter[str] = Counter()
        self._stage = (AnomalyDetector if packed else HotPath)(transport, MsgspecDecoder())
        self._stage.restore(0, {})
        self._lap: Sequence[Record] = ()
        self.run(stream.staggered())
        self.run(stream.take(warm))

    def run(self, records: Sequence[Record]) -> int:
        """Judge records in batches as a transaction has them."""
        for at in range(0, len(records), BATCH):
            batch = records[at : at + BATCH]
            self._stage.prepare(batch)
            self._note(self._stage.step(batch, None))
            self._stage.commit()
        return len(records)

    def _note(self, result: StepResult) -> None:
        self.dead += len(result.dead)
        self.dropped.update(result.dropped)
        self.said += [Anomaly.model_validate_json(output.value or b"") for output in result.outputs]

    def ready(self) -> None:
        """Make the next lap, in the form in which a consumer on Kafka hands it out."""
        self._lap = Records(columns_of(self.stream.take(LAP)))

    def lap(self) -> int:
        return self.run(self._lap)

    def variant(self) -> Variant:
        return Variant(self.lap, self.ready)

    def opened(self) -> Counter[str]:
        """How many cases opened, by model."""
        return Counter(said.model.name for said in self.said if said.episode.state == "open")

    def signals(self) -> set[tuple[str, str]]:
        """(model, detector) of all findings in cases."""
        return {(said.model.name, found.detector) for said in self.said for found in said.findings}


def name_of(number: int) -> str:
    return f"model-{number:03d}"


def _renamed(raw: bytes, number: int) -> bytes:
    made = number % MADE_MODELS
    if made == number:
        return raw
    return raw.replace(b'"m%d_' % made, b'"m%d_' % number).replace(b'"model-%03d"' % made, b'"model-%03d"' % number)


def _compact(raw: bytes) -> bytes:
    """A row that was spoilt by writing it anew, written as the good ones are."""
    try:
        return json.dumps(json.loads(raw), separators=(",", ":")).encode()
    except ValueError:
        return raw


_CACHE: dict[float, tuple[list[Record], dict[bytes, Layout]]] = {}


def _made(bad_share: float) -> tuple[list[Record], dict[bytes, Layout]]:
    if bad_share not in _CACHE:
        _CACHE[bad_share] = events(MADE_MODELS, MADE_EVENTS, SEED, bad_share)
    return _CACHE[bad_share]
