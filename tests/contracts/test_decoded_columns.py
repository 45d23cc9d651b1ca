"""What the decoder puts into the columns, by whichever way a row came."""

import gc
import json
import random
import tracemalloc
import weakref
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.contracts.corpus import LAYOUTS, LINES, RECORD_TIME_US, dumps, outcome, prediction

from errata.adapters.decode_msgspec import MsgspecDecoder, decoder
from errata.adapters.decode_msgspec.decoder import _PredictionColumns
from errata.adapters.decode_msgspec.plans import Form, Plan
from errata.contracts import Contract
from errata.contracts.topics import OUTCOMES, PREDICTIONS
from errata.domain.columns import (
    MISSING_CODE,
    UNUSABLE_CODE,
    UNUSABLE_NUMBER,
    Batch,
    Beat,
    Layout,
    Predictions,
    Violation,
)
from errata.domain.layouts import compile_layout
from errata.ports import Record

LAYOUT = LAYOUTS[b"fraud"]
KEPT_BYTES = 100_000
UNKNOWN = {"unknown_field": 1}  # sends an event past the typed decoders


def decode(*events: dict[str, Any], key: bytes | None = b"fraud", topic: str = PREDICTIONS) -> Batch:
    records = [Record(topic, 3, 10 + at, RECORD_TIME_US, key, dumps(event)) for at, event in enumerate(events)]
    return MsgspecDecoder().decode(records, LAYOUTS)


def number(rows: Predictions, row: int, name: str) -> float:
    return float(rows.numbers[rows.number_start[row] + LAYOUT.numbers.index(name)])


def category(rows: Predictions, row: int, name: str) -> float:
    return float(rows.categories[rows.category_start[row] + LAYOUT.categories.index(name)])


def other(rows: Predictions, row: int, name: str) -> int:
    return int(rows.others[rows.others_start[row] + LAYOUT.others.index(name)])


@pytest.mark.parametrize("more", [{}, UNKNOWN], ids=["typed", "checked"])
def test_a_row(more: dict[str, Any]) -> None:
    event = prediction(
        prediction_id="p1", prediction="yes", latency_ms=12.5, scores={"no": 0.25, "yes": 0.75}, purpose="drill",
        status={"code": "fallback"}, outcome={"value": "no"}, time="2026-01-05T13:00:00.000001+01:00",
        features={"amount": 2, "age": 7, "country": "it", "shop": "x", "vip": False, "note": "n", "a/b~c d": None},
    )  # fmt: skip
    batch = decode(event | more)
    rows = batch.predictions
    assert batch.layouts == [LAYOUT]
    assert (rows.record[0], rows.layout[0], rows.offset[0], rows.partition[0], rows.purpose[0]) == (0, 0, 10, 3, 1)
    assert (rows.time_us[0], rows.record_time_us[0]) == (RECORD_TIME_US + 1, RECORD_TIME_US)
    assert rows.prediction_ids == ["p1"]
    assert (rows.status[0], rows.latency_ms[0], rows.predicted[0], rows.confidence[0], rows.wrong[0]) == (
        3,
        12.5,
        1,
        0.75,
        1,
    )
    assert (number(rows, 0, "amount"), number(rows, 0, "age")) == (2, 7)
    assert np.isnan(number(rows, 0, "a/b~c d"))
    assert (category(rows, 0, "country"), category(rows, 0, "vip"), category(rows, 0, "shop")) == (1, 0, 0)
    assert (other(rows, 0, "note"), other(rows, 0, "embedding")) == (1, 0)
    assert rows.violations == []


@pytest.mark.parametrize("more", [{}, UNKNOWN], ids=["open", "checked"])
def test_wrong_features_are_violations_and_unusable(more: dict[str, Any]) -> None:
    features = {"amount": "2", "age": 7.0, "country": 3, "vip": "true", "note": {"a": 1}, "embedding": [[1]], "new": 1}
    rows = decode(prediction(), prediction(features=features) | more, prediction()).predictions
    assert sorted((one.row, one.feature, one.reason) for one in rows.violations) == [
        (1, "age", "type"), (1, "amount", "type"), (1, "country", "type"), (1, "embedding", "type"),
        (1, "new", "extra"), (1, "note", "type"), (1, "vip", "type"),
    ]  # fmt: skip
    assert number(rows, 1, "amount") == number(rows, 1, "age") == UNUSABLE_NUMBER
    assert category(rows, 1, "country") == category(rows, 1, "vip") == UNUSABLE_CODE
    assert other(rows, 1, "note") == other(rows, 1, "embedding") == 2
    assert (number(rows, 0, "amount"), number(rows, 2, "amount")) == (1.5, 1.5)


def test_codes_of_categories() -> None:
    rows = decode(
        *(prediction(features={"country": value, "shop": "s"}) for value in ("de", "fr", "xx", None))
    ).predictions
    assert [category(rows, at, "country") for at in (0, 1, 3)] == [
        0,
        2,
        MISSING_CODE,
    ]
    assert np.isnan(category(rows, 2, "country"))
    assert rows.violations == []  # that it is forbidden is judged on the columns
    assert category(rows, 0, "shop") == 0  # open, and no reference: all is *other*


def test_outputs() -> None:
    events = [
        prediction(prediction=value, features={}, status={"code": "error"}) for value in ("no", True, "maybe", 1, None)
    ]
    rows = decode(*events).predictions
    assert rows.predicted[0] == 0
    assert rows.predicted[4] == MISSING_CODE
    assert np.isnan(rows.predicted[1:4]).all()
    priced = [prediction(model={"name": "price"}, prediction=value, features={}) for value in (3, 2.5, "x")]
    rows = decode(*priced, key=b"price").predictions
    assert rows.predicted[:2].tolist() == [3, 2.5]
    assert np.isnan(rows.predicted[2])
    assert rows.violations == [Violation(2, "/prediction", "invalid_output")]


def test_scores_out_of_range_or_of_no_class_are_violations() -> None:
    rows = decode(prediction(scores={"no": 1.5, "may/be": 0.5, "yes": 0.5})).predictions
    assert {(one.feature, one.reason) for one in rows.violations} == {
        ("/scores/no", "invalid_output"),
        ("/scores/may~1be", "invalid_output"),
    }


def test_wrong_by_inline_outcomes() -> None:
    cases = [("no", "no", 0), ("no", "yes", 1), (True, "true", 0), (True, False, 1), ("no", 1, -1), ("no", None, -1)]
    rows = decode(*(prediction(prediction=said, outcome={"value": truth}) for said, truth, _ in cases)).predictions
    assert rows.wrong.tolist() == [expected for _, _, expected in cases]
    assert decode(prediction(outcome={"value": "yes", "kind": "feedback"})).predictions.wrong.tolist() == [-1]


def test_the_key_decides_nothing_but_speed() -> None:
    events = [json.loads(line.raw) for line in LINES if line.name in ("good", "everything", "feature extra")]
    batches = [decode(*events, key=key) for key in (b"fraud", b"price", b"nobody", None)]
    for batch in batches[1:]:
        for name in Predictions.__slots__:
            np.testing.assert_array_equal(getattr(batch.predictions, name), getattr(batches[0].predictions, name))


def test_an_unknown_model_gets_an_empty_layout() -> None:
    batch = decode(prediction(model={"name": "new"}, tenant="t", features={"a": 1, "b": {"c": 1}}), key=b"t/new")
    assert [(one.tenant, one.model, one.features) for one in batch.layouts] == [("t", "new", ())]
    assert batch.predictions.violations == [Violation(0, "b", "type")]


def test_a_new_contract_takes_effect_with_the_next_batch() -> None:
    decoder = MsgspecDecoder()
    record = Record(PREDICTIONS, 0, 0, RECORD_TIME_US, b"fraud", dumps(prediction()))
    assert decoder.decode([record], LAYOUTS).predictions.violations == []
    other_contract = Contract.model_validate({"model": "fraud", "features": {"amount": {"type": "text"}}})
    batch = decoder.decode([record], {b"fraud": compile_layout("default", "fraud", other_contract, None)})
    assert Violation(0, "amount", "type") in batch.predictions.violations
    assert decoder.decode([record], {}).predictions.violations == []


def test_ids_are_hashed_by_event_key() -> None:
    same = [prediction(), prediction(source="fraud"), prediction(type="errata.prediction.v1")]
    others = [prediction(source="x"), prediction(type="x"), prediction(event_id="e2"), prediction(tenant="acme")]
    hashes = decode(*same, *others).predictions.id_hash.tolist()
    assert len(set(hashes[:3])) == 1
    assert len(set(hashes)) == 5
    raw = [Record(PREDICTIONS, 0, 0, RECORD_TIME_US, b"fraud", dumps(prediction()))]
    assert MsgspecDecoder(b"other").decode(raw, LAYOUTS).predictions.id_hash[0] != hashes[0]


def test_batches_do_not_matter() -> None:
    """One batch, and one batch a record, give the same columns."""
    records = [Record(PREDICTIONS, 0, at, RECORD_TIME_US, b"fraud", line.raw) for at, line in enumerate(LINES)]
    whole = MsgspecDecoder().decode(records, LAYOUTS).predictions
    decoder = MsgspecDecoder()
    single = [part for record in records if len(part := decoder.decode([record], LAYOUTS).predictions)]
    for name in ("offset", "time_us", "id_hash", "predicted", "confidence", "numbers", "categories", "others", "wrong"):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in single]))
    assert len(whole.violations) == sum(len(part.violations) for part in single) > 20


def test_ticks_and_heartbeats() -> None:
    tick = {"event_id": "t", "time": "2026-01-05T12:00:00Z", "purpose": "tick"}
    batch = decode(tick, prediction(purpose="heartbeat"), prediction())
    assert [(one.record, one.partition, one.record_time_us) for one in batch.ticks] == [(0, 3, RECORD_TIME_US)]
    assert batch.beats == [Beat(1, 3, "e1", RECORD_TIME_US)]
    assert batch.skipped == {}
    assert batch.predictions.record.tolist() == [2]


def test_outcomes() -> None:
    batch = decode(
        outcome(prediction_id="p"), outcome(predicted=..., prediction_id="p"), outcome(kind="feedback"),
        outcome(value="no", purpose="drill", x=1), topic=OUTCOMES,
    )  # fmt: skip
    assert batch.skipped == {"waiting": [1], "feedback": [2]}
    rows = batch.outcomes
    assert (rows.record.tolist(), rows.wrong.tolist(), rows.purpose.tolist()) == ([0, 3], [1, 0], [0, 1])
    assert (rows.prediction_ids, rows.offset.tolist(), rows.time_us.tolist()) == (
        ["p", ""],
        [10, 13],
        [RECORD_TIME_US] * 2,
    )
    assert batch.layouts == [LAYOUT]


def decode_twice(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> Batch:
    """The second batch of a decoder that has learnt from the first."""
    decoder = MsgspecDecoder()
    for events in (first, second):
        records = [
            Record(PREDICTIONS, 3, at, RECORD_TIME_US, b"fraud", dumps(event)) for at, event in enumerate(events)
        ]
        batch = decoder.decode(records, LAYOUTS)
    return batch


def as_text(batch: Batch) -> list[str]:
    rows = batch.predictions
    columns = [f"{name}: {getattr(rows, name)!r}" for name in rows.__dataclass_fields__]
    return [*columns, *(f"{one.record} {one.refusal}" for one in batch.refused)]


WRONG = {"amount": "2", "age": 7.0, "country": 3, "vip": "true", "note": {"a": 1}, "embedding": [[1]], "a/b~c d": 1.5}


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ([prediction(features=WRONG)] * 20, prediction(features=WRONG)),  # so many that types are read loosely
        ([prediction(features=WRONG)] * 20, prediction(features={"amount": 2**70})),
        ([prediction(features=WRONG)] * 20, prediction(features={"amount": None, "age": 3, "country": "it"})),
        ([prediction()], prediction(latency_ms=5, purpose="drill", source="a", scores={"yes": 1.0}, confidence=0.5)),
        ([prediction()], prediction(features=WRONG)),
        ([prediction()], prediction(features=WRONG, latency_ms=5, outcome={"value": "no"}, segments={"a": 1})),
        ([prediction(latency_ms=5, purpose="drill")], prediction(features=WRONG, latency_ms=7, scores={"yes": 1.0})),
        ([prediction(latency_ms=5, purpose="drill")], prediction(features={"age": "7"}, latency_ms=7)),
        ([prediction()], prediction(prediction=3, features={"amount": None})),
        ([prediction()], prediction(features={"amount": "2", "age": 7.0, "country": None, "vip": 1})),
        ([prediction()], prediction(features={"amount": 2**70, "age": "7"})),
        ([prediction()], prediction(features={"age": "7", "country": "x" * 2_000})),
        ([prediction()], prediction(features={"age": "7", "new": 1})),
        ([prediction()], prediction(features={"age": "7"}, latency_ms="5")),
        ([prediction(features={"age": "7"})] * 20, prediction(features={"age": "7", "country": 3, "amount": None})),
        ([prediction()], prediction(features={"age": 7, "country": "nowhere", "vip": True})),
        ([prediction()], prediction(features={"age": "7", "country": "nowhere"})),
        ([prediction(features={"country": "nowhere"})] * 20, prediction(features={"age": "7", "country": "nowhere"})),
        ([prediction(features={"country": "nowhere"})] * 20, prediction(features={"age": 7, "country": 3})),
        ([prediction()], prediction(features={"amount": "2", "a/b~c d": None})),
        ([prediction()], prediction(features={"amount": "2", "a/b~c d": "x", "age": 7})),
        ([prediction()], prediction(features={"amount": "2", "country": "nowhere"})),
        ([prediction()], prediction(features={"amount": "\u00e9" * 1_025})),
        ([prediction()], prediction(features={"amount": True})),
        ([prediction()], prediction(features={"amount": "2"}, event_id=...)),
        ([prediction()], prediction(features={"amount": 2**70}, event_id=...)),
        ([prediction()], prediction(features={"amount": 1e300}, event_id=...)),
        ([prediction()], prediction(features={"age": "7", "new": 1}, event_id=...)),
        ([prediction()], prediction(event_id=..., time="x", prediction=...)),
        ([prediction()], prediction(event_id=..., time="2036-01-05T12:00:00Z", prediction_id="p")),
        ([prediction()], prediction(event_id=None)),
        ([prediction()], prediction(segments={"a": 1, "b": None})),
        ([prediction(segments={"a": 1})], prediction(segments={"a": 1, "new": "x"})),
        ([prediction(segments={"a": 1})], prediction(segments={"a": [1]})),
        ([prediction(segments={'"\\': 1})], prediction(segments={'"\\': 1})),
        ([prediction(segments={str(at): at}) for at in range(40)], prediction(segments={"99": 1})),
        ([prediction(deployment={"endpoint": "a"})], prediction(deployment=None, versions={"code": "1"})),
    ],
)
def test_what_was_learnt_changes_no_column(before: list[dict[str, Any]], event: dict[str, Any]) -> None:
    """An event with unknown fields goes by the checks, which learn nothing: the reference for the other ways."""
    batch = [prediction(), event, event, prediction()]
    checked = [one | UNKNOWN for one in batch]
    assert as_text(decode_twice(before, batch)) == as_text(decode_twice([], checked))


def test_a_text_for_a_number_and_an_absent_id_are_found_in_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is refused and read again for them: a batch of them would cost several times as much as a good one."""
    again: list[object] = []
    monkeypatch.setattr(decoder._Pass, "_slow", lambda self, index, raw, fault: again.append(index))
    monkeypatch.setattr(Plan, "read_any_types", lambda self, raw, found: again.append(raw))
    wrong = prediction(features={"amount": "2", "a/b~c d": None})
    batch = decode_twice([prediction()], [prediction(), wrong, prediction(event_id=...), prediction(event_id="other")])
    assert again == []
    rows = batch.predictions
    assert rows.record.tolist() == [0, 1, 3]
    assert rows.violations == [Violation(1, "amount", "type")]
    assert [number(rows, row, "amount") for row in range(3)] == [1.5, UNUSABLE_NUMBER, 1.5]
    assert [(one.record, one.refusal.path) for one in batch.refused] == [(2, "/event_id")]
    assert rows.id_hash[0] == rows.id_hash[1] != rows.id_hash[2]


def test_a_row_that_breaks_a_type_becomes_columns_together_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless more is wrong with it."""
    apart: list[int] = []
    monkeypatch.setattr(_PredictionColumns, "add_open", lambda self, plan, rows, at: apart.extend(at))
    decode_twice([prediction()], [prediction(), prediction(features={"age": "7"}), prediction()])
    assert apart == []
    decode_twice([prediction()], [prediction(), prediction(features={"age": "7", "new": 1}), prediction()])
    assert apart == [1]


@pytest.mark.parametrize(("unknown", "later"), [(20, 0), (7, 7)], ids=["often", "seldom"])
@pytest.mark.parametrize("with_another", [{}, {"age": "7"}], ids=["alone", "beside a wrong type"])
def test_a_category_that_is_often_unknown_is_read_at_once(
    unknown: int, later: int, with_another: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The typed decoder knows a contract's categories, and refuses others; where many come it is told to take all."""
    tried_again: list[bytes] = []
    again = Plan.read_any_types

    def noted(plan: Plan, raw: bytes, found: list[tuple[str, str]]) -> Any:
        tried_again.append(raw)
        return again(plan, raw, found)

    monkeypatch.setattr(Plan, "read_any_types", noted)
    batch = [prediction(features={"country": "it"})] * 20
    batch += [prediction(features={"country": "nowhere"} | with_another)] * unknown
    decoder, counts = MsgspecDecoder(), []
    for _ in range(3):
        tried_again.clear()
        records = [Record(PREDICTIONS, 3, at, RECORD_TIME_US, b"fraud", dumps(one)) for at, one in enumerate(batch)]
        rows = decoder.decode(records, LAYOUTS).predictions
        counts.append(len(tried_again))
        codes = [category(rows, row, "country") for row in range(len(batch))]
        assert np.isnan(codes).tolist() == [False] * 20 + [True] * unknown
    assert counts == [unknown, later, later]


def test_only_the_features_that_are_often_broken_are_read_loosely() -> None:
    decoder = MsgspecDecoder()
    event = dumps(prediction(features={"age": "7", "country": "it", "vip": True}))
    for _ in range(2):
        decoder.decode([Record(PREDICTIONS, 3, at, RECORD_TIME_US, b"fraud", event) for at in range(20)], LAYOUTS)
    assert decoder.plans[b"fraud"].loose == {"age"}


@pytest.mark.parametrize(
    ("feature", "known"),
    [
        ({"type": "category", "categories": ["b", "a"]}, ("b", "a")),
        ({"type": "category"}, ()),
        ({"type": "category", "categories": []}, ()),
        ({"type": "category", "categories": ["a", "x" * 2_000]}, ()),
        ({"type": "category", "categories": [str(at) for at in range(2_000)]}, ()),
        ({"type": "bool", "categories": ["a"]}, ()),
        ({"type": "number", "categories": ["a"]}, ()),
    ],
    ids=["closed", "open", "none", "long", "many", "bool", "number"],
)
def test_which_categories_a_decoder_knows(feature: dict[str, Any], known: tuple[str, ...]) -> None:
    contract = Contract.model_validate({"model": "m", "features": {"f": feature}})
    plan = Plan(compile_layout("default", "m", contract, None), "", Form())
    assert plan.closed.get("f", ()) == known
    value = {"bool": "true", "number": "1"}.get(feature["type"], '"c"')
    raw = f'{{"event_id":"e","time":"2026-01-05T12:00:00Z","model":{{"name":"m"}},"features":{{"f":{value}}}}}'
    assert plan.decode is not None
    if known:
        with pytest.raises(msgspec.ValidationError, match="enum"):
            plan.decode(raw.encode())
    else:
        plan.decode(raw.encode())


@pytest.mark.parametrize("output", [None, {"type": "number"}, {"type": "vector"}, {"type": "class"}], ids=str)
def test_models_of_one_kind_share_all_but_their_names_and_are_not_kept(output: dict[str, Any] | None) -> None:
    def plan(name: str) -> Plan:
        contract = {"model": name, "features": {f"{name}_age": {"type": "number"}}}
        return Plan(
            compile_layout("default", name, Contract.model_validate(contract | {"output": output}), None), "", Form()
        )

    one, other = plan("a"), plan("b")
    assert one.kin == other.kin
    raw = '{"event_id":"e","time":"2026-01-05T12:00:00Z","model":{"name":"%s"}}'
    assert one.decode is not None
    assert other.decode is not None
    rows = one.decode((raw % "a").encode()), other.decode((raw % "b").encode())
    assert type(rows[0]) is type(rows[1])
    assert type(rows[0].model) is type(rows[1].model)
    with pytest.raises(msgspec.ValidationError, match="name"):
        one.decode((raw % "b").encode())
    gone = weakref.ref(one)
    del one
    assert gone() is None


def of_models(models: int, rows: int) -> tuple[list[Record], dict[bytes, Layout]]:
    """Records of models in turn at random, whose features differ in number, kind and order; some break their types.

    Of some models only the categories and classes differ.
    """
    rng = random.Random(1)
    kinds = [(name, kind) for kind in ("number", "category", "text") for name in (f"{kind}_{at}" for at in range(3))]
    layouts: dict[bytes, Layout] = {}
    records: list[Record] = []
    for at in range(models):
        name = f"m{at}"
        mine = [one for one in kinds if at % 3 or one[0].endswith(("0", "1"))]
        features = {
            name: {"type": kind} | ({"categories": ["a", "b", f"c{at}"]} if kind == "category" else {})
            for name, kind in mine
        }
        classes = {"type": "class", "classes": ["yes", "no"] if at % 5 else ["no", "yes"]}
        contract = Contract.model_validate({"model": name, "features": features, "output": classes})
        layouts[name.encode()] = compile_layout("default", name, contract, None)
        if at % 4 == 3:
            rng.shuffle(mine)
        for row in range(rows):
            given: dict[str, Any] = {
                one: {"number": row + at / 100, "category": rng.choice("abx"), "text": "t"}[kind] for one, kind in mine
            }
            given[mine[0][0]] = [given[mine[0][0]], None, 2**70, ["wrong"], "wrong", 1e300, True][
                row % 7 if at % 4 == 1 else 0
            ]
            name_of_event = ... if row % 11 == 9 else f"{name}-{row}"
            event = prediction(event_id=name_of_event, model={"name": name}, features=given if row else None)
            records.append(Record(PREDICTIONS, 0, 0, RECORD_TIME_US, name.encode(), dumps(event)))
    rng.shuffle(records)
    return [record._replace(offset=offset) for offset, record in enumerate(records)], layouts


def by_offset(batch: Batch) -> dict[int, tuple[object, ...]]:
    """What each row says, with NaN as text."""
    rows = batch.predictions
    ends = [np.append(start[1:], len(values)) for start, values in (
        (rows.number_start, rows.numbers), (rows.category_start, rows.categories), (rows.others_start, rows.others),
    )]  # fmt: skip
    said: dict[int, tuple[object, ...]] = {}
    for row, offset in enumerate(rows.offset.tolist()):
        cut = [slice(int(start[row]), int(end[row])) for start, end in zip(
            (rows.number_start, rows.category_start, rows.others_start), ends, strict=True
        )]  # fmt: skip
        found = sorted((one.feature, one.reason) for one in rows.violations if one.row == row)
        columns = str([rows.numbers[cut[0]].tolist(), rows.categories[cut[1]].tolist(), rows.others[cut[2]].tolist()])
        said[offset] = (batch.layouts[rows.layout[row]].model, columns, float(rows.predicted[row]), found)
    return said


@pytest.mark.parametrize("rows", [1, 7, 60, 300])
def test_rows_of_many_models_are_as_those_of_each_alone(rows: int) -> None:
    records, layouts = of_models(18, rows)
    together, alone = MsgspecDecoder(), MsgspecDecoder()
    for _ in range(2):  # in the second batch some features are read loosely
        mixed = together.decode(records, layouts)
        apart: dict[int, tuple[object, ...]] = {}
        refused = 0
        for key in layouts:
            own = alone.decode([record for record in records if record.key == key], layouts)
            apart |= by_offset(own)
            refused += len(own.refused)
        assert by_offset(mixed) == apart
        assert len(mixed.refused) == refused
        assert len(apart) + refused == len(records)


def test_models_with_the_same_categories_share_their_tables() -> None:
    def plan(name: str, *categories: str) -> Plan:
        features = {"device": {"type": "category", "categories": list(categories)}}
        contract = Contract.model_validate({"model": name, "features": features})
        return Plan(compile_layout("default", name, contract, None), "", Form())

    one, same, other = plan("a", "x", "y"), plan("b", "x", "y"), plan("c", "x", "z")
    assert one.cells_of[0] is same.cells_of[0]
    assert one.cells_of[0] is not other.cells_of[0]
    assert [other.cells_of[0](value) for value in ("x", "z", "y")] == [0, 1, None]


@pytest.mark.parametrize("keeps_all", [False, True], ids=["as it is", "control"])
def test_sizes_of_batches_are_not_kept(monkeypatch: pytest.MonkeyPatch, keeps_all: bool) -> None:
    """No two batches of a service are equally large."""
    if keeps_all:
        monkeypatch.setattr(decoder, "_packer", cache(decoder._packer.__wrapped__))
    records = [Record(PREDICTIONS, 3, at, RECORD_TIME_US, b"fraud", dumps(prediction())) for at in range(250)]
    one = MsgspecDecoder()
    one.decode(records, LAYOUTS)
    tracemalloc.start()
    try:
        for size in range(1, len(records)):
            one.decode(records[:size], LAYOUTS)
        gc.collect()  # frees what the interpreter keeps to make tuples faster
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (kept > KEPT_BYTES) is keeps_all


def test_numbers_beyond_64_bits_are_told_from_large_floats() -> None:
    batch = decode(prediction(features={"amount": 1e30}), prediction(features={"amount": 10**30}), prediction())
    assert batch.predictions.record.tolist() == [0, 2]
    assert [(one.record, one.refusal.path) for one in batch.refused] == [(1, "/features/amount")]
    assert number(batch.predictions, 0, "amount") == 1e30


def test_a_contract_may_name_features_that_no_type_can_have() -> None:
    contract = Contract.model_validate({"model": "fraud", "features": {'"\\\n': {"type": "number"}}})
    layouts = {b"fraud": compile_layout("default", "fraud", contract, None)}
    record = Record(PREDICTIONS, 0, 0, RECORD_TIME_US, b"fraud", dumps(prediction(features={'"\\\n': 2.5})))
    assert MsgspecDecoder().decode([record], layouts).predictions.numbers.tolist() == [2.5]
