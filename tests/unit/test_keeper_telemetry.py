"""The keeper's metrics: closed label sets begun at 0, as those of the stages, and the times of faults."""

from prometheus_client.parser import text_string_to_metric_families

from errata.adapters.prometheus import PrometheusMeter
from errata.contracts.topics import ANOMALIES, PREDICTIONS, STAGES
from errata.runtime.telemetry import KEEPER, METRICS, OTHER, KeeperTelemetry, label_values

DETECTOR, ENRICHER, TAGGER, WRITER = STAGES


class Process:
    def __init__(self) -> None:
        self.meter = PrometheusMeter()
        self.told = KeeperTelemetry(self.meter, version="1", clock=lambda: 1_000.0)

    def series(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        text = self.meter.exposition()[1].decode()
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return {(one.name, frozenset(one.labels.items())): one.value for one in samples}

    def value(self, name: str, **labels: str) -> float:
        return self.series()[name, frozenset(labels.items())]


def test_every_series_of_the_keeper_stands_at_0_from_the_start_and_none_of_a_stage() -> None:
    series = Process().series()
    for metric in METRICS.values():
        mine = {labels: n for (name, labels), n in series.items() if name == metric.name}
        if KEEPER not in metric.stages:
            assert not mine, metric.name
        elif not metric.name.endswith("_info"):
            assert set(mine.values()) == {0.0}, metric.name
            for label in metric.labels:
                known = {*(label_values(metric.name, label, KEEPER) or ()), OTHER}
                assert {dict(labels)[label] for labels in mine} == known
    assert label_values("errata_ledger_gaps_total", "stage", KEEPER) == (DETECTOR, ENRICHER, TAGGER)


def test_faults_are_counted_where_they_are_and_the_newest_gives_its_time() -> None:
    process = Process()
    for time_s in (500.0, 900.0, 700.0):
        process.told.fault("gap", ENRICHER, ANOMALIES, time_s)
    process.told.fault("imbalance", "nobody", "nothing", 1.0)
    place = {"stage": ENRICHER, "topic": ANOMALIES}
    assert process.value("errata_ledger_gaps_total", **place) == 3
    assert process.value("errata_ledger_overlaps_total", **place) == 0
    assert process.value("errata_ledger_fault_timestamp_seconds", kind="gap", **place) == 900
    assert process.value("errata_ledger_imbalance_total", stage=OTHER, topic=OTHER) == 1


def test_beats_audits_and_who_leads() -> None:
    process = Process()
    process.told.leads(True)
    process.told.beat("tick", PREDICTIONS, 12, 990.0)
    process.told.beat("heartbeat", PREDICTIONS, 12, 995.0)
    process.told.audited({DETECTOR: 7, "somebody": 1})
    process.told.audited_to_the_end(999.0)
    assert process.value("errata_keeper_leader", stage=KEEPER) == 1
    assert process.value("errata_events_produced_total", stage=KEEPER, topic=PREDICTIONS) == 24
    assert process.value("errata_keeper_written_timestamp_seconds", stage=KEEPER, kind="heartbeat") == 995
    assert process.value("errata_ledger_receipts_total", stage=DETECTOR) == 7
    assert process.value("errata_ledger_receipts_total", stage=OTHER) == 1
    assert process.value("errata_ledger_audited_timestamp_seconds", stage=KEEPER) == 999
    process.told.leads(False)
    assert process.value("errata_keeper_leader", stage=KEEPER) == 0
