"""Logs: JSON lines with standard fields, also from libraries, and no secret in any of them."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from errata.errors import Unavailable
from errata.runtime.logging import MASK, configure_logging, masked

SECRET = "hunter2-zq"


class Lines(io.StringIO):
    @property
    def read_back(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        return self.read_back[-1]


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def lines(restored_logging: None) -> Lines:
    stream = Lines()
    configure_logging("tagger", "7", True, version="1.0", stream=stream)
    return stream


def test_a_line_is_json_with_the_standard_fields(lines: Lines) -> None:
    structlog.contextvars.bind_contextvars(trace_id="t-1")
    structlog.get_logger().warning("case opened", case="c-1", n=3, share=0.5, none=None, more=["a", {"b": 1}])
    line = lines.last
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "case opened",
        "service": "tagger",
        "instance": "7",
        "version": "1.0",
        "trace_id": "t-1",
        "case": "c-1",
        "n": 3,
        "share": 0.5,
        "none": None,
        "more": ["a", {"b": 1}],
    }


def test_a_library_writes_the_same_lines(lines: Lines) -> None:
    logging.getLogger("redis.client").error("lost %s", "redis://:hunter2-zq@cache:6379/0", extra={"password": SECRET})
    line = lines.last
    assert (line["event"], line["logger"], line["level"]) == (
        f"lost redis://{MASK}@cache:6379/0",
        "redis.client",
        "error",
    )
    assert line["service"] == "tagger"
    assert SECRET not in lines.getvalue()


def test_lines_below_the_level_are_left_out(lines: Lines) -> None:
    structlog.get_logger().debug("not this")
    logging.getLogger("sqlalchemy").debug("nor this")
    structlog.get_logger().info("this")
    assert [line["event"] for line in lines.read_back] == ["this"]


def test_hostile_text_stays_one_line(lines: Lines) -> None:
    structlog.get_logger().info("a\nb\u2028c\ud800", value=float("nan"), other="\x1b[31m\0")
    assert lines.getvalue().count("\n") == 1
    assert lines.last["event"] == "a\nb\u2028c\ud800"
    assert lines.last["value"] == "nan"


@pytest.mark.parametrize(
    "fields",
    [
        {"password": SECRET},
        {"_password": SECRET},
        {"sasl.password": SECRET},
        {"sasl_password": SECRET},
        {"DB_PASSWORD": SECRET},
        {"ssl.key.password": SECRET},
        {"ssl.key.pem": SECRET},
        {"Authorization": f"Bearer {SECRET}"},
        {"api_key": SECRET},
        {"client_secret": SECRET},
        {"token": [SECRET]},
        {"settings": {"kafka": {"sasl.password": SECRET}}},
        {"settings": [{"password": SECRET}]},
        {"settings": ({"deep": {"deeper": [{"token": SECRET}]}},)},
        {"url": f"postgresql://errata:{SECRET}@db:5432/errata"},
        {"url": f"postgresql://errata:with@and/{SECRET}@db:5432/errata"},
        {"url": f"redis://:{SECRET}@cache/0"},
        {"url": f"postgresql://db/errata?user=x&password={SECRET}"},
        {"dsn": f"host=db password={SECRET} user=errata"},
        {"dsn": f"host=db password='{SECRET} x' user=errata"},
        {"text": f'{{"sasl.password": "{SECRET}"}}'},
        {"text": f"{{'password': '{SECRET}'}}"},
        {"text": f"ERRATA_KAFKA__SASL_PASSWORD={SECRET}"},
        {"text": f"header Bearer {SECRET}"},
        {"value": SECRET.encode()},
        {"value": {"raw": bytearray(SECRET.encode())}},
        {"value": ValueError(SECRET)},
        {"value": Unavailable(f"redis://:{SECRET}@cache does not answer")},
        {f"password={SECRET}": 1},
    ],
    ids=str,
)
def test_no_secret_passes(lines: Lines, fields: dict[str, Any]) -> None:
    structlog.get_logger().error("connecting", **fields)
    assert lines.last["event"] == "connecting"
    assert SECRET not in lines.getvalue()


def test_no_secret_passes_in_the_message_its_arguments_or_the_context(lines: Lines) -> None:
    structlog.contextvars.bind_contextvars(password=SECRET)
    structlog.get_logger().error(f"using amqp://x:{SECRET}@y")
    structlog.get_logger().error("using %s", f"amqp://x:{SECRET}@y")
    assert lines.last["event"] == f"using amqp://{MASK}@y"
    assert SECRET not in lines.getvalue()


def test_no_secret_passes_in_the_text_of_an_error(lines: Lines) -> None:
    def fail() -> None:
        password = SECRET
        raise ConnectionError(f"no connection with {password}")

    for log in (structlog.get_logger(), logging.getLogger("library")):
        try:
            fail()
        except ConnectionError:
            log.exception("failed")
    ours, theirs = lines.read_back
    for line in (ours, theirs):
        assert line["error"] == "ConnectionError"
        assert line["frames"][-1].startswith("test_logging.py:")
        assert line["frames"][-1].endswith(" fail")
    assert SECRET not in lines.getvalue()


def test_the_text_of_our_own_errors_is_kept(lines: Lines) -> None:
    try:
        raise Unavailable("redis does not answer; it is tried again")
    except Unavailable:
        structlog.get_logger().exception("failed")
    assert lines.last["error"] == "Unavailable: redis does not answer; it is tried again"


def test_given_secrets_pass_nowhere(restored_logging: None) -> None:
    stream = Lines()
    configure_logging("tagger", "7", True, secrets=["correct horse", "correct", ""], stream=stream)
    structlog.get_logger().info("said correct horse", note={"correct horse": ["correct battery"]})
    assert "correct" not in stream.getvalue()
    assert "horse" not in stream.getvalue()
    assert stream.last["event"] == f"said {MASK}"


def test_what_is_no_secret_is_left_as_it_is(lines: Lines) -> None:
    text = "http://127.0.0.1:9464/metrics answers; mail a@example.org; ERRATA_DATABASE_URL is missing"
    structlog.get_logger().info(text, topic="errata.tagged.v1", url="postgresql://db:5432/errata")
    assert lines.last["event"] == text
    assert (lines.last["topic"], lines.last["url"]) == ("errata.tagged.v1", "postgresql://db:5432/errata")


def test_without_the_processor_the_planted_secrets_would_be_seen(restored_logging: None) -> None:
    stream = Lines()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory(stream)
    )
    structlog.get_logger().info("connecting", password=SECRET)
    assert SECRET in stream.getvalue()


def test_a_person_gets_plain_lines_and_no_secret(restored_logging: None) -> None:
    stream = Lines()
    configure_logging("tagger", "7", False, stream=stream)
    structlog.get_logger().info("ready", url=f"redis://:{SECRET}@cache", port=9464)
    text = stream.getvalue()
    assert "ready" in text
    assert "port=9464" in text
    assert SECRET not in text
    assert not text.startswith("{")


def test_setting_up_twice_writes_each_line_once(lines: Lines) -> None:
    configure_logging("tagger", "8", True, stream=lines)
    structlog.get_logger().info("once")
    assert [line["instance"] for line in lines.read_back] == ["8"]


def test_masking_text() -> None:
    assert masked("a://b:c@d e", ["e"]) == f"a://{MASK}@d {MASK}"
    assert masked("nothing here") == "nothing here"
