"""A storm beside calm: one of five models fails on every event."""

import re
from collections.abc import Mapping

from tests.benchmarks.measure import Row, Scale, cost, interleaved, speed_ratio
from tests.benchmarks.stages import Detecting, Fault, Stream, name_of

FAILING = 0
_AMOUNT = re.compile(rb'"m0_amount":-?[0-9.]+')


def error_status(number: int, raw: bytes) -> bytes:
    return raw.replace(b',"prediction":', b',"status":{"code":"error"},"prediction":', 1) if number == FAILING else raw


def wrong_type(number: int, raw: bytes) -> bytes:
    return _AMOUNT.sub(b'"m0_amount":"many"', raw) if number == FAILING else raw


STORMS: Mapping[str, tuple[Fault, str]] = {
    "an error status": (error_status, "bad_status"),
    "a feature of the wrong type": (wrong_type, "contract_violation"),
}


def rows(scale: Scale) -> list[Row]:
    stages = {"calm": Detecting(Stream(5), warm=scale.warm)}
    for name, (fault, _) in STORMS.items():
        stages[name] = Detecting(Stream(5), warm=scale.warm)
        stages[name].stream.fault = fault
    taken = interleaved({name: one.variant() for name, one in stages.items()}, scale.rounds)
    made = [
        Row(f"storm / calm: {name} on every event", speed_ratio(taken, name, "calm"), "storm", cost(taken, name))
        for name in STORMS
    ]
    return [*made, Row("storm: cases and findings that are not its own", _astray(stages), "false_findings")]


def _astray(stages: Mapping[str, Detecting]) -> int:
    """How far the cases are from one for each storm and none for calm, and findings of other detectors."""
    wrong = sum(stages["calm"].opened().values())
    for name, (_, detector) in STORMS.items():
        opened = stages[name].opened()
        wrong += abs(opened.pop(name_of(FAILING), 0) - 1) + sum(opened.values())
        wrong += len(stages[name].signals() ^ {(name_of(FAILING), detector)})
    return wrong
