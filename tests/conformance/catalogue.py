"""What every database of the catalogue promises, as tests. A database's own test file subclasses the suite.

A subclass has a fixture ``places`` that makes databases which are empty but migrated, and one, ``empty``, of a
database without tables. No test asks which database it runs on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from tests.pipeline.case_builder import START_US, case_id, episode, tagged

from errata.adapters.sql import SqlCatalogue, tables
from errata.adapters.sql import catalogue as sql_module
from errata.adapters.sql.catalogue import SCHEMA
from errata.contracts import FailureCase, TaggedCase, canonical
from errata.contracts.strict import instant
from errata.domain.catalogue.lifecycle import fold
from errata.domain.catalogue.queries import CaseQuery
from errata.errors import Fenced, IllegalMove, Misconfigured, NotFound, Refused, Unavailable
from errata.ports import SinkDeadLetter

PLACE = ("errata.tagged.v1", 0)
GROUP, OWNER = "errata.catalog-writer", "one"
AT = datetime(2026, 1, 6, tzinfo=UTC)


class Place(ABC):
    """One database, as the catalogue opens it and as a test looks at it past the catalogue."""

    @abstractmethod
    def open(self, *, patient: bool = False) -> SqlCatalogue:
        """A catalogue that waits for no lock, or with ``patient`` some seconds."""

    @abstractmethod
    def engine(self) -> sa.Engine: ...

    @abstractmethod
    def locked(self) -> AbstractContextManager[None]:
        """Somebody else holds what a writer needs."""

    @contextmanager
    def connected(self) -> Iterator[sa.Connection]:
        """A transaction beside the catalogue."""
        engine = self.engine()
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()

    def dump(self, without: Collection[str] = ()) -> bytes:
        """Every row of every table as bytes, without the owners of positions (they name a process).

        The same content gives the same bytes in every database.
        """
        content: dict[str, list[list[Any]]] = {}
        with self.connected() as connection:
            for name in sorted({*sa.inspect(connection).get_table_names()} - {*without}):
                rows = connection.execute(sa.text(f'SELECT * FROM "{name}"')).mappings()
                plain = [[_plain(value) for column, value in sorted(row.items()) if column != "owner"] for row in rows]
                content[name] = sorted(plain, key=canonical)
        return canonical(content)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


class Book:
    """A catalogue with positions that count up by themselves."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.catalogue = place.open()
        self.next = self.catalogue.claim(GROUP, OWNER, [PLACE])[PLACE]

    def write(self, *cases: TaggedCase, **more: Any) -> int:
        self.next += len(cases)
        return self.catalogue.apply(cases, {PLACE: self.next}, GROUP, OWNER, **more)

    def short_ids(self, **query: Any) -> list[str]:
        return [case.short_id for case in self.catalogue.cases(CaseQuery(**query))]

    def dump(self) -> bytes:
        return self.place.dump()


Places = Callable[[], Place]
Books = Callable[[], Book]


class Killed(BaseException):
    """The process would have died here."""


class CatalogueSuite:
    @pytest.fixture
    def books(self, places: Places) -> Iterator[Books]:
        made: list[Book] = []

        def make() -> Book:
            made.append(Book(places()))
            return made[-1]

        yield make
        for book in made:
            book.catalogue.close()

    @pytest.fixture
    def book(self, books: Books) -> Book:
        return books()

    # writing

    def test_each_seq_makes_one_revision_at_its_record_time(self, book: Book) -> None:
        assert book.write(*episode()) == 5
        revisions = book.catalogue.revisions(case_id("a"))
        assert [revision.rev for revision in revisions] == [1, 2, 3, 4, 5]
        minutes = [(revision.valid_from_us - START_US) // 60_000_000 for revision in revisions]
        assert minutes == [0, 10, 20, 30, 40], "valid from the record time, never from the wall clock"
        assert {revision.actor for revision in revisions} == {"errata"}
        assert revisions[2].reason == "episode close, seq 2"

    def test_the_case_follows_its_newest_seq(self, book: Book) -> None:
        closed = []
        for seq in episode():
            book.write(seq)
            case = book.catalogue.case("CASE-1")
            closed.append(case.closed_at is not None)
            assert (case.episode.seq, case.rev, case.count) == (seq.episode.seq, seq.episode.seq + 1, seq.count)
            assert (case.opened_at, case.last_seen) == (instant(START_US), seq.episode.last_seen)
        assert closed == [False, False, True, False, True]

    def test_what_the_tagger_said_is_kept_to_the_letter(self, book: Book) -> None:
        said = tagged()
        book.write(said)
        case = book.catalogue.case("CASE-1").model_dump(mode="json", by_alias=True, exclude_none=True)
        for name, value in said.model_dump(mode="json", by_alias=True, exclude_none=True).items():
            assert case[name] == value, name
        assert case["admitted_by"] == {"policy": "window", "version": "1"}

    @pytest.mark.parametrize("size", [1, 2, 7])
    def test_revisions_do_not_depend_on_how_records_are_cut(self, books: Books, size: int) -> None:
        cases = [case for pair in zip(episode("a"), episode("b", 3), strict=True) for case in pair]
        whole, cut = books(), books()
        whole.write(*cases)
        for start in range(0, len(cases), size):
            cut.write(*cases[start : start + size])
        assert cut.dump() == whole.dump()
        cut.write(tagged("a", 9, "update", 90))
        assert cut.dump() != whole.dump(), "the comparison must see one more seq"

    def test_replayed_records_change_no_byte(self, book: Book) -> None:
        book.write(*episode("a"), *episode("b"))
        before = book.dump()
        assert book.catalogue.apply([*episode("a"), *episode("b")], {PLACE: book.next}, GROUP, OWNER) == 0
        assert book.catalogue.apply(episode("b")[:2], {PLACE: book.next}, GROUP, OWNER) == 0
        assert book.dump() == before

    def test_an_older_seq_never_wins(self, book: Book) -> None:
        book.write(tagged(seq=3, state="update", minutes=30))
        assert book.write(tagged(seq=2, state="close", minutes=20)) == 0
        assert book.catalogue.case("CASE-1").episode.seq == 3

    def test_fields_of_the_catalogue_in_a_message_are_not_believed(self, book: Book) -> None:
        book.write(tagged(title="planted", status="closed", short_id="ROOT-1", rev=99, case_id="x", owner="mallory"))
        case = book.catalogue.case("CASE-1")
        assert (case.title, case.status, case.rev, case.owner) == (None, "new", 1, None)
        assert case.case_id == case_id("a")

    def test_short_ids_count_per_tenant_by_first_appearance(self, book: Book) -> None:
        book.write(tagged("late", minutes=5), tagged("early", minutes=1), tagged("f", tenant="fraud", minutes=2))
        book.write(tagged("g", tenant="fraud", minutes=9), tagged("early", 1, "update", 9))
        ids = {case.case_id: case.short_id for case in book.catalogue.cases(CaseQuery())}
        assert ids == {
            case_id("early"): "CASE-1",
            case_id("late"): "CASE-2",
            case_id("f"): "FRAUD-1",
            case_id("g"): "FRAUD-2",
        }

    # positions

    def test_claim_starts_at_zero_and_resumes_where_apply_stopped(self, book: Book) -> None:
        assert book.next == 0
        book.write(*episode())
        assert book.catalogue.claim(GROUP, "two", [PLACE]) == {PLACE: 5}

    def test_a_former_owner_is_fenced_and_writes_nothing(self, book: Book) -> None:
        book.write(tagged())
        book.catalogue.claim(GROUP, "two", [PLACE])
        before = book.dump()
        with pytest.raises(Fenced):
            book.write(tagged(seq=1, state="update"))
        assert book.dump() == before
        book.catalogue.apply([tagged(seq=1, state="update")], {PLACE: 2}, GROUP, "two")
        assert book.dump() != before, "the new owner writes"

    def test_positions_that_nobody_claimed_cannot_be_written(self, book: Book) -> None:
        with pytest.raises(Fenced):
            book.catalogue.apply([], {("errata.tagged.v1", 7): 1}, GROUP, OWNER)

    @pytest.mark.parametrize("at", ["AFTER_ROWS", "AFTER_POSITION"])
    def test_a_kill_inside_the_transaction_leaves_neither_rows_nor_position(self, book: Book, at: str) -> None:
        before = book.dump()

        def crash(point: str) -> None:
            if point == at:
                raise Killed

        with pytest.raises(Killed):
            book.write(tagged(), crash=crash)
        assert book.dump() == before

    def test_a_number_that_no_database_keeps_is_refused_and_nothing_is_written(self, book: Book) -> None:
        before = book.dump()
        with pytest.raises(Refused) as raised:
            book.write(tagged("ok"), tagged("b", count=2**70))
        assert str(2**70) not in str(raised.value)
        assert book.dump() == before

    def test_dead_letters_are_written_once_with_the_batch(self, book: Book) -> None:
        letter = SinkDeadLetter(*PLACE, 4, 7, "schema", "/model", "required", b"sealed")
        book.write(tagged(), dead=[letter])
        book.write(dead=[letter])
        assert book.catalogue.dead_letters() == [letter]

    def test_a_locked_database_is_unavailable_and_then_works_again(self, book: Book) -> None:
        with book.place.locked():
            with pytest.raises(Unavailable):
                book.write(tagged())
            assert book.catalogue.cases(CaseQuery()) == [], "reading goes on beside a writer"
        assert book.write(tagged()) == 1

    def test_no_row_stands_without_its_case(self, book: Book) -> None:
        with pytest.raises(Refused), book.catalogue._transaction(writes=True) as connection:
            connection.execute(sa.insert(tables.case_tag).values(case_id="nobody", tag="a:b:c"))

    # people

    def test_people_move_status_and_the_chain_never_does(self, book: Book) -> None:
        book.write(*episode()[:2])
        book.catalogue.move("CASE-1", "ack", actor="ann", at=AT)
        book.write(*episode()[2:])
        case = book.catalogue.case("CASE-1")
        assert (case.status, case.episode.state, case.rev) == ("triaged", "close", 6)
        after = book.catalogue.move("CASE-1", "reject", actor="bob", at=AT, rejection="duplicate", note="of CASE-9")
        assert (after.status, after.rev) == ("rejected", 7)
        assert after.resolution == {"kind": "rejected", "reason": "duplicate", "note": "of CASE-9"}
        assert book.short_ids(status="rejected") == ["CASE-1"]

    def test_a_move_is_a_revision_with_actor_reason_and_what_was_before(self, book: Book) -> None:
        book.write(tagged())
        book.catalogue.move("CASE-1", "ack", actor="ann", at=AT, note="mine")
        book.catalogue.move("CASE-1", "resolve", actor="bob", at=AT + timedelta(hours=1))
        _, ack, resolve = book.catalogue.revisions("CASE-1")
        assert (ack.actor, ack.reason, ack.patch, ack.previous) == (
            "ann",
            "mine",
            {"status": "triaged"},
            {"status": "new"},
        )
        assert (resolve.actor, resolve.reason, resolve.previous["status"]) == ("bob", "resolve", "triaged")
        assert resolve.valid_from_us - ack.valid_from_us == 3_600_000_000

    def test_the_case_is_the_fold_of_its_revisions(self, book: Book) -> None:
        chain = episode()
        book.write(*chain[:3])
        book.catalogue.move("CASE-1", "ack", actor="ann", at=AT)
        book.write(*chain[3:])
        book.catalogue.move("CASE-1", "resolve", actor="ann", at=AT, note="done")
        revisions = book.catalogue.revisions("CASE-1")

        def folded(upto: int) -> FailureCase:
            return FailureCase.model_validate_json(canonical({**fold(revisions[:upto]), "rev": upto}))

        assert folded(len(revisions)) == book.catalogue.case("CASE-1")
        assert (folded(3).status, folded(4).status) == ("new", "triaged")
        assert folded(len(revisions) - 1) != book.catalogue.case("CASE-1")

    def test_an_illegal_move_changes_nothing(self, book: Book) -> None:
        book.write(tagged())
        book.catalogue.move("CASE-1", "resolve", actor="ann", at=AT)
        before = book.dump()
        with pytest.raises(IllegalMove, match="resolved"):
            book.catalogue.move("CASE-1", "ack", actor="ann", at=AT)
        assert book.dump() == before

    # questions

    @pytest.fixture
    def shelf(self, book: Book) -> Book:
        low = {"value": 0.1, "level": "low", "terms": {}, "formula": "f"}
        tags = [{"tag": "infrastructure:performance:latency_shift", "rule_id": "r", "confidence": 1.0}]
        book.write(
            tagged("a", minutes=1),
            tagged("b", minutes=2, model={"name": "fraud_50%"}, severity=low, root_class="infrastructure", tags=tags),
            tagged("c", minutes=3, tenant="acme", model={"name": "fraudX50Z"}, root_class="unknown", tags=[]),
        )
        book.catalogue.move("CASE-1", "ack", actor="ann", at=AT)
        return book

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ({}, ["ACME-1", "CASE-2", "CASE-1"]),
            ({"limit": 2}, ["ACME-1", "CASE-2"]),
            ({"status": "triaged"}, ["CASE-1"]),
            ({"model": "census"}, ["CASE-1"]),
            ({"tenant": "acme"}, ["ACME-1"]),
            ({"root_class": "infrastructure"}, ["CASE-2"]),
            ({"severity": "low"}, ["CASE-2"]),
            ({"tag": "infrastructure"}, ["CASE-2"]),
            ({"tag": "infrastructure:performance:latency_shift"}, ["CASE-2"]),
            ({"tag": "infra"}, []),
            ({"tag": "%"}, []),
            ({"tag": "INFRASTRUCTURE"}, []),
            ({"since_us": START_US + 120_000_000}, ["ACME-1", "CASE-2"]),
            ({"text": "relp census"}, ["CASE-1"]),
            ({"text": "FRAUD"}, ["ACME-1", "CASE-2"]),
            ({"text": "fraud_50%"}, ["CASE-2"]),
            ({"text": "case-1"}, ["CASE-1"]),
            ({"text": "latency_shift"}, ["CASE-2"]),
            ({"text": "'; DROP TABLE failure_case; --"}, []),
            ({"text": "relp", "tenant": "acme", "root_class": "unknown"}, ["ACME-1"]),
        ],
    )
    def test_filters(self, shelf: Book, query: dict[str, Any], found: Sequence[str]) -> None:
        assert shelf.short_ids(**query) == found

    def test_a_case_is_found_by_each_of_its_names(self, shelf: Book) -> None:
        whole = case_id("b")
        for name in (whole, whole.upper(), whole[:8], "CASE-2", "case-2"):
            assert shelf.catalogue.case(name).short_id == "CASE-2"

    @pytest.mark.parametrize("name", ["CASE-22", "%", "________", case_id("b")[:7], "", "\udcff"])
    def test_what_is_not_there_is_said_so(self, shelf: Book, name: str) -> None:
        with pytest.raises((NotFound, Refused)) as raised:
            shelf.catalogue.case(name)
        if name == "CASE-22":
            assert "did you mean CASE-2?" in str(raised.value)

    def test_open_cases_are_those_whose_episode_goes_on(self, book: Book) -> None:
        assert book.catalogue.open_cases() == {}
        book.write(tagged("a"), tagged("b", root_class="model"), tagged("c", root_class="model"))
        assert book.catalogue.open_cases() == {"data": 1, "model": 2}
        book.write(tagged("c", 1, "close", 10, root_class="model"))
        assert book.catalogue.open_cases() == {"data": 1, "model": 1}
        book.write(tagged("c", 2, "reopen", 20, root_class="model"))
        assert book.catalogue.open_cases() == {"data": 1, "model": 2}

    def test_counts_add_up(self, shelf: Book) -> None:
        counts = shelf.catalogue.counts()
        assert counts.cases == 3
        assert counts.by_status == {"new": 2, "triaged": 1}
        assert counts.by_state == {"open": 3}
        assert counts.by_root_class == {"data": 1, "infrastructure": 1, "unknown": 1}

    # schema

    def test_the_migrations_make_the_tables_that_the_code_expects(self, book: Book) -> None:
        with book.place.connected() as connection:
            assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
            other = sa.MetaData()
            sa.Table("one_more", other, sa.Column("a", sa.Text))
            assert compare_metadata(MigrationContext.configure(connection), other) != []

    def test_migrating_twice_keeps_everything(self, book: Book) -> None:
        book.write(*episode())
        before = book.dump()
        with closing(book.place.open()) as again:
            again.migrate()
            again.check()
        assert book.dump() == before

    def test_the_schema_of_the_first_release_is_brought_up_with_all_its_rows(self, empty: Place) -> None:
        with empty.connected() as connection:
            _migrate(connection, "c0001")
            _write_first_release(connection)
        with closing(empty.open()) as catalogue:
            with pytest.raises(Misconfigured, match="errata catalog migrate"):
                catalogue.check()
            with pytest.raises(Misconfigured, match="errata catalog migrate"):
                catalogue.cases(CaseQuery())
            before = empty.dump(without=["alembic_version"])
            catalogue.migrate()
            catalogue.check()
            assert empty.dump(without=["alembic_version"]) == before
            assert catalogue.claim(GROUP, OWNER, [PLACE]) == {PLACE: 7}
            assert catalogue.apply([tagged()], {PLACE: 8}, GROUP, OWNER) == 1
            assert catalogue.case("CASE-4").rev == 1, "short ids go on counting"

    @pytest.mark.parametrize("version", ["c9999", "b0000"])
    def test_a_database_of_another_schema_is_not_touched(self, book: Book, version: str) -> None:
        with book.place.connected() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = :version"), {"version": version})
        before = book.dump()
        with closing(book.place.open()) as other:
            with pytest.raises(Misconfigured, match="install the errata that wrote it"):
                other.migrate()
            with pytest.raises(Misconfigured, match=version):
                other.cases(CaseQuery())
            with pytest.raises(Misconfigured, match=version):
                other.check()
        assert book.dump() == before

    def test_a_database_that_is_not_ours_is_refused(self, empty: Place) -> None:
        with empty.connected() as connection:
            connection.execute(sa.text("CREATE TABLE customers (name TEXT)"))
        with closing(empty.open()) as catalogue, pytest.raises(Misconfigured, match="database of its own"):
            catalogue.migrate()

    def test_an_empty_database_says_to_migrate(self, empty: Place) -> None:
        with closing(empty.open()) as catalogue:
            for ask in (catalogue.check, lambda: catalogue.cases(CaseQuery())):
                with pytest.raises(Misconfigured, match="errata catalog migrate"):
                    ask()
            assert catalogue.schema() is None
            catalogue.migrate()
            catalogue.check()
            assert catalogue.schema() == SCHEMA

    def test_two_that_migrate_at_once_both_end_at_the_newest(self, empty: Place) -> None:
        catalogues = [empty.open(patient=True) for _ in range(4)]
        with ThreadPoolExecutor(len(catalogues)) as pool:
            list(pool.map(SqlCatalogue.migrate, catalogues))
        for catalogue in catalogues:
            catalogue.check()
            catalogue.close()


def _migrate(connection: sa.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(sql_module.__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _write_first_release(connection: sa.Connection) -> None:
    """What errata 0.1.0 may have left in its tables, one row of each kind."""
    case = {"case_id": case_id("old"), "short_id": "CASE-3", "tenant": "default", "model": "census", "slice": ""}
    case |= {"status": "triaged", "episode_state": "open", "root_class": "data", "severity_level": "high"}
    case |= {"fingerprint": "[]", "search": "case-3 census", "content_hash": "h", "body": "{}"}
    numbers = {"severity_value": 0.7, "episode_seq": 0, "opened_at_us": 1, "onset_us": 1, "last_seen_us": 2, "count": 3}
    rows: list[tuple[sa.Table, dict[str, Any]]] = [
        (tables.failure_case, {**case, **numbers, "closed_at_us": None, "rev": 2}),
        (tables.case_tag, {"case_id": case["case_id"], "tag": "data:population:category_vanished"}),
        (tables.case_edit, {"case_id": case["case_id"], "rev": 2, "edits": '{"status":"triaged"}'}),
        (
            tables.consumer_position,
            {"consumer_group": GROUP, "topic": PLACE[0], "partition": PLACE[1], "next_offset": 7, "owner": "old"},
        ),
        (tables.short_id_counter, {"tenant": "default", "next_number": 4}),
    ]
    for table, row in rows:
        connection.execute(sa.insert(table).values(**row))
