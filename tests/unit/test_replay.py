"""Dead letters settled once: what may be replayed, what a replay carries, crashes, two operators at once."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from errata.adapters.aead import Aead
from errata.adapters.memory import MemoryProducer, MemoryTransport
from errata.contracts import DeadLetter, Receipt, Resolution
from errata.contracts.strict import instant
from errata.contracts.topics import ANOMALIES, ENRICHED, LEDGER, PREDICTIONS, RESOLUTIONS, STAGES, TAGGED, TOPICS
from errata.domain.dead_letters import (
    MAX_HOPS,
    Kept,
    Obstacle,
    Selection,
    hops_of,
    merge_patch,
    obstacle,
    patched_payload,
    replay_headers,
    resolution,
)
from errata.domain.ledger import Flow, audit
from errata.errors import Fenced, Misconfigured, RefusedDecode, RefusedSchema, StateDamaged, Unavailable
from errata.ports import DeadInput, Headers, Outgoing, Record, SinkDeadLetter
from errata.runtime import crash_points
from errata.runtime.crash_points import CrashPoint, CrashPoints
from errata.runtime.dead_letters import MAX_PAYLOAD_BYTES, dead_letter, dead_letter_id, read_dead_letter
from errata.runtime.replay import CRASH_STAGE, TRANSACTIONAL_ID, Asked, Letters, Pace, Tally, plan, settle

DETECTOR, ENRICHER, TAGGER, WRITER = STAGES
CIPHER = Aead(b"k" * 32)
NOW = instant(1_767_571_200_000_000)
POINTS = (crash_points.AFTER_STEP, crash_points.MID_PRODUCE, crash_points.AFTER_PRODUCE, crash_points.AFTER_COMMIT)
ALL = Selection()
REPLAY = Asked("replayed", "maria", "the publisher is mended")


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def pace(self, per_s: float = 50) -> Pace:
        return Pace(per_s, lambda: self.now_s, self.wait)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


def refused(
    transport: MemoryTransport,
    values: Sequence[bytes | None],
    *,
    stage: str = DETECTOR,
    topic: str = PREDICTIONS,
    headers: Headers = (("h", b"1"), ("traceparent", b"00-abc")),
    refusal: Any = None,
) -> list[Record]:
    """Records in a stage's input and a letter of each in its dead-letter topic."""
    starts = {n: transport.end_offset((topic, n)) for n in range(3)}
    producer = transport.producer("source")
    producer.begin()
    for n, value in enumerate(values):
        producer.produce(Outgoing(topic, b"fraud", value, headers, n % 3))
    producer.commit()
    records = [r for n, start in starts.items() for r in transport.read_from((topic, n), start)]
    producer.begin()
    for record in records:
        why = refusal or RefusedSchema("/features/age", "a text where a number belongs")
        producer.produce(dead_letter(stage, "test", DeadInput(record, why), CIPHER))
    producer.commit()
    return records


def chain() -> MemoryTransport:
    return MemoryTransport(TOPICS)


def everything(transport: MemoryTransport, topic: str) -> list[Record]:
    return [r for n in range(transport.partitions(topic)) for r in transport.read_from((topic, n))]


def replays(transport: MemoryTransport, topic: str = PREDICTIONS) -> list[Record]:
    return [r for r in everything(transport, topic) if "replay_of" in dict(r.headers)]


def resolutions(transport: MemoryTransport) -> list[Resolution]:
    return [Resolution.model_validate_json(r.value or b"") for r in everything(transport, RESOLUTIONS)]


def run(transport: MemoryTransport, wanted: Selection = ALL, asked: Asked = REPLAY, **how: Any) -> Tally:
    return settle(Letters(transport, CIPHER), wanted, asked, Clock().pace(), lambda: NOW, **how)


# What may be replayed.


def said(**given: Any) -> DeadLetter:
    fields: dict[str, Any] = {
        "dead_letter_id": dead_letter_id(DETECTOR, PREDICTIONS, 3, 42), "stage": DETECTOR, "build": "test",
        "topic": PREDICTIONS, "partition": 3, "offset": 42, "ts": NOW, "class_": "schema", "error": "RefusedSchema",
        "path": "/x", "message": "no", "fingerprint": "abcdef0123456789", "first_failed": NOW,
    }  # fmt: skip
    return DeadLetter(**(fields | given))


DONE = resolution(said(), "replayed", None, who="maria", at=NOW, why="mended")


@pytest.mark.parametrize(
    ("wanted", "takes"),
    [
        (Selection(), True),
        (Selection(stages=frozenset({DETECTOR})), True),
        (Selection(stages=frozenset({TAGGER})), False),
        (Selection(classes=frozenset({"schema", "decode"})), True),
        (Selection(classes=frozenset({"decode"})), False),
        (Selection(fingerprints=("abcd",)), True),
        (Selection(fingerprints=("bcd",)), False),
        (Selection(ids=(said().dead_letter_id[:8],)), True),
        (Selection(ids=("00000000",)), False),
        (Selection(since_us=1_767_571_200_000_000), True),
        (Selection(since_us=1_767_571_200_000_001), False),
        (Selection(stages=frozenset({DETECTOR}), classes=frozenset({"decode"})), False),
    ],
)
def test_selection_fits_all_its_parts(wanted: Selection, takes: bool) -> None:
    assert wanted.takes(said()) is takes
    assert wanted.narrows == (wanted != Selection())


@pytest.mark.parametrize(
    ("hops", "kept", "before", "force", "why"),
    [
        (0, "whole", None, False, None),
        (0, "null", None, False, None),
        (0, "whole", DONE, False, "settled"),
        (0, "whole", DONE, True, None),
        (MAX_HOPS - 1, "whole", None, False, None),
        (MAX_HOPS, "whole", None, True, "hops"),
        (0, "cut", None, True, "cut"),
        (0, "missing", None, True, "missing"),
    ],
)
def test_what_may_be_replayed(
    hops: int, kept: Kept, before: Resolution | None, force: bool, why: Obstacle | None
) -> None:
    assert obstacle(said(hops=hops), kept, before, force=force) == why


def test_resolutions_count_replays() -> None:
    again = resolution(said(), "replayed", DONE, who="jo", at=NOW, why="again", patched=True)
    assert (DONE.replays, again.replays, again.patched) == (1, 2, True)
    assert resolution(said(), "discarded", None, who="jo", at=NOW, why="spam").replays == 0


def test_replay_keeps_headers_and_says_what_it_answers() -> None:
    original = (("a", b"1"), ("hops", b"1"), ("errata-rekeyed", b"1"), ("replay_of", b"old"), ("a", b"2"))
    own = (("replay_of", said().dead_letter_id.encode()), ("hops", b"2"))
    assert replay_headers(original, said(hops=1)) == (("a", b"1"), ("errata-rekeyed", b"1"), ("a", b"2"), *own)
    assert replay_headers(original, said(hops=1), patched=True) == (("a", b"1"), ("a", b"2"), *own)
    assert hops_of(replay_headers(original, said(hops=1))) == 2


# The examples of RFC 7386, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
        ('{"a":"b"}', '{"a":null}', "{}"),
        ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
        ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
        ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
        ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
        ('["a","b"]', '["c","d"]', '["c","d"]'),
        ('{"a":"b"}', '["c"]', '["c"]'),
        ('{"a":"foo"}', "null", "null"),
        ('{"a":"foo"}', '"bar"', '"bar"'),
        ('{"e":null}', '{"a":1}', '{"a":1,"e":null}'),
        ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
        ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
    ],
)
def test_merge_patch_is_that_of_the_standard(target: str, patch: str, merged: str) -> None:
    before = json.loads(target)
    assert merge_patch(before, json.loads(patch)) == json.loads(merged)
    assert before == json.loads(target)


@pytest.mark.parametrize("payload", [None, b"", b"[1]", b"\xff", b"[" * 100_000, b'{"a":NaN}'])
def test_patch_wants_an_object_of_finite_numbers(payload: bytes | None) -> None:
    with pytest.raises(ValueError, match=r"object|JSON"):
        patched_payload(payload, {"x": 1})


# Settling.


def test_replay_goes_where_it_came_from_with_its_resolution() -> None:
    transport = chain()
    records = refused(transport, [b'{"n":0}', b'{"n":1}', None, b"\xff\xfe"])
    assert run(transport).done == 4
    again = replays(transport)
    assert [(r.partition, r.key, r.value) for r in again] == [(r.partition, r.key, r.value) for r in records]
    for record, replayed in zip(records, again, strict=True):
        letter = dead_letter_id(DETECTOR, PREDICTIONS, record.partition, record.offset).encode()
        assert replayed.headers == (*record.headers, ("replay_of", letter), ("hops", b"1"))
    found = resolutions(transport)
    assert [(one.action, one.who, one.at, one.why, one.replays) for one in found] == [
        ("replayed", "maria", NOW, "the publisher is mended", 1)
    ] * 4
    keys = [(r.key or b"").decode() for r in everything(transport, RESOLUTIONS)]
    assert keys == [one.dead_letter_id for one in found]


def test_second_replay_needs_force() -> None:
    transport = chain()
    refused(transport, [b"{}", b"{}"])
    run(transport)
    assert run(transport).left == {"settled": 2}
    assert len(replays(transport)) == 2
    assert run(transport, asked=replace(REPLAY, force=True)).done == 2
    assert Counter(one.replays for one in resolutions(transport)) == {1: 2, 2: 2}


def test_discarded_is_settled_and_not_sent() -> None:
    transport = chain()
    refused(transport, [b"{}"] * 3)
    asked = Asked("discarded", "maria", "spam")
    assert run(transport, asked=asked).done == 3
    assert replays(transport) == []
    assert [one.action for one in resolutions(transport)] == ["discarded"] * 3
    assert run(transport, asked=asked).left == {"settled": 3}
    assert run(transport).left == {"settled": 3}


def test_selected_letters_alone() -> None:
    transport = chain()
    refused(transport, [b"{}"] * 2)
    refused(transport, [b"x"], refusal=RefusedDecode("", "no JSON"))
    refused(transport, [b"{}"], stage=TAGGER, topic=ENRICHED)
    assert run(transport, Selection(classes=frozenset({"decode"}))).done == 1
    assert [r.value for r in replays(transport)] == [b"x"]
    assert run(transport, Selection(stages=frozenset({TAGGER}))).done == 1
    assert len(replays(transport, ENRICHED)) == 1
    assert plan(Letters(transport, CIPHER), Selection(), REPLAY).done == 2


def test_hops_end() -> None:
    """Replayed again and again, a record that is refused each time comes to rest."""
    transport = chain()
    refused(transport, [b"{}"])
    for hop in range(1, MAX_HOPS + 1):
        assert run(transport, asked=replace(REPLAY, force=False)).done == 1
        (newest,) = [r for r in replays(transport) if dict(r.headers)["hops"] == str(hop).encode()]
        producer = transport.producer("stage")
        producer.begin()
        producer.produce(dead_letter(DETECTOR, "test", DeadInput(newest, RefusedSchema("/x", "still")), CIPHER))
        producer.commit()
    assert run(transport).left == {"settled": MAX_HOPS, "hops": 1}
    assert len(replays(transport)) == MAX_HOPS


def test_cut_payloads_stay() -> None:
    transport = chain()
    refused(transport, [b"x" * (MAX_PAYLOAD_BYTES + 1), b"x" * MAX_PAYLOAD_BYTES])
    assert plan(Letters(transport), Selection(), REPLAY).left == {"cut": 1}  # which takes no key to say
    tally = run(transport)
    assert (tally.done, dict(tally.left)) == (1, {"cut": 1})
    assert run(transport, asked=replace(REPLAY, force=True)).left == {"cut": 1}


def test_headers_too_many_are_left_out_and_stop_a_replay() -> None:
    """A stage must not fail at the letter of what it cannot take."""
    transport = chain()
    (record,) = refused(transport, [b"{}"], headers=(("big", b"x" * 900_000),))
    (letter,) = everything(transport, "errata.anomaly-detector.dlq")
    assert sum(len(name) + len(content) for name, content in letter.headers) < 10_000
    assert read_dead_letter(letter, CIPHER).payload == "{}"
    assert run(transport).left == {"cut": 1}
    huge = record._replace(key=b"k" * 900_000)
    out = dead_letter(DETECTOR, "test", DeadInput(huge, RefusedSchema("", "no")), CIPHER)
    assert out.key is None


@pytest.mark.parametrize("header", [("hops", b"many"), ("hops", b"-1"), ("hops", b"9" * 5_000), ("replay_of", b"\xff")])
def test_header_of_a_publisher_makes_no_letter_unreadable(header: tuple[str, bytes]) -> None:
    transport = chain()
    refused(transport, [b"{}"], headers=(header, ("traceparent", b"t" * 10_000)))
    letters = Letters(transport, CIPHER)
    assert [letter.said.hops for letter in letters.select(Selection(), {})] == [0]
    assert letters.unreadable == 0


def test_what_is_no_letter_is_counted_and_passed() -> None:
    transport = chain()
    refused(transport, [b"{}"])
    producer = transport.producer("stranger")
    producer.begin()
    producer.produce(Outgoing("errata.tagger.dlq", None, b"junk", partition=0))
    producer.commit()
    letters = Letters(transport, CIPHER)
    assert len(list(letters.select(Selection(), {}))) == 1
    assert letters.unreadable == 1


def test_damaged_resolution_stops_everything() -> None:
    transport = chain()
    refused(transport, [b"{}"])
    producer = transport.producer("stranger")
    producer.begin()
    producer.produce(Outgoing(RESOLUTIONS, b"id", b"junk", partition=0))
    producer.commit()
    with pytest.raises(StateDamaged, match="offset 0"):
        run(transport)
    assert replays(transport) == []


def test_patch_is_applied_and_recorded() -> None:
    transport = chain()
    refused(transport, [b'{"b":"x","a":1}', b"no json"], headers=(("errata-rekeyed", b"1"),))
    patched = replace(REPLAY, patch={"a": 2, "b": None, "c": {"d": 0.1}})
    assert plan(Letters(transport, CIPHER), Selection(), patched) == Tally(1, Counter(), 1)
    assert run(transport, asked=patched) == Tally(1, Counter(), 1)
    (sent,) = replays(transport)
    assert sent.value == b'{"a":2,"c":{"d":0.1}}'
    assert "errata-rekeyed" not in dict(sent.headers)
    assert [one.patched for one in resolutions(transport)] == [True]


def test_without_the_key_or_with_another_nothing_is_sent() -> None:
    transport = chain()
    refused(transport, [b"{}"])
    for cipher, why in ((None, "ERRATA_KEY: is missing"), (Aead(b"o" * 32), "ERRATA_KEY: does not open letter")):
        with pytest.raises(Misconfigured, match=why):
            settle(Letters(transport, cipher), Selection(), REPLAY, Clock().pace(), lambda: NOW)
    assert replays(transport) == []
    assert resolutions(transport) == []
    discard = Asked("discarded", "maria", "spam")
    assert settle(Letters(transport), Selection(), discard, Clock().pace(), lambda: NOW).done == 1


def test_plan_writes_nothing_and_fences_nobody() -> None:
    transport = chain()
    refused(transport, [b"{}"] * 3)
    operator = transport.producer(TRANSACTIONAL_ID)
    assert plan(Letters(transport, CIPHER), Selection(), REPLAY).done == 3
    operator.begin()
    operator.commit()
    assert replays(transport) == []


@pytest.mark.parametrize(("per_s", "seconds"), [(50, 2.0), (1, 100.0), (1_000, 0.1), (0.5, 200.0)])
def test_rate_is_kept(per_s: float, seconds: float) -> None:
    transport, clock = chain(), Clock()
    refused(transport, [b"{}"] * 100)
    settle(Letters(transport, CIPHER), Selection(), REPLAY, clock.pace(per_s), lambda: NOW)
    assert clock.now_s == pytest.approx(seconds)


# Crashes and rivals.


def killed_and_run_again(transport: MemoryTransport) -> None:
    """A replay that dies at each point in turn, and again one transaction later each time; then one that ends."""
    for nth in range(1, 4):
        for point in POINTS:
            with pytest.raises(CrashPoint):
                run(transport, crash=CrashPoints.raising(CRASH_STAGE, point, nth))
    run(transport)


def faults(transport: MemoryTransport, letters: int) -> list[str]:
    """What is wrong after all letters were replayed once."""
    found = []
    sent = Counter(dict(r.headers)["replay_of"].decode() for r in replays(transport))
    settled = Counter(one.dead_letter_id for one in resolutions(transport))
    if sent != settled:
        found.append("replays and resolutions differ")
    if len(sent) != letters or set(sent.values()) != {1}:
        found.append("a letter was sent not at all, or twice")
    return found


def test_killed_anywhere_each_letter_is_settled_once() -> None:
    transport = chain()
    refused(transport, [b"{}"] * 200)
    killed_and_run_again(transport)
    assert faults(transport, 200) == []


class Apart:
    """A transport whose resolutions have a transaction of their own, behind that of the replays: what must not be."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def producer(self, transactional_id: str) -> "ApartProducer":
        return ApartProducer(self._transport.producer(transactional_id))


class ApartProducer:
    def __init__(self, inner: MemoryProducer) -> None:
        self._inner = inner
        self._later: list[Outgoing] = []

    def begin(self) -> None:
        self._inner.begin()

    def produce(self, record: Outgoing) -> None:
        if record.topic == RESOLUTIONS:
            self._later.append(record)
            return
        self._inner.produce(record)
        self._inner.commit()
        self._inner.begin()

    def commit(self) -> None:
        for record in self._later:
            self._inner.produce(record)
        self._later.clear()
        self._inner.commit()

    def abort(self) -> None:
        self._inner.abort()

    def close(self) -> None:
        self._inner.close()


def test_control_resolutions_apart_from_their_replays_double_letters() -> None:
    transport = chain()
    refused(transport, [b"{}"] * 200)
    killed_and_run_again(Apart(transport))  # type: ignore[arg-type]  # a transport all the same
    assert "a letter was sent not at all, or twice" in faults(transport, 200)


def test_newer_replay_fences_the_older_and_goes_on() -> None:
    transport = chain()
    refused(transport, [b"{}"] * 40)
    newer: list[Tally] = []

    def rival(done: int) -> None:
        if done == 10 and not newer:
            newer.append(run(transport))

    with pytest.raises(Fenced, match="another errata dlq replay or discard has begun"):
        run(transport, on_done=rival)
    assert (newer[0].done, dict(newer[0].left)) == (30, {"settled": 10})
    assert faults(transport, 40) == []


def test_store_that_is_away_leaves_letters_open() -> None:
    class Away(MemoryTransport):
        def _commit(self, outgoing: Any, commits: Any) -> None:
            if any(record.topic == RESOLUTIONS for _, record in outgoing):
                raise Unavailable("no broker")
            super()._commit(outgoing, commits)

    transport = Away(TOPICS)
    refused(transport, [b"{}"] * 2)
    with pytest.raises(Unavailable):
        run(transport)
    assert plan(Letters(transport, CIPHER), Selection(), REPLAY).done == 2


# Between the stages, and the writer's letters.


def test_replay_between_stages_keeps_the_ledger_balanced() -> None:
    transport = chain()
    refused(transport, [b"{}"] * 3, stage=ENRICHER, topic=ANOMALIES)
    run(transport)
    receipts = [Receipt.model_validate_json(r.value or b"") for r in everything(transport, LEDGER)]
    assert [(one.stage, one.instance, one.out) for one in receipts] == [(DETECTOR, TRANSACTIONAL_ID, 3)]
    assert audit(receipts, [Flow(DETECTOR, ANOMALIES, ENRICHER)], {ANOMALIES: 3}).faults == []
    assert audit([], [Flow(DETECTOR, ANOMALIES, ENRICHER)], {ANOMALIES: 3}).faults != []  # without them
    refused(transport, [b"{}"])
    run(transport)
    assert len(everything(transport, LEDGER)) == 1  # publishers write no receipts


class Rows:
    """A catalogue as far as letters go."""

    def __init__(self, rows: list[SinkDeadLetter]) -> None:
        self._rows = rows

    def dead_letters(self, limit: int) -> list[SinkDeadLetter]:
        return self._rows[:limit]


def row(record: Record, payload: bytes | None = None) -> SinkDeadLetter:
    place = f"{record.topic}/{record.partition}/{record.offset}".encode()
    sealed = CIPHER.seal((payload or record.value or b"")[:MAX_PAYLOAD_BYTES], place)
    return SinkDeadLetter(record.topic, record.partition, record.offset, 1_000_000, "sink", "/title", "NUL", sealed)


def test_rows_of_the_writer_are_letters_too() -> None:
    transport = chain()
    producer = transport.producer("tagger")
    producer.begin()
    producer.produce(Outgoing(TAGGED, b"case", b'{"title":1}', (("ce_type", b"x"), ("hops", b"1")), 5))
    producer.commit()
    (record,) = everything(transport, TAGGED)
    gone = record._replace(offset=77)  # the log has let it go
    letters = Letters(transport, CIPHER, Rows([row(record), row(gone), row(gone, b"x" * 70_000)]))  # type: ignore[arg-type]
    found = list(letters.select(Selection(stages=frozenset({WRITER})), {}))
    assert [(one.said.class_, one.said.hops, one.kept) for one in found] == [
        ("sink", 1, "whole"),
        ("sink", 0, "whole"),
        ("sink", 0, "cut"),
    ]
    assert letters.opened(found[0]).payload == '{"title":1}'
    tally = settle(letters, Selection(ids=(found[0].said.dead_letter_id,)), REPLAY, Clock().pace(), lambda: NOW)
    assert tally.done == 1
    (sent,) = replays(transport, TAGGED)
    assert (sent.partition, sent.key, sent.value, dict(sent.headers)["hops"]) == (5, b"case", b'{"title":1}', b"2")
    assert list(letters.select(Selection(stages=frozenset({TAGGER})), {})) == []
