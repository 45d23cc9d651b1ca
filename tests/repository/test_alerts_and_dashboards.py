"""Alerts, their runbooks, their tests and the dashboard fit each other and the code, without any server."""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from tests.repository.test_documented import COMMANDS, unknown_commands, words_of_code

from errata.contracts.topics import STAGES
from errata.runtime.telemetry import DETECTORS, METRICS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RUNBOOKS = {path.stem: path.read_text(encoding="utf-8") for path in (DEPLOY / "runbooks").glob("*.md")}
DASHBOARDS = {path.name: path.read_text(encoding="utf-8") for path in (DEPLOY / "grafana" / "dashboards").iterdir()}
SECTIONS = ["What you see", "What it means", "What to do", "When to escalate"]
SEVERITIES = {"page", "ticket", "info"}
METRIC = re.compile(r"\berrata_[a-z0-9_]+")
SUFFIX = re.compile(r"_(bucket|sum|count)$")
RECORDED = re.compile(r"^[a-z_]+:errata_[a-z_]+:[a-z0-9_]+$")

Rule = Mapping[str, Any]


def rules() -> list[Rule]:
    document = yaml.safe_load((DEPLOY / "prometheus" / "rules" / "errata.yaml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in rules() if "record" in rule}


def unknown_metrics(expr: str) -> set[str]:
    """Metrics of errata that an expression reads and no process exposes; recorded ones begin with their level."""
    for name in re.findall(r"\b[a-z_]+:errata_[a-z_]+:[a-z0-9_]+\b", expr):
        if name not in RECORDS:
            return {name}
        expr = expr.replace(name, "")
    found = set(METRIC.findall(expr))
    return {name for name in found if name not in METRICS and SUFFIX.sub("", name) not in HISTOGRAMS}


HISTOGRAMS = {name for name, metric in METRICS.items() if metric.kind == "histogram"}


def test_alerts_say_who_what_and_where_to() -> None:
    assert len(ALERTS) >= 8
    for name, rule in ALERTS.items():
        assert re.fullmatch(r"([A-Z][a-z]+)+", name)
        assert rule["labels"]["severity"] in SEVERITIES, name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url", "dashboard_url"}, name
        assert rule["annotations"]["runbook_url"].endswith(f"/{name}.md"), name
        assert "/d/errata-chain" in rule["annotations"]["dashboard_url"], name
        if name != "Watchdog":
            assert "for" in rule or "keep_firing_for" in rule or "increase(" in rule["expr"], name


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_recorded_series_are_level_metric_operations(name: str) -> None:
    assert RECORDED.fullmatch(name)
    assert "_total" not in name


def test_rules_read_only_what_is_exposed() -> None:
    for rule in rules():
        assert unknown_metrics(rule["expr"]) == set(), rule
    detectors = {name for rule in rules() for name in re.findall(r'detector="(\w+)"', rule["expr"])}
    assert detectors
    assert detectors <= set(DETECTORS)
    assert unknown_metrics("rate(errata_events_lost_total[5m]) + errata_commit_seconds_bucket") == {
        "errata_events_lost_total"
    }
    assert unknown_metrics("stage:errata_nothing:sum > 1") == {"stage:errata_nothing:sum"}


def test_each_alert_is_seen_firing_and_silent_by_a_test() -> None:
    fires, silent = set[str](), set[str]()
    for path in (DEPLOY / "prometheus" / "tests").glob("*.yaml"):
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for check in test["alert_rule_test"]:
                (fires if check["exp_alerts"] else silent).add(check["alertname"])
    assert fires == set(ALERTS)
    assert silent == set(ALERTS) - {"Watchdog"}  # which is never silent


def test_each_alert_has_its_runbook_and_each_runbook_its_alert() -> None:
    assert set(RUNBOOKS) == set(ALERTS)
    for name, text in RUNBOOKS.items():
        assert text.startswith(f"# {name}\n"), name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS, name
        assert ALERTS[name]["labels"]["severity"] in text.split("## ")[0], name


def test_commands_of_runbooks_can_be_typed() -> None:
    for name, text in RUNBOOKS.items():
        assert unknown_commands(text, COMMANDS) == set(), name
    assert any("errata " in code for text in RUNBOOKS.values() for code in words_of_code(text))
    assert unknown_commands("`errata mend everything`", COMMANDS) == {"errata mend everything"}


def test_what_runbooks_name_is_there() -> None:
    for name, text in RUNBOOKS.items():
        assert unknown_metrics(" ".join(words_of_code(text))) == set(), name
        for alert in re.findall(r"\]\((\w+)\.md\)", text):
            assert alert in RUNBOOKS, f"{name} leads to {alert}"
        for stage in re.findall(r"\berrata\.([a-z-]+)\.(?:dlq|state)\b", text):
            assert stage in STAGES, f"{name} names the stage {stage}"
        for path in re.findall(r"\bdeploy/[\w./-]+\w", text):
            assert (ROOT / path).exists(), f"{name} names {path}"


# The dashboard.


def panels(text: str) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(text)["panels"] if panel["type"] != "row"]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_dashboards", ROOT / "tools" / "make_dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The library's warning advises the newer model, which Grafana reads from version 12.4 on only.
@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")
def test_dashboards_are_as_generated() -> None:
    assert generator().documents() == DASHBOARDS


def test_dashboards_have_ids_of_their_own() -> None:
    documents = [json.loads(text) for text in DASHBOARDS.values()]
    uids = [document["uid"] for document in documents]
    assert len(uids) == len(set(uids))
    assert "errata-chain" in uids
    for document in documents:
        numbers = [panel["id"] for panel in document["panels"]]
        assert len(numbers) == len(set(numbers))


def test_dashboards_ask_the_chosen_source_over_a_fitting_interval() -> None:
    for text in DASHBOARDS.values():
        document = json.loads(text)
        variables = {variable["name"]: variable for variable in document["templating"]["list"]}
        assert variables["datasource"]["type"] == "datasource"
        for panel in panels(text):
            assert panel["description"], panel["title"]
            for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
                assert source == {"type": "prometheus", "uid": "${datasource}"}
            for target in panel["targets"]:
                assert unknown_metrics(target["expr"]) == set()
                assert set(re.findall(r"\$(?!__)(\w+)", target["expr"])) <= set(variables)
                assert set(re.findall(r"\[([^]]+)\]", target["expr"])) <= {"$__rate_interval", "30m", "1h"}


def test_panels_stand_beside_each_other() -> None:
    for text in DASHBOARDS.values():
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(text)["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert max(x for x, _ in cells) < 24
            assert not cells & taken, panel["title"]
            taken |= cells


def test_alerts_lead_to_panels_that_are_there() -> None:
    numbers = {panel["id"] for panel in panels(DASHBOARDS["errata-chain.json"])}
    linked = {
        name: re.findall(r"viewPanel=(\d+)", rule["annotations"]["dashboard_url"]) for name, rule in ALERTS.items()
    }
    assert {int(number) for found in linked.values() for number in found} <= numbers
    assert [name for name, found in linked.items() if not found] == ["Watchdog"]


def test_every_metric_can_be_seen() -> None:
    shown = {SUFFIX.sub("", name) if name not in METRICS else name
             for text in DASHBOARDS.values() for name in METRIC.findall(text)}  # fmt: skip
    assert set(METRICS) - shown == set()


def test_grafana_finds_its_dashboards_and_its_source() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))
    provider = yaml.safe_load((provisioning / "dashboards" / "errata.yaml").read_text(encoding="utf-8"))
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert source["apiVersion"] == provider["apiVersion"] == 1
    assert source["datasources"][0]["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    assert f"./grafana/dashboards:{provider['providers'][0]['options']['path']}:ro" in compose
