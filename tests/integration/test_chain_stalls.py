"""Services of the chain stand still once amid their work: found, ended, started again, and nothing is lost."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from tests.benchmarks.stages import Stream
from tests.integration.chain import Chain, Service, chain_on
from tests.integration.test_chain import differences
from tests.integration.test_chain_faults import (
    CLEAN,
    DETECTOR,
    ENRICHER,
    FAILING,
    SMALL,
    TAGGER,
    WRITER,
    Story,
    _until,
    assert_equal,
    judged,
    state_of,
    tables_of,
    told,
)

from errata.contracts.topics import STAGES
from errata_services.cli.ledger import read_audit

pytestmark = [pytest.mark.servers, pytest.mark.whole]

MODELS = 4
STALLS = {DETECTOR: "commit", TAGGER: "paused", WRITER: "database"}
STALL_S = 4.5  # a twentieth of what services have
IDLE_S = 12.0  # of services that have nothing to do: told after half of it
NOISE_S = 4.0  # of a machine with other work: a look waits for the broker
SCRIPT = Path(__file__).with_name("stalling_service.py")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    stream = Stream(MODELS)
    lines = [line for _, line in _until(MODELS * (CLEAN + FAILING), told(stream, MODELS, MODELS * CLEAN))]
    tables = tables_of(stream)
    return lines, tables, *judged(tmp_path_factory.mktemp("story"), lines, tables)


@pytest.fixture
def four(tmp_path: Path, kafka_address: str, redis_url: str, postgres_database: str, story: Story) -> Iterator[Chain]:
    with chain_on(tmp_path, kafka_address, redis_url, postgres_database) as made:
        made.apply(*story[1])
        yield made


def start(four: Chain, stage: str, stall_s: float = STALL_S) -> Service:
    command = [sys.executable, str(SCRIPT), "supervise", STALLS[stage], str(four.folder), stage]
    return four._start(command, stage, "0", {"ERRATA_STALL_S": str(stall_s), "ERRATA_BATCH_SIZE": SMALL[stage]})


def test_a_stall_of_each_service_is_found_and_healed_and_nothing_is_lost(four: Chain, story: Story) -> None:
    lines, _, wanted, state = story
    services = {stage: start(four, stage) for stage in STALLS}
    four.start(ENRICHER)
    assert four.publish(lines) == len(lines)
    four.until_drained()
    for stage, service in services.items():
        told_of = [json.loads(line) for line in service.logged().splitlines() if line.startswith("{")]
        found = next(line for line in told_of if line["event"] == "stands still")
        ended = next(line for line in told_of if line["event"].startswith("stood still"))
        assert f"{stage} ended with 75: again in 1 s" in service.logged()
        assert ended["exit_code"] == 75
        assert found["stacks"]
        turned = STALLS[stage] == "paused"
        assert (found["loop_stands_s"] < STALL_S / 4) == turned, found
        begun_s = float((four.folder / f"{stage}.stalled").read_text())
        found_s, ended_s = (datetime.fromisoformat(line["time"]).timestamp() - begun_s for line in (found, ended))
        if turned:  # it stands still from the first record on that it does not get
            found_s, ended_s = found["stands_s"], ended["stands_s"]
        print(f"{stage} ({STALLS[stage]}): found after {found_s:.1f} s, ended after {ended_s:.1f} s")
        assert found_s <= STALL_S * 60 / 90 + NOISE_S
        assert ended_s <= STALL_S * 110 / 90 + NOISE_S
    assert_equal(four, wanted)
    assert not differences(state_of(four.transport), state)
    assert read_audit(four.transport)[0].faults == []


def test_without_the_watch_it_stands_still_for_good(four: Chain, story: Story) -> None:
    """Negative control; and the watch of the others lets be who has nothing to do."""
    service = start(four, TAGGER, stall_s=0)
    others = [four.start(stage, ERRATA_STALL_S=str(IDLE_S)) for stage in STAGES if stage != TAGGER]
    four.publish(story[0])
    four.until(lambda: (four.folder / f"{TAGGER}.stalled").exists(), "the tagger stands still")
    four.until(lambda: not four.unread(ENRICHER), "those before it have read all")
    time.sleep(max(2 * STALL_S, IDLE_S))  # how long nothing happens
    assert four.unread(TAGGER)
    assert "ended with" not in service.logged()
    assert [one.process.poll() for one in others] == [None] * 3
    assert all("stands still" not in one.logged() for one in others)
