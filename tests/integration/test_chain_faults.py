"""Four processes killed at every crash point, and their servers gone: cases and state are those of a calm run."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.benchmarks.bench_models import EXPECTED, fault
from tests.benchmarks.events import START_US
from tests.benchmarks.stages import Stream, name_of
from tests.integration.chain import KILLED, REDACTION_KEY, Chain, armed, chain_on
from tests.integration.test_chain import differences, timeless
from tests.pipeline.chain_builder import batches, cases_of, chain, chain_parts

from errata.contracts import Contract, Reference, canonical
from errata.contracts.strict import EPOCH
from errata.contracts.topics import PARTITIONS, STAGES, state_topic
from errata.domain.array_codec import unpack_arrays
from errata.domain.detection import state as at
from errata.domain.detection.statistics import WINDOW_MIN
from errata.ports import Transport
from errata.runtime import crash_points
from errata.runtime.changelog import entries_of, read_records
from errata_services import catalog_writer
from errata_services.cli.ledger import read_audit

pytestmark = [pytest.mark.servers, pytest.mark.whole]

MODELS, CLEAN, FAILING = 25, 800, 1_200  # events of each model: 50,000 in all
CARRIED = 3  # more models, whose outcomes are records of their own
CARRIED_PREDICTIONS = 80  # of each of those: fewer than a window takes to be judged
WRONG = EXPECTED.index("error_rate")
EVENT_MS = 25
DETECTOR, ENRICHER, TAGGER, WRITER = STAGES
POINTS = dict.fromkeys(STAGES[:3], crash_points.POINTS) | {WRITER: catalog_writer.POINTS}
IN_TRANSACTION = {
    crash_points.MID_PRODUCE,
    crash_points.AFTER_PRODUCE,
    crash_points.AFTER_OFFSETS,
    *catalog_writer.POINTS[:2],
}
SMALL = {DETECTOR: "400", ENRICHER: "4", TAGGER: "4", WRITER: "4"}  # records of a batch, so that there are many
ROUNDS = {DETECTOR: 2, ENRICHER: 2, TAGGER: 2, WRITER: 4}  # times that a stage dies at each of its points
KILL_S = 300.0  # the writer waits for its first case until the detector has died ten times
_TIME = re.compile(rb'"time":"[^"]+"')

Story = tuple[list[bytes], list[Contract | Reference], list[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Lines with a fault in each model, its contracts and references, and the cases and state they lead to."""
    stream = Stream(MODELS + CARRIED)
    records = (MODELS + CARRIED) * (CLEAN + FAILING)
    lines = [line for _, line in _until(records, told(stream, MODELS, (MODELS + CARRIED) * CLEAN))]
    tables = tables_of(stream)
    return lines, tables, *judged(tmp_path_factory.mktemp("story"), lines, tables)


def _until(records: int, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    return takewhile(lambda one: one[0] < records, lines)


def tables_of(stream: Stream) -> list[Contract | Reference]:
    return [table for _, contract, reference in stream.tables() for table in (contract, reference)]


def judged(
    folder: Path, lines: Sequence[bytes], tables: Sequence[Contract | Reference]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The cases and the state that a chain in one process comes to."""
    with chain_parts(folder, *tables, key=REDACTION_KEY) as parts:
        chain(parts, 5_000).feed(batches(lines, 5_000))
        cases = sorted(map(timeless, cases_of(parts)), key=lambda case: str(case["case_id"]))
        return cases, state_of(parts.transport)


def told(stream: Stream, predicting: int, clean: int) -> Iterator[tuple[int, bytes]]:
    """Lines without end, with the number of the event they come from; from event ``clean`` on each model has a fault.

    Models from number ``predicting`` on get outcomes that are records and carry their prediction. Predictions and
    outcomes are two topics without a common order. So nothing that is compared may depend on how they lie to each
    other: these models have so few predictions that no window of them ends, and all that is found comes of their
    outcomes.
    """
    predictions: Counter[int] = Counter()
    for place in count():
        if place == clean:
            stream.fault = lambda number, raw: fault(number if number < predicting else WRONG, raw)
        (record,) = stream.take(1)
        line, number = _timed(place, record.value or b""), int((record.key or b"")[-3:])
        if number < predicting:
            yield place, line
            continue
        event = json.loads(line)
        outcome = event.pop("outcome", None)
        if predictions[number] < CARRIED_PREDICTIONS:
            predictions[number] += 1
            yield place, canonical(event)
        if outcome:
            yield place, carried(event, outcome["value"])


def carried(event: dict[str, Any], value: str) -> bytes:
    """The outcome of an event as a record of its own, which carries its prediction."""
    return canonical(
        {
            "outcome_id": f"o-{event['event_id']}",
            "prediction_id": event["event_id"],
            "model": event["model"],
            "observed_time": event["time"],
            "predicted": event["prediction"],
            "confidence": event["confidence"],
            "value": value,
        }
    )


def _timed(at: int, line: bytes) -> bytes:
    """An event each 25 ms: windows are full, of outcomes too, before their age would close them, which takes ticks."""
    time = EPOCH + timedelta(microseconds=START_US + at * EVENT_MS * 1_000)
    return _TIME.sub(
        time.strftime('"time":"%Y-%m-%dT%H:%M:%S.').encode() + b'%03dZ"' % (time.microsecond // 1000), line
    )


@pytest.fixture
def four(tmp_path: Path, kafka_address: str, redis_url: str, postgres_database: str, story: Story) -> Iterator[Chain]:
    with chain_on(tmp_path, kafka_address, redis_url, postgres_database) as made:
        made.apply(*story[1])
        yield made


def test_the_story_is_one_case_for_each_planted_failure_and_most_show_in_windows_only(story: Story) -> None:
    cases = story[2]
    assert sorted(case["model"]["name"] for case in cases) == sorted({case["model"]["name"] for case in cases})
    assert len(cases) == MODELS + CARRIED
    assert sum(kind != "bad_status" for kind in EXPECTED) / len(EXPECTED) >= 0.5


def test_outcomes_that_are_records_are_part_of_the_story(story: Story, tmp_path: Path) -> None:
    """Their models are found by them alone; negative control: the comparison sees one that is lost."""
    lines, tables, wanted, state = story
    names = {name_of(number) for number in range(MODELS, MODELS + CARRIED)}
    found = [case for case in wanted if case["model"]["name"] in names]
    assert {case["model"]["name"] for case in found} == names
    assert {finding["detector"] for case in found for finding in case["findings"]} == {"error_rate"}
    assert CARRIED_PREDICTIONS < WINDOW_MIN
    own = [line for line in lines if any(name.encode() in line for name in names)]
    last = max(at for at, line in enumerate(own) if b"outcome_id" in line)
    whole, lossy = (judged(tmp_path / f"{len(some)}", some, tables) for some in (own, own[:last] + own[last + 1 :]))
    assert whole[0] == found
    assert not differences({key: value for key, value in state.items() if _of(key, names)}, _slots(whole[1]))
    assert differences(_slots(whole[1]), _slots(lossy[1]))


def _of(key: str, names: set[str]) -> bool:
    return any(name in key for name in names)


def _slots(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if "[" in key}


def test_without_a_kill_the_processes_give_the_same(four: Chain, story: Story) -> None:
    lines, _, wanted, state = story
    four.publish(lines)
    four.start_all()
    four.until_drained()
    assert_equal(four, wanted)
    found = differences(state_of(four.transport), state)
    assert not found, "\n".join(found[:20])


def test_kills_at_every_point_of_every_stage_change_nothing(four: Chain, story: Story) -> None:
    lines, _, wanted, state = story
    assert four.publish(lines) == len(lines)
    with ThreadPoolExecutor(len(STAGES)) as pool:
        kills = list(pool.map(lambda stage: killed_and_left_running(four, stage), STAGES))
    assert kills == [ROUNDS[stage] * len(POINTS[stage]) for stage in STAGES]
    assert min(kills) >= 10
    assert all(IN_TRANSACTION & set(POINTS[stage]) for stage in STAGES)
    four.until_drained()
    assert_equal(four, wanted)
    found = differences(state_of(four.transport), state)
    assert not found, "\n".join(found[:20])
    assert read_audit(four.transport)[0].faults == []


def killed_and_left_running(four: Chain, stage: str) -> int:
    """Let a stage die at each of its points several times, then start it for good; how often it died of it."""
    kills = 0
    for nth in range(1, ROUNDS[stage] + 1):
        for point in POINTS[stage]:
            service = four.start(stage, ERRATA_BATCH_SIZE=SMALL[stage], **armed(stage, point, nth))
            code = service.process.wait(KILL_S)
            assert code == KILLED, f"{stage} at {point}: ended with {code}\n{service.logged()[-2000:]}"
            kills += 1
    four.start(stage)
    return kills


@pytest.mark.parametrize(("kind", "stage"), [("outside", TAGGER), ("forgetful", DETECTOR)])
def test_a_broken_guarantee_is_seen(four: Chain, story: Story, kind: str, stage: str) -> None:
    """Negative control: the same comparison after a few kills of a service that is wrong."""
    lines, _, wanted, _ = story
    four.publish(lines)
    for other in STAGES:
        if other != stage:
            four.start(other)
    for nth in (1, 2, 3):
        where = armed(stage, crash_points.AFTER_OFFSETS if kind == "outside" else crash_points.AFTER_COMMIT, nth)
        broken = four.start_broken(kind, stage, ERRATA_BATCH_SIZE=SMALL[stage], **where)
        assert broken.process.wait(KILL_S) == KILLED, broken.logged()[-2000:]
    four.start_broken(kind, stage)
    four.until_drained()
    with pytest.raises(AssertionError):
        assert_equal(four, wanted)


def assert_equal(four: Chain, wanted: list[dict[str, Any]]) -> None:
    found = differences([timeless(case) for case in four.cases()], wanted)
    assert not found, "\n".join(found[:20])


def state_of(transport: Transport) -> dict[str, Any]:
    """The detector's state by its changelog, without record times and offsets."""
    entries: dict[str, Any] = {}
    for number in range(PARTITIONS):
        records, _ = read_records(transport, state_topic(DETECTOR), number)
        for key, value in entries_of(records).items():
            if key.startswith(b"["):
                entries[f"{number} {key.decode()}"] = _slot(value)
            elif key.startswith(b"ids:"):
                ids = entries.setdefault(f"{number} ids", [])
                ids += unpack_arrays(value)[2]["ids"].tolist()
    # Ids stand in the order of arrival, of predictions and outcomes together, which is nobody's promise.
    return {key: sorted(found) if isinstance(found, list) else found for key, found in entries.items()}


def _slot(value: bytes) -> dict[str, Any]:
    _, meta, arrays = unpack_arrays(value)
    arrays["fixed"] = np.array(arrays["fixed"])
    arrays["fixed"][[at.START_RECORD_US, at.OUT_START_RECORD_US]] = 0
    plain: dict[str, Any] = timeless_state(json.loads(json.dumps(meta)))
    return plain | {name: array.tolist() for name, array in arrays.items()}


def timeless_state(value: Any) -> Any:
    """Samples are (hash, topic, partition, offset, prediction id); record times stand under their names."""
    if isinstance(value, list) and len(value) == 5 and isinstance(value[1], str) and isinstance(value[3], int):
        return [value[0], value[1], value[4]]
    if isinstance(value, list):
        return [timeless_state(inner) for inner in value]
    if isinstance(value, dict):
        return {
            name: timeless_state(inner) for name, inner in value.items() if "record" not in name and name != "seen_us"
        }
    return value
