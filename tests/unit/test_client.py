"""The publisher writes what it is given, counts what it cannot write, and never gets in its host's way."""

import doctest
import io
import json
import logging
import math
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from errata import client
from errata.client import MAX_EVENT_BYTES, WARN_EVERY_S, Publisher, Tally
from errata.contracts import ChangeEvent, Outcome, PredictionEvent

AT = datetime(2026, 1, 5, 12, tzinfo=UTC)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_are_what_the_contracts_take(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Publisher(path) as errata:
        assert errata.prediction(
            model="fraud", prediction="ok", features={"amount": 12.5, "kind": None}, scores={"ok": 0.9}, latency_ms=7.5
        )
        assert errata.outcome(model={"name": "fraud", "version": "2"}, prediction_id="p-1", value="bad")
        assert errata.change(subject="fraud", from_="1", to="2", time=AT)
    prediction, outcome, change = path.read_bytes().splitlines()
    event = PredictionEvent.model_validate_json(prediction)
    assert (event.features, event.scores, event.latency_ms) == ({"amount": 12.5, "kind": None}, {"ok": 0.9}, 7.5)
    assert UUID(event.event_id)
    judged = Outcome.model_validate_json(outcome)
    assert (judged.model.version, judged.prediction_id, judged.value) == ("2", "p-1", "bad")
    changed = ChangeEvent.model_validate_json(change)
    assert (changed.kind, changed.from_, changed.to, changed.time) == ("deploy", "1", "2", AT)


def test_given_ids_and_times_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Publisher(str(path)) as errata:
        errata.prediction(model="m", prediction=1, event_id="e-1", time="2026-01-05T12:00:00Z")
        errata.prediction(model="m", prediction=1, time=AT.astimezone(timezone(timedelta(hours=2))))
    first, second = lines(path)
    assert (first["event_id"], first["time"]) == ("e-1", "2026-01-05T12:00:00Z")
    assert PredictionEvent.model_validate_json(json.dumps(second)).time == AT


def test_publisher_appends(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for number in range(2):
        with Publisher(path) as errata:
            errata.prediction(model="m", prediction=number)
    assert [line["prediction"] for line in lines(path)] == [0, 1]


def test_numbers_of_numpy_are_plain_numbers(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Publisher(path) as errata:
        assert errata.prediction(
            model="m", prediction=np.int64(3), features={"x": np.float32(0.5), "b": np.bool_(True)}
        )
    (line,) = lines(path)
    assert (line["prediction"], line["features"]) == (3, {"x": 0.5, "b": True})


def circular() -> dict[str, object]:
    loop: dict[str, object] = {}
    loop["loop"] = loop
    return loop


class Hostile:
    def __getattr__(self, name: str) -> object:
        raise RuntimeError("hostile")


UNSENDABLE: list[Any] = [
    {"x": math.nan}, {"x": math.inf}, {"x": object()}, {"x": {1, 2}}, {"x": np.zeros(3)}, {"x": datetime(2026, 1, 5)},
    {"x": b"bytes"}, {"x": Hostile()}, {("a", "tuple"): 1}, circular(),
]  # fmt: skip


@pytest.mark.parametrize("features", UNSENDABLE, ids=range(len(UNSENDABLE)))
def test_what_is_no_json_is_dropped_and_counted_and_nothing_is_raised(tmp_path: Path, features: Any) -> None:
    path = tmp_path / "events.jsonl"
    with Publisher(path) as errata:
        assert not errata.prediction(model="m", prediction=1, features=features)
        assert errata.prediction(model="m", prediction=2)
        assert errata.dropped == 1
    assert [line["prediction"] for line in lines(path)] == [2]


def test_drops_are_told_once_in_one_line_without_the_value(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "errata.client"), Publisher(io.BytesIO()) as errata:
        for _ in range(5):
            errata.prediction(model="m", prediction=math.nan, features={"secret": "s3cret"})
        assert errata.dropped == 5
    (message,) = [record.getMessage() for record in caplog.records]
    assert "not finite JSON (ValueError)" in message
    assert "\n" not in message
    assert "s3cret" not in message


def test_each_reason_is_told_once_a_minute_with_its_count(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    tally = Tally(lambda: now_s)
    with caplog.at_level(logging.WARNING, "errata.client"):
        for now_s in (0.0, 1.0, WARN_EVERY_S - 0.1, WARN_EVERY_S + 0.1, WARN_EVERY_S + 0.2):  # noqa: B007, read above
            tally.drop("too_large", "2000000 bytes")
        tally.drop("buffer_full")
    assert [record.getMessage() for record in caplog.records] == [
        "errata drops an event of more than 1048576 bytes (2000000 bytes); 1 so far, told once a minute",
        "errata drops an event of more than 1048576 bytes (2000000 bytes); 4 so far, told once a minute",
        "errata drops an event: the buffer is full; 1 so far, told once a minute",
    ]


def test_events_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    with Publisher(tmp_path / "events.jsonl") as errata:
        fitting = "x" * (MAX_EVENT_BYTES - len(b'{"event_id":"","text":""}'))
        assert errata.publish({"event_id": "", "text": fitting})
        assert not errata.publish({"event_id": "1", "text": fitting})
        assert not errata.publish(["no", "mapping"])  # type: ignore[arg-type]
        assert not errata.publish({"event_id": {1}})
        assert errata.flush(10)
        stats = errata.stats
    assert not errata.publish({"event_id": "2"})
    assert (stats.sent, stats.delivered, stats.waiting) == (1, 1, 0)
    counted = {"too_large": 1, "not_an_event": 1, "not_json": 1}
    assert stats.dropped == dict.fromkeys(stats.dropped, 0) | counted
    assert errata.stats.dropped["closed"] == 1
    assert errata.dropped == 4
    assert (tmp_path / "events.jsonl").stat().st_size == MAX_EVENT_BYTES + 1


def test_ids_may_be_uuids_and_an_empty_one_is_none(tmp_path: Path) -> None:
    path, known = tmp_path / "events.jsonl", UUID(int=7)
    with Publisher(path) as errata:
        errata.publish({"event_id": known, "prediction_id": None})
        errata.prediction(model="m", prediction=1, event_id="")
    first, second = lines(path)
    assert first == {"event_id": str(known)}
    assert UUID(second["event_id"])


def test_example_of_the_module_is_true() -> None:
    assert doctest.testmod(client) == (0, 5)


class Stuck(io.BytesIO):
    """A stream that takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def write(self, content: Any) -> int:
        self.begun.set()
        assert self.go.wait(10)
        return super().write(content)


def test_full_buffer_drops_and_does_not_wait() -> None:
    stream = Stuck()
    errata = Publisher(stream, buffer=3)
    assert errata.prediction(model="m", prediction=0)
    assert stream.begun.wait(10)
    assert [errata.prediction(model="m", prediction=number) for number in range(1, 6)] == [True] * 3 + [False] * 2
    assert errata.dropped == 2
    assert not errata.flush(0.01)
    stream.go.set()
    assert errata.flush(10)
    errata.close()
    assert [json.loads(line)["prediction"] for line in stream.getvalue().splitlines()] == [0, 1, 2, 3]


def test_close_gives_up_after_its_time_and_counts_what_is_left() -> None:
    stream = Stuck()
    errata = Publisher(stream)
    errata.prediction(model="m", prediction=0)
    assert stream.begun.wait(10)
    errata.prediction(model="m", prediction=1)
    errata.close(0.01)
    assert errata.dropped == 1
    assert not errata.prediction(model="m", prediction=2)
    assert errata.dropped == 2
    stream.go.set()


def test_target_that_cannot_be_written_costs_events_and_no_exception(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "events.jsonl"
    with Publisher(path) as errata:
        assert errata.prediction(model="m", prediction=1)
        assert errata.flush(10)
        assert errata.dropped == 1
        path.parent.mkdir()
        assert errata.prediction(model="m", prediction=2)
    assert [line["prediction"] for line in lines(path)] == [2]


def test_pipe_without_a_reader_does_not_hold_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    errata = Publisher(path)
    assert errata.prediction(model="m", prediction=1)
    assert not errata.flush(0.01)
    with path.open("rb") as reader:
        assert errata.flush(10)
        assert json.loads(reader.readline())["prediction"] == 1
        errata.close()


def test_events_from_several_threads_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Publisher(path) as errata:

        def publish(start: int) -> None:
            for number in range(start, start + 200):
                errata.prediction(model="m", prediction=number)

        threads = [threading.Thread(target=publish, args=(start,)) for start in (0, 200, 400)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(line["prediction"] for line in lines(path)) == list(range(600))


def test_event_is_taken_as_it_is_at_the_call(tmp_path: Path) -> None:
    path, features = tmp_path / "events.jsonl", {"x": 1}
    with Publisher(path) as errata:
        errata.prediction(model="m", prediction=1, features=features)
        features["x"] = 2
    assert lines(path)[0]["features"] == {"x": 1}


def test_forked_child_publishes_too(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = f"""
import os
from errata.client import Publisher
errata = Publisher({str(path)!r})
errata.prediction(model="m", prediction="parent")
assert errata.flush()
child = os.fork()
if child == 0:
    errata.prediction(model="m", prediction="child")
    errata.close()
    os._exit(0)
os.waitpid(child, 0)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=20)
    assert [line["prediction"] for line in lines(path)] == ["parent", "child"]


def test_events_of_a_program_that_ends_without_closing_are_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = (
        "from errata.client import Publisher\n"
        f"errata = Publisher({str(path)!r})\n"
        "for number in range(1000): errata.prediction(model='m', prediction=number)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
    assert len(lines(path)) == 1_000
