"""``errata ledger audit`` over the receipts of an embedded chain."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from errata.contracts import Receipt
from errata.contracts.topics import ANOMALIES, PREDICTIONS, STAGES
from errata.errors import Misconfigured
from errata.ports import Outgoing
from errata.runtime.receipts import receipt_record
from errata_services.bootstrap import embedded_parts
from errata_services.cli.root import app

DETECTOR, ENRICHER, TAGGER, _ = STAGES


def errata(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"NO_COLOR": "1", "COLUMNS": "120"})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A chain that judged two good events and a failure, and refused a line."""
    events: list[dict[str, Any]] = [
        {"event_id": f"e-{n}", "time": f"2026-01-05T12:00:0{n}Z", "model": {"name": "fraud"}, "prediction": "ok"}
        for n in range(2)
    ]
    events.append(
        {"event_id": "e-9", "time": "2026-01-05T12:00:09Z", "model": {"name": "fraud"}}
        | {"status": {"code": "timeout"}}
    )
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join([*map(json.dumps, events), "nope"]) + "\n")
    assert errata("run", "--embedded", "--input", file, "--data", tmp_path / "data").exit_code == 0
    return tmp_path / "data"


def write(data: Path, *outgoing: Outgoing) -> None:
    with embedded_parts(data) as parts:
        producer = parts.transport.producer("tamper")
        producer.begin()
        for record in outgoing:
            producer.produce(record)
        producer.commit()


def forged(start: int, end: int, out: int = 0) -> Outgoing:
    part = {"topic": PREDICTIONS, "partition": 0, "from": start, "to": end, "delivered": end - start}
    said = {"stage": DETECTOR, "instance": "0", "build": "1", "inputs": [part], "out": out, "dlq": 0}
    return receipt_record(Receipt.model_validate(said))


def test_a_chain_that_ran_has_nothing_to_hide(data: Path) -> None:
    result = errata("ledger", "audit", "--data", data)
    assert result.exit_code == 0, result.output
    assert "Nothing lost, nothing doubled." in result.output
    for stage in (DETECTOR, ENRICHER, TAGGER):
        assert stage in result.output
    said = json.loads(errata("ledger", "audit", "--json", "--data", data).output)
    assert said["balanced"] is True
    assert said["faults"] == []
    detector = next(one for one in said["accounts"] if one["stage"] == DETECTOR)
    assert (detector["delivered"], detector["out"], detector["dlq"]) == (4, 1, 1)


@pytest.mark.parametrize(
    ("start", "end", "kind"), [(1_000, 1_001, "gap: anomaly-detector"), (0, 1, "overlap: anomaly-detector")]
)
def test_a_forged_receipt_is_found(data: Path, start: int, end: int, kind: str) -> None:
    """Negative control: receipts beside the chain's."""
    write(data, *(forged(start, end) if start else forged(0, 10_000), forged(start, end)))
    result = errata("ledger", "audit", "--data", data)
    assert result.exit_code == 1
    assert kind in result.output


def test_an_output_that_was_lost_or_came_from_nowhere_is_found(data: Path) -> None:
    with embedded_parts(data) as parts:
        places = [(ANOMALIES, number) for number in range(parts.transport.partitions(ANOMALIES))]
        (real,) = [record for place in places for record in parts.transport.read_from(place)]
    write(data, Outgoing(ANOMALIES, real.key, real.value))
    result = errata("ledger", "audit", "--data", data)
    assert result.exit_code == 1
    assert "imbalance: enricher, errata.anomalies.v1: 1 records" in result.output


def test_a_folder_in_which_nothing_ran_says_so(tmp_path: Path) -> None:
    result = errata("ledger", "audit", "--data", tmp_path / "empty")
    assert result.exit_code == 0, result.output
    assert "No receipts" in result.output


def test_without_a_folder_kafka_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ERRATA_KAFKA__BOOTSTRAP_SERVERS", raising=False)
    result = errata("ledger", "audit")
    assert isinstance(result.exception, Misconfigured)
    assert "BOOTSTRAP_SERVERS" in str(result.exception)
