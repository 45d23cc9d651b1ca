"""Alert rules: checked, tested, and one of them from a dead letter to the webhook of whoever is on call."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Condition
from typing import Any

import pytest
import yaml
from tests.integration.chain_metrics import PROMETHEUS, ROOT, Chain, ask, served, shipped_config
from tests.integration.conftest import PrometheusBinaries, missing

from errata.runtime.telemetry import BatchReport
from errata_services.dev import servers

pytestmark = pytest.mark.servers

RULES = PROMETHEUS / "rules" / "errata.yaml"
TESTS = sorted((PROMETHEUS / "tests").glob("*.yaml"))
ALERTMANAGER = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
ARRIVAL_TIMEOUT_S = 60.0
NEVER = "0001-01-01T00:00:00Z"

Alert = dict[str, Any]


def promtool(binaries: PrometheusBinaries, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [binaries.promtool, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )


def test_rules_and_configuration_are_valid(prometheus_binaries: PrometheusBinaries) -> None:
    for words in (("check", "rules", RULES), ("check", "config", PROMETHEUS / "prometheus.yml")):
        done = promtool(prometheus_binaries, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_rules_do_what_their_tests_say(prometheus_binaries: PrometheusBinaries, file: Path) -> None:
    done = promtool(prometheus_binaries, "test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "was", "becomes"),
    [
        ("services", 'changes(process_start_time_seconds{job="errata"}[30m]) > 2', "vector(0) > 1"),
        ("services", 'up{job="errata"} == 0 or absent', "absent"),
        ("services", "or absent(up{job=\"errata\"})", ""),
        ("ledger", "(errata_ledger_gaps_total) > 0)", "(errata_ledger_gaps_total) > 1)"),
        ("ledger", "(errata_ledger_imbalance_total) > 0)", "(errata_ledger_imbalance_total) > 1)"),
        ("ledger", "(errata_ledger_dispositions_total) > 0)", "(errata_ledger_dispositions_total) > 1)"),
        ("ledger", "max by (stage) (errata_heartbeat_time", "min by (stage) (errata_heartbeat_time"),
        ("ledger", "(sum(errata_keeper_leader) or vector(0))", "sum(errata_keeper_leader)"),
        ("ledger", "time() - max(errata_ledger_audited_timestamp_seconds) > 300", "vector(0) > 1"),
        ("ledger", "unless on () (sum(rate(errata_ledger_receipts_total[5m])) > 1000)", ""),
        ("ledger_days", "< 86400", "< 864000"),
        ("services", "vector(1)", "vector(1) > 1"),
        ("flow", "(stage:errata_consumer_lag_records:sum > 100)", "(stage:errata_consumer_lag_records:sum > 10)"),
        ("flow", "unless (stage:errata_events_processed:rate5m > 0)", ""),
        ("flow", "and (stage:errata_consumer_lag_records:sum > 5000)", ""),
        ("flow", "ratio_rate5m > 300", "ratio_rate5m > 3"),
        ("models", "(errata_detections_total unless errata_detections_total offset 1h)\n            or", ""),
        ("models", "unless (model:errata_detections:increase1h <= 4 *", "unless (vector(1) <= 0 *"),
        ("models", "(model:errata_detections:increase1h >= 20)", "model:errata_detections:increase1h"),
        ("models", '{detector="confidence_shift"}', ""),
        ("dead_letters", "ratio_rate5m > 0.05", "ratio_rate5m > 0.5"),
        ("dead_letters", "and (stage:errata_events_consumed:rate5m > 0.2)", ""),
        ("dead_letters", "(errata_dead_letters_total[15m])) > 0", "(errata_dead_letters_total[15m])) >= 0"),
        ("dead_letters", "(errata_breaker_open) > 0", "(errata_breaker_open) >= 0"),
        ("dead_letters", "(errata_breaker_open) > 0", "(errata_breaker_open) > 1"),
    ],
)  # fmt: skip
def test_a_rule_that_is_wrong_fails_its_tests(
    prometheus_binaries: PrometheusBinaries, tmp_path: Path, file: str, was: str, becomes: str
) -> None:
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    rules = tmp_path / "prometheus" / "rules" / "errata.yaml"
    text = rules.read_text(encoding="utf-8")
    assert was in text
    rules.write_text(text.replace(was, becomes), encoding="utf-8")
    assert promtool(prometheus_binaries, "check", "rules", rules).returncode == 0
    done = promtool(prometheus_binaries, "test", "rules", tmp_path / "prometheus" / "tests" / f"{file}.yaml")
    assert done.returncode == 1, done.stdout


def test_alertmanager_takes_its_configuration_and_pages_reach_the_pager() -> None:
    amtool = shutil.which("amtool")
    if amtool is None:
        missing("not installed: amtool (Debian: apt-get install prometheus-alertmanager)")
        return

    def run(*words: str) -> str:
        done = subprocess.run([amtool, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    assert "SUCCESS" in run("check-config", str(ALERTMANAGER))
    for labels, receiver in {
        "severity=page": "pages",
        "severity=ticket": "tickets",
        "alertname=Watchdog": "watchdog",
        "severity=unheard-of": "tickets",
    }.items():
        assert run("config", "routes", "test", f"--config.file={ALERTMANAGER}", labels) == receiver


class Webhook:
    """Keeps the alerts that were sent to it, by the path of the receiver."""

    def __init__(self) -> None:
        self.alerts: list[tuple[str, Alert]] = []
        self._arrived = Condition()

    @contextmanager
    def listening(self) -> Iterator[str]:
        hook = self

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert message["version"] == "4"
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()
                with hook._arrived:
                    hook.alerts += [(self.path, alert) for alert in message["alerts"]]
                    hook._arrived.notify_all()

            def log_message(self, format: str, *args: object) -> None: ...

        with served(Receiver) as address:
            yield address

    def wait_for(self, name: str, more: Callable[[Alert], bool] = lambda alert: True) -> tuple[str, Alert]:
        """The first such alert and the path it came by."""

        def found() -> tuple[str, Alert] | None:
            return next((one for one in self.alerts if one[1]["labels"]["alertname"] == name and more(one[1])), None)

        with self._arrived:
            assert self._arrived.wait_for(lambda: found() is not None, ARRIVAL_TIMEOUT_S), (name, self.alerts)
            arrived = found()
        assert arrived is not None
        return arrived


def shipped_alertmanager(folder: Path, webhook: str) -> Path:
    """``deploy/alertmanager/alertmanager.yml`` with our webhook, and without its pauses."""
    config = yaml.safe_load(ALERTMANAGER.read_text(encoding="utf-8"))
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": "0s", "group_interval": "1s"}
    for receiver in config["receivers"]:
        for hook in receiver["webhook_configs"]:
            hook["url"] = hook["url"].replace("alert-receiver:9095", webhook)
    path = folder / "alertmanager.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def batch(dead: int) -> BatchReport:
    return BatchReport({"errata.enriched.v1": 100}, 0.1, 0.01, {}, {"schema": dead} if dead else {}, {})


def test_a_dead_letter_reaches_the_webhook_with_its_runbook(
    prometheus_binaries: PrometheusBinaries, tmp_path: Path
) -> None:
    """The rules as they are shipped; nothing but addresses and pauses is changed."""
    chain, hook = Chain(), Webhook()
    chain.telemetry["tagger"].batch(batch(dead=0))
    with (
        hook.listening() as webhook,
        chain.exposed() as exporter,
        servers.alertmanager(tmp_path / "alertmanager", shipped_alertmanager(tmp_path, webhook)) as alertmanager,
        servers.prometheus(
            tmp_path / "prometheus", shipped_config(tmp_path, exporter, alertmanager.address)
        ) as prometheus,
    ):
        path, _ = hook.wait_for("Watchdog")
        assert path == "/watchdog"
        wait_until_scraped(prometheus.url)
        assert {alert["labels"]["alertname"] for _, alert in hook.alerts} == {"Watchdog"}  # all is well so far

        chain.telemetry["tagger"].batch(batch(dead=3))
        path, alert = hook.wait_for("ErrataDeadLetters")
    assert path == "/tickets"
    assert alert["status"] == "firing"
    assert alert["endsAt"] == NEVER
    assert alert["labels"] == {
        "alertname": "ErrataDeadLetters",
        "job": "errata",
        "reason": "schema",
        "severity": "ticket",
        "stage": "tagger",
    }
    assert alert["annotations"]["summary"] == "The tagger could not take some records (schema)."
    runbook = alert["annotations"]["runbook_url"]
    assert runbook == "deploy/runbooks/ErrataDeadLetters.md"
    assert (ROOT / runbook).is_file()
    assert alert["annotations"]["dashboard_url"].startswith("http://localhost:3000/d/errata-chain?viewPanel=")
    assert {alert["labels"]["alertname"] for _, alert in hook.alerts} == {"Watchdog", "ErrataDeadLetters"}


def wait_until_scraped(url: str) -> None:
    """Until there are enough samples of every stage that a rise would show."""
    deadline_s = time.monotonic() + ARRIVAL_TIMEOUT_S
    while len(ask(url, "rate(errata_dead_letters_total{reason='schema'}[1m])")) < 4:
        assert time.monotonic() < deadline_s, "Prometheus does not see all stages"
        time.sleep(0.1)
