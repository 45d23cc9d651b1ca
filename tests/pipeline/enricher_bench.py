"""An enricher with a transport of its own, and the messages it is fed with."""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from tests.unit.anomaly_builder import ONSET, anomaly, finding

from errata.adapters.context_memory import MemoryContextStore
from errata.adapters.memory import MemoryTransport
from errata.contracts import Anomaly, Contract, EnrichedAnomaly
from errata.contracts.strict import rfc3339, to_us
from errata.contracts.topics import ANOMALIES, CHANGES, TOPICS
from errata.ports import ContextStore, Outgoing, Record, StepResult
from errata_services.enricher import Enricher

KEY = b"k" * 32
FEATURES = {
    "AGEP": {"type": "number", "policy": "drop"},
    "SCHL": {"type": "category"},
    "ZIP": {"type": "text", "policy": "hash"},
}
CONTRACT = Contract.model_validate({"model": "employment", "features": FEATURES})
FOUND_US = to_us(ONSET) + 600_000_000  # record time of the finding


class Bench:
    """An enricher on a transport and a context store of its own."""

    def __init__(
        self,
        contract: Contract | None = CONTRACT,
        store: ContextStore | None = None,
        transport: MemoryTransport | None = None,
        **how: Any,
    ) -> None:
        self.transport = transport or MemoryTransport(TOPICS)
        self.store: ContextStore = store if store is not None else MemoryContextStore()
        self.asked: list[tuple[str, str]] = []
        self.contract = contract
        self.enricher = Enricher(self.store, self.transport, self._contract_of, KEY, **how)
        self._seen = dict.fromkeys(range(self.transport.partitions(CHANGES)), 0)

    def _contract_of(self, tenant: str, model: str) -> Contract | None:
        self.asked.append((tenant, model))
        return self.contract

    def publish(self, topic: str, *values: object, partition: int = 0, at_us: int | None = None) -> None:
        if at_us is not None:
            self.transport.advance_record_time(at_us)
        producer = self.transport.producer("publisher")
        producer.begin()
        for value in values:
            raw = value if isinstance(value, bytes) else json.dumps(value).encode()
            producer.produce(Outgoing(topic, b"employment", raw, partition=partition))
        producer.commit()
        producer.close()

    def step(self, *values: Anomaly | bytes | None) -> StepResult:
        batch = self._new_changes() + [
            Record(ANOMALIES, 0, at, FOUND_US, b"", value.to_json() if isinstance(value, Anomaly) else value)
            for at, value in enumerate(values)
        ]
        return self.enricher.step(batch, self.enricher.prepare(batch))

    def _new_changes(self) -> list[Record]:
        new = [record for p, offset in self._seen.items() for record in self.transport.read_from((CHANGES, p), offset)]
        for record in new:
            self._seen[record.partition] = record.offset + 1
        return new

    def enrich(self, found: Anomaly) -> EnrichedAnomaly:
        return read(self.step(found).outputs)[0]


def read(outputs: Sequence[Outgoing]) -> list[EnrichedAnomaly]:
    return [EnrichedAnomaly.model_validate_json(output.value or b"") for output in outputs]


def change(minutes_before: float, **fields: Any) -> dict[str, Any]:
    time = rfc3339(ONSET - timedelta(minutes=minutes_before))
    return {"change_id": "c1", "kind": "deploy", "subject": "employment", "time": time, **fields}


def event(event_id: str, **fields: Any) -> dict[str, Any]:
    plain = {"event_id": event_id, "time": rfc3339(ONSET), "model": {"name": "employment"}, "prediction": "1"}
    return {**plain, **fields}


def failure(**fields: Any) -> Anomaly:
    return anomaly(finding("error_rate", "outcome", "rate"), time=ONSET + timedelta(minutes=10), **fields)


def kinds(found: EnrichedAnomaly) -> list[str]:
    return [entry.name for entry in found.context]
