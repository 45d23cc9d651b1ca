"""What a stage found, in a form in which two stages can be compared."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from errata.contracts import Anomaly, Receipt
from errata.contracts.topics import ANOMALIES, LEDGER, STAGES, dead_letter_topic
from errata.ports import Record, Transport


@dataclass(slots=True)
class Findings:
    """``signals``: of "model|detector|subject" the failing events and the windows in which they were too many."""

    signals: dict[str, list[int]] = field(default_factory=dict)
    refused: int = 0
    duplicates: int = 0

    def add(self, model: str, signal: str, events: int, windows: int = 1) -> None:
        known = self.signals.setdefault(f"{model}|{signal}", [0, 0])
        known[0] += events
        known[1] += windows

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)


def differences(ours: Findings, theirs: Findings) -> list[str]:
    """Every figure in which two stages differ, in words."""
    found = [
        f"{name}: {ours.signals.get(name)} / {theirs.signals.get(name)}"
        for name in sorted(ours.signals.keys() | theirs.signals.keys())
        if ours.signals.get(name) != theirs.signals.get(name)
    ]
    for name, mine, other in (
        ("refused", ours.refused, theirs.refused),
        ("duplicates", ours.duplicates, theirs.duplicates),
    ):
        if mine != other:
            found.append(f"{name}: {mine} / {other}")
    return found


def findings_of(transport: Transport) -> Findings:
    """What the detector has committed: the newest word on each episode, dead letters, duplicates of its receipts."""
    found = Findings()
    newest: dict[str, Anomaly] = {}
    for record in _records(transport, ANOMALIES):
        said = Anomaly.model_validate_json(record.value or b"")
        known = newest.get(said.episode.id)
        if known is None or known.episode.seq < said.episode.seq:
            newest[said.episode.id] = said
    for said in newest.values():
        for one in said.findings:
            found.add(said.model.name, f"{one.detector}|{one.subject}", one.count, one.windows)
    found.refused = sum(1 for _ in _records(transport, dead_letter_topic(STAGES[0])))
    receipts = (Receipt.model_validate_json(record.value or b"") for record in _records(transport, LEDGER))
    found.duplicates = sum(receipt.dropped.get("duplicate", 0) for receipt in receipts)
    return found


def _records(transport: Transport, topic: str) -> Iterable[Record]:
    for number in range(transport.partitions(topic)):
        yield from transport.read_from((topic, number))
