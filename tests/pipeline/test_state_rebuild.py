"""``errata state``: what is shown is what is held; a rebuilt state is that of a stage which read just those records."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.detectors.streams import MODEL, clean, each, outcome, records
from tests.detectors.streams import transport as tables
from typer.testing import CliRunner

from errata.adapters.aead import Aead
from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.memory import MemoryTransport
from errata.contracts.topics import OUTCOMES, PREDICTIONS, STAGES, state_topic
from errata.errors import Misconfigured, StateDamaged
from errata.ports import Outgoing, Record, TopicPartition
from errata.runtime.changelog import read_state
from errata.runtime.rebuild import held, newest_us, rebuild_partition, rebuilder, refuse_running
from errata.runtime.worker import OnRewind, Worker
from errata_services.anomaly_detector import CONFIG_HASH, AnomalyDetector
from errata_services.cli.root import app

pytestmark = pytest.mark.whole

TOPIC, GROUP = state_topic(STAGES[0]), f"errata.{STAGES[0]}"
PLACES: tuple[TopicPartition, ...] = ((PREDICTIONS, 0), (OUTCOMES, 0))


def publish(transport: MemoryTransport, stream: Sequence[Record]) -> None:
    producer = transport.producer("publisher")
    for record in stream:
        producer.begin()
        transport.advance_record_time(record.timestamp_us)
        producer.produce(Outgoing(record.topic, record.key, record.value, partition=0))
        producer.commit()


def stage(transport: MemoryTransport) -> AnomalyDetector:
    return AnomalyDetector(transport, MsgspecDecoder(b"0" * 32))


def worker(transport: MemoryTransport, batch_size: int = 5_000, on_rewind: OnRewind | None = None) -> Worker:
    return Worker(
        stage(transport), transport, instance="0", build="t", cipher=Aead(b"k" * 32), batch_size=batch_size,
        config_hash=CONFIG_HASH, on_rewind=on_rewind,
    )  # fmt: skip


def judge(transport: MemoryTransport, batch_size: int = 5_000) -> None:
    member = worker(transport, batch_size)
    while member.run_once():
        pass
    member.close()


def story() -> list[Record]:
    events = each(clean(1_200), range(900, 1_000), lambda event: event["features"].update(amount=None))
    mixed = [*events[:600], *(outcome(i, i % 3 == 0) for i in range(120)), *events[600:]]
    stream = records(mixed)
    return [*stream[:700], stream[0]._replace(value=b"{broken"), *stream[700:]]


@pytest.fixture
def run() -> MemoryTransport:
    transport = tables((MODEL,))
    publish(transport, story())
    judge(transport)
    return transport


def again(transport: MemoryTransport, since_us: int = 0, **how: object) -> None:
    committed = transport.group_offsets(GROUP, PLACES)
    rebuild_partition(
        lambda: stage(transport),
        transport,
        0,
        committed,
        since_us,
        config_hash=CONFIG_HASH,
        **how,  # type: ignore[arg-type]
    )


def oracle(transport: MemoryTransport, since_us: int) -> Mapping[bytes, bytes]:
    """A detector that reads just these records, by record time."""
    made = stage(transport)
    entries: dict[bytes, bytes] = {}
    made.restore(0, {})
    read = [r for place in PLACES for r in transport.read_from(place) if r.timestamp_us >= since_us]
    for record in sorted(read, key=lambda record: record.timestamp_us):
        made.prepare([record])
        entries |= {change.key: change.value or b"" for change in made.step([record], None).changes}
        made.commit()
    return entries


def without_tables(entries: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {key: value for key, value in entries.items() if key != b"\x00tab"}


def outputs(transport: MemoryTransport) -> list[bytes | None]:
    topic = "errata.anomalies.v1"
    return [r.value for n in range(transport.partitions(topic)) for r in transport.read_from((topic, n))]


def test_a_rebuild_from_all_of_the_input_gives_the_same_state_and_no_output(run: MemoryTransport) -> None:
    before, said = read_state(run, TOPIC, 0)[0], outputs(run)
    again(run)
    entries, position = read_state(run, TOPIC, 0)
    assert without_tables(entries) == without_tables(before)
    assert outputs(run) == said != []
    assert position is not None
    assert {name: taken.end for name, taken in position.inputs.items()} == {
        name: offset for (name, _), offset in run.group_offsets(GROUP, PLACES).items()
    }


def test_a_rebuild_of_a_window_equals_an_oracle_that_read_just_that(run: MemoryTransport) -> None:
    since_us = newest_us(run, [PREDICTIONS, OUTCOMES], run.group_offsets(GROUP, PLACES)) - 400_000_000
    whole = read_state(run, TOPIC, 0)[0]
    again(run, since_us)
    entries = read_state(run, TOPIC, 0)[0]
    assert without_tables(entries) == without_tables(oracle(run, since_us))
    assert without_tables(entries) != without_tables(whole)


def test_the_stage_goes_on_after_a_rebuild_as_if_nothing_had_been(run: MemoryTransport) -> None:
    publish(run, records(each(clean(600, 9, name="more"), range(600), lambda e: e["features"].update(age=500))))
    untouched = tables((MODEL,))
    publish(untouched, story())
    judge(untouched)
    publish(untouched, records(each(clean(600, 9, name="more"), range(600), lambda e: e["features"].update(age=500))))
    again(run)
    judge(run)
    judge(untouched)
    assert outputs(run) == outputs(untouched)


def damage(transport: MemoryTransport) -> None:
    producer = transport.producer("damage")
    producer.begin()
    producer.produce(Outgoing(TOPIC, b"\x01ids", b"\x01\x01\x01\x00{}", partition=0))
    producer.commit()


def test_damaged_state_stops_the_stage_and_a_rebuild_mends_it(run: MemoryTransport) -> None:
    whole = read_state(run, TOPIC, 0)[0]
    damage(run)
    with pytest.raises(StateDamaged, match=r"^digest: "):
        judge(run)
    run._groups[GROUP].members.clear()  # that member's process has ended
    again(run)
    judge(run)
    assert without_tables(read_state(run, TOPIC, 0)[0]) == without_tables(whole)


class Killed(Exception):
    """Where a process ends."""


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_rebuild_that_is_killed_leaves_the_old_state_or_nothing_to_start_on(run: MemoryTransport, at: int) -> None:
    whole = read_state(run, TOPIC, 0)[0]

    def end(done: int) -> None:
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        again(run, chunk_bytes=4_000, on_transaction=end)
    if at == 0:
        assert read_state(run, TOPIC, 0)[0] == whole
    else:
        with pytest.raises(StateDamaged, match=r"^rebuild_unfinished: .* run it again"):
            judge(run)
        run._groups[GROUP].members.clear()
    again(run, chunk_bytes=4_000)
    assert without_tables(read_state(run, TOPIC, 0)[0]) == without_tables(whole)


def test_a_small_state_is_replaced_in_one_transaction(run: MemoryTransport) -> None:
    done: list[int] = []
    again(run, on_transaction=done.append)
    assert done == [0]


def test_a_running_group_is_refused_and_its_members_named(run: MemoryTransport) -> None:
    refuse_running(run, GROUP)
    member = worker(run)
    with pytest.raises(Misconfigured, match=r"group errata.anomaly-detector runs \(instance 0\)"):
        refuse_running(run, GROUP)
    member.close()
    refuse_running(run, GROUP)


def test_what_is_shown_is_what_is_held(run: MemoryTransport) -> None:
    shown = held(run, TOPIC, 0)
    assert shown is not None
    assert (shown.fault, shown.position) == (None, {PREDICTIONS: 1_201, OUTCOMES: 120})
    ((slot),) = shown.slots
    assert (slot.model, slot.events, slot.open_episode is None) == (MODEL, 1_200, False)
    assert slot.last_seen_us == run.record_time_us
    assert held(run, TOPIC, 1) is None
    damage(run)
    damaged = held(run, TOPIC, 0)
    assert damaged is not None
    assert damaged.fault == "digest"


# -- the command ------------------------------------------------------------------------------------------------------


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*words])
    return result.exit_code, result.output if result.exception is None or result.exit_code else str(result.exception)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = "\n".join(json.dumps(event) for event in clean(600))
    (tmp_path / "events.jsonl").write_text(lines + "\n")
    code, said = invoke("run", "--embedded", "--input", str(tmp_path / "events.jsonl"), "--data", str(tmp_path / "d"))
    assert code == 0, said
    return tmp_path / "d"


def test_a_data_folder_is_shown_and_rebuilt(data: Path) -> None:
    code, said = invoke("state", "show", "--json", "--data", str(data))
    before = json.loads(said)
    assert code == 0
    assert [(slot["model"], slot["events"]) for one in before for slot in one["slots"]] == [(MODEL, 600)]
    assert all(one["fault"] is None for one in before)
    code, said = invoke("state", "rebuild", "--window", "7d", "--yes", "--json", "--data", str(data))
    assert code == 0, said
    assert sum(one["records"] for one in json.loads(said)) >= 600  # and ticks
    after = json.loads(invoke("state", "show", "--json", "--data", str(data))[1])
    for one in [*before, *after]:
        del one["watermark_us"]  # that of a transaction is of all its partitions
    assert after == before
    code, said = invoke("state", "show", "--data", str(data))
    assert MODEL in said
    assert "600" in said
    assert json.loads(invoke("state", "show", "--model", "nobody", "--json", "--data", str(data))[1])[0]["slots"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("rebuild", "--window", "a week"), "--window: a number of minutes, hours or days"),
        (("show", "--stage", "tagger"), "--stage: the tagger keeps no state"),
        (("show", "--stage", "nobody"), "--stage: there is no such stage"),
        (("show", "--partition", "99"), "--partition: from 0 to 11, not 99"),
    ],
)
def test_a_wrong_argument_is_told(data: Path, words: Sequence[str], said: str) -> None:
    result = CliRunner().invoke(app, ["state", *words, "--data", str(data)])
    assert isinstance(result.exception, Misconfigured)
    assert said in str(result.exception)


def test_nobody_is_asked_and_nothing_is_done_without_a_yes(data: Path) -> None:
    code, said = invoke("state", "rebuild", "--data", str(data))
    assert code == 1
    assert "Replace the state" in said


# -- a group that was set back ----------------------------------------------------------------------------------------


def set_back(transport: MemoryTransport, to: int) -> None:
    transport._groups[GROUP].committed[PREDICTIONS, 0] = to


def test_a_group_that_was_set_back_is_refused_or_its_state_is_made_anew(run: MemoryTransport) -> None:
    set_back(run, 700)
    with pytest.raises(StateDamaged, match=r"^state_ahead: "):
        judge(run)
    run._groups[GROUP].members.clear()
    member = worker(run, on_rewind=rebuilder(lambda: stage(run), run, CONFIG_HASH))
    said = outputs(run)
    while member.run_once():
        pass
    member.close()
    assert outputs(run)[: len(said)] == said
    assert outputs(run)[len(said) :] == said[1:]  # the first was said of what lies before that place
    entries = read_state(run, TOPIC, 0)[0]
    assert without_tables(entries).keys() == without_tables(oracle(run, 0)).keys()


def test_anything_but_a_rewind_still_stops(run: MemoryTransport) -> None:
    damage(run)
    member = worker(run, on_rewind=rebuilder(lambda: stage(run), run, CONFIG_HASH))
    with pytest.raises(StateDamaged, match=r"^digest: "):
        member.run_once()
