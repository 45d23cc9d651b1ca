"""Writes the dashboards of ``deploy/grafana/dashboards/``: Grafana's classic JSON, which versions 10 to 13 read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.common import DataSourceRef

DASHBOARDS = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "dashboards"
CHAIN_UID = "errata-chain"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

STAGE = 'stage=~"$stage"'
MODEL = 'model=~"$model"'
WIDTH = 24  # columns of Grafana's grid
STAT_HEIGHT, GRAPH_HEIGHT = 4, 8
FIRST_ROW = 101  # numbers of rows, beyond those of panels


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One panel. Alert rules link to panels by ``number``: a panel keeps its number for good, wherever it stands."""

    number: int
    title: str
    meaning: str
    queries: tuple[Query, ...]
    unit: str
    kind: Literal["graph", "stat"] = "graph"
    width: int = 8
    alarm_at: float | None = None  # a stat turns red from here on
    good_is_high: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    charts: tuple[Chart, ...]


def rate(metric: str, labels: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str = "stage") -> str:
    return f"histogram_quantile({q:g}, sum by ({by}, le) (rate({metric}_bucket{{{STAGE}}}[$__rate_interval])))"


def quantiles(metric: str, by: str = "stage") -> tuple[Query, Query]:
    name = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return Query(quantile(0.5, metric, by), f"{name} p50"), Query(quantile(0.99, metric, by), f"{name} p99")


CHAIN: Sequence[Row] = (
    Row(
        "In short",
        (
            Chart(1, "Processes that answer", "Of all processes that Prometheus is told of. Below 100 %, one is down.",
                  (Query(f'avg by (stage) (up{{job="errata", {STAGE}}})', "{{stage}}"),), "percentunit", "stat",
                  alarm_at=1, good_is_high=True),
            Chart(2, "Starts in 30 minutes", "How often processes were started again; more than 2 is an alert.",
                  (Query(f'sum by (stage) (changes(process_start_time_seconds{{job="errata", {STAGE}}}[30m]))',
                         "{{stage}}"),), "short", "stat", alarm_at=3),
            Chart(3, "Since the last batch", "Time since a batch was committed; grows while there is nothing to do.",
                  (Query(f"time() - max by (stage) (errata_last_event_processed_timestamp_seconds{{{STAGE}}} > 0)",
                         "{{stage}}"),), "s", "stat"),
        ),
    ),
    Row(
        "The way of the events",
        (
            Chart(4, "Processed", "Records of committed batches by what became of them.",
                  (Query(rate("errata_events_processed_total", STAGE, "stage, outcome"), "{{stage}} {{outcome}}"),),
                  "cps"),
            Chart(5, "Lag", "Records between where a stage is and the end of its input. Should come back to nearly 0.",
                  (Query(f"sum by (stage, topic) (errata_consumer_lag_records{{{STAGE}}})", "{{stage}} {{topic}}"),),
                  "short"),
            Chart(6, "Dead letters", "Records that a stage could not take, by class.",
                  (Query(rate("errata_dead_letters_total", STAGE, "stage, reason"), "{{stage}} {{reason}}"),), "cps"),
            Chart(7, "Consumed", "Records taken in, by topic.",
                  (Query(rate("errata_events_consumed_total", STAGE, "stage, topic"), "{{stage}} {{topic}}"),), "cps"),
            Chart(8, "Produced", "Records written by committed transactions, by topic.",
                  (Query(rate("errata_events_produced_total", STAGE, "stage, topic"), "{{stage}} {{topic}}"),), "cps"),
            Chart(9, "Refused, sent on, mistimed", "Refused, by reason; sent on to their partition; late or ahead.",
                  (Query(rate("errata_events_rejected_total", STAGE, "stage, reason"), "{{stage}} {{reason}}"),
                   Query(rate("errata_events_rekeyed_total", STAGE, "stage, topic"), "{{stage}} re-keyed {{topic}}"),
                   Query(rate("errata_events_mistimed_total", STAGE, "stage, reason"), "{{stage}} {{reason}}")),
                  "cps"),
        ),
    ),
    Row(
        "Time",
        (
            Chart(10, "Age of events when done", "From an event's own time to its commit: the delay of the chain.",
                  quantiles("errata_event_age_seconds"), "s"),
            Chart(40, "Heartbeats", "Since the newest one that a stage has passed on; and their way to the catalogue.",
                  (Query(f"time() - (max by (stage) (errata_heartbeat_timestamp_seconds{{{STAGE}}}) > 0)",
                         "{{stage}} newest"),
                   *quantiles("errata_heartbeat_delay_seconds")), "s"),
            Chart(11, "Batch: read and judged", "From reading a batch to the end of its step.",
                  quantiles("errata_event_processing_seconds"), "s"),
            Chart(12, "Batch: written and committed", "From the end of the step to the commit.",
                  quantiles("errata_commit_seconds"), "s"),
            Chart(13, "Batch: size", "Records of a batch. It grows by itself under load, up to 5,000.",
                  quantiles("errata_batch_size_records"), "short"),
            Chart(14, "Taken back", "Batches that were taken back and read again, by why.",
                  (Query(rate("errata_transactions_aborted_total", STAGE, "stage, reason"), "{{stage}} {{reason}}"),),
                  "cps"),
            Chart(15, "Partitions", "What a stage has, what waits for a dependency, stands still, or was stopped.",
                  (Query(f"sum by (stage) (errata_assigned_partitions{{{STAGE}}})", "{{stage}} assigned"),
                   Query(f"sum by (stage) (errata_paused_partitions{{{STAGE}}})", "{{stage}} paused"),
                   Query(f"sum by (stage) (errata_stalled_partitions{{{STAGE}}})", "{{stage}} stalled"),
                   Query(f"sum by (stage, topic) (errata_breaker_open{{{STAGE}}})", "{{stage}} {{topic}} stopped"),
                   Query(f"sum by (stage, kind) (increase(errata_rebalances_total{{{STAGE}}}[$__rate_interval]))",
                         "{{stage}} {{kind}}")), "short"),
        ),
    ),
    Row(
        "Stores and state",
        (
            Chart(16, "Breakers", "0 closed, 1 half open, 2 open: the dependency does not answer, the stage waits.",
                  (Query(f"max by (stage, dependency) (errata_breaker_state{{{STAGE}}})", "{{stage}} {{dependency}}"),),
                  "short"),
            Chart(17, "Errors of stores", "Calls that failed, and the part of look-ups that the cache answered.",
                  (Query(rate("errata_store_errors_total", STAGE, "stage, store"), "{{stage}} {{store}}"),
                   Query(rate("errata_cache_operations_total", STAGE, "stage, result"), "{{stage}} cache {{result}}")),
                  "cps"),
            Chart(34, "Context that lacks", "Cases that went on without context, and were filled in when it was back.",
                  (Query(rate("errata_enrichments_partial_total", STAGE, "stage"), "without context"),
                   Query(rate("errata_enrichments_filled_total", STAGE, "stage"), "filled in"),
                   Query(f"sum by (stage) (errata_enrichments_open{{{STAGE}}})", "to be filled in")), "short"),
            Chart(18, "Catalogue: write", "Time of one transaction of the catalogue.",
                  quantiles("errata_catalog_write_seconds", "stage, store"), "s"),
            Chart(19, "State", "Bytes written to changelogs.",
                  (Query(rate("errata_state_changelog_bytes_total", STAGE, "stage"), "{{stage}}"),), "Bps"),
            Chart(50, "State: how full", "Of the fullest partition against its limit; models whose state was let go.",
                  (Query(f"max by (stage) (errata_state_bytes{{{STAGE}}}"
                         f" / (errata_state_limit_bytes{{{STAGE}}} > 0))", "{{stage}} of the limit"),
                   Query(f"sum by (stage, reason) (increase(errata_state_evicted_total{{{STAGE}}}[$__rate_interval]))",
                         "{{stage}} given up: {{reason}}")), "short"),
            Chart(22, "State: restore", "Time to read back the state of one partition, after a start or a rebalance.",
                  (Query(f"sum by (stage) (errata_state_restore_seconds_sum{{{STAGE}}})"
                         f" / sum by (stage) (errata_state_restore_seconds_count{{{STAGE}}} > 0)",
                         "{{stage}} mean since start"),), "s"),
            Chart(23, "Memory", "Of each process, as the system counts it.",
                  (Query(f'sum by (stage) (process_resident_memory_bytes{{job="errata", {STAGE}}})',
                         "{{stage}}"),), "bytes"),
        ),
    ),
    Row(
        "Ledger",
        (
            Chart(41, "Faults of the ledger", "In all receipts kept: lost, doubled, out of balance. Must be 0.",
                  tuple(Query(f"max by (stage, topic) (errata_ledger_{name}_total{{{STAGE}}}) > 0",
                              f"{{{{stage}}}} {{{{topic}}}} {name}")
                        for name in ("gaps", "overlaps", "imbalance", "dispositions")), "short", alarm_at=1),
            Chart(42, "Keeper", "Time since ticks and heartbeats were written and the ledger was audited; who leads.",
                  (Query('time() - (max by (kind) (errata_keeper_written_timestamp_seconds) > 0)', "{{kind}}"),
                   Query("time() - (max(errata_ledger_audited_timestamp_seconds) > 0)", "audit"),
                   Query("sum(errata_keeper_leader)", "leaders")), "s"),
            Chart(43, "Receipts", "Transactions that the keeper has audited, and when the newest at fault was written.",
                  (Query(rate("errata_ledger_receipts_total", STAGE, "stage"), "{{stage}}"),
                   Query("time() - (max by (kind) (errata_ledger_fault_timestamp_seconds) > 0)",
                         "seconds since the newest {{kind}}")), "short"),
        ),
    ),
    Row(
        "Models",
        (
            Chart(20, "Findings in an hour", "Judgements of detectors, before they are put together to cases.",
                  (Query(f"sum by (model, detector) (increase(errata_detections_total{{{MODEL}}}[1h])) > 0",
                         "{{model}} {{detector}}"),), "short"),
            Chart(21, "Cases opened in an hour", "New cases, by the class of their root cause.",
                  (Query(f"sum by (model, root_class) (increase(errata_cases_opened_total{{{MODEL}}}[1h])) > 0",
                         "{{model}} {{root_class}}"),), "short"),
            Chart(24, "Open cases", "What is open in the catalogue now; and records that only said again what it had.",
                  (Query("max by (root_class) (errata_cases_open)", "{{root_class}}"),
                   Query("sum(increase(errata_case_dedup_total[1h]))", "said again, in an hour")), "short"),
            Chart(90, "Counted into windows, in an hour", "What trends counted: cases opened, findings of cases.",
                  (Query(f"sum by (model, severity) (increase(errata_trend_cases_opened_total{{{MODEL}}}[1h])) > 0",
                         "{{model}} {{severity}}"),
                   Query(f"sum by (model, detector) (increase(errata_trend_findings_total{{{MODEL}}}[1h])) > 0",
                         "{{model}} {{detector}}")), "short"),
        ),
    ),
    Row(
        "What runs",
        (
            Chart(25, "CPU", "Cores in use by each process.",
                  (Query(f'sum by (stage) (rate(process_cpu_seconds_total{{job="errata", {STAGE}}}[$__rate_interval]))',
                         "{{stage}}"),), "short"),
            Chart(26, "In hand", "Records of the batch that is being worked on.",
                  (Query(f"sum by (stage) (errata_inflight_events{{{STAGE}}})", "{{stage}}"),), "short"),
            Chart(27, "Versions and configurations", "Two lines of one stage: an update is on its way, or stuck.",
                  (Query(f"count by (stage, version, revision) (errata_build_info{{{STAGE}}})",
                         "{{stage}} {{version}} {{revision}}"),
                   Query(f"count by (stage, config_hash) (errata_config_info{{{STAGE}}})",
                         "{{stage}} configuration {{config_hash}}")), "short"),
        ),
    ),
)  # fmt: skip


def documents() -> dict[str, str]:
    """Every dashboard file by its name."""
    return {f"{CHAIN_UID}.json": JSONEncoder(sort_keys=True, indent=2).encode(chain().build()) + "\n"}


def chain() -> builders.Dashboard:
    board = (
        builders.Dashboard("errata: the chain")
        .uid(CHAIN_UID)
        .description("From prediction events to cases: processes, flow, times, stores, models.")
        .tags(["errata"])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .editable()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_variable("stage", "Stage", "label_values(errata_build_info, stage)"))
        .with_variable(_variable("model", "Model", "label_values(errata_detections_total, model)"))
    )
    y = 0
    for number, row in enumerate(CHAIN, FIRST_ROW):
        place = dashboard.GridPos(h=1, w=WIDTH, x=0, y=y)
        board = board.with_row(builders.Row(row.title).id(number).grid_pos(place))
        y += 1
        x = 0
        for chart in row.charts:
            height = STAT_HEIGHT if chart.kind == "stat" else GRAPH_HEIGHT
            if x + chart.width > WIDTH:
                x, y = 0, y + height
            board = board.with_panel(_panel(chart).grid_pos(dashboard.GridPos(h=height, w=chart.width, x=x, y=y)))
            x += chart.width
        y += STAT_HEIGHT if row.charts[-1].kind == "stat" else GRAPH_HEIGHT
    return board


def _variable(name: str, label: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _panel(chart: Chart) -> stat.Panel | timeseries.Panel:
    panel = _stat(chart) if chart.kind == "stat" else _graph(chart)
    for index, query in enumerate(chart.queries):
        target = prometheus.Dataquery().ref_id(chr(ord("A") + index)).datasource(SOURCE).expr(query.expr)
        panel = panel.with_target(target.legend_format(query.legend).range())
    return panel.id(chart.number).title(chart.title).description(chart.meaning).datasource(SOURCE).unit(chart.unit)


def _stat(chart: Chart) -> stat.Panel:
    good, bad = ("red", "green") if chart.good_is_high else ("green", "red")
    steps = [dashboard.Threshold(value=None, color=good)]
    if chart.alarm_at is not None:
        steps.append(dashboard.Threshold(value=chart.alarm_at, color=bad))
    thresholds = builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)
    reduce = common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    return stat.Panel().thresholds(thresholds).reduce_options(reduce).graph_mode(common.BigValueGraphMode.AREA)


def _graph(chart: Chart) -> timeseries.Panel:
    legend = (
        common_builders.VizLegendOptions()
        .show_legend(True)
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .calcs([])
    )
    tooltip = (
        common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    )
    return timeseries.Panel().legend(legend).tooltip(tooltip).fill_opacity(8).show_points(common.VisibilityMode.NEVER)


def main() -> None:
    wanted = documents()
    DASHBOARDS.mkdir(parents=True, exist_ok=True)
    for stale in DASHBOARDS.glob("*.json"):
        if stale.name not in wanted:
            stale.unlink()
            print(f"removed {stale.name}")
    for name, text in wanted.items():
        path = DASHBOARDS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")


if __name__ == "__main__":
    main()
