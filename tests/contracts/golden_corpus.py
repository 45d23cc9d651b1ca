"""The golden corpus of a release: records as they were sent to it, and all that it made of them.

Run as a module it records the corpus of the release at hand, once: what a release made is never written again.
"""

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from tests.contracts.corpus import CONTRACT, LINES, OUTCOMES, RECORD_TIME_US, REFERENCE, dumps, prediction
from tests.detectors.streams import START_US, Event, clean, each, records, tick
from tests.detectors.streams import contract as loans_contract
from tests.detectors.streams import reference as loans_reference

from errata import __version__
from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.memory import MemoryTransport
from errata.contracts import Contract, Reference, canonical
from errata.contracts.cloudevents import IS_HEARTBEAT
from errata.contracts.refusals import parse_change
from errata.contracts.topics import CHANGES, CONTRACTS, PREDICTIONS, REFERENCES, TOPICS
from errata.contracts.topics import OUTCOMES as OUTCOMES_TOPIC
from errata.domain.columns import PURPOSES, Batch
from errata.domain.layouts import compile_layout
from errata.errors import Refused
from errata.ports import Record
from errata_services.anomaly_detector import AnomalyDetector
from errata_services.bootstrap import publish_tables

GOLDEN = Path(__file__).parent / "golden"
KEY = b"0" * 32
SHORT = 600  # bytes: longer lines are about limits, which have tests of their own
FILES = ("tables.json", "inputs.jsonl", "recorded.jsonl", "stream.jsonl", "anomalies.jsonl")

CHANGE = {"change_id": "c1", "kind": "deploy", "subject": "fraud", "time": "2026-01-05T11:00:00Z"}
FULL = prediction(
    purpose="drill", prediction_id="p1", source="web", latency_ms=12.5, status={"code": "fallback"},
    scores={"no": 0.25, "yes": 0.75}, segments={"region": "eu", "vip": True}, outcome={"value": "no"},
    features={"amount": 2, "age": 7, "country": "it", "shop": "x", "vip": False, "note": "n", "embedding": [0.5, 1]},
    producer={"id": "s", "seq": 7}, recorded_time="2026-01-05T12:00:00Z", versions={"code": "9"}, a_later_field=[None],
)  # fmt: skip
CHANGE_LINES: Sequence[Any] = (
    CHANGE,
    CHANGE | {"from": "1", "to": "2", "actor": "ci", "link": "https://example.org/1", "tenant": "acme", "later": [1]},
    CHANGE | {"kind": "party"},
    CHANGE | {"time": "2026-01-05"},
    CHANGE | {"time": "2030-01-05T12:00:00Z"},
    CHANGE | {"subject": ""},
    {},
    [],
)


# -- what is put in ---------------------------------------------------------------------------------------------------


def inputs() -> list[Record]:
    """A record for each short line of the corpus, whatever it is, then outcomes and changes."""
    lines = [
        *((PREDICTIONS, line.raw) for line in LINES if len(line.raw) <= SHORT),
        (PREDICTIONS, dumps(FULL)),
        *((OUTCOMES_TOPIC, line.raw) for line in OUTCOMES if len(line.raw) <= SHORT),
        *((CHANGES, dumps(change)) for change in CHANGE_LINES),
    ]
    made = [Record(topic, 3, n, RECORD_TIME_US, b"fraud", raw) for n, (topic, raw) in enumerate(lines)]
    version = made[0]._replace(offset=len(made), headers=(("schema", b"prediction-event/2.0"),))
    minor = made[0]._replace(offset=len(made) + 1, headers=(("schema", b"prediction-event/1.9"),))
    return [*made, version, minor]


def stream() -> list[Record]:
    """Three failures of one model, and a quarter of an hour later ticks: each case opens, is updated and closes."""
    events = each(clean(160), range(20, 26), lambda event: event.update(prediction="maybe"))
    events = each(events, range(40, 60), lambda event: event["features"].update(amount=None))
    events = each(events, range(70, 100), _failed)
    beat = {"event_id": "beat", "time": events[80]["time"], "purpose": "heartbeat", "model": {"name": "errata"}}
    beat["prediction"] = "alive"
    return records([*events[:80], beat, *events[80:], *(tick(START_US + n * 900_000_000) for n in (1, 2, 3))])


def _failed(event: Event) -> None:
    event["status"] = {"code": "error"}
    del event["prediction"], event["scores"]


# -- what comes out ---------------------------------------------------------------------------------------------------


def outputs(tables: Sequence[Contract | Reference], given: Sequence[Record]) -> list[Any]:
    """One entry an input, in their order: its row as columns, its refusal, or what else became of it."""
    layout = compile_layout("default", "fraud", *_of(tables, "fraud"))
    events = [record for record in given if record.topic != CHANGES]
    batch = MsgspecDecoder(KEY).decode(events, {b"fraud": layout})
    entries = _entries(batch, len(events))
    return [*entries, *(_change(record) for record in given if record.topic == CHANGES)]


def _of(tables: Sequence[Contract | Reference], model: str) -> tuple[Contract | None, Reference | None]:
    mine = [table for table in tables if table.model == model]
    contract = next((table for table in mine if isinstance(table, Contract)), None)
    return contract, next((table for table in mine if isinstance(table, Reference)), None)


def _entries(batch: Batch, n: int) -> list[Any]:
    found: dict[int, Any] = {one.record: _refusal(one.refusal) for one in batch.refused}
    found |= {index: {"skipped": reason} for reason, indices in batch.skipped.items() for index in indices}
    found |= {one.record: {"tick": one.record_time_us} for one in batch.ticks}
    found |= {one.record: {"beat": [one.heartbeat_id, one.time_us]} for one in batch.beats}
    violations: dict[int, list[list[str]]] = {}
    for one in batch.predictions.violations:
        violations.setdefault(one.row, []).append([one.feature, one.reason])
    for row in range(len(batch.predictions)):
        found[int(batch.predictions.record[row])] = _row(batch, row, sorted(violations.get(row, [])))
    o = batch.outcomes
    for row in range(len(o)):
        layout = batch.layouts[int(o.layout[row])]
        found[int(o.record[row])] = {
            "outcome": [layout.tenant, layout.model, PURPOSES[int(o.purpose[row])], int(o.time_us[row])],
            "id": f"{int(o.id_hash[row]):016x}", "of": o.prediction_ids[row], "wrong": int(o.wrong[row]),
        }  # fmt: skip
    assert sorted(found) == list(range(n))
    return [found[index] for index in range(n)]


def _row(batch: Batch, row: int, violations: list[list[str]]) -> dict[str, Any]:
    p = batch.predictions
    layout = batch.layouts[int(p.layout[row])]
    parts = (
        (p.numbers, p.number_start, len(layout.numbers)),
        (p.categories, p.category_start, len(layout.categories)),
        (p.others, p.others_start, len(layout.others)),
    )
    return {
        "row": [layout.tenant, layout.model, PURPOSES[int(p.purpose[row])], int(p.time_us[row])],
        "id": f"{int(p.id_hash[row]):016x}",
        "of": p.prediction_ids[row],
        "status": int(p.status[row]),
        "judged": [_plain(column[row]) for column in (p.latency_ms, p.predicted, p.confidence, p.wrong)],
        "features": [
            [_plain(value) for value in column[int(start[row]) : int(start[row]) + width]]
            for column, start, width in parts
        ],
        "violations": violations,
    }


def _plain(value: Any) -> float | str:
    return float(value) if isfinite(value) else str(value)


def _change(record: Record) -> Any:
    try:
        return {"change": json.loads(parse_change(record.value or b"", record_time_us=RECORD_TIME_US).to_json())}
    except Refused as refusal:
        return _refusal(refusal)


def _refusal(refusal: Refused) -> dict[str, str]:
    return {"refused": refusal.refusal_class, "path": refusal.path}


def anomalies(tables: Sequence[Contract | Reference], given: Sequence[Record]) -> list[Any]:
    """What the detector says of a stream. Its own version and configuration are left out: they name the reader."""
    log = MemoryTransport(TOPICS)
    for table in tables:
        publish_tables(log, {CONTRACTS if isinstance(table, Contract) else REFERENCES: table})
    detector = AnomalyDetector(log, MsgspecDecoder(KEY))
    detector.restore(0, {})
    said = []
    for output in detector.step(given, detector.prepare(given)).outputs:  # type: ignore[func-returns-value]
        message = json.loads(output.value or b"")
        if IS_HEARTBEAT not in output.headers:
            del message["detector"]["version"], message["detector"]["config_hash"]
        said.append(message)
    return said


# -- files ------------------------------------------------------------------------------------------------------------


def read_tables(folder: Path) -> list[Contract | Reference]:
    plain = json.loads((folder / "tables.json").read_bytes())
    return [
        *(Contract.model_validate_json(canonical(one)) for one in plain["contracts"]),
        *(Reference.model_validate_json(canonical(one)) for one in plain["references"]),
    ]


def read_records(path: Path) -> list[Record]:
    """Bytes that are no UTF-8 stand as one character each."""
    made = []
    for line in path.read_text(encoding="utf-8").splitlines():
        topic, partition, offset, timestamp_us, key, value, headers = json.loads(line)
        made.append(
            Record(
                topic,
                partition,
                offset,
                timestamp_us,
                None if key is None else key.encode(),
                value.encode("latin-1"),
                tuple((name, text.encode("latin-1")) for name, text in headers),
            )
        )
    return made


def written(given: Sequence[Record]) -> str:
    rows = [
        [
            *one[:4],
            None if one.key is None else one.key.decode(),
            (one.value or b"").decode("latin-1"),
            [[name, text.decode("latin-1")] for name, text in one.headers],
        ]
        for one in given
    ]
    return lines_of(rows)


def lines_of(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row, sort_keys=True, separators=(",", ":")) + "\n" for row in rows)


def record(folder: Path) -> None:
    """Record the corpus of this release in a new folder."""
    folder.mkdir(parents=True)
    contracts, references = [CONTRACT, loans_contract()], [REFERENCE, loans_reference()]
    tables = {
        "contracts": [json.loads(one.to_json()) for one in contracts],
        "references": [json.loads(one.to_json()) for one in references],
    }
    (folder / "tables.json").write_text(json.dumps(tables, sort_keys=True, separators=(",", ":")) + "\n")
    made: Sequence[Contract | Reference] = [*contracts, *references]
    (folder / "inputs.jsonl").write_text(written(inputs()), encoding="utf-8")
    (folder / "stream.jsonl").write_text(written(stream()), encoding="utf-8")
    (folder / "recorded.jsonl").write_text(lines_of(outputs(made, inputs())), encoding="utf-8")
    (folder / "anomalies.jsonl").write_text(lines_of(anomalies(made, stream())), encoding="utf-8")


if __name__ == "__main__":
    record(GOLDEN / __version__ / "corpus")
