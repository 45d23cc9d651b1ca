"""The exposition of every stage passes promtool's lint, and a planted fault does not."""

import subprocess
from dataclasses import replace

import pytest
from tests.integration.conftest import PrometheusBinaries

from errata.adapters.prometheus import PrometheusMeter
from errata.contracts.topics import STAGES
from errata.runtime.telemetry import METRICS, StageTelemetry

pytestmark = pytest.mark.servers


def lint(promtool: str, exposition: bytes) -> tuple[int, str]:
    done = subprocess.run(
        [promtool, "check", "metrics"], input=exposition, capture_output=True, timeout=30, check=False
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def metered(stages: tuple[str, ...]) -> PrometheusMeter:
    meter = PrometheusMeter()
    for stage in stages:
        told = StageTelemetry(meter, stage, version="1.0", config_hash="cafe")
        told.known_models(["fraud", "acme/loans"])
    return meter


@pytest.mark.parametrize("stages", [*((stage,) for stage in STAGES), STAGES], ids=lambda stages: "+".join(stages))
def test_the_exposition_is_clean(prometheus_binaries: PrometheusBinaries, stages: tuple[str, ...]) -> None:
    code, found = lint(prometheus_binaries.promtool, metered(stages).exposition()[1])
    assert (code, found) == (0, "")


def test_a_planted_fault_is_found(prometheus_binaries: PrometheusBinaries) -> None:
    meter = metered(STAGES[:1])
    meter.instrument(replace(METRICS["errata_inflight_events"], name="errata_planted_milliseconds"), ["x"])
    code, found = lint(prometheus_binaries.promtool, meter.exposition()[1])
    assert code != 0
    assert "errata_planted_milliseconds" in found
