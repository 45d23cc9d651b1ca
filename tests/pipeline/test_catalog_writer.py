import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from tests.pipeline.case_builder import blank_catalogue, case_id, dump, episode, tagged

from errata.adapters.memory import MemoryTransport
from errata.adapters.prometheus import PrometheusMeter
from errata.adapters.sql import SqlCatalogue
from errata.contracts import TaggedCase
from errata.contracts.topics import TAGGED, TOPICS
from errata.domain.catalogue.queries import CaseQuery
from errata.errors import Fenced, StateDamaged, Unavailable
from errata.ports import CrashHook, Offsets, Outgoing, SinkDeadLetter, never_crash
from errata.runtime.backoff import Backoff
from errata.runtime.health import Health
from errata.runtime.telemetry import StageTelemetry
from errata_services.catalog_writer import POINTS, STAGE, CatalogWriterWorker, no_crash

SECRET = "wombat-4711"  # a canary, not a credential


class Killed(BaseException):
    """The process would have died here."""


class KillAt:
    """Raise at the ``nth`` passage of a point."""

    def __init__(self, point: str, nth: int) -> None:
        self.point, self.left = point, nth

    def __call__(self, stage: str, point: str) -> None:
        assert stage == STAGE
        if point == self.point:
            self.left -= 1
            if self.left == 0:
                raise Killed


class OtherCatalogue(SqlCatalogue):
    """The control: its positions are committed on their own, before the rows."""

    def apply(
        self,
        cases: Sequence[TaggedCase],
        positions: Offsets,
        group: str,
        owner: str,
        *,
        dead: Sequence[SinkDeadLetter] = (),
        crash: CrashHook = never_crash,
    ) -> int:
        super().apply([], positions, group, owner)
        return super().apply(cases, {}, group, owner, dead=dead, crash=crash)


class SealByTurning:
    """A cipher for tests: turns the bytes round."""

    def seal(self, plain: bytes, context: bytes) -> bytes:
        return plain[::-1]

    def open(self, sealed: bytes, context: bytes) -> bytes:
        return sealed[::-1]


def _log(*values: bytes | TaggedCase) -> MemoryTransport:
    transport = MemoryTransport({TAGGED: TOPICS[TAGGED]})
    _send(transport, *values)
    return transport


def _send(transport: MemoryTransport, *values: bytes | TaggedCase) -> None:
    producer = transport.producer("tagger-0")
    for value in values:
        key, body = (b"k", value) if isinstance(value, bytes) else (value.episode.id.encode(), value.to_json())
        producer.begin()
        producer.produce(Outgoing(TAGGED, key, body))
        producer.commit()
    producer.close()


def _story() -> list[bytes | TaggedCase]:
    """Three cases that take turns, a poison record among them."""
    turns: list[bytes | TaggedCase] = [
        case for turn in zip(episode("a"), episode("b", 1), episode("c", 2), strict=True) for case in turn
    ]
    return [*turns[:4], b"not json", *turns[4:]]


def _open(file: Path, kind: type[SqlCatalogue] = SqlCatalogue) -> SqlCatalogue:
    if not file.exists():
        file.write_bytes(blank_catalogue())
    catalogue = kind(f"sqlite:///{file}", busy_timeout_s=0.01)
    catalogue.migrate()
    return catalogue


def _drain(worker: CatalogWriterWorker) -> int:
    total = 0
    while read := worker.run_once():
        total += read
    return total


def _run(
    transport: MemoryTransport,
    file: Path,
    batch: int = 500,
    crash: Callable[[str, str], None] = no_crash,
    kind: type[SqlCatalogue] = SqlCatalogue,
) -> int:
    catalogue = _open(file, kind)
    try:
        return _drain(CatalogWriterWorker(transport, catalogue, "w0", batch, crash))
    finally:
        catalogue.close()


def _killed_and_resumed(
    file: Path, point: str, nth: int, batch: int, kind: type[SqlCatalogue] = SqlCatalogue
) -> tuple[bytes, bool]:
    """The catalogue after a kill at the ``nth`` passage of ``point`` and a new start, and whether it was killed."""
    transport = _log(*_story())
    killed = False
    try:
        _run(transport, file, batch, KillAt(point, nth), kind)
    except Killed:
        killed = True
        _run(transport, file, batch, kind=kind)
    return dump(file), killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The catalogue that a run without a kill makes."""
    file = tmp_path_factory.mktemp("whole") / "whole.sqlite"
    assert _run(_log(*_story()), file) == 16
    return dump(file)


def test_records_become_cases(tmp_path: Path) -> None:
    catalogue = _open(tmp_path / "c.sqlite")
    worker = CatalogWriterWorker(_log(*_story()), catalogue, "w0")
    assert _drain(worker) == 16
    assert (worker.cases_changed, worker.dead) == (15, 1)
    assert [case.case_id for case in catalogue.cases(CaseQuery())] == [case_id(name) for name in "cba"]
    assert {case.episode.seq for case in catalogue.cases(CaseQuery())} == {4}
    catalogue.close()


@pytest.mark.parametrize("batch", [1, 7, 500])
def test_the_size_of_batches_changes_no_byte(tmp_path: Path, whole: bytes, batch: int) -> None:
    file = tmp_path / "cut.sqlite"
    _run(_log(*_story()), file, batch)
    assert dump(file) == whole


def test_a_second_start_reads_on_where_the_first_stopped(tmp_path: Path, whole: bytes) -> None:
    file, transport = tmp_path / "c.sqlite", _log(*_story())
    assert _run(transport, file) == 16
    assert _run(transport, file) == 0
    assert dump(file) == whole
    _send(transport, tagged("d", minutes=99))
    assert _run(transport, file) == 1


def test_all_records_twice_change_nothing_but_positions(tmp_path: Path, whole: bytes) -> None:
    file = tmp_path / "c.sqlite"
    _run(_log(*_story()), file)
    with closing(sqlite3.connect(file)) as connection, connection:
        assert connection.execute("UPDATE consumer_position SET next_offset = 0").rowcount > 0
    assert dump(file) != whole
    assert _run(_log(*_story()), file, batch=3) == 16, "everything was read a second time"
    assert dump(file) == whole


@pytest.mark.parametrize("batch", [1, 7, 500])
@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_loses_and_doubles_nothing(
    tmp_path: Path, whole: bytes, point: str, nth: int, batch: int
) -> None:
    after, killed = _killed_and_resumed(tmp_path / "killed.sqlite", point, nth, batch)
    assert after == whole
    assert killed or (batch, nth) == (500, 3), "the point was passed, so the kill must have happened"


def test_a_position_outside_the_transaction_loses_cases(tmp_path: Path, whole: bytes) -> None:
    calm = tmp_path / "calm.sqlite"
    _run(_log(*_story()), calm, kind=OtherCatalogue)
    assert dump(calm) == whole, "without a kill the control does as well as the writer"
    # Its first passage of AFTER_ROWS is that of the position's own transaction: the second is the rows'.
    after, killed = _killed_and_resumed(tmp_path / "killed.sqlite", "AFTER_ROWS", 1, 7, OtherCatalogue)
    assert killed
    assert after != whole


def test_what_is_no_case_becomes_a_dead_letter_that_names_the_field(tmp_path: Path) -> None:
    bad = [
        b"not json",
        tagged(root_class="data").to_json().replace(b'"root_class":"data"', f'"root_class":"{SECRET}"'.encode()),
        tagged().to_json().replace(b'"psi":0.55', b'"psi":NaN'),
        tagged("huge", count=2**70).to_json(),
    ]
    catalogue = _open(tmp_path / "c.sqlite")
    worker = CatalogWriterWorker(_log(tagged("x"), *bad, tagged("y")), catalogue, "w0", cipher=SealByTurning())
    assert _drain(worker) == 6
    letters = {letter.refusal_class: letter for letter in catalogue.dead_letters()}
    assert worker.dead == len(catalogue.dead_letters()) == 4
    assert letters["schema"].path == "/root_class"
    assert set(letters) == {"decode", "schema", "sink"}
    assert letters["schema"].payload == bad[1][::-1]
    assert all(SECRET not in letter.message + letter.path for letter in letters.values())
    assert {case.case_id for case in catalogue.cases(CaseQuery())} == {case_id("x"), case_id("y")}
    catalogue.close()
    assert SECRET.encode() not in dump(tmp_path / "c.sqlite")


def test_without_a_cipher_no_payload_is_kept(tmp_path: Path) -> None:
    catalogue = _open(tmp_path / "c.sqlite")
    _drain(CatalogWriterWorker(_log(f"{{{SECRET}".encode()), catalogue, "w0"))
    assert [letter.payload for letter in catalogue.dead_letters()] == [None]
    catalogue.close()
    assert SECRET.encode() not in dump(tmp_path / "c.sqlite")


def test_a_locked_database_pauses_and_loses_nothing(tmp_path: Path, whole: bytes) -> None:
    file, transport = tmp_path / "c.sqlite", _log(*_story()[:5])
    catalogue = _open(file)
    worker = CatalogWriterWorker(transport, catalogue, "w0", batch_size=2)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        for _ in range(3):
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable):  # the first time while claiming, then while writing
                worker.run_once()
            other.execute("ROLLBACK")
            assert worker.run_once() > 0
    _drain(worker)
    _send(transport, *_story()[5:])
    _drain(worker)
    catalogue.close()
    assert dump(file) == whole


def test_the_newer_of_two_writers_fences_the_older_at_the_database(tmp_path: Path) -> None:
    catalogue, transport = _open(tmp_path / "c.sqlite"), _log(*_story())
    older = CatalogWriterWorker(transport, catalogue, "w0", batch_size=2)
    older.run_once()
    # The same instance on another broker connection: only the database can tell the two apart.
    newer = CatalogWriterWorker(_log(*_story()), catalogue, "w0")
    _drain(newer)
    with pytest.raises(Fenced):
        older.run_once()
    catalogue.close()


def test_a_catalogue_ahead_of_its_log_stops_the_writer(tmp_path: Path) -> None:
    file = tmp_path / "c.sqlite"
    _run(_log(*_story()), file)
    with pytest.raises(
        StateDamaged, match=r"ahead: the catalogue is at offset 5 of partition 2 of .*, which ends at 0:"
    ):
        _run(_log(tagged()), file)


class Looked(SqlCatalogue):
    """Counts the looks for open cases, and fails them while ``down``."""

    looks, down = 0, False

    def open_cases(self) -> dict[str, int]:
        if self.down:
            raise Unavailable("the catalogue does not answer")
        self.looks += 1
        return super().open_cases()


class Watched:
    """A writer with metrics and a clock that tests move."""

    def __init__(self, transport: MemoryTransport, file: Path) -> None:
        self.now_s = 100.0
        self.catalogue = _open(file, Looked)
        assert isinstance(self.catalogue, Looked)
        self.looked: Looked = self.catalogue
        self.meter = PrometheusMeter()
        self.writer = CatalogWriterWorker(
            transport,
            self.catalogue,
            "w0",
            backoff=Backoff(lambda: 0.0, first_s=1.0),
            clock=lambda: self.now_s,
            telemetry=StageTelemetry(self.meter, STAGE, version="1"),
        )

    def value(self, series: str) -> float:
        lines = self.meter.exposition()[1].decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} "))


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    transport = _log(tagged("a"), tagged("b"), tagged("c", 1, "close", 9))
    watched = Watched(transport, tmp_path / "watched.sqlite")
    yield watched
    watched.catalogue.close()


def test_what_is_open_is_told_at_most_every_fifteen_seconds(watched: Watched) -> None:
    data = 'errata_cases_open{root_class="data"}'
    assert watched.value(data) == 0
    watched.writer.run_once()
    assert (watched.value(data), watched.looked.looks) == (2, 1)
    for _ in range(14):
        watched.now_s += 1
        watched.writer.run_once()
    assert watched.looked.looks == 1
    watched.now_s += 1
    watched.writer.run_once()
    assert watched.looked.looks == 2


def test_a_database_that_goes_away_while_nothing_comes_is_found_and_found_back(watched: Watched) -> None:
    breaker = f'errata_breaker_state{{dependency="postgresql",stage="{STAGE}"}}'
    errors = f'errata_store_errors_total{{stage="{STAGE}",store="postgresql"}}'
    watched.writer.run_once()
    watched.looked.down = True
    assert watched.writer.run_once() == 0  # not asked
    assert (watched.value(breaker), watched.value(errors)) == (0, 0)
    watched.now_s += 15
    assert watched.writer.run_once() == 0
    assert (watched.value(breaker), watched.value(errors)) == (2, 1)
    watched.looked.down = False
    watched.now_s += 60
    watched.writer.run_once()
    assert (watched.value(breaker), watched.value(errors)) == (0, 1)
    assert watched.value('errata_cases_open{root_class="data"}') == 2


def test_without_telemetry_nobody_looks(tmp_path: Path) -> None:
    catalogue = _open(tmp_path / "c.sqlite", Looked)
    assert isinstance(catalogue, Looked)
    _drain(CatalogWriterWorker(_log(tagged("a")), catalogue, "w0"))
    assert catalogue.looks == 0
    catalogue.close()


def test_a_writer_that_begins_says_at_once_where_the_catalogue_is(tmp_path: Path) -> None:
    """Else the stall watch would take what was written long ago for records that wait."""
    transport = _log(*_story())
    _run(transport, tmp_path / "c.sqlite")
    catalogue = _open(tmp_path / "c.sqlite")
    health = Health(stage=STAGE, instance="w0", build="1")
    writer = CatalogWriterWorker(transport, catalogue, "w0", health=health)
    assert writer.run_once() == 0
    assert health.standing.positions == writer.positions
    assert sum(writer.positions.values()) == len(_story())
    catalogue.close()
