"""Every query of every panel gives data on a real Prometheus that reads what the services expose."""

import json
import time
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any, get_args

import pytest
from tests.integration.chain_metrics import ROOT, Chain, ask, shipped_config
from tests.integration.conftest import PrometheusBinaries

from errata.contracts.topics import PREDICTIONS, STAGES, TRENDS_SERVICE
from errata.domain.ledger import FaultKind
from errata.runtime.telemetry import (
    DEPENDENCIES,
    KEEPER,
    METRICS,
    AbortReason,
    BatchReport,
    Beat,
    Dependency,
    KeeperTelemetry,
    RebalanceKind,
    consumed_topics,
    produced_topics,
)
from errata_services.dev import servers

pytestmark = pytest.mark.servers

DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
DATA_TIMEOUT_S = 60.0
VALUES = {"$__rate_interval": "4s", "$__interval": "1s", "$stage": ".*", "$model": ".*"}


def queries(path: Path) -> Iterator[tuple[str, str]]:
    """(panel's title, expression with values for its variables)."""
    for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"]
            for name, value in VALUES.items():
                expr = expr.replace(name, value)
            assert "$" not in expr, f"{panel['title']}: a variable that Grafana's users cannot set: {expr}"
            yield panel["title"], expr


def work(chain: Chain, stage: str) -> None:
    """What a process reports while it works: something of everything."""
    if stage == KEEPER:
        keep(chain.keeper)
        return
    telemetry = chain.telemetry[stage]
    telemetry.reading(500)
    telemetry.batch(
        BatchReport(
            dict.fromkeys(consumed_topics(stage), 500),
            processing_s=0.02,
            commit_s=0.01,
            produced=dict.fromkeys(produced_topics(stage), 20),
            dead={"schema": 1},
            dropped={"duplicate": 1},
            changelog_bytes=4096,
            newest_event_s=time.time() - 2,
        )
    )
    telemetry.aborted(get_args(AbortReason)[0])
    for topic in consumed_topics(stage):
        telemetry.rekeyed(topic, 1)
    telemetry.rebalanced(get_args(RebalanceKind)[0], 12)
    telemetry.paused(0)
    telemetry.lag(dict.fromkeys(consumed_topics(stage), 7))
    for dependency in get_args(Dependency):
        if dependency in DEPENDENCIES.get(stage, ()):
            telemetry.breaker(dependency, "closed")
    telemetry.restored(0.3)
    telemetry.store_failed("redis")
    telemetry.cached("hit", 10)
    telemetry.catalogue_written("postgresql", 0.01)
    telemetry.detected({("fraud", "confidence_shift", "window"): 1})
    telemetry.cases_opened({("fraud", "data"): 1})
    telemetry.cases_open({"data": 3})
    telemetry.deduplicated(1)
    telemetry.heartbeat(time.time() - 1)
    telemetry.evicted({"ttl": 1})
    telemetry.state_held(3_000, 10_000)
    telemetry.stalled(0)
    telemetry.poisoned(dict.fromkeys(consumed_topics(stage), 0))
    telemetry.enriched(1, 1, 1)
    telemetry.mistimed({"late": 1})
    telemetry.trends({("fraud", "high"): 1}, {("fraud", "confidence_shift"): 1})


def keep(telemetry: KeeperTelemetry) -> None:
    telemetry.leads(True)
    for kind in get_args(Beat):
        telemetry.beat(kind, PREDICTIONS, 12, time.time() - 1)
    telemetry.audited(dict.fromkeys(STAGES[:3], 5))
    telemetry.audited_to_the_end(time.time() - 1)
    for fault in get_args(FaultKind):
        telemetry.fault(fault, STAGES[0], PREDICTIONS, time.time() - 1)


def has_data(found: list[dict[str, Any]]) -> bool:
    return any(isfinite(float(series["value"][1])) for series in found)


def test_no_panel_is_empty(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    chain = Chain()
    chain.before_scrape = lambda stage: work(chain, stage)
    with (
        chain.exposed() as exporter,
        servers.prometheus(tmp_path / "prometheus", shipped_config(tmp_path, exporter)) as prometheus,
    ):
        wanted = [query for path in DASHBOARDS for query in queries(path)]
        assert len(wanted) > 30
        deadline_s = time.monotonic() + DATA_TIMEOUT_S
        empty = wanted
        while empty and time.monotonic() < deadline_s:
            time.sleep(0.2)
            empty = [query for query in empty if not has_data(ask(prometheus.url, query[1]))]
        assert empty == []
        for nothing in ('errata_events_lost_total{stage=~".*"}', "rate(errata_dead_letters_total[4s]) / 0 * 0"):
            assert not has_data(ask(prometheus.url, nothing))  # this test can fail

        stages = {series["metric"]["stage"] for series in ask(prometheus.url, 'up{job="errata"} == 1')}
        assert stages == {*STAGES, TRENDS_SERVICE, KEEPER}
        scraped = {series["metric"]["__name__"] for series in ask(prometheus.url, '{__name__=~"errata_.+"}')}
        assert {name for name in METRICS if METRICS[name].kind != "histogram"} <= scraped  # a name is what it is
