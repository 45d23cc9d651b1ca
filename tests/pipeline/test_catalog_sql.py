import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.schema import CreateTable
from tests.pipeline.case_builder import START_US, blank_catalogue, case_id, dump, episode, tagged

from errata.adapters.sql import SqlCatalogue, tables
from errata.adapters.sql import catalogue as sql_module
from errata.contracts import FailureCase, TaggedCase, canonical
from errata.contracts.strict import instant
from errata.domain.catalogue.lifecycle import fold
from errata.domain.catalogue.queries import CaseQuery
from errata.errors import Fenced, IllegalMove, Misconfigured, NotFound, Refused, Unavailable
from errata.ports import SinkDeadLetter

PLACE = ("errata.tagged.v1", 0)
GROUP, OWNER = "errata.catalog-writer", "one"
AT = datetime(2026, 1, 6, tzinfo=UTC)


class Book:
    """A catalogue of a file, with positions that count up by themselves."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_bytes(blank_catalogue())
        self.catalogue = SqlCatalogue(f"sqlite:///{file}", busy_timeout_s=0.01)
        self.catalogue.migrate()
        self.next = self.catalogue.claim(GROUP, OWNER, [PLACE])[PLACE]

    def write(self, *cases: TaggedCase, **more: Any) -> int:
        self.next += len(cases)
        return self.catalogue.apply(cases, {PLACE: self.next}, GROUP, OWNER, **more)

    def short_ids(self, **query: Any) -> list[str]:
        return [case.short_id for case in self.catalogue.cases(CaseQuery(**query))]


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path / "catalogue.sqlite")
    yield made
    made.catalogue.close()


# writing


def test_each_seq_makes_one_revision_at_its_record_time(book: Book) -> None:
    assert book.write(*episode()) == 5
    revisions = book.catalogue.revisions(case_id("a"))
    assert [revision.rev for revision in revisions] == [1, 2, 3, 4, 5]
    minutes = [(revision.valid_from_us - START_US) // 60_000_000 for revision in revisions]
    assert minutes == [0, 10, 20, 30, 40], "valid from the record time, never from the wall clock"
    assert {revision.actor for revision in revisions} == {"errata"}
    assert revisions[2].reason == "episode close, seq 2"


def test_the_case_follows_its_newest_seq(book: Book) -> None:
    closed = []
    for seq in episode():
        book.write(seq)
        case = book.catalogue.case("CASE-1")
        closed.append(case.closed_at is not None)
        assert (case.episode.seq, case.rev, case.count) == (seq.episode.seq, seq.episode.seq + 1, seq.count)
        assert (case.opened_at, case.last_seen) == (instant(START_US), seq.episode.last_seen)
    assert closed == [False, False, True, False, True]


def test_what_the_tagger_said_is_kept_to_the_letter(book: Book) -> None:
    said = tagged()
    book.write(said)
    case = book.catalogue.case("CASE-1").model_dump(mode="json", by_alias=True, exclude_none=True)
    for name, value in said.model_dump(mode="json", by_alias=True, exclude_none=True).items():
        assert case[name] == value, name
    assert case["admitted_by"] == {"policy": "window", "version": "1"}


@pytest.mark.parametrize("size", [1, 2, 7])
def test_revisions_do_not_depend_on_how_records_are_cut(tmp_path: Path, size: int) -> None:
    cases = [case for pair in zip(episode("a"), episode("b", 3), strict=True) for case in pair]
    whole, cut = Book(tmp_path / "whole.sqlite"), Book(tmp_path / "cut.sqlite")
    whole.write(*cases)
    for start in range(0, len(cases), size):
        cut.write(*cases[start : start + size])
    assert dump(cut.file) == dump(whole.file)
    cut.write(tagged("a", 9, "update", 90))
    assert dump(cut.file) != dump(whole.file), "the comparison must see one more seq"
    whole.catalogue.close()
    cut.catalogue.close()


def test_replayed_records_change_no_byte(book: Book) -> None:
    book.write(*episode("a"), *episode("b"))
    before = dump(book.file)
    assert book.catalogue.apply([*episode("a"), *episode("b")], {PLACE: book.next}, GROUP, OWNER) == 0
    assert book.catalogue.apply(episode("b")[:2], {PLACE: book.next}, GROUP, OWNER) == 0
    assert dump(book.file) == before


def test_an_older_seq_never_wins(book: Book) -> None:
    book.write(tagged(seq=3, state="update", minutes=30))
    assert book.write(tagged(seq=2, state="close", minutes=20)) == 0
    assert book.catalogue.case("CASE-1").episode.seq == 3


def test_fields_of_the_catalogue_in_a_message_are_not_believed(book: Book) -> None:
    book.write(tagged(title="planted", status="closed", short_id="ROOT-1", rev=99, case_id="x", owner="mallory"))
    case = book.catalogue.case("CASE-1")
    assert (case.title, case.status, case.rev, case.owner) == (None, "new", 1, None)
    assert case.case_id == case_id("a")


def test_short_ids_count_per_tenant_by_first_appearance(book: Book) -> None:
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


def test_claim_starts_at_zero_and_resumes_where_apply_stopped(book: Book) -> None:
    assert book.next == 0
    book.write(*episode())
    assert book.catalogue.claim(GROUP, "two", [PLACE]) == {PLACE: 5}


def test_a_former_owner_is_fenced_and_writes_nothing(book: Book) -> None:
    book.write(tagged())
    book.catalogue.claim(GROUP, "two", [PLACE])
    before = dump(book.file)
    with pytest.raises(Fenced):
        book.write(tagged(seq=1, state="update"))
    assert dump(book.file) == before
    book.catalogue.apply([tagged(seq=1, state="update")], {PLACE: 2}, GROUP, "two")
    assert dump(book.file) != before, "the new owner writes"


def test_positions_that_nobody_claimed_cannot_be_written(book: Book) -> None:
    with pytest.raises(Fenced):
        book.catalogue.apply([], {("errata.tagged.v1", 7): 1}, GROUP, OWNER)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["AFTER_ROWS", "AFTER_POSITION"])
def test_a_kill_inside_the_transaction_leaves_neither_rows_nor_position(book: Book, at: str) -> None:
    before = dump(book.file)

    def crash(point: str) -> None:
        if point == at:
            raise Killed

    with pytest.raises(Killed):
        book.write(tagged(), crash=crash)
    assert dump(book.file) == before


def test_a_number_that_no_database_keeps_is_refused_and_nothing_is_written(book: Book) -> None:
    before = dump(book.file)
    with pytest.raises(Refused) as raised:
        book.write(tagged("ok"), tagged("b", count=2**70))
    assert str(2**70) not in str(raised.value)
    assert dump(book.file) == before


def test_dead_letters_are_written_once_with_the_batch(book: Book) -> None:
    letter = SinkDeadLetter(*PLACE, 4, 7, "schema", "/model", "required", b"sealed")
    book.write(tagged(), dead=[letter])
    book.write(dead=[letter])
    assert book.catalogue.dead_letters() == [letter]


def test_a_locked_database_is_unavailable_and_then_works_again(book: Book) -> None:
    with closing(sqlite3.connect(book.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            book.write(tagged())
        assert book.catalogue.cases(CaseQuery()) == [], "reading goes on beside a writer"
        other.execute("ROLLBACK")
    assert book.write(tagged()) == 1


# people


def test_people_move_status_and_the_chain_never_does(book: Book) -> None:
    book.write(*episode()[:2])
    book.catalogue.move("CASE-1", "ack", actor="ann", at=AT)
    book.write(*episode()[2:])
    case = book.catalogue.case("CASE-1")
    assert (case.status, case.episode.state, case.rev) == ("triaged", "close", 6)
    after = book.catalogue.move("CASE-1", "reject", actor="bob", at=AT, rejection="duplicate", note="of CASE-9")
    assert (after.status, after.rev) == ("rejected", 7)
    assert after.resolution == {"kind": "rejected", "reason": "duplicate", "note": "of CASE-9"}
    assert book.short_ids(status="rejected") == ["CASE-1"]


def test_a_move_is_a_revision_with_actor_reason_and_what_was_before(book: Book) -> None:
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


def test_the_case_is_the_fold_of_its_revisions(book: Book) -> None:
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


def test_an_illegal_move_changes_nothing(book: Book) -> None:
    book.write(tagged())
    book.catalogue.move("CASE-1", "resolve", actor="ann", at=AT)
    before = dump(book.file)
    with pytest.raises(IllegalMove, match="resolved"):
        book.catalogue.move("CASE-1", "ack", actor="ann", at=AT)
    assert dump(book.file) == before


# questions


@pytest.fixture
def shelf(book: Book) -> Book:
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
def test_filters(shelf: Book, query: dict[str, Any], found: Sequence[str]) -> None:
    assert shelf.short_ids(**query) == found


def test_a_case_is_found_by_each_of_its_names(shelf: Book) -> None:
    whole = case_id("b")
    for name in (whole, whole.upper(), whole[:8], "CASE-2", "case-2"):
        assert shelf.catalogue.case(name).short_id == "CASE-2"


@pytest.mark.parametrize("name", ["CASE-22", "%", "________", case_id("b")[:7], "", "\udcff"])
def test_what_is_not_there_is_said_so(shelf: Book, name: str) -> None:
    with pytest.raises((NotFound, Refused)) as raised:
        shelf.catalogue.case(name)
    if name == "CASE-22":
        assert "did you mean CASE-2?" in str(raised.value)


def test_counts_add_up(shelf: Book) -> None:
    counts = shelf.catalogue.counts()
    assert counts.cases == 3
    assert counts.by_status == {"new": 2, "triaged": 1}
    assert counts.by_state == {"open": 3}
    assert counts.by_root_class == {"data": 1, "infrastructure": 1, "unknown": 1}


# schema


def _engine(file: Path) -> sa.Engine:
    return sa.create_engine(f"sqlite:///{file}")


def test_the_migrations_make_the_tables_that_the_code_expects(book: Book) -> None:
    engine = _engine(book.file)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
        other = sa.MetaData()
        sa.Table("one_more", other, sa.Column("a", sa.Text))
        assert compare_metadata(MigrationContext.configure(connection), other) != []
    engine.dispose()


def test_the_schema_in_the_code_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(sql_module.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_heads() == [sql_module.SCHEMA]


def test_the_tables_are_ones_that_postgresql_takes() -> None:
    dialect = sa.make_url("postgresql://").get_dialect()()
    for table in tables.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))


def test_migrating_twice_keeps_everything(book: Book) -> None:
    book.write(*episode())
    before = dump(book.file)
    again = SqlCatalogue(f"sqlite:///{book.file}")
    again.migrate()
    again.close()
    assert dump(book.file) == before


@pytest.mark.parametrize("version", ["c9999", "b0000"])
def test_a_database_of_another_schema_is_not_touched(book: Book, version: str) -> None:
    with closing(sqlite3.connect(book.file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    before = dump(book.file)
    other = SqlCatalogue(f"sqlite:///{book.file}")
    with pytest.raises(Misconfigured, match="install the errata that wrote it"):
        other.migrate()
    with pytest.raises(Misconfigured, match=version):
        other.cases(CaseQuery())
    other.close()
    assert dump(book.file) == before


def test_a_database_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    catalogue = SqlCatalogue(f"sqlite:///{foreign}")
    with pytest.raises(Misconfigured, match="database of its own"):
        catalogue.migrate()
    catalogue.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("no database, but long enough to look like one" * 40)
    catalogue = SqlCatalogue(f"sqlite:///{tmp_path / 'text.sqlite'}")
    with pytest.raises(Misconfigured, match="not a database"):
        catalogue.migrate()
    catalogue.close()


def test_an_empty_database_says_to_migrate(tmp_path: Path) -> None:
    catalogue = SqlCatalogue(f"sqlite:///{tmp_path / 'new.sqlite'}")
    with pytest.raises(Misconfigured, match="migrate"):
        catalogue.cases(CaseQuery())
    catalogue.close()


def test_a_folder_that_is_not_there_is_named_as_the_reason(tmp_path: Path) -> None:
    catalogue = SqlCatalogue(f"sqlite:///{tmp_path / 'no' / 'folder' / 'c.sqlite'}")
    with pytest.raises(Misconfigured, match="folder must exist"):
        catalogue.migrate()
    catalogue.close()


def test_a_catalogue_in_memory_is_one_for_all_threads() -> None:
    catalogue = SqlCatalogue("sqlite://")
    catalogue.migrate()
    catalogue.claim(GROUP, OWNER, [PLACE])
    catalogue.apply([tagged()], {PLACE: 1}, GROUP, OWNER)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(catalogue.case, "CASE-1").result().rev == 1
    catalogue.close()


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://localhost/x", "oracle+none://x"])
def test_a_url_of_another_database_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured, match="sqlite:"):
        SqlCatalogue(url)


def test_sqlite_keeps_a_log_of_writes_and_its_foreign_keys(book: Book) -> None:
    with closing(sqlite3.connect(book.file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with (
        pytest.raises(Refused),
        book.catalogue._transaction(writes=True) as open_,
    ):
        open_.execute(sa.insert(tables.case_tag).values(case_id="nobody", tag="a:b:c"))
