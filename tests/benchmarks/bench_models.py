"""The hot path with 5, 50 and 500 models; then a fault in each of the 50, found and nothing else found."""

import json
from typing import Any

from tests.benchmarks.measure import Row, Scale, cost, interleaved, speed_ratio
from tests.benchmarks.stages import Detecting, Stream, name_of

MODELS = (5, 50, 500)
PLANTED_MODELS = 50
PLANTED_EVENTS = 1_200  # per model, two whole windows at least
EXPECTED = ("missing_values", "distribution_shift", "latency_shift", "bad_status", "error_rate")  # by number % 5


def rows(scale: Scale) -> list[Row]:
    stages = {models: Detecting(Stream(models), warm=scale.warm) for models in MODELS}
    taken = interleaved({f"{models} models": one.variant() for models, one in stages.items()}, scale.rounds)
    made = [
        Row(
            f"{models} models / 5 models",
            speed_ratio(taken, f"{models} models", "5 models"),
            "many_models" if models == 500 else None,
            cost(taken, f"{models} models"),
        )
        for models in MODELS[1:]
    ]
    false = sum(sum(one.opened().values()) for one in stages.values())
    made.append(Row("5, 50, 500 models: cases where nothing is planted", false, "false_findings"))
    return [*made, *_planted(stages[PLANTED_MODELS])]


def _planted(detecting: Detecting) -> list[Row]:
    """One more stretch of the same stage, now with a fault in every model."""
    before = detecting.signals()
    detecting.stream.fault = fault
    detecting.run(detecting.stream.take(PLANTED_MODELS * PLANTED_EVENTS))
    detecting.stream.fault = None
    expected = {(name_of(number), EXPECTED[number % len(EXPECTED)]) for number in range(PLANTED_MODELS)}
    found = detecting.signals() - before
    opened = detecting.opened()
    once = {(model, detector) for model, detector in found & expected if opened[model] == 1}
    others = sorted(found - expected)
    return [
        Row(f"planted faults found, of {PLANTED_MODELS}, one case each", len(once), "planted_found"),
        Row("findings beside the planted faults", len(others), "false_findings", str(others[:3]) if others else ""),
    ]


def fault(number: int, raw: bytes) -> bytes:
    """Break the event of model ``number`` in the way of its number; which events is decided by their content."""
    event: dict[str, Any] = json.loads(raw)
    some = int(event["event_id"][-2:], 16) < 77  # 30 %
    kind = EXPECTED[number % len(EXPECTED)]
    if kind == "missing_values" and some:
        event["features"][f"m{number}_age"] = None
    elif kind == "distribution_shift":
        event["features"][f"m{number}_amount"] += 1_000
    elif kind == "latency_shift":
        event["latency_ms"] *= 4
    elif kind == "bad_status" and some:
        event["status"] = {"code": "error"}
    elif kind == "error_rate" and "outcome" in event:
        event["outcome"]["value"] = "decline" if event["prediction"] == "approve" else "approve"
    return json.dumps(event, separators=(",", ":")).encode()
