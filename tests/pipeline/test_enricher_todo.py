"""Context that was not to be had is filled in later: the case ends whole, once, and never older than it was."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.enricher_bench import CONTRACT, FOUND_US, KEY, Bench, change, event, failure
from tests.pipeline.test_enricher import Down
from tests.unit.anomaly_builder import CASE_ID, ref

from errata.adapters.context_memory import MemoryContextStore
from errata.adapters.memory import MemoryTransport
from errata.adapters.sql import SqlCatalogue
from errata.contracts import Anomaly, EnrichedAnomaly, FailureCase, Receipt, TaggedCase
from errata.contracts.topics import ANOMALIES, CHANGES, ENRICH_TODO, ENRICHED, LEDGER, PREDICTIONS, TAGGED, TOPICS
from errata.domain.catalogue.queries import CaseQuery
from errata.domain.ledger import Flow, audit
from errata.errors import Unavailable
from errata.ports import ContextStore, Offsets, Record, TopicPartition
from errata.runtime import crash_points
from errata.runtime.crash_points import CrashPoint, CrashPoints
from errata.runtime.worker import Worker
from errata_services.catalog_writer import CatalogWriterWorker
from errata_services.enricher import FILL_AGAIN_S, FILLED_AT_ONCE, Enricher
from errata_services.tagger import Tagger


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Forgetful(Enricher):
    """Negative control: notes nothing."""

    def _note(self, *_: object) -> None:
        pass


def found(seq: int, case_id: str = CASE_ID, **fields: Any) -> Anomaly:
    plain = failure(**fields)
    episode = plain.episode.model_copy(update={"seq": seq, "id": case_id, "state": "open" if seq == 1 else "update"})
    return plain.model_copy(update={"episode": episode})


class Chain:
    """Enricher, tagger and writer on one transport, with a context store that can be down."""

    def __init__(
        self,
        folder: Path,
        store: ContextStore | None = None,
        transport: MemoryTransport | None = None,
        stage: type[Enricher] = Enricher,
        crash: CrashPoints | None = None,
    ) -> None:
        self.clock = Clock()
        self.store: Any = store or Down()
        self.bench = Bench(store=self.store, transport=transport)
        self.transport = self.bench.transport
        contract_of: Callable[[str, str], object] = lambda *_: CONTRACT  # noqa: E731
        self.enricher = stage(self.store, self.transport, contract_of, KEY, clock_s=self.clock)  # type: ignore[arg-type]
        self.catalogue = SqlCatalogue.of_file(folder / "catalogue.sqlite")
        self.catalogue.migrate()
        self.workers: list[Worker | CatalogWriterWorker] = [
            Worker(self.enricher, self.transport, instance="0", build="test", cipher=None, batch_size=7, crash=crash),
            Worker(Tagger(), self.transport, instance="0", build="test", cipher=None),
            CatalogWriterWorker(self.transport, self.catalogue, "0"),
        ]

    def finds(self, *seqs: int, case_ids: Sequence[str] = (CASE_ID,)) -> None:
        """The detector tells of episodes."""
        for seq in seqs:
            anomalies = [found(seq, one) for one in case_ids]
            self.bench.publish(ANOMALIES, *(one.to_json() for one in anomalies), at_us=FOUND_US)

    def run(self) -> None:
        """Until nothing moves: what is filled in counts no records."""
        self.clock.now_s += FILL_AGAIN_S
        ends: list[Offsets] = []
        while len(ends) < 2 or ends[-1] != ends[-2]:
            for worker in self.workers:
                while worker.run_once():
                    pass
            self.enricher.keep_up()
            self.clock.now_s += 1
            places = [(topic, p) for topic in (ENRICHED, TAGGED, ENRICH_TODO) for p in range(12)]
            ends.append(self.transport.end_offsets(places))

    def back(self) -> None:
        self.store.up = True
        self.run()

    @property
    def case(self) -> FailureCase:
        (found,) = self.catalogue.cases(CaseQuery())
        return found

    def put_out(self) -> list[tuple[int, str | None]]:
        """Of each enriched message its seq and what it lacks."""
        records = [one for p in range(12) for one in self.transport.read_from((ENRICHED, p))]
        messages = [EnrichedAnomaly.model_validate_json(one.value or b"") for one in records]
        return [(one.episode.seq, one.enrichment.reason if one.enrichment else None) for one in messages]

    def notes(self) -> dict[bytes, bool]:
        """Whether a case is noted."""
        records = [one for p in range(12) for one in self.transport.read_from((ENRICH_TODO, p))]
        return {one.key or b"": one.value is not None for one in records}


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    made = Chain(tmp_path)
    yield made
    made.catalogue.close()


def told(case: FailureCase) -> list[str]:
    return [entry.missing or entry.name for entry in case.context]


def test_what_lacked_is_on_the_case_when_the_store_is_back_and_the_mark_is_gone(chain: Chain) -> None:
    chain.bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
    chain.finds(1)
    chain.run()
    before = chain.case
    assert told(before) == ["unavailable"]
    assert before.enrichment is not None
    assert (before.enrichment.status, before.enrichment.reason) == ("partial", "changes unavailable")
    assert (chain.enricher.partial, chain.enricher.filled, chain.enricher.lacking) == (1, 0, 1)
    chain.back()
    after = chain.case
    assert told(after) == ["deploy"]
    assert after.enrichment is None
    assert (after.episode, after.count, after.opened_at) == (before.episode, before.count, before.opened_at)
    revisions = chain.catalogue.revisions(after.case_id)
    assert [one.reason.rpartition(", ")[2] for one in revisions] == ["seq 1", "filled in"]
    assert (chain.enricher.partial, chain.enricher.filled, chain.enricher.lacking) == (1, 1, 0)
    chain.run()
    assert chain.put_out() == [(1, "changes unavailable"), (1, None)], "once"
    assert chain.notes() == {CASE_ID.encode(): False}


def test_without_the_note_the_mark_stays(tmp_path: Path) -> None:
    """Negative control."""
    chain = Chain(tmp_path, stage=Forgetful)
    chain.bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
    chain.finds(1)
    chain.run()
    chain.back()
    assert told(chain.case) == ["unavailable"]
    assert chain.case.enrichment is not None
    chain.catalogue.close()


def test_the_case_ends_as_if_the_store_had_never_been_down(tmp_path: Path) -> None:
    ends = []
    for down in (True, False):
        folder = tmp_path / str(down)
        folder.mkdir()
        chain = Chain(folder)
        chain.store.up = not down
        chain.bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
        chain.finds(1, 2)
        chain.run()
        chain.back()
        ends.append(chain.case.model_copy(update={"rev": 0}).to_json())
        chain.catalogue.close()
    assert ends[0] == ends[1]


def test_a_newer_seq_that_lacks_nothing_takes_the_note_back_and_nothing_older_comes_after_it(chain: Chain) -> None:
    chain.bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
    chain.finds(1, 2)
    chain.run()
    assert chain.enricher.lacking == 1
    chain.store.up = True
    chain.finds(3)
    chain.workers[0].run_once()
    assert chain.enricher.lacking == 0
    chain.run()
    assert chain.put_out() == [(1, "changes unavailable"), (2, "changes unavailable"), (3, None)]
    assert (chain.case.episode.seq, told(chain.case)) == (3, ["deploy"])


def test_what_comes_too_late_changes_nothing(chain: Chain) -> None:
    """The message that lacks something arrives behind the one that does not, and both behind a newer one."""
    whole, gap = (
        TaggedCase.model_validate({**dict(one), "enrichment": mark})
        for one, mark in ((_tagged(chain, 2), None), (_tagged(chain, 2), {"status": "partial", "reason": "r"}))
    )
    newer = _tagged(chain, 3)
    chain.bench.publish(TAGGED, *(one.to_json() for one in (whole, gap)))
    chain.workers[2].run_once()
    assert (chain.case.enrichment, chain.case.rev) == (None, 1)
    chain.bench.publish(TAGGED, *(one.to_json() for one in (newer, gap, whole)))
    chain.workers[2].run_once()
    assert (chain.case.episode.seq, chain.case.rev) == (3, 2)


def _tagged(chain: Chain, seq: int) -> TaggedCase:
    """A case as the tagger puts it out."""
    bench = Bench(store=MemoryContextStore())
    record = bench.step(found(seq)).outputs[0]
    step = Tagger().step([Record(ENRICHED, 0, 0, 0, record.key, record.value)], None)
    return TaggedCase.model_validate_json(step.outputs[0].value or b"")


def test_another_member_goes_on_with_what_is_noted(tmp_path: Path) -> None:
    first = Chain(tmp_path)
    first.bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
    first.finds(1)
    first.run()
    first.catalogue.close()
    second = Chain(tmp_path, first.store, first.transport)
    second.run()
    assert second.enricher.lacking == 1
    second.back()
    assert told(second.case) == ["deploy"]
    second.catalogue.close()


@pytest.mark.parametrize("point", crash_points.POINTS)
def test_a_kill_while_it_is_filled_in_fills_it_in_once(tmp_path: Path, point: str) -> None:
    chain = Chain(tmp_path)
    chain.bench.publish(CHANGES, change(20), at_us=FOUND_US - 1)
    chain.finds(1, case_ids=["a", "b"])
    chain.run()
    chain.catalogue.close()
    chain.store.up = True
    dying = Chain(tmp_path, chain.store, chain.transport, crash=CrashPoints.raising("enricher", point))
    with pytest.raises(CrashPoint):
        dying.run()
    dying.catalogue.close()
    last = Chain(tmp_path, chain.store, chain.transport)
    last.run()
    assert sorted(lacks is None for _, lacks in last.put_out()) == [False, False, True, True]
    assert [told(case) for case in last.catalogue.cases(CaseQuery())] == [["deploy"]] * 2
    assert set(last.notes().values()) == {False}
    last.catalogue.close()


def test_a_member_that_the_group_replaced_fills_nothing_in(chain: Chain) -> None:
    chain.finds(1, case_ids=[f"case-{at}" for at in range(20)])
    chain.run()
    chain.store.up = True
    chain.enricher.keep_up()
    other = Enricher(chain.store, chain.transport, lambda *_: CONTRACT, KEY, clock_s=chain.clock)
    joined = Worker(other, chain.transport, instance="1", build="test", cipher=None)  # no poll has told the first yet
    chain.clock.now_s += FILL_AGAIN_S
    assert chain.enricher.due()
    chain.enricher.rollback()
    chain.clock.now_s += FILL_AGAIN_S
    chain.workers[0].run_once()
    assert [lacks for _, lacks in chain.put_out()].count(None) == 0
    chain.workers.append(joined)
    chain.run()
    chain.run()
    assert [lacks for _, lacks in chain.put_out()].count(None) == 20
    assert chain.enricher.lacking == other.lacking == 0


def test_a_filling_in_is_a_transaction_like_any_other_and_the_accounts_are_right(chain: Chain) -> None:
    chain.finds(1, case_ids=[f"case-{at}" for at in range(20)])
    chain.run()
    chain.back()
    places = [(LEDGER, p) for p in range(chain.transport.partitions(LEDGER))]
    receipts = [
        Receipt.model_validate_json(one.value or b"") for place in places for one in chain.transport.read_from(place)
    ]
    audited = audit(receipts, [Flow("enricher", ENRICHED, "tagger")])
    assert audited.faults == []
    assert {one.stage: one.out for one in audited.accounts}["enricher"] == 40
    (fill,) = [one for one in receipts if not one.inputs]
    assert (fill.stage, fill.out) == ("enricher", 20)


@pytest.mark.whole
def test_many_are_filled_in_some_at_a_time(chain: Chain) -> None:
    cases = [f"case-{at:04}" for at in range(2 * FILLED_AT_ONCE + 10)]
    chain.finds(1, case_ids=cases)
    chain.run()
    assert chain.enricher.lacking == len(cases)
    chain.back()
    assert chain.enricher.lacking == 0
    assert sorted(lacks is None for _, lacks in chain.put_out()) == [False] * len(cases) + [True] * len(cases)


def test_while_the_store_is_down_nothing_is_put_out_again_and_little_is_asked(chain: Chain) -> None:
    chain.finds(1)
    chain.run()
    asked = []

    def between(*_: object) -> None:
        asked.append(1)
        raise Unavailable("the context store does not answer")

    chain.store.between = between
    for _ in range(100):
        chain.clock.now_s += 0.25
        chain.enricher.keep_up()
        for worker in chain.workers:
            worker.run_once()
    assert len(asked) <= 100 * 0.25 / FILL_AGAIN_S + 1
    assert chain.put_out() == [(1, "changes unavailable")]


class NoRows(MemoryTransport):
    """A log whose single records cannot be read for now."""

    up = False

    def read_at(self, partition: TopicPartition, offsets: Sequence[int]) -> list[Record | None]:
        if not self.up:
            raise Unavailable("the brokers do not answer")
        return super().read_at(partition, offsets)


def test_rows_that_could_not_be_read_are_filled_in_too_and_rows_that_are_gone_are_not_waited_for(
    tmp_path: Path,
) -> None:
    transport = NoRows(TOPICS)
    chain = Chain(tmp_path, transport=transport)
    chain.store.up = True
    chain.bench.publish(PREDICTIONS, event("e-0"))
    anomaly = found(1, exemplars=[ref(0, "e-0"), ref(99, "gone")])
    chain.bench.publish(ANOMALIES, anomaly.to_json(), at_us=FOUND_US)
    chain.run()
    assert chain.case.enrichment is not None
    assert chain.case.enrichment.reason == "rows unavailable"
    transport.up = True
    chain.run()
    assert chain.case.enrichment is None
    assert [row.missing for row in chain.case.rows] == [None, "out_of_retention"]
    chain.catalogue.close()
