"""The published contract and the fast decoder accept and refuse the same bytes, with the same class and pointer."""

import copy
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contracts import corpus
from tests.contracts.corpus import LAYOUTS, LINES, RECORD_TIME_US, Line, dumps, outcome, prediction

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.decode_msgspec.plans import OpenRow
from errata.contracts import Message
from errata.contracts.refusals import parse_change, parse_outcome, parse_prediction
from errata.contracts.topics import OUTCOMES, PREDICTIONS
from errata.domain.columns import Batch
from errata.errors import Refused
from errata.ports import Record

Verdict = tuple[str, str, str]
KEYS = (b"fraud", b"acme/fraud", b"price", b"nobody", None)


def record(raw: bytes | None, key: bytes | None = b"fraud", topic: str = PREDICTIONS, offset: int = 0) -> Record:
    return Record(topic, 3, offset, RECORD_TIME_US, key, raw)


def decode(*raws: bytes | None, key: bytes | None = b"fraud", topic: str = PREDICTIONS) -> Batch:
    return MsgspecDecoder().decode([record(raw, key, topic, at) for at, raw in enumerate(raws)], LAYOUTS)


def by_contract(parse: Callable[..., Message], raw: bytes) -> Verdict:
    try:
        parse(raw, record_time_us=RECORD_TIME_US)
    except Refused as refusal:
        return refusal.refusal_class, refusal.path, refusal.message
    return "ok", "", ""


def by_decoder(raw: bytes, key: bytes | None = b"fraud", topic: str = PREDICTIONS) -> Verdict:
    return verdicts(decode(raw, key=key, topic=topic), 1)[0]


def verdicts(batch: Batch, n: int) -> list[Verdict]:
    """One verdict a record, after checking that every record is in exactly one place."""
    refused = {one.record: one.refusal for one in batch.refused}
    places = [
        *batch.predictions.record.tolist(),
        *batch.outcomes.record.tolist(),
        *(tick.record for tick in batch.ticks),
        *(beat.record for beat in batch.beats),
        *(index for indices in batch.skipped.values() for index in indices),
        *refused,
    ]
    assert sorted(places) == list(range(n))
    return [
        (refused[at].refusal_class, refused[at].path, refused[at].message) if at in refused else ("ok", "", "")
        for at in range(n)
    ]


@pytest.mark.parametrize("line", LINES, ids=lambda line: ascii(line.name)[:60])
def test_contract_and_decoder_say_what_the_corpus_says(line: Line) -> None:
    contract = by_contract(parse_prediction, line.raw)
    assert contract[:2] == (line.refusal, line.path)
    for key in KEYS:
        assert by_decoder(line.raw, key) == contract


@pytest.mark.parametrize("line", corpus.OUTCOMES, ids=lambda line: line.name)
def test_outcomes_too(line: Line) -> None:
    contract = by_contract(parse_outcome, line.raw)
    assert contract[:2] == (line.refusal, line.path)
    assert by_decoder(line.raw, topic=OUTCOMES) == contract


def test_a_batch_gives_each_line_its_own_verdict() -> None:
    """Neighbours do not change a verdict, in one chunk or across several."""
    lines = LINES * 2
    batch = decode(*(line.raw for line in lines))
    assert [(one[0], one[1]) for one in verdicts(batch, len(lines))] == [(line.refusal, line.path) for line in lines]
    assert batch.predictions.offset.tolist() == batch.predictions.record.tolist()


def test_no_message_holds_the_value() -> None:
    secret = "Zx9-secret-7731"
    for event in (
        prediction(event_id=[secret]),
        prediction(time=secret),
        prediction(purpose=secret),
        prediction(status={"code": secret}),
        prediction(prediction={"a": secret}),
        prediction(source=f"{secret}\0"),
        prediction(confidence=secret),
    ):
        kind, path, message = by_contract(parse_prediction, dumps(event))
        assert kind != "ok"
        assert secret not in path + message
        assert path


def test_a_decoder_without_the_check_for_nul_is_caught() -> None:
    """Negative control: the typed decoder on its own takes what the contract refuses, and the corpus has such lines."""
    without_check = msgspec.json.Decoder(OpenRow).decode
    raw = next(line.raw for line in LINES if line.name == "NUL in feature")
    assert without_check(raw).features == {"note": "a\0b"}
    assert by_contract(parse_prediction, raw)[:2] == by_decoder(raw)[:2] == ("decode", "/features/note")


def test_no_value_is_a_decode_refusal() -> None:
    batch = decode(None)
    assert [(one.refusal.refusal_class, one.refusal.path) for one in batch.refused] == [("decode", "")]


@pytest.mark.parametrize("text", corpus.HOSTILE_TEXTS, ids=ascii)
def test_accepted_text_is_kept_to_the_letter(text: str) -> None:
    raw = dumps(prediction(event_id=text or "e", source=text, features={"note": text}, x={"y": [text]}))
    event = parse_prediction(raw, record_time_us=None)
    assert event.event_id == (text or "e")
    assert event.source == text
    assert event.features == {"note": text}
    assert event.model_extra == {"x": {"y": [text]}}
    assert decode(raw).predictions.prediction_ids == [text or "e"]


def test_a_change_is_parsed_or_refused_alike() -> None:
    change = {"change_id": "c", "kind": "deploy", "subject": "fraud", "time": "2026-01-05T12:00:00Z", "from": "1"}
    assert parse_change(dumps(change), record_time_us=RECORD_TIME_US).from_ == "1"
    for fault, expected in (
        ({"kind": "x"}, ("schema", "/kind")),
        ({"from": 1}, ("schema", "/from")),
        ({"link": "\0", "from": "\0"}, ("decode", "/from")),
        ({"time": "2027-01-05T12:00:00Z"}, ("clock", "/time")),
    ):
        assert by_contract(parse_change, dumps(change | fault))[:2] == expected


@pytest.mark.parametrize(
    "text",
    [b"plain", b"\xff", b"\\ud83d\\ude00", b"\\ud800", b"\\u0000", b"\\q"],
    ids=["plain", "no UTF-8", "pair", "lone", "NUL", "q"],
)
def test_an_event_cut_off_at_any_byte_gets_the_same_verdict(text: bytes) -> None:
    """Also inside a number, which msgspec words in another way, and behind what is to be refused for itself."""
    whole = dumps(
        prediction(source="SOURCE", features={"amount": -1.25e-7, "note": "n"}, confidence=0.5, latency_ms=12)
    )
    raw = whole.replace(b"SOURCE", text)
    cuts = [raw[:end] for end in range(len(raw) + 1)]
    told = verdicts(decode(*cuts), len(cuts))
    assert told == [by_contract(parse_prediction, cut) for cut in cuts]
    assert {verdict[0] for verdict in told[:-1]} == {"decode"}


_NUMBERS = (
    "- 1. 1.e5 .5 -.5 +1 01 -01 1e 1e+ 1.5e- 0x1 1_0 --1 1-1 1.2.3 -0 1e999 -1e999 1e-999 1E+5 NaN Infinity -Infinity"
)


@pytest.mark.parametrize("number", [*_NUMBERS.split(), "1 1", *("9" * n for n in (19, 30, 400, 5_000))])
def test_odd_numbers_get_the_same_verdict(number: str) -> None:
    """What is a number to Python and none to msgspec, or the other way round, must not be told as no JSON."""
    whole = dumps(prediction(confidence=0.25, features={"amount": 0.25}, x=[0.25]))
    for nth in range(3):
        head, _, tail = whole.partition(b"0.25")
        for _ in range(nth):
            more, _, tail = tail.partition(b"0.25")
            head += b"1" + more
        raw = head + number.encode() + tail
        assert by_decoder(raw) == by_contract(parse_prediction, raw), raw


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.sampled_from(
        ["2026-01-05T12:00:00Z", "live", "tick", "\0", "\ud800", "ok", "fraud", "price", "yes", [], {}, [1, 2.5]]
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.sampled_from(["name", "code", "a", "\0"]), st.integers(0, 3), max_size=2),
)
_EVERYTHING = json.loads(next(line.raw for line in LINES if line.name == "everything"))
_PLACES: list[tuple[str, ...]] = [
    *((name,) for name in _EVERYTHING),
    *((name, inner) for name, value in _EVERYTHING.items() if isinstance(value, dict) for inner in value),
    ("new",),
    ("features", "new"),
    ("model", "new"),
]


def _mutated(event: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    holder = event
    for name in place[:-1]:
        holder = holder.get(name) if isinstance(holder, dict) else None  # type: ignore[assignment]
    if isinstance(holder, dict):
        if value is ...:
            holder.pop(place[-1], None)
        else:
            holder[place[-1]] = value


@pytest.mark.whole
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(_PLACES), st.one_of(_VALUES, st.just(...))), max_size=4),
    st.one_of(st.none(), st.tuples(st.integers(0, 900), st.binary(max_size=3))),
    st.sampled_from(KEYS),
)
def test_mutated_events_get_the_same_verdict(
    changes: list[tuple[tuple[str, ...], Any]], cut: tuple[int, bytes] | None, key: bytes | None
) -> None:
    event = copy.deepcopy(_EVERYTHING)
    for place, value in changes:
        _mutated(event, place, value)
    raw = json.dumps(event).encode()
    if cut is not None:
        raw = raw[: cut[0]] + cut[1] + raw[cut[0] + len(cut[1]) :]
    assert by_decoder(raw, key) == by_contract(parse_prediction, raw)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from([(name,) for name in outcome(score=1, kind="x", prediction_id="p")]), _VALUES),
        max_size=3,
    )
)
def test_mutated_outcomes_get_the_same_verdict(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    event = outcome()
    for place, value in changes:
        _mutated(event, place, value)
    raw = json.dumps(event).encode()
    assert by_decoder(raw, topic=OUTCOMES) == by_contract(parse_outcome, raw)
