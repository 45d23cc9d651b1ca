"""One planted failure for each detector, with the record at which it must be found by a plain count."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.detectors.bank import first_firing
from tests.detectors.streams import WINDOW, Event, clean, each, reference

from errata.domain.detection.statistics import share_threshold

N = 2_000
START = 1_234  # where failures begin: inside the third window
WINDOW_START = START // WINDOW * WINDOW


@dataclass(frozen=True)
class Planted:
    """``events`` with a failure from ``START`` on; ``detector`` finds ``subject`` at ``record``."""

    detector: str
    subject: str
    events: Sequence[Event]
    record: int


def kth(events: Sequence[Event], faulty: Callable[[Event], bool], k: int) -> int:
    """The record of the k-th faulty event of the window in which the failure begins."""
    return [i for i in range(WINDOW_START, N) if faulty(events[i])][k - 1]


def from_start(change: Callable[[Event], object], step: int = 1) -> list[Event]:
    return each(clean(N), range(START, N, step), change)


def _missing() -> Planted:
    events = from_start(lambda event: event["features"].pop("amount"), 3)
    seen = reference().sketches["amount"].missing
    k = share_threshold(seen, reference().events)
    return Planted("missing_values", "amount", events, kth(events, lambda e: e["features"].get("amount") is None, k))


def _violation() -> Planted:
    events = from_start(lambda event: event["features"].update(age=400), 2)
    return Planted("contract_violation", "age", events, kth(events, lambda e: e["features"]["age"] > 120, 10))


def _status() -> Planted:
    events = from_start(lambda event: event.update(status={"code": "timeout"}), 50)
    return Planted("bad_status", "timeout", events, START)


def _output() -> Planted:
    events = from_start(lambda event: event.update(prediction="perhaps"), 50)
    return Planted("invalid_output", "prediction", events, START)


def _policy() -> Planted:
    events = from_start(lambda event: event.update(prediction="never", scores={}), 50)
    return Planted("policy_violation", "no-never", events, START)


def _limit() -> Planted:
    """Three in a hundred, so that the tail's threshold of 54 is far when the limit's of 10 is reached."""
    events = from_start(lambda event: event.update(latency_ms=401.0), 20)
    return Planted("latency_limit", "latency_ms", events, kth(events, lambda e: e["latency_ms"] > 400, 10))


def _tail() -> Planted:
    events = from_start(lambda event: event.update(latency_ms=min(399.0, 3 * event["latency_ms"])))
    latency = reference().latency_ms
    assert latency is not None
    p95_ms = latency.p95_ms or 0
    k = share_threshold(latency.over_p95, latency.n)
    return Planted("latency_shift", "latency_ms", events, kth(events, lambda e: e["latency_ms"] > p95_ms, k))


def _shift() -> Planted:
    events = from_start(lambda event: event["features"].update(colour="red"))
    return Planted("distribution_shift", "colour", events, WINDOW_START + WINDOW - 1)


def _confidence() -> Planted:
    events = from_start(lambda event: event.update(scores={event["prediction"]: 0.51}))
    return Planted("confidence_shift", "confidence", events, WINDOW_START + WINDOW - 1)


def _errors() -> Planted:
    """Half of the answers become wrong; where the bank must open is counted in test_error_rate by scalar code."""

    def flip(event: Event) -> None:
        event["outcome"]["value"] = "no" if event["prediction"] == "yes" else "yes"

    events = from_start(flip, 2)
    return Planted("error_rate", "outcome", events, first_firing([_is_wrong(event) for event in events]))


def _is_wrong(event: Event) -> bool:
    return bool(event["outcome"]["value"] != event["prediction"])


FAULTS: dict[str, Callable[[], Planted]] = {
    "missing_values": _missing,
    "contract_violation": _violation,
    "bad_status": _status,
    "invalid_output": _output,
    "policy_violation": _policy,
    "latency_limit": _limit,
    "latency_shift": _tail,
    "distribution_shift": _shift,
    "confidence_shift": _confidence,
    "error_rate": _errors,
}
