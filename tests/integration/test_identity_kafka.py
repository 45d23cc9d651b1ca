"""On real Kafka: duplicates, late and impossible times in one stream; ticks and heartbeats over kills."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.detectors.streams import MINUTE_US, MODEL, SECOND_US, Event, clean, contract, each, records, reference, tick
from tests.detectors.streams import run as run_stage
from tests.detectors.streams import stage as new_stage
from tests.integration.chain import KILLED, REDACTION_KEY, Chain, armed, chain_on
from tests.pipeline.chain_builder import dumps

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.contracts import Anomaly, Heartbeat, Receipt
from errata.contracts.cloudevents import IS_HEARTBEAT
from errata.contracts.strict import instant, rfc3339
from errata.contracts.topics import (
    ANOMALIES,
    ENRICHED,
    LEDGER,
    PARTITIONS,
    PREDICTIONS,
    STAGES,
    TAGGED,
    dead_letter_topic,
    model_key,
    state_topic,
)
from errata.domain.array_codec import unpack_arrays
from errata.domain.detection import state as at
from errata.domain.ledger import Flow, audit
from errata.domain.partitioner import partition_of
from errata.ports import Outgoing
from errata.runtime import crash_points
from errata.runtime.changelog import entries_of, read_records
from errata.runtime.dead_letters import read_dead_letter
from errata_services.anomaly_detector import AnomalyDetector

pytestmark = [pytest.mark.servers, pytest.mark.whole]

DETECTOR, ENRICHER, TAGGER, WRITER = STAGES
DAY_US = 24 * 60 * MINUTE_US
FLOWS = (Flow(DETECTOR, ANOMALIES, ENRICHER), Flow(ENRICHER, ENRICHED, TAGGER))
HOME = partition_of(model_key("default", MODEL), PARTITIONS)


@pytest.fixture
def four(tmp_path: Path, kafka_address: str, redis_url: str, postgres_database: str) -> Iterator[Chain]:
    with chain_on(tmp_path, kafka_address, redis_url, postgres_database) as made:
        made.apply(contract(), reference())
        yield made


def beat(at_us: int, number: int) -> Event:
    plain = {"event_id": f"beat-{number}", "time": rfc3339(instant(at_us)), "purpose": "heartbeat"}
    return {**plain, "model": {"name": "errata"}, "prediction": "alive"}


def into_each_partition(four: Chain, at_us: int) -> None:
    """A tick and a heartbeat into each partition, without a key."""
    producer = four.transport.producer("the-keeper")
    producer.begin()
    for number in range(PARTITIONS):
        for event in (tick(at_us, str(number)), beat(at_us + number, number)):
            producer.produce(Outgoing(PREDICTIONS, None, dumps(event), partition=number))
    producer.commit()
    producer.close()


def beats_of(four: Chain, topic: str) -> list[tuple[int, Heartbeat]]:
    return [
        (record.partition, Heartbeat.model_validate_json(record.value or b""))
        for record in four.records(topic)
        if IS_HEARTBEAT in record.headers
    ]


def expected_beats(at_us: int) -> list[tuple[int, Heartbeat]]:
    return [
        (number, Heartbeat(heartbeat_id=f"beat-{number}", time=instant(at_us + number), partition=number))
        for number in range(PARTITIONS)
    ]


def receipts_of(four: Chain) -> list[Receipt]:
    return [Receipt.model_validate_json(record.value or b"") for record in four.records(LEDGER)]


def named(events: Sequence[Event], prefix: str, at_us: int | None = None) -> list[Event]:
    """Events of their own ids; with ``at_us`` all at that time."""
    copies = each(events, range(len(events)), lambda event: event.update(event_id=f"{prefix}-{event['event_id']}"))
    for event in copies if at_us is not None else ():
        event["time"] = rfc3339(instant(at_us or 0))
    return copies


def value_of(page: str, name: str, **labels: str) -> float:
    """The one sample of these labels, whatever others it has."""
    found = [
        float(value)
        for sample, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", page, re.MULTILINE)
        if all(f'{label}="{text}"' in sample for label, text in labels.items())
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def killed_at(four: Chain, stage: str, point: str) -> None:
    service = four.start(stage, ERRATA_BATCH_SIZE="100", **armed(stage, point, 1))
    code = service.process.wait(60)
    assert code == KILLED, f"{stage} at {point}: ended with {code}\n{service.logged()[-2000:]}"


def slot_of(entries: dict[bytes, bytes]) -> dict[str, Any]:
    (value,) = [value for key, value in entries.items() if MODEL.encode() in key and key.startswith(b'["slot"')]
    return dict(unpack_arrays(value)[2])


def judged_alone(events: Sequence[Event], received_us: int) -> dict[str, Any]:
    """The state after these events only, in one process."""
    detector = new_stage()
    detector = AnomalyDetector(detector._references._transport, MsgspecDecoder(REDACTION_KEY))
    detector.restore(0, {})
    return slot_of(run_stage(detector, records(events, lambda _: received_us), 5_000).entries)


def test_duplicates_late_and_impossible_times_in_one_stream(four: Chain) -> None:
    """Each is counted as what it is, and the statistics are those of the stream without them. Two kills on the way."""
    now_us = time.time_ns() // 1_000
    good = clean(300, start_us=now_us - 300 * SECOND_US)
    late = named(good[:30], "late", now_us - 40 * MINUTE_US)
    late[7]["prediction"] = "maybe"  # no class of the contract: an event that opens a case by itself
    epoch = named(good[:7], "epoch", 0)
    ahead = named(good[:5], "ahead", now_us + 10 * MINUTE_US)
    days = named(good[:3], "days", now_us + 2 * DAY_US)
    far = named(good[:4], "far", now_us + 64 * 365 * DAY_US)
    stream = [*good[:200], *good[:40], *late, *epoch, *ahead, *days, *far, *good[200:]]
    into_each_partition(four, now_us)
    assert four.publish(map(dumps, stream)) == 389
    for point in (crash_points.MID_PRODUCE, crash_points.AFTER_OFFSETS):
        killed_at(four, DETECTOR, point)
    detector = four.start(DETECTOR, ERRATA_BATCH_SIZE="100")
    four.until(lambda: not four.unread(DETECTOR), "the detector has read all")

    receipts = receipts_of(four)
    dropped: Counter[str] = Counter()
    for receipt in receipts:
        dropped.update(receipt.dropped)
    delivered = sum(part.delivered for receipt in receipts for part in receipt.inputs)
    assert (delivered, sum(receipt.dlq for receipt in receipts), dropped) == (389 + 24, 7, {"duplicate": 40})

    letters = [read_dead_letter(record) for record in four.records(dead_letter_topic(DETECTOR))]
    assert Counter((letter.class_, letter.path) for letter in letters) == {("clock", "/time"): 7}
    assert {letter.partition for letter in letters} == {HOME}

    said = [record for record in four.records(ANOMALIES) if IS_HEARTBEAT not in record.headers]
    opened = [Anomaly.model_validate_json(record.value or b"") for record in said]
    assert [(one.detector.id, one.episode.state) for one in opened] == [("invalid_output", "open")]
    assert sum(receipt.out for receipt in receipts) == len(said) + PARTITIONS
    assert beats_of(four, ANOMALIES) == expected_beats(now_us)

    page = detector.page("/metrics")
    processed = {name: value_of(page, "errata_events_processed_total", outcome=name)
                 for name in ("ok", "duplicate", "invalid", "error")}  # fmt: skip
    assert processed == {"ok": 389 + 24 - 47, "duplicate": 40, "invalid": 7, "error": 0}
    assert value_of(page, "errata_dead_letters_total", reason="clock") == 7
    assert value_of(page, "errata_events_rekeyed_total", topic=PREDICTIONS) == 0
    assert value_of(page, "errata_events_mistimed_total", reason="late") == 37
    assert value_of(page, "errata_events_mistimed_total", reason="clamped") == 5
    assert value_of(page, "errata_heartbeat_timestamp_seconds") == pytest.approx((now_us + 11) / 1e6, abs=1e-3)

    found = slot_of(entries_of(read_records(four.transport, state_topic(DETECTOR), HOME)[0]))
    alone = judged_alone([*good[:200], *ahead, *good[200:]], now_us)
    for name in sorted(alone.keys() - {"fixed"}):
        assert np.array_equal(found[name], alone[name]), name
    counted = [at.FILL, at.WINDOWS, at.OUT_FILL, at.OUT_WRONG, at.OUT_WINDOWS, at.CLAMPED]
    assert found["fixed"][counted].tolist() == alone["fixed"][counted].tolist()
    assert found["fixed"][[at.EVENTS, at.LATE]].tolist() == [305 + 37, 37]
    with_late = judged_alone([*good[:200], *ahead, *named(good[:30], "late"), *good[200:]], now_us)
    assert not np.array_equal(with_late["cells"], alone["cells"]), "the control: the comparison sees 30 events more"


def test_heartbeats_pass_four_processes_once_and_each_shows_when(four: Chain) -> None:
    """In their partitions, over kills, without a row in the catalogue; ticks end in the detector."""
    now_us = time.time_ns() // 1_000
    into_each_partition(four, now_us)
    services = [four.start(DETECTOR), four.start(WRITER)]
    for stage in (ENRICHER, TAGGER):
        killed_at(four, stage, crash_points.AFTER_OFFSETS)
        services.append(four.start(stage))
    four.until_drained()
    for topic in (ANOMALIES, ENRICHED, TAGGED):
        assert beats_of(four, topic) == expected_beats(now_us), topic
        assert len(four.records(topic)) == PARTITIONS
    newest_s = (now_us + PARTITIONS - 1) / 1e6
    pages = {service.name: service.page("/metrics") for service in services}
    for name, page in pages.items():
        assert value_of(page, "errata_heartbeat_timestamp_seconds") == pytest.approx(newest_s, abs=1e-3), name
    assert value_of(pages[WRITER], "errata_heartbeat_delay_seconds_count") == PARTITIONS
    delays_s = value_of(pages[WRITER], "errata_heartbeat_delay_seconds_sum") / PARTITIONS
    assert 0 < delays_s < 120
    assert four.cases() == []
    assert all(not four.records(dead_letter_topic(stage)) for stage in STAGES)
    ends = {(TAGGED, number): four.transport.end_offset((TAGGED, number)) for number in range(PARTITIONS)}
    assert all(0 < four.positions()[place] <= end for place, end in ends.items())
    books = audit(receipts_of(four), FLOWS)
    assert books.faults == []
    accounts = {one.stage: (one.delivered, one.out, one.dlq, one.dropped) for one in books.accounts}
    assert accounts == {DETECTOR: (24, 12, 0, 0), ENRICHER: (12, 12, 0, 0), TAGGER: (12, 12, 0, 0)}
