"""Good, bad and hostile lines, each with the class it gets ("ok" when it is taken) and the JSON pointer of its fault.

Predictions are of the models that `LAYOUTS` describes unless they say otherwise.
"""

import json
from typing import Any, NamedTuple

from errata.contracts import Contract, Reference
from errata.contracts.topics import model_key
from errata.domain.columns import Layout
from errata.domain.layouts import compile_layout

RECORD_TIME_US = 1_767_614_400_000_000  # 2026-01-05T12:00:00Z


class Line(NamedTuple):
    name: str
    raw: bytes
    refusal: str = "ok"
    path: str = ""


CONTRACT = Contract.model_validate(
    {
        "model": "fraud",
        "features": {
            "amount": {"type": "number"},
            "age": {"type": "integer"},
            "country": {"type": "category", "categories": ["de", "fr", "it"]},
            "shop": {"type": "category"},
            "vip": {"type": "bool"},
            "note": {"type": "text"},
            "embedding": {"type": "vector"},
            "a/b~c d": {"type": "number"},
        },
        "output": {"type": "class", "classes": ["no", "yes"]},
    }
)
REFERENCE = Reference.model_validate(
    {
        "model": "fraud",
        "events": 10,
        "sketches": {"country": {"kind": "category", "n": 10, "counts": {"it": 4, "de": 6}}},
        "output": {"kind": "category", "n": 10, "counts": {"no": 9, "yes": 1}},
    }
)
LAYOUTS: dict[bytes, Layout] = {
    model_key("default", "fraud"): compile_layout("default", "fraud", CONTRACT, REFERENCE),
    model_key("acme", "fraud"): compile_layout(
        "acme", "fraud", CONTRACT.model_copy(update={"tenant": "acme"}), REFERENCE
    ),
    model_key("default", "price"): compile_layout(
        "default",
        "price",
        Contract.model_validate(
            {"model": "price", "features": {"x": {"type": "number"}}, "output": {"type": "number"}}
        ),
        None,
    ),
}


def prediction(**changes: Any) -> dict[str, Any]:
    """A good event of ``fraud``; a change to ``...`` takes the field out."""
    event: dict[str, Any] = {
        "event_id": "e1",
        "time": "2026-01-05T12:00:00Z",
        "model": {"name": "fraud"},
        "prediction": "no",
        "features": {"amount": 1.5, "age": 30, "country": "de", "shop": "x", "vip": True},
    } | changes
    return {name: value for name, value in event.items() if value is not ...}


def outcome(**changes: Any) -> dict[str, Any]:
    """A good outcome that carries its prediction."""
    event: dict[str, Any] = {
        "outcome_id": "o1",
        "model": {"name": "fraud"},
        "observed_time": "2026-01-05T12:00:00Z",
        "predicted": "no",
        "value": "yes",
    } | changes
    return {name: value for name, value in event.items() if value is not ...}


def dumps(event: Any) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()


def _raw(field: bytes, **changes: Any) -> bytes:
    """A good event with ``field`` written at its end as it is."""
    return dumps(prediction(**changes))[:-1] + b", " + field + b"}"


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


HOSTILE_TEXTS = (
    "<script>alert(1)</script>",
    "'; DROP TABLE cases; --",
    '=HYPERLINK("http://x","y")',
    "+1+cmd|' /C calc'!A0",
    "@SUM(A1:A9)",
    "{{7*7}} ${jndi:ldap://x/y} %s%n",
    "../../etc/passwd",
    "\u202egnp.exe",
    "a\tb\r\nc\u2028d",
    "\\u0000 spelt out",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 😀 ǎ e\u0301",
    "",
    " ",
)

_GOOD_TIMES = (
    "2026-01-05T12:00:00Z", "2026-01-05T12:00:00.1Z", "2026-01-05T12:00:00.123Z", "2026-01-05T12:00:00.123456Z",
    "2026-01-05T12:00:00.123456789Z", "2026-01-05T12:00:00+00:00", "2026-01-05T12:00:00-00:00",
    "2026-01-05T17:45:00.5+05:45", "2026-01-05T02:00:00.123456-10:00", "2024-02-29T23:59:59Z", "1969-12-31T23:59:59Z",
    "2000-02-29T00:00:00Z", "0001-01-01T00:00:00Z",
)  # fmt: skip
_BAD_TIMES: tuple[Any, ...] = (
    "2026-01-05T12:00:00", "2026-01-05T12:00Z", "2026-01-05", "1700000000", 1_700_000_000, 1.5, True, None, "", "now",
    "2026-01-05T12:00:00,5Z", "2026-01-05T12:00:00.Z", "2026-01-05T12:00:00.1234567890Z", "2026-01-05 12:00:00Z",
    "2026-01-05t12:00:00z", "2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-00-01T00:00:00Z",
    "2026-01-32T00:00:00Z", "2026-01-05T24:00:00Z", "2026-01-05T12:60:00Z", "2026-01-05T12:00:60Z",
    "2026-01-05T12:00:00+24:00", "2026-01-05T12:00:00+01:60", "2026-01-05T12:00:00+0100", "2026-01-05T12:00:00+01",
    "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", " 2026-01-05T12:00:00Z", "2026-01-05T12:00:00Z ",
    "٢٠٢٦-01-05T12:00:00Z", "2026-01-05T12:00:00Z\n", ["2026-01-05T12:00:00Z"], {"at": 1},
)  # fmt: skip
_NOT_JSON = (
    b"", b" ", b"nope", b"{", b'{"event_id":', b'{"event_id": "e1"', b"{'event_id': 'e1'}", b'{"a": 1,}', b'{"a": 01}',
    b'{"a": 1} x', b'{"a": .5}', b'{"a": +1}', b'{"a": "\x01"}', b'{"a": "\x00"}', b'{"a": "\\x"}', b"\x00\x01\x02",
    b'{"a": tru}', b"<xml/>", b"{}{}", b'{"a" 1}', b"\xc2\xa0{}", b'{"a": "\\u12"}',
)  # fmt: skip

_WRONG: dict[str, tuple[Any, ...]] = {
    "/event_id": (None, 1, "", "x" * 201, True, ["e"]),
    "/tenant": (None, 5, "", "x" * 201),
    "/source": (1, {}),
    "/model": ("fraud", [], 1),
    "/prediction": ({}, ["a"], [True], [None], [0] * 4097, [[1]]),
    "/status": ("ok", 1),
    "/purpose": (None, "test", "LIVE", 1, ["live"], {}),
    "/prediction_id": ("", 1, "x" * 201),
    "/type": (None, 1),
    "/features": (None, [], "x", 1),
    "/scores": (None, [], 1),
    "/confidence": (True, "0.5", [], {}),
    "/attributions": (None, [1]),
    "/latency_ms": (-1, -0.5, True, "3"),
    "/segments": (None, "x"),
    "/outcome": ("yes", []),
    "/deployment": ("x",),
    "/versions": (1,),
    "/sampled_rate": (0, -1, None, True, "1"),
    "/classification": ("x",),
    "/recorded_time": ("2026-01-05", 5, ""),
    "/traceparent": (1,),
    "/adapter": ([],),
    "/producer": (1,),
    "/schema_version": (1,),
}

LINES: list[Line] = [
    # whole events
    Line("good", dumps(prediction())),
    Line("smallest", dumps(prediction(features=...))),
    Line("spaces around", b" \n" + dumps(prediction()) + b"\t\n"),
    Line("no features", dumps(prediction(features={}))),
    Line(
        "everything",
        dumps(
            prediction(
                prediction_id="p1",
                source="svc",
                type="t.v1",
                scores={"no": 0.9, "yes": 0.1},
                confidence=0.9,
                latency_ms=3,
                attributions={"amount": -0.2},
                segments={"eu": True, "n": 1, "x": None, "r": "de"},
                purpose="drill",
                status={"code": "ok", "error_type": None},
                outcome={
                    "value": "yes",
                    "observed_time": "2026-01-05T12:00:00Z",
                    "kind": "ground_truth",
                    "source": {"kind": "human", "id": "a"},
                },
                deployment={"region": "eu"},
                versions={"code": "1"},
                sampled_rate=10,
                classification={"level": "x", "regulation": ["gdpr"]},
                recorded_time="2026-01-05T12:00:00Z",
                correlation_id="c",
                causation_id="d",
                traceparent="e",
                raw_ref="f",
                adapter={"id": "a", "version": "1"},
                producer={"id": "p", "seq": 7},
                schema_version="1.0",
            )
        ),
    ),
    Line(
        "nulls where they may be",
        dumps(
            prediction(
                status=None,
                prediction_id=None,
                source=None,
                confidence=None,
                latency_ms=None,
                outcome=None,
                deployment=None,
                versions=None,
                classification=None,
                recorded_time=None,
                correlation_id=None,
                adapter=None,
                producer=None,
            )
            | {"status": {"code": "error"}, "prediction": None}
        ),
    ),
    Line("status instead of prediction", dumps(prediction(prediction=..., status={"code": "timeout"}))),
    Line("tick", dumps({"event_id": "t", "time": "2026-01-05T12:00:00Z", "purpose": "tick"})),
    Line("heartbeat", dumps(prediction(purpose="heartbeat"))),
    Line("backfill", dumps(prediction(purpose="backfill", time="2020-01-05T12:00:00Z"))),
    Line("other tenant", dumps(prediction(tenant="acme"))),
    Line("unknown model", dumps(prediction(model={"name": "nobody knows it"}))),
    Line("number output", dumps(prediction(model={"name": "price"}, prediction=3, features={"x": 1}))),
    Line("bool output", dumps(prediction(prediction=True))),
    Line("vector output", dumps(prediction(prediction=[1, 2.5]))),
    Line("unknown field kept", dumps(prediction(note={"deep": [1, "x", None]}))),
    Line("unknown nested field kept", dumps(prediction(model={"name": "fraud", "stage": "prod"}))),
    Line("duplicate key, last wins", _raw(b'"prediction": "yes"')),
    Line("duplicate key, the bad one first", b'{"event_id": 1, ' + dumps(prediction())[1:]),
    Line("duplicate key, a bad number first", b'{"event_id": NaN, ' + dumps(prediction())[1:]),
    Line("duplicate key, the bad one last", _raw(b'"event_id": 1'), "schema", "/event_id"),
    Line("escaped surrogate pair", _raw(b'"source": "\\ud83d\\ude00"')),
    Line("largest integers", _raw(b'"x": [9223372036854775807, -9223372036854775808]')),
    Line("large number", _raw(b'"confidence": 1e300')),
    Line("underflow", _raw(b'"confidence": 1e-400')),
    Line("largest integer as a feature", dumps(prediction(features={"amount": 2**63 - 1, "age": -(2**63)}))),
    Line("number beyond int64 written as a float", dumps(prediction(features={"amount": 1e19}))),
    Line("depth 32", dumps(prediction(x=_nested(31)))),
    Line("ids of 200", dumps(prediction(event_id="é" * 200, tenant="default"))),
    Line(
        "exactly 256 KiB",
        dumps(prediction(x="")).replace(
            b'"x": ""', b'"x": "' + b"y" * (256 * 1024 - len(dumps(prediction(x="")))) + b'"'
        ),
    ),
    Line("2,000 features", dumps(prediction(features={f"f{i}": i for i in range(2000)}))),
    Line("23 h ahead", dumps(prediction(time="2026-01-06T11:59:59Z"))),
    Line("24 h ahead", dumps(prediction(time="2026-01-06T12:00:00Z"))),
    # features: findings, never refusals
    *(
        Line(f"feature {name}", dumps(prediction(features=value)))
        for name, value in {
            "bool as number": {"amount": True},
            "text as number": {"amount": "0.5"},
            "float as integer": {"age": 1.0},
            "number as text": {"country": 5},
            "object": {"amount": {"a": 1}},
            "nested list": {"embedding": [[1]]},
            "list of texts": {"embedding": ["a"]},
            "list of bools": {"embedding": [True]},
            "null": {"amount": None},
            "text of 4 KiB": {"note": "x" * 4096},
            "text over 4 KiB": {"note": "x" * 4097},
            "text over 4 KiB in bytes": {"note": "é" * 2049},
            "text of 4 KiB in bytes": {"note": "é" * 2048},
            "vector of 4,096": {"embedding": [0] * 4096},
            "vector of 4,097": {"embedding": [0] * 4097},
            "extra": {"new": 1},
            "extra object": {"new": {}},
            "with slash": {"a/b~c d": 1},
            "empty name": {"": 1},
            "unseen": {"country": "xx"},
        }.items()
    ),
    Line("score out of range", dumps(prediction(scores={"no": 1.5}))),
    Line("score of no class", dumps(prediction(scores={"maybe": 0.5}))),
    *(
        Line(f"text kept {text!a}", dumps(prediction(source=text, features={"note": text, "shop": text})))
        for text in HOSTILE_TEXTS
    ),
    *(Line(f"time {time}", dumps(prediction(time=time))) for time in _GOOD_TIMES),
    # decode
    *(Line(f"not JSON {raw!r}", raw, "decode") for raw in _NOT_JSON),
    Line("truncated", dumps(prediction())[:-7], "decode"),
    Line("byte order mark", b"\xef\xbb\xbf" + dumps(prediction()), "decode"),
    Line("UTF-16", dumps(prediction()).decode().encode("utf-16"), "decode"),
    Line("invalid UTF-8", _raw(b'"source": "\xff"'), "decode"),
    Line("invalid UTF-8 in an unknown field", _raw(b'"x": "\xc3"'), "decode"),
    Line(
        "invalid UTF-8 in a feature", dumps(prediction(features={"note": "@"})).replace(b"@", b"\xed\xa0\x80"), "decode"
    ),
    Line("invalid UTF-8 in a name", _raw(b'"\xff": 1'), "decode"),
    Line("depth 33", dumps(prediction(x=_nested(32))), "decode"),
    Line("depth 33 of objects", _raw(b'"x": ' + b'{"a":' * 32 + b"1" + b"}" * 32), "decode"),
    Line("2,000 deep", b"[" * 2000 + b"]" * 2000, "decode"),
    Line("100,000 deep", b"[" * 100_000, "decode"),
    Line("2,000 deep in a feature", _raw(b'"features": {"amount": ' + b"[" * 2000 + b"]" * 2000 + b"}"), "decode"),
    *(
        Line(f"{number} {place}", template.replace(b"?", number.encode()), "decode", path)
        for number in (
            "NaN",
            "Infinity",
            "-Infinity",
            "1e400",
            "-1e400",
            str(2**63),
            str(-(2**63) - 1),
            str(2**70),
            "9" * 5000,
        )
        for place, template, path in (
            (
                "as feature",
                b'{"event_id": "e", "time": "2026-01-05T12:00:00Z", "model": {"name": "fraud"}, '
                b'"prediction": "no", "features": {"amount": ?}}',
                "/features/amount",
            ),
            ("in confidence", _raw(b'"confidence": ?'), "/confidence"),
            ("in scores", _raw(b'"scores": {"no": ?}'), "/scores/no"),
            ("in latency", _raw(b'"latency_ms": ?'), "/latency_ms"),
            ("in sequence", _raw(b'"producer": {"seq": ?}'), "/producer/seq"),
            ("in prediction", _raw(b'"prediction": [1, ?]'), "/prediction/1"),
            ("in unknown field", _raw(b'"x": {"y": [0, ?]}'), "/x/y/1"),
            ("in place of a text", _raw(b'"event_id": ?'), "/event_id"),
        )
    ),
    *(
        Line(f"{name} {place}", template.replace(b"?", text), "decode", path)
        for name, text in (
            ("NUL", b"a\\u0000b"),
            ("lone high surrogate", b"\\ud800"),
            ("high surrogate and letter", b"\\ud800\\u0041"),
            ("lone low surrogate", b"\\udc00"),
            ("two high surrogates", b"\\ud800\\ud800"),
        )
        for place, template, path in (
            ("in id", _raw(b'"event_id": "?"'), "/event_id"),
            ("in prediction", _raw(b'"prediction": "?"'), "/prediction"),
            ("in model name", _raw(b'"model": {"version": "?", "name": "fraud"}'), "/model/version"),
            ("in feature", _raw(b'"features": {"note": "?"}'), "/features/note"),
            ("in feature with slash", _raw(b'"features": {"a/b~c d": "?"}'), "/features/a~1b~0c d"),
            ("in feature name", _raw(b'"features": {"?": 1}'), "/features"),
            ("in score name", _raw(b'"scores": {"?": 1}'), "/scores"),
            ("in unknown field", _raw(b'"x": ["?"]'), "/x/0"),
            ("in unknown name", _raw(b'"?": 1'), ""),
            ("in time", _raw(b'"time": "?"'), "/time"),
            ("in segment", _raw(b'"segments": {"a": "?"}'), "/segments/a"),
        )
    ),
    # schema
    *(
        Line(f"no {path}", dumps(prediction(**{path.split("/")[1]: ...})), "schema", path)
        for path in ("/event_id", "/time", "/prediction")
    ),
    Line("no model", dumps(prediction(model=...)), "schema", "/model/name"),
    Line("empty model", dumps(prediction(model={})), "schema", "/model/name"),
    Line("null model", dumps(prediction(model=None)), "schema", "/model"),
    Line("null prediction", dumps(prediction(prediction=None)), "schema", "/prediction"),
    Line("no prediction, status without code", dumps(prediction(prediction=..., status={})), "schema", "/prediction"),
    Line(
        "no prediction, null code", dumps(prediction(prediction=None, status={"code": None})), "schema", "/status/code"
    ),
    Line(
        "no prediction, status of the wrong type", dumps(prediction(prediction=..., status=5)), "schema", "/prediction"
    ),
    *(
        Line(f"{path} {value!r:.20}", dumps(prediction(**{path[1:]: value})), "schema", path)
        for path, values in _WRONG.items()
        for value in values
    ),
    *(Line(f"time {time!r}", dumps(prediction(time=time)), "schema", "/time") for time in _BAD_TIMES),
    *(
        Line(f"nested {path} {event!r:.40}", dumps(prediction(**event)), "schema", path)
        for path, event in (
            ("/model/name", {"model": {"name": ""}}),
            ("/model/name", {"model": {"name": 1}}),
            ("/model/version", {"model": {"name": "fraud", "version": 3}}),
            ("/status/code", {"status": {"code": "bad"}}),
            ("/status/code", {"status": {"code": None}}),
            ("/status/error_type", {"status": {"code": "ok", "error_type": 1}}),
            ("/scores/no", {"scores": {"no": True}}),
            ("/scores/b~1c", {"scores": {"b/c": None}}),
            ("/attributions/x", {"attributions": {"x": "1"}}),
            ("/segments/a", {"segments": {"a": [1]}}),
            ("/segments/a", {"segments": {"a": {}}}),
            ("/outcome/kind", {"outcome": {"value": 1, "kind": "x"}}),
            ("/outcome/value", {"outcome": {"value": [1]}}),
            ("/outcome/observed_time", {"outcome": {"observed_time": "x"}}),
            ("/outcome/source/kind", {"outcome": {"source": {"kind": "robot"}}}),
            ("/outcome/score", {"outcome": {"score": "1"}}),
            ("/outcome/recorded_time", {"outcome": {"recorded_time": "2026-01-05T12:00Z"}}),
            ("/versions/code", {"versions": {"code": 1}}),
            ("/classification/regulation/1", {"classification": {"regulation": ["a", 1]}}),
            ("/classification/regulation", {"classification": {"regulation": None}}),
            ("/producer/seq", {"producer": {"seq": 1.5}}),
            ("/producer/seq", {"producer": {"seq": True}}),
            ("/adapter/id", {"adapter": {"id": 1}}),
        )
    ),
    *(Line(f"not an object {raw!r}", raw, "schema") for raw in (b"[]", b"1", b'"x"', b"null", b"true")),
    Line("empty object", b"{}", "schema", "/event_id"),
    Line("tick without time", b'{"event_id": "t", "purpose": "tick"}', "schema", "/time"),
    # oversize
    Line("one byte over 256 KiB", b" " * (256 * 1024 + 1 - len(dumps(prediction()))) + dumps(prediction()), "oversize"),
    Line("2,001 features", dumps(prediction(features={f"f{i}": i for i in range(2001)})), "oversize", "/features"),
    # clock
    Line("more than 24 h ahead", dumps(prediction(time="2026-01-06T12:00:00.000001Z")), "clock", "/time"),
    Line("year 9999", dumps(prediction(time="9999-12-31T23:59:59Z")), "clock", "/time"),
    Line("tick ahead", dumps({"event_id": "t", "time": "2030-01-05T12:00:00Z", "purpose": "tick"}), "clock", "/time"),
    Line("heartbeat ahead", dumps(prediction(purpose="heartbeat", time="2030-01-05T12:00:00Z")), "clock", "/time"),
    # several faults at once
    Line("oversize before decode", b"{" * (256 * 1024 + 1), "oversize"),
    Line(
        "features before decode",
        _raw(b'"confidence": NaN', features={f"f{i}": i for i in range(2001)}),
        "oversize",
        "/features",
    ),
    Line(
        "features before schema",
        dumps(prediction(event_id=1, features={f"f{i}": i for i in range(2001)})),
        "oversize",
        "/features",
    ),
    Line("decode before schema", _raw(b'"x": NaN', event_id=1), "decode", "/x"),
    Line(
        "integer before id", dumps(prediction(event_id=..., features={"amount": 2**64})), "decode", "/features/amount"
    ),
    Line("text before id", dumps(prediction(event_id=..., features={"note": "\0"})), "decode", "/features/note"),
    Line("decode before clock", _raw(b'"source": "\\u0000"', time="2030-01-01T00:00:00Z"), "decode", "/source"),
    Line(
        "schema before clock", dumps(prediction(time="2030-01-01T00:00:00Z", prediction=...)), "schema", "/prediction"
    ),
    Line("syntax before a place", b'{"event_id": NaN, "x": ', "decode"),
    Line("depth before a place", _raw(b'"x": ' + b"[" * 40 + b"]" * 40, event_id="\0"), "decode"),
    Line("two schema faults", _raw(b'"event_id": 5', time=1, model=...), "schema", "/event_id"),
    Line("schema order, not document order", b'{"prediction": {}, "time": 1, "event_id": "e"}', "schema", "/time"),
    Line(
        "schema order of decode faults",
        _raw(b'"x": "\\u0000", "features": {"b": NaN, "a": NaN}, "prediction": "\\u0000"'),
        "decode",
        "/prediction",
    ),
    Line("document order within features", _raw(b'"features": {"b": NaN, "a": NaN}'), "decode", "/features/b"),
    Line(
        "schema order within a part",
        _raw(b'"model": {"digest": "\\u0000", "version": "\\u0000", "name": "a"}'),
        "decode",
        "/model/version",
    ),
    Line("purpose and model", dumps(prediction(purpose="x", model=...)), "schema", "/model/name"),
    Line(
        "feature fault and schema fault",
        dumps(prediction(features={"amount": "x"}, confidence="x")),
        "schema",
        "/confidence",
    ),
    Line(
        "feature fault and clock",
        dumps(prediction(features={"amount": "x"}, time="2030-01-01T00:00:00Z")),
        "clock",
        "/time",
    ),
]

OUTCOMES: list[Line] = [
    Line("good", dumps(outcome())),
    Line("to be joined", dumps(outcome(predicted=..., prediction_id="p"))),
    Line("an opinion", dumps(outcome(value=..., score=0.5, kind="feedback"))),
    Line("number", dumps(outcome(model={"name": "price"}, predicted=1, value=2))),
    Line("unknown field", dumps(outcome(x=1))),
    Line(
        "everything",
        dumps(
            outcome(
                prediction_id="p",
                score=1,
                confidence=0.5,
                segments={"a": 1},
                predicted_time="2026-01-05T11:00:00Z",
                tenant="acme",
                purpose="drill",
                source={"kind": "judge"},
                supersedes="o0",
                rationale="r",
                recorded_time="2026-01-05T12:00:00Z",
            )
        ),
    ),
    Line("truncated", dumps(outcome())[:-3], "decode"),
    Line("NUL", dumps(outcome(rationale="a\0")), "decode", "/rationale"),
    Line("NaN", dumps(outcome(score=float("nan"))), "decode", "/score"),
    Line("long integer", dumps(outcome(value=2**63)), "decode", "/value"),
    Line("no id", dumps(outcome(outcome_id=...)), "schema", "/outcome_id"),
    Line("no model", dumps(outcome(model=...)), "schema", "/model/name"),
    Line("null model", dumps(outcome(model=None)), "schema", "/model"),
    Line("no time", dumps(outcome(observed_time=...)), "schema", "/observed_time"),
    Line("bad time", dumps(outcome(observed_time="2026-01-05")), "schema", "/observed_time"),
    Line("bad predicted time", dumps(outcome(predicted_time="2026-01-05")), "schema", "/predicted_time"),
    Line("nothing to join by", dumps(outcome(predicted=...)), "schema", "/prediction_id"),
    Line("nothing said", dumps(outcome(value=...)), "schema", "/value"),
    Line("list as value", dumps(outcome(value=[1])), "schema", "/value"),
    Line("bad kind", dumps(outcome(kind="x")), "schema", "/kind"),
    Line("bad source", dumps(outcome(source={"kind": ["human"]})), "schema", "/source/kind"),
    Line("ahead", dumps(outcome(observed_time="2026-01-07T12:00:00Z")), "clock", "/observed_time"),
]
