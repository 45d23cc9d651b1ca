"""Dead letters keep the input, tell why, and give nothing away without the key."""

import stat
from hashlib import sha256
from pathlib import Path

import pytest

from errata.adapters.aead import Aead, read_or_make_key
from errata.errors import Misconfigured, Refused, RefusedDecode, RefusedSchema
from errata.ports import DeadInput, Headers, Outgoing, Record
from errata.runtime.dead_letters import (
    MAX_PAYLOAD_BYTES,
    HandlerFailure,
    dead_letter,
    dead_letter_id,
    fingerprint,
    original_headers,
    read_dead_letter,
    read_payload,
)

KEY = bytes(range(32))
REFUSAL = RefusedSchema("/features/age", "a text where a number belongs")


def refused(value: bytes | None = b'{"secret":1}', headers: Headers = (), refusal: Refused = REFUSAL) -> DeadInput:
    return DeadInput(Record("errata.predictions.v1", 3, 42, 1_767_571_200_500_000, b"fraud", value, headers), refusal)


def letter(dead: DeadInput, cipher: Aead | None = None) -> Record:
    out: Outgoing = dead_letter("anomaly-detector", "0.1.0", dead, cipher or Aead(KEY))
    assert out.partition is not None
    return Record(out.topic, out.partition, 0, 0, out.key, out.value, out.headers)


def test_letter_says_what_was_refused_where_and_why() -> None:
    record = letter(refused(headers=(("traceparent", b"00-abc"), ("replay_of", b"older"), ("hops", b"2"))))
    assert (record.topic, record.partition, record.key) == ("errata.anomaly-detector.dlq", 3, b"fraud")
    read = read_dead_letter(record, Aead(KEY))
    assert read.model_dump(mode="json", by_alias=True) == {
        "dead_letter_id": dead_letter_id("anomaly-detector", "errata.predictions.v1", 3, 42),
        "stage": "anomaly-detector",
        "build": "0.1.0",
        "topic": "errata.predictions.v1",
        "partition": 3,
        "offset": 42,
        "ts": "2026-01-05T00:00:00.5Z",
        "class": "schema",
        "error": "RefusedSchema",
        "path": "/features/age",
        "message": "a text where a number belongs",
        "fingerprint": fingerprint(REFUSAL),
        "attempts": 1,
        "first_failed": "2026-01-05T00:00:00.5Z",
        "replay_of": "older",
        "hops": 2,
        "traceparent": "00-abc",
        "payload": '{"secret":1}',
    }


def test_headers_are_the_published_ones() -> None:
    names = [name for name, _ in letter(refused(headers=(("x", b"\xff"),))).headers]
    assert {name.removeprefix("errata.dlq.") for name in names if name.startswith("errata.dlq.")} >= {
        *("v", "id", "stage", "build", "topic", "partition", "offset", "ts", "class", "error", "path", "message"),
        *("fingerprint", "attempts", "first_failed", "hops"),
    }
    assert names[-1] == "orig.x"
    assert original_headers(letter(refused(headers=(("x", b"\xff"),)))) == (("x", b"\xff"),)


def test_payload_stands_nowhere_in_the_open() -> None:
    record = letter(refused(b"canary-4711"))
    everything = b"".join([record.value or b"", *(content for _, content in record.headers)])
    assert b"canary" not in everything
    assert read_dead_letter(record).payload is None


def test_payload_without_a_cipher_is_left_out() -> None:
    out = dead_letter("tagger", "0.1.0", refused(), None)
    assert out.value is None


def test_same_input_makes_the_same_letter() -> None:
    assert letter(refused()) == letter(refused())
    assert letter(refused(b"a")).value != letter(refused(b"b")).value


def test_large_payload_keeps_its_head_and_its_hash() -> None:
    value = bytes(range(256)) * 1_000
    payload = read_payload(letter(refused(value)), Aead(KEY))
    assert payload is not None
    assert payload.kept == value[:MAX_PAYLOAD_BYTES]
    assert (payload.total_bytes, payload.sha256, payload.whole) == (256_000, sha256(value).hexdigest(), False)


def test_null_payload_stays_null() -> None:
    record = letter(refused(None))
    assert record.value is None
    assert read_payload(record, Aead(KEY)) is None


@pytest.mark.parametrize("value", [b"\xff\xfe", b"a\0b"])
def test_payload_that_is_no_text_reads_as_bytes(value: bytes) -> None:
    record = letter(refused(value))
    assert read_dead_letter(record, Aead(KEY)).payload == "hex:" + value.hex()
    payload = read_payload(record, Aead(KEY))
    assert payload is not None
    assert payload.kept == value
    assert payload.whole


def test_message_is_cut_to_512_bytes() -> None:
    record = letter(refused(refusal=RefusedSchema("/x", "é" * 400)))
    assert len(dict(record.headers)["errata.dlq.message"]) == 512
    assert read_dead_letter(record).message == "é" * 256


def test_record_that_is_no_letter_is_refused() -> None:
    with pytest.raises(RefusedDecode, match="lacks a header"):
        read_dead_letter(Record("errata.tagger.dlq", 0, 0, 0, None, None))


def failure(text: str) -> HandlerFailure:
    try:
        raise ValueError(text)
    except ValueError as error:
        return HandlerFailure(error)


def test_fingerprint_tells_causes_and_not_values_apart() -> None:
    assert fingerprint(failure("one value")) == fingerprint(failure("another"))
    assert fingerprint(failure("x")) != fingerprint(HandlerFailure(KeyError("x")))
    assert fingerprint(RefusedSchema("/items/3/age", "a")) == fingerprint(RefusedSchema("/items/7/age", "b"))
    assert fingerprint(RefusedSchema("/age", "a")) != fingerprint(RefusedDecode("/age", "a"))
    assert "one value" not in str(failure("one value"))


def test_other_key_other_place_and_changed_bytes_do_not_open() -> None:
    cipher = Aead(KEY)
    sealed = cipher.seal(b"plain", b"here")
    assert cipher.open(sealed, b"here") == b"plain"
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    attempts = [(Aead.ephemeral(), sealed, b"here"), (cipher, sealed, b"there"), (cipher, changed, b"here")]
    for opener, content, context in [*attempts, (cipher, b"", b"here"), (cipher, b"\x02" + sealed[1:], b"here")]:
        with pytest.raises(ValueError, match="sealed"):
            opener.open(content, context)


def test_nonce_differs_with_text_and_place() -> None:
    cipher = Aead(KEY)
    pairs = [(b"a", b"x"), (b"b", b"x"), (b"a", b"y"), (b"", b"xa"), (b"xa", b"")]
    assert len({cipher.seal(plain, context)[1:13] for plain, context in pairs}) == len(pairs)


def test_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "dlq.key"
    key = read_or_make_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_or_make_key(path) == key
    assert [file.name for file in tmp_path.iterdir()] == ["dlq.key"]
    assert Aead.from_folder(tmp_path).open(Aead(key).seal(b"x", b""), b"") == b"x"


def test_key_that_others_may_read_or_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dlq.key"
    read_or_make_key(path)
    path.chmod(0o640)
    with pytest.raises(Misconfigured, match="chmod 600"):
        read_or_make_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(Misconfigured, match="32 bytes, it holds 5"):
        read_or_make_key(path)
