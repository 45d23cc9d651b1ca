"""What a chain made of its input, against a sequential run over the same records: lost, doubled, wrong.

The detector's oracle reads the topics' own records, offsets and record times with them, one partition after the other,
in one process and in batches of another size. So state and findings are compared by their bytes. What follows is
judged from the oracle's findings by a chain in one process, down to the cases.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tests.integration.chain import REDACTION_KEY, Chain
from tests.integration.test_chain import differences, timeless
from tests.pipeline.case_builder import blank_catalogue
from tests.pipeline.chain_builder import apply_tables, chain

from errata.adapters.aead import Aead
from errata.adapters.context_memory import MemoryContextStore
from errata.adapters.decode_msgspec import LineRouter, MsgspecDecoder, plain_json
from errata.adapters.memory import MemoryTransport
from errata.adapters.sql import SqlCatalogue
from errata.contracts import Anomaly, Contract, FailureCase, Reference, TaggedCase
from errata.contracts.topics import (
    ANOMALIES,
    OUTCOMES,
    PARTITIONS,
    PREDICTIONS,
    STAGES,
    TAGGED,
    TOPICS,
    dead_letter_topic,
    state_topic,
)
from errata.domain.catalogue.queries import MAX_LIMIT, CaseQuery
from errata.domain.diagnosis.context import UNAVAILABLE
from errata.ports import Outgoing, Record, TopicPartition
from errata.runtime.changelog import TABLE_KEY, entries_of, read_records
from errata.runtime.dead_letters import read_dead_letter
from errata_services.anomaly_detector import AnomalyDetector
from errata_services.bootstrap import CATALOGUE_FILE, Parts
from errata_services.cli.ledger import read_audit

DETECTOR = STAGES[0]
BATCH = 3_000  # of the oracle: no size that a service of ours has
SHOWN = 3
READ_S = 3_600.0  # of a partition, which is judged while it is read

Tables = Sequence[Contract | Reference]
Place = tuple[str, int, int]


@dataclass
class Judgement:
    """What is wrong. ``lost`` and ``doubled`` count records: inputs, findings, dead letters and cases."""

    events: int = 0
    anomalies: int = 0
    dead: int = 0
    cases: int = 0
    entries: int = 0
    transactions: int = 0
    lost: int = 0
    doubled: int = 0
    state: int = 0
    wrong: int = 0
    marked: int = 0
    balanced: bool = True
    faults: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        return not self.faults

    @property
    def size(self) -> int:
        """All that is wrong, in records."""
        return self.lost + self.doubled + self.wrong + self.state

    def note(self, what: str, *, lost: int = 0, doubled: int = 0, state: int = 0, wrong: int = 0) -> None:
        if lost or doubled or state or wrong:
            self.lost, self.doubled = self.lost + lost, self.doubled + doubled
            self.state, self.wrong = self.state + state, self.wrong + wrong
            self.faults.append(what)

    @property
    def said(self) -> str:
        """All faults in one line."""
        more = len(self.faults) - 2 * SHOWN
        shown = "; ".join(self.faults[: 2 * SHOWN])
        return f"{shown}; and {more} more" if more > 0 else shown or "nothing is wrong"

    @property
    def held(self) -> str:
        more = f", {self.marked:,} times context was away and said so" if self.marked else ""
        more += "" if self.balanced else ", flows between stages not judged"
        return (
            f"{self.events:,} events, {self.anomalies:,} findings, {self.cases:,} cases, {self.dead:,} dead letters, "
            f"{self.entries:,} entries of state, {self.transactions:,} transactions{more}"
        )


class _Rows(MemoryTransport):
    """A log in memory whose predictions lie elsewhere."""

    rows: Mapping[Place, Record]

    def read_at(self, partition: TopicPartition, offsets: Sequence[int]) -> list[Record | None]:
        return [self.rows.get((*partition, offset)) for offset in offsets]


@dataclass
class Oracle:
    """What one detector makes of all records of Kafka's topics, partition by partition."""

    tables: Tables
    batch: int = BATCH
    state: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    outputs: list[Outgoing] = field(default_factory=list)
    dead: set[Place] = field(default_factory=set)
    dropped: "Counter[str]" = field(default_factory=Counter)
    events: int = 0

    def run(self, partitions: Iterable[tuple[int, Iterable[Record]]]) -> "Oracle":
        transport = MemoryTransport(TOPICS)
        apply_tables(transport, *self.tables)
        stage = AnomalyDetector(transport, MsgspecDecoder(REDACTION_KEY), rekeys=True, plain=plain_json)
        for number, records in partitions:
            stage.restore(number, {})
            for batch in _cut(records, self.batch):
                self._take(stage, batch)
            stage.revoke(number)
        return self

    def _take(self, stage: AnomalyDetector, batch: list[Record]) -> None:
        stage.prepare(batch)
        result = stage.step(batch, None)
        stage.commit()
        self.events += len(batch)
        self.outputs += result.outputs
        self.dead |= {(one.record.topic, one.record.partition, one.record.offset) for one in result.dead}
        self.dropped.update(result.dropped)
        for change in result.changes:
            if change.value is None:
                self.state.pop((change.partition, change.key), None)
            else:
                self.state[change.partition, change.key] = change.value


def judge(
    four: Chain, tables: Tables, folder: Path, *, published: int | None = None, context: bool = True
) -> Judgement:
    """Compare a drained chain with the oracle. ``published``: how many input records there must be at least.

    Without ``context`` cases are compared by their ids and counts: what was known around them may be missing.
    """
    found = Judgement()
    oracle = Oracle(tables).run((number, _inputs(four, number)) for number in range(PARTITIONS))
    found.events = oracle.events
    if published is not None:
        found.note(f"{published - oracle.events:,} published events lost", lost=max(0, published - oracle.events))
    _judge_receipts(found, four, oracle)
    _judge_findings(found, four.records(ANOMALIES), oracle.outputs)
    _judge_dead(found, four, oracle)
    _judge_state(found, state_entries(four), oracle.state)
    _judge_cases(found, four, oracle, tables, folder, context)
    return found


def _inputs(four: Chain, number: int) -> Iterator[Record]:
    assert not any(True for _ in four.transport.read_from((OUTCOMES, number))), "the story has predictions only"
    return four.transport.read_from((PREDICTIONS, number), timeout_s=READ_S)


def _cut(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    source = iter(records)
    while batch := list(islice(source, size)):
        yield batch


def _judge_receipts(found: Judgement, four: Chain, oracle: Oracle) -> None:
    books, found.balanced = read_audit(four.transport)
    found.transactions = sum(one.receipts for one in books.accounts)
    for fault in books.faults:
        n = abs(fault.records)
        lost = n if fault.kind == "gap" or (fault.kind == "imbalance" and fault.records > 0) else 0
        doubled = n if fault.kind == "overlap" or (fault.kind == "imbalance" and fault.records < 0) else 0
        what = f"ledger: {fault.kind} of {n:,} records at {fault.stage}"
        found.note(what, lost=lost, doubled=doubled, wrong=0 if lost or doubled else n)
    accounts = {one.stage: one for one in books.accounts}
    if DETECTOR not in accounts:
        found.note("ledger: no receipt of the detector", lost=oracle.events)
        return
    one = accounts[DETECTOR]
    _note_count(found, "events delivered", one.delivered, oracle.events)
    _note_count(found, "records dropped and counted", one.dropped, oracle.dropped.total())
    _note_count(found, "dead letters in receipts", one.dlq, len(oracle.dead))


def _note_count(found: Judgement, what: str, seen: int, wanted: int) -> None:
    found.note(f"{what}: {seen:,}, not {wanted:,}", lost=max(0, wanted - seen), doubled=max(0, seen - wanted))


def _judge_findings(found: Judgement, records: Sequence[Record], outputs: Sequence[Outgoing]) -> None:
    found.anomalies = len(records)
    _judge_multiset(
        found,
        "findings",
        Counter(record.value or b"" for record in records),
        Counter(output.value or b"" for output in outputs),
    )
    seen, wanted = _by_key((one.key, one.value) for one in records), _by_key((one.key, one.value) for one in outputs)
    disordered = [key for key, values in wanted.items() if key in seen and _once(seen[key]) != values]
    found.note(f"{len(disordered):,} episodes are not as in the oracle, or in another order", wrong=len(disordered))


def _by_key(pairs: Iterable[tuple[bytes | None, bytes | None]]) -> dict[bytes, list[bytes]]:
    made: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for key, value in pairs:
        made[key or b""].append(value or b"")
    return made


def _once(values: list[bytes]) -> list[bytes]:
    return list(dict.fromkeys(values))


def _judge_multiset(found: Judgement, what: str, seen: "Counter[Any]", wanted: "Counter[Any]") -> None:
    lost = (wanted - seen).total()
    doubled = sum(n - max(1, wanted[one]) for one, n in seen.items() if one in wanted and n > wanted[one])
    strange = sum(n for one, n in seen.items() if one not in wanted)
    found.note(f"{what}: {lost:,} lost of {wanted.total():,}", lost=lost)
    found.note(f"{what}: {doubled:,} doubled", doubled=doubled)
    found.note(f"{what}: {strange:,} that the oracle has not", wrong=strange)


def _judge_dead(found: Judgement, four: Chain, oracle: Oracle) -> None:
    letters = [read_dead_letter(record) for stage in STAGES[:3] for record in four.records(dead_letter_topic(stage))]
    found.dead = len(letters)
    seen = Counter((letter.topic, letter.partition, letter.offset) for letter in letters)
    _judge_multiset(found, "dead letters", seen, Counter(oracle.dead))


def state_entries(four: Chain) -> dict[tuple[int, bytes], bytes]:
    """The detector's state by its changelog."""
    found: dict[tuple[int, bytes], bytes] = {}
    for number in range(PARTITIONS):
        records, _ = read_records(four.transport, state_topic(DETECTOR), number)
        found |= {(number, key): value for key, value in entries_of(records).items()}
    return found


def _judge_state(
    found: Judgement, seen: Mapping[tuple[int, bytes], bytes], wanted: Mapping[tuple[int, bytes], bytes]
) -> None:
    """By bytes; but at which offset a contract was first used is the first of a batch, however that was cut."""
    found.entries = len(seen)
    keys = {key for key in seen.keys() | wanted.keys() if key[1] != TABLE_KEY}
    differing = sorted(key for key in keys if seen.get(key) != wanted.get(key))
    shown = ", ".join(f"{number} {key.decode(errors='replace')}" for number, key in differing[:SHOWN])
    found.note(f"state: {len(differing):,} of {len(keys):,} entries differ ({shown})", state=len(differing))


def _judge_cases(found: Judgement, four: Chain, oracle: Oracle, tables: Tables, folder: Path, context: bool) -> None:
    names = sorted({table.model for table in tables})
    catalogue = four.catalogue()
    try:
        seen = {one.case_id: one for one in _cases(catalogue, names)}
    finally:
        catalogue.close()
    wanted = {one.case_id: one for one in _oracle_cases(four, oracle, tables, folder, names)}
    found.cases = len(seen)
    found.note(f"cases: {len(wanted.keys() - seen.keys()):,} lost", lost=len(wanted.keys() - seen.keys()))
    found.note(f"cases: {len(seen.keys() - wanted.keys()):,} too many", wrong=len(seen.keys() - wanted.keys()))
    partial = _partial(four)
    wrong = [
        line
        for key in sorted(seen.keys() & wanted.keys())
        for line in _case(found, seen[key], wanted[key], context, partial[key])
    ]
    found.note(f"cases: {len(wrong):,} differences, such as {wrong[:1]}", wrong=len(wrong))


def _partial(four: Chain) -> Counter[str]:
    """How often each case went on without context, which said so."""
    read = [TaggedCase.model_validate_json(record.value or b"") for record in four.records(TAGGED) if record.key]
    return Counter(one.episode.id for one in read if one.enrichment)


def _case(found: Judgement, seen: FailureCase, wanted: FailureCase, context: bool, partial: int) -> list[str]:
    """Where two cases differ. Context that a store did not give in time is no error: the case says so itself, and once
    it is filled in the case has a revision more."""
    if not context:
        return differences([seen.case_id, seen.count], [wanted.case_id, wanted.count])
    one, other = timeless(seen), timeless(wanted)
    away = [entry for entry in one["context"] if entry.get("missing") == UNAVAILABLE]
    if away:
        found.marked += len(away)
        del one["context"], other["context"]
    if 0 < one["rev"] - other["rev"] <= partial:
        found.marked += one["rev"] - other["rev"]
        del one["rev"], other["rev"]
    return differences(one, other)


def _cases(catalogue: SqlCatalogue, names: Iterable[str]) -> list[FailureCase]:
    return [case for name in names for case in catalogue.cases(CaseQuery(model=name, limit=MAX_LIMIT))]


def _oracle_cases(four: Chain, oracle: Oracle, tables: Tables, folder: Path, names: Iterable[str]) -> list[FailureCase]:
    """The cases of a chain in one process that is given the oracle's findings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CATALOGUE_FILE).write_bytes(blank_catalogue())
    catalogue = SqlCatalogue.of_file(folder / CATALOGUE_FILE)
    transport = _Rows(TOPICS)
    transport.rows = _rows(four, oracle.outputs)
    apply_tables(transport, *tables)
    decoder = MsgspecDecoder(REDACTION_KEY)
    cipher, context = Aead(REDACTION_KEY), MemoryContextStore()
    parts = Parts(transport, catalogue, cipher, REDACTION_KEY, decoder, plain_json, LineRouter(), context)
    try:
        embedded = chain(parts, BATCH)
        producer = transport.producer("oracle")
        for batch in _cut_outputs(oracle.outputs, 500):
            producer.begin()
            for output in batch:
                producer.produce(output)
            producer.commit()
            embedded.drain()
        return _cases(catalogue, names)
    finally:
        catalogue.close()
        transport.close()


def _cut_outputs(outputs: Sequence[Outgoing], size: int) -> Iterator[Sequence[Outgoing]]:
    for at in range(0, len(outputs), size):
        yield outputs[at : at + size]


def _rows(four: Chain, outputs: Sequence[Outgoing]) -> dict[Place, Record]:
    """The rows that findings name."""
    wanted: defaultdict[TopicPartition, set[int]] = defaultdict(set)
    for output in outputs:
        said = Anomaly.model_validate_json(output.value or b"")
        for ref in (*said.exemplars, *said.controls):
            wanted[ref.topic, ref.partition].add(ref.offset)
    found: dict[Place, Record] = {}
    for place, offsets in wanted.items():
        in_order = sorted(offsets)
        for offset, record in zip(in_order, four.transport.read_at(place, in_order), strict=True):
            if record is not None:
                found[(*place, offset)] = record
    return found
