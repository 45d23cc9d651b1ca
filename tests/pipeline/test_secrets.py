"""Planted secrets in hidden features and in malformed lines: none leaves the detector, encrypted letters apart."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.chain_builder import KEY, apply_tables, batches, cases_of
from typer.testing import CliRunner

from errata.adapters.aead import KEY_FILE, Aead
from errata.contracts import Contract, canonical
from errata.contracts.topics import PREDICTIONS, TOPICS, dead_letter_topic
from errata.runtime.dead_letters import read_payload
from errata_services.bootstrap import REDACTION_KEY_FILE, embedded_parts
from errata_services.cli.root import app
from errata_services.embedded import Embedded

SECRETS = 1_000
DEAD = [f"secret-dead-{i:04}-zq" for i in range(20)]
HIDDEN = [f"secret-{i:04}-zq" for i in range(SECRETS)]
RAW = {PREDICTIONS}  # what publishers sent stands in the input topic as it came


def contract(policy: str) -> Contract:
    drop = "keep" if policy == "keep" else "drop"
    return Contract.model_validate(
        {
            "model": "loans",
            "features": {
                "name": {"type": "category", "policy": policy, "categories": ["nobody"], "sensitivity": "personal"},
                "card": {"type": "text", "policy": drop},
                "amount": {"type": "number", "policy": drop},
            },
            "output": {"type": "class", "classes": ["yes", "no"]},
            "admission": {"invalid_output": "open"},
        }
    )


def event(number: int) -> dict[str, Any]:
    """Each with its secrets where they are hidden; every tenth with an output that opens a case."""
    secret = HIDDEN[number]
    wrong = {"amount": secret} if number % 3 == 0 else {"amount": number}  # also a value of the wrong type
    return {
        "event_id": f"e-{number}",
        "time": f"2026-01-05T12:{number // 60 % 60:02}:{number % 60:02}Z",
        "model": {"name": "loans"},
        "features": {"name": secret, "card": secret, **wrong},
        "prediction": "maybe" if number % 10 == 0 else "yes",
    }


def lines() -> Iterator[bytes]:
    for number in range(SECRETS):
        yield canonical(event(number)) + b"\n"
        if number % 50 == 0:
            secret = DEAD[number // 50]
            bad = [
                {"event_id": secret, "time": "2026-01-05T12:00:00Z", "prediction": "yes"},
                {"event_id": 5, "time": secret, "model": {"name": "loans"}, "x": secret},
                {"event_id": "x", "time": "2026-01-05T12:00:00Z", "model": {"name": "loans"}, "confidence": secret,
                 "prediction": "yes"},
            ]  # fmt: skip
            yield from (canonical(one) + b"\n" for one in bad)
            yield b'{"event_id": "' + secret.encode() + b"\n"


@dataclass(frozen=True)
class Made:
    """All bytes that a run left, by where."""

    places: dict[str, bytes]
    letters: bytes  # dead letters as they lie in their topics
    opened: bytes  # the same with the key


def run(data: Path, policy: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Made:
    data.mkdir()
    for name in (KEY_FILE, REDACTION_KEY_FILE):
        (data / name).write_bytes(KEY)
        (data / name).chmod(0o600)
    places: dict[str, bytes] = {}
    letters, opened = bytearray(), bytearray()
    with caplog.at_level(logging.DEBUG), embedded_parts(data) as parts:
        apply_tables(parts.transport, contract(policy))
        embedded = Embedded(parts, batch_size=200, now_us=1_800_000_000_000_000)
        summary = embedded.feed(batches(lines(), 200))
        assert len(summary.dead) == 4 * len(DEAD)
        assert summary.dropped == {}
        cases = cases_of(parts)
        assert cases
        assert any(case.rows for case in cases)
        for topic in TOPICS.keys() - RAW:
            for number in range(parts.transport.partitions(topic)):
                for record in parts.transport.read_from((topic, number)):
                    content = repr(record.headers).encode() + (record.key or b"") + (record.value or b"")
                    if topic == dead_letter_topic("anomaly-detector"):
                        letters += content
                        payload = read_payload(record, Aead(KEY))
                        assert payload is not None
                        opened += payload.kept
                    else:
                        places[topic] = places.get(topic, b"") + content
        places["summary"] = repr(summary).encode()
        embedded.close()
    shown = b""
    for words in (["cases", "list"], ["cases", "list", "--json"], ["models"], *_shows([c.short_id for c in cases])):
        shown += CliRunner().invoke(app, [*words, "--data", str(data)]).output.encode()
    places["shown"] = shown
    for path in data.glob("catalogue*"):
        places[path.name] = path.read_bytes()
    captured = capfd.readouterr()
    places["logs"] = (caplog.text + captured.err + captured.out).encode()
    return Made(places, bytes(letters), bytes(opened))


def _shows(ids: list[str]) -> Iterator[list[str]]:
    for short_id in ids:
        yield ["cases", "show", short_id]
        yield ["cases", "show", short_id, "--json"]


def found(secrets: list[str], content: bytes) -> list[str]:
    return [secret for secret in secrets if secret.encode() in content]


def test_no_secret_leaves_the_detector(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    made = run(tmp_path / "data", "hash", caplog, capfd)
    assert {"errata.anomalies.v1", "errata.enriched.v1", "errata.tagged.v1", "shown", "errata.ledger",
            "errata.anomaly-detector.state", "catalogue.sqlite"} <= made.places.keys()  # fmt: skip
    assert [place for place, content in made.places.items() if found([*HIDDEN, *DEAD], content)] == []
    assert b"secret-" not in made.places["errata.tagged.v1"]
    assert found(DEAD, made.letters) == []
    assert found(DEAD, made.opened) == DEAD


def test_of_features_that_may_be_kept_the_same_search_finds_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The control: the search looks where it should, and the rows do reach these places."""
    made = run(tmp_path / "data", "keep", caplog, capfd)
    for place in ("errata.enriched.v1", "errata.tagged.v1", "catalogue.sqlite", "shown"):
        assert found(HIDDEN, made.places[place]), place
