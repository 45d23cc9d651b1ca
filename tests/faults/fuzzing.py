"""Hostile inputs by the hundred thousand: each is an event or a dead letter, once, and nothing crashes."""

from collections.abc import Sequence

from tests.faults import fuzz
from tests.faults.rig import Rig, Row

from errata.ports import Record, StepResult
from errata_services.anomaly_detector import AnomalyDetector

SEED = 1
CONTROL_INPUTS = 1_000


class Swallows(AnomalyDetector):
    """Loses one of a batch's refusals."""

    def step(self, batch: Sequence[Record], prepared: None) -> StepResult:
        result = super().step(batch, prepared)
        del result.dead[3:4]
        return result


def rows(rig: Rig) -> list[Row]:
    rig.progress(f"fuzzing: {rig.scale.fuzz_inputs:,} inputs")
    found = fuzz.run(rig.scale.fuzz_inputs, seed=SEED)
    spread = ", ".join(f"{name} {n:,}" for name, n in sorted(found.dispositions.items()))
    rig.progress("fuzzing: control, a stage that loses a refusal")
    broken = fuzz.run(CONTROL_INPUTS, seed=SEED, stage=Swallows)
    return [
        Row("fuzzed inputs", found.inputs, None, f"{spread}; {found.kills} kills, {found.anomalies:,} findings"),
        Row("fuzzed inputs that are not an event or a dead letter, once", len(found.faults), "fuzz_wrong",
            "; ".join(found.faults[:3])),
        Row("control: a stage that loses a refusal", len(broken.faults), "control", "; ".join(broken.faults[:2])),
    ]  # fmt: skip
