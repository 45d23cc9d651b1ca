"""The service trends without a broker: what it takes, refuses and publishes, and what it tells of itself."""

import ssl
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.trend_cases import START, case, recounted, story

from errata.adapters.aead import Aead
from errata.adapters.prometheus import PrometheusMeter
from errata.contracts import TaggedCase
from errata.contracts.cloudevents import heartbeat_event
from errata.contracts.heartbeats import Heartbeat
from errata.contracts.strict import instant, to_us
from errata.contracts.topics import STAGES, TAGGED, TOPICS, TRENDS, TRENDS_SERVICE
from errata.contracts.trends import Trend
from errata.domain.trends import Counts, Group, PartitionTrends, Taken, Window, summed
from errata.errors import Misconfigured, StateDamaged, Unavailable
from errata.ports import Record
from errata.runtime.dead_letters import dead_letter_id
from errata.runtime.health import Health
from errata.runtime.telemetry import StageTelemetry
from errata.settings import ServiceSettings
from errata_services import bootstrap, trends
from errata_services.cli.trends import Wanted, plain, wanted

PARTITION = 3


class Process:
    """The stage as its driver uses it, with all that it wrote."""

    def __init__(self, kind: type[trends.Trends] = trends.Trends) -> None:
        self.meter = PrometheusMeter()
        self.health = Health(stage=trends.NAME, instance="0", build="1")
        self.stage = kind(Aead.ephemeral(), StageTelemetry(self.meter, trends.NAME, version="1"), self.health)
        self.state: dict[bytes, bytes] = {}
        self.written: dict[bytes, bytes | None] = {}
        self.letters: list[dict[str, bytes]] = []
        self.end = 0
        self.restart()

    def restart(self) -> None:
        self.stage.restore({PARTITION: dict(self.state)})
        self.stage.assigned({PARTITION: self.end})

    def take(self, value: bytes | None, headers: tuple[tuple[str, bytes], ...] = (), offset: int | None = None) -> None:
        at = self.end if offset is None else offset
        for change in self.stage.take(Record(TAGGED, PARTITION, at, 0, b"k", value, headers)):
            assert change.partition == PARTITION
            if change.value is None:
                self.state.pop(change.key, None)
            else:
                self.state[change.key] = change.value
        self.end = max(self.end, at + 1)

    def publish(self) -> None:
        for one in self.stage.results():
            assert one.partition == PARTITION
            if one.topic == TRENDS:
                self.written[one.key or b""] = one.value
            else:
                self.letters.append(dict(one.headers))
        self.stage.committed({PARTITION: self.end})

    @property
    def trends(self) -> list[Trend]:
        return [Trend.model_validate_json(value) for value in self.written.values() if value is not None]

    def value(self, name: str, **labels: str) -> float:
        found = [
            sample.value
            for family in text_string_to_metric_families(self.meter.exposition()[1].decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found)


def told(cases: list[TaggedCase]) -> Process:
    process = Process()
    for one in cases:
        process.take(one.to_json())
    process.publish()
    return process


def test_what_is_published_is_the_count_of_the_topic() -> None:
    cases = story(10, 1)
    found = summed(told(cases).trends)
    assert {(instant(window.start_s * 1_000_000), *window.group): tuple(n) for window, n in found.items()} == recounted(
        cases
    )


def test_a_restart_between_state_and_publishing_publishes_what_was_missing() -> None:
    cases = story(10, 2)
    process = Process()
    for one in cases:
        process.take(one.to_json())
    process.restart()
    assert process.stage.position(PARTITION) == len(cases)
    process.publish()
    assert process.trends == []
    for offset, one in enumerate(cases):
        process.take(one.to_json(), offset=offset)
    process.publish()
    assert summed(process.trends) == summed(told(cases).trends)
    assert process.value("errata_trend_findings_total") == 0, "what was counted before is not told again"


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (b"{", (), "decode"),
        (None, (), "decode"),
        (b"{}", (), "schema"),
        (case("a", 1).to_json(), (("schema", b"tagged-case/2.0"),), "schema"),
    ],
)
def test_what_is_no_message_is_a_dead_letter_and_the_next_record_counts(
    value: bytes | None, headers: tuple[tuple[str, bytes], ...], reason: str
) -> None:
    process = Process()
    process.take(value, headers)
    process.take(case("a", 1).to_json())
    process.take(value, headers, offset=0)
    process.publish()
    assert [letter["errata.dlq.class"] for letter in process.letters] == [reason.encode()] * 2
    assert {letter["errata.dlq.id"] for letter in process.letters} == {
        dead_letter_id(trends.NAME, TAGGED, PARTITION, 0).encode()
    }, "it comes again, as the same letter"
    assert len(process.trends) == 6
    assert process.value("errata_dead_letters_total", reason=reason) == 2


def test_heartbeats_drills_and_backfills_are_passed_by() -> None:
    process = Process()
    beat = Heartbeat(heartbeat_id="b", time=instant(5_000_000), partition=PARTITION)
    process.take(beat.to_json(), heartbeat_event(beat, "tagger"))
    for purpose in ("drill", "backfill"):
        process.take(case(purpose, 1, purpose=purpose).to_json())
    process.publish()
    assert (process.trends, process.letters) == ([], [])
    assert process.stage.position(PARTITION) == 3
    assert process.value("errata_events_processed_total", outcome="filtered") == 3
    assert process.value("errata_heartbeat_timestamp_seconds") == 5


class Buggy(trends.Trends):
    error: type[Exception] = RuntimeError

    def _count(self, mine: PartitionTrends, content: object, record: Record) -> Taken:
        raise self.error("text that nobody may see")


class Broken(Buggy):
    error = OSError


def test_a_bug_is_a_dead_letter_with_its_kind_and_without_its_text() -> None:
    process = Process(Buggy)
    process.take(case("a", 1).to_json())
    process.publish()
    (letter,) = process.letters
    assert (letter["errata.dlq.class"], letter["errata.dlq.error"]) == (b"handler", b"RuntimeError")
    assert b"nobody" not in b"".join(letter.values())
    assert process.stage.position(PARTITION) == 1


def test_an_error_of_the_machine_passes_through_and_the_record_is_not_taken() -> None:
    process = Process(Broken)
    with pytest.raises(OSError, match="nobody"):
        process.take(case("a", 1).to_json())
    process.publish()
    assert (process.state, process.letters, process.stage.position(PARTITION)) == ({}, [], None)


def test_state_that_cannot_be_read_says_what_to_do() -> None:
    for bad in ({b'["what",3]': b"1"}, {b"{": b"1"}, {b'["pane",3,0]': b"[1]"}, {b'["case",3,"a"]': b"{}"}):
        with pytest.raises(StateDamaged, match="errata trends rebuild"):
            trends.Trends().restore({PARTITION: bad})


def test_metrics_count_a_case_once_whatever_its_tags() -> None:
    process = told([case("a", 1, tags=("p:q:r", "s:t:u"), counts={("error_rate", "x"): 4}, tenant="acme")])
    assert process.value("errata_trend_cases_opened_total", model="acme/fraud", severity="high") == 1
    assert process.value("errata_trend_findings_total", model="acme/fraud", detector="error_rate") == 4
    assert process.value("errata_trend_findings_total") == 4
    assert process.value("errata_events_consumed_total", topic=TAGGED) == 1


def test_it_is_ready_when_it_has_its_partitions() -> None:
    health = Health(stage=trends.NAME, instance="0", build="1")
    stage = trends.Trends(health=health)
    assert not health.pages["/readyz"]()[0]
    stage.assigned({})
    assert health.pages["/readyz"]()[0], "also without any"


def test_its_topics_are_in_the_registry() -> None:
    for name in (trends.STATE, TRENDS):
        assert (TOPICS[name].cleanup, TOPICS[name].partitions) == ("compact", TOPICS[TAGGED].partitions)
    assert TRENDS_SERVICE in TOPICS[TAGGED].consumers
    assert TRENDS_SERVICE not in STAGES


# The command.


def test_the_newest_windows_are_shown_and_only_those_asked_for() -> None:
    counted = summed(told([case("a", 1), case("b", 1, model="other", severity="low")]).trends)
    everything = Wanted(None, None, None, None, None, 100)
    assert len(wanted(counted, everything)) == 12
    starts = [window.start_s for window, _ in wanted(counted, everything)]
    assert starts == sorted(starts, reverse=True)
    other = wanted(counted, Wanted(None, "other", "error_rate", "a:b:c", "low", 2))
    assert [window.group.model for window, _ in other] == ["other", "other"]
    assert [window.start_s for window, _ in other] == [(at := to_us(START) // 1_000_000), at - 600]
    assert wanted(counted, Wanted("nobody", None, None, None, None, 6)) == []


def test_a_window_as_json() -> None:
    window = Window(to_us(START) // 1_000_000, Group("default", "fraud", "error_rate", "", "high"))
    assert plain((window, Counts(1, 2))) == {
        "window_start": "2026-02-04T00:00:00Z",
        "window_end": "2026-02-04T01:00:00Z",
        "tenant": "default",
        "model": "fraud",
        "detector": "error_rate",
        "tag": "",
        "severity": "high",
        "cases_opened": 1,
        "findings": 2,
    }


# The driver's settings.


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "faust" or name.endswith("faust_trends")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "faust", None)
    with pytest.raises(Misconfigured, match=r"install errata\[trends\]") as found:
        bootstrap.table_worker(trends.Trends(), ServiceSettings(), trends.GROUP, TAGGED, trends.STATE)
    assert found.value.exit_code == 78


def test_tls_and_sasl_are_those_of_the_other_clients(tmp_path: Path) -> None:
    from errata.adapters import faust_trends

    given = faust_trends.credentials_of
    assert given({"bootstrap.servers": "h:9092"}) is None
    plain_text = given(
        {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "scram-sha-256", "sasl.username": "u"}
        | {"sasl.password": "p"}
    )
    assert (plain_text.username, plain_text.password, plain_text.mechanism.value, plain_text.ssl_context) == (
        "u",
        "p",
        "SCRAM-SHA-256",
        None,
    )
    over_tls = given({"security.protocol": "sasl_ssl", "sasl.username": "u", "sasl.password": "p"})
    assert over_tls.protocol.value == "SASL_SSL"
    assert over_tls.ssl_context.verify_mode == ssl.CERT_REQUIRED
    assert over_tls.ssl_context.check_hostname
    lax = given({"security.protocol": "ssl", "ssl.endpoint.identification.algorithm": "none"})
    assert (lax.context.check_hostname, lax.context.verify_mode) == (False, ssl.CERT_REQUIRED)
    with pytest.raises(Misconfigured, match="ERRATA_KAFKA__SASL_MECHANISM: trends takes PLAIN"):
        given({"security.protocol": "sasl_ssl", "sasl.mechanism": "OAUTHBEARER"})
    with pytest.raises(Misconfigured, match="ERRATA_KAFKA__SSL_"):
        given({"security.protocol": "ssl", "ssl.ca.location": str(tmp_path / "nothing")})


def test_the_end_of_a_member_says_what_its_process_does() -> None:
    from errata.adapters import faust_trends

    damaged, bug = StateDamaged("trends_unreadable: x"), ValueError("text")
    assert faust_trends.told(damaged) is damaged
    assert faust_trends.told(bug) is bug, "a bug is a bug: it is not started again"
    for passing in (OSError("secret"), MemoryError(), TimeoutError(), None):
        error = faust_trends.told(passing)
        assert isinstance(error, Unavailable)
        assert error.exit_code == 75
        assert "secret" not in str(error)
