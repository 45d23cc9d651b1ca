"""`Catalogue` over SQLAlchemy Core. What a case is, is decided in the domain; here stands only how it is kept."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row, Table

from errata.adapters.sql.databases import WRITES, grant, insert, lock_migrations, open_engine
from errata.adapters.sql.failures import translated
from errata.adapters.sql.tables import (
    case_edit,
    case_revision,
    case_tag,
    consumer_position,
    dead_letter,
    failure_case,
    short_id_counter,
)
from errata.contracts import FailureCase, TaggedCase, canonical
from errata.contracts.base import Fields
from errata.contracts.strict import instant, to_us
from errata.domain.catalogue.cases import (
    case_of,
    closed_at,
    content_hash,
    search_text,
    short_id,
    shown_case,
    supersedes,
    without_peoples_fields,
)
from errata.domain.catalogue.lifecycle import Move, Revision, folded, move_patch, patch_between, rejection_reason
from errata.domain.catalogue.queries import CaseCounts, CaseQuery, suggestion, words
from errata.errors import Fenced, Misconfigured, NotFound
from errata.ports import CrashHook, Offsets, SinkDeadLetter, TopicPartition, never_crash

SCHEMAS = ("c0001", "c0002")  # the migrations, oldest first; a test compares them with the scripts
SCHEMA = SCHEMAS[-1]
MACHINE = "errata"  # the actor of every revision that the chain makes
_MIGRATIONS = Path(__file__).with_name("migrations")
_ALEMBIC = Lock()  # it keeps the migration that runs in a global, so one thread of this process at a time
_IN_CHUNK = 500  # ids in one IN (…), well under every database's limit of parameters
_SUGGEST_FROM = 2_000  # newest short ids looked at for a suggestion
_SHORTEST_PREFIX = 8  # characters of a case id that may stand for it


class SqlCatalogue:
    """See `errata.ports.Catalogue`. ``url`` is libpq's or SQLAlchemy's, of SQLite or PostgreSQL.

    ``busy_timeout_s``: how long SQLite waits for another writer before ``Unavailable``. ``service`` is the name that
    PostgreSQL shows for our connections, behind ``errata-``.
    """

    def __init__(self, url: str | sa.URL, busy_timeout_s: float = 5.0, service: str = "catalogue") -> None:
        self._engine = open_engine(url, service, busy_timeout_s)
        self._checked = False

    @classmethod
    def of_file(cls, file: Path) -> "SqlCatalogue":
        """The catalogue in a SQLite file, whatever signs its path has (a URL would read ``?`` and ``%``)."""
        return cls(sa.URL.create("sqlite", database=str(file.absolute())))

    def close(self) -> None:
        self._engine.dispose()

    # schema

    def migrate(self, grant_to: str | None = None) -> None:
        """As the port says. ``grant_to``: a role of PostgreSQL that gets the rights of a writer, and only those."""
        with self._transaction(checked=False) as connection:
            newest = _schema(connection) == SCHEMA
        if not newest or grant_to is not None:
            with self._transaction(writes=True, checked=False) as connection:
                lock_migrations(connection)
                if _schema(connection) != SCHEMA:  # another process may have been quicker
                    _upgrade(connection)
                if grant_to is not None:
                    grant(connection, grant_to)
        self._checked = True

    def schema(self) -> str | None:
        """The migration the database is at; None for an empty one."""
        with self._transaction(checked=False) as connection:
            return _schema(connection)

    def check(self) -> None:
        """Raise ``Misconfigured`` with the command to run unless the database is of the schema this code knows."""
        with self._transaction(checked=False) as connection:
            _require_schema(connection)
        self._checked = True

    # writing

    def claim(self, group: str, owner: str, partitions: Iterable[TopicPartition]) -> Offsets:
        positions: Offsets = {}
        with self._transaction(writes=True) as connection:
            for topic, partition in sorted(partitions):
                row = {"consumer_group": group, "topic": topic, "partition": partition}
                taken = insert(connection, consumer_position).values(next_offset=0, owner=owner, **row)
                # The row is locked from here on: a writer that was before us commits first, or finds itself fenced.
                taken = taken.on_conflict_do_update(index_elements=list(row), set_={"owner": owner})
                found = connection.execute(taken.returning(consumer_position.c.next_offset))
                positions[topic, partition] = found.scalar_one()
        return positions

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
        with self._transaction(writes=True) as connection:
            made = self._write_cases(connection, cases)
            self._write_dead(connection, dead)
            crash("AFTER_ROWS")
            _write_positions(connection, positions, group, owner)
            crash("AFTER_POSITION")
        crash("AFTER_DB_COMMIT")
        return made

    def _write_cases(self, connection: Connection, cases: Sequence[TaggedCase]) -> int:
        held = _held(connection, {case.episode.id for case in cases})
        self._number_new_cases(connection, cases, held)
        revisions: list[dict[str, Any]] = []
        changed: dict[str, _Held] = {}
        for tagged in cases:
            state = held[tagged.episode.id]
            revision = state.take(tagged)
            if revision is not None:
                revisions.append(_revision_row(revision))
                changed[state.case_id] = state
        if changed:
            rows = [state.row() for state in changed.values()]
            connection.execute(_upsert_newer_seq(connection), rows)
            connection.execute(sa.insert(case_revision), revisions)
            self._write_tags(connection, changed)
        return len(revisions)

    def _number_new_cases(self, connection: Connection, cases: Sequence[TaggedCase], held: dict[str, "_Held"]) -> None:
        first: dict[str, TaggedCase] = {}
        for tagged in cases:
            if tagged.episode.id not in held:
                first.setdefault(tagged.episode.id, tagged)
        # The order of a batch's partitions is the transport's affair; record time is the same in every run. At equal
        # times the order they came in decides, so that it does not matter where a batch ends.
        ordered = sorted(first.values(), key=lambda case: case.time)
        new_of = Counter(case.tenant for case in ordered)
        number = {tenant: self._take_numbers(connection, tenant, n) for tenant, n in sorted(new_of.items())}
        for case in ordered:
            name = short_id(case.tenant, number[case.tenant])
            number[case.tenant] += 1
            held[case.episode.id] = _Held(case.episode.id, case.tenant, name, to_us(case.time))

    def _take_numbers(self, connection: Connection, tenant: str, n: int) -> int:
        """The first of ``n`` numbers that are the caller's from now on."""
        start = insert(connection, short_id_counter).values(tenant=tenant, next_number=1)
        connection.execute(start.on_conflict_do_nothing())
        mine = short_id_counter.c.tenant == tenant
        number: int = connection.execute(
            sa.select(short_id_counter.c.next_number).where(mine).with_for_update()
        ).scalar_one()
        connection.execute(sa.update(short_id_counter).where(mine).values(next_number=number + n))
        return number

    def _write_tags(self, connection: Connection, changed: Mapping[str, "_Held"]) -> None:
        for ids in _chunks(sorted(changed)):
            connection.execute(sa.delete(case_tag).where(case_tag.c.case_id.in_(ids)))
        rows = [{"case_id": id_, "tag": tag} for id_, state in changed.items() for tag in state.tags()]
        if rows:
            connection.execute(sa.insert(case_tag), rows)

    def _write_dead(self, connection: Connection, dead: Sequence[SinkDeadLetter]) -> None:
        if dead:
            rows = [
                {
                    "topic": letter.topic,
                    "partition": letter.partition,
                    "offset": letter.offset,
                    "timestamp_us": letter.timestamp_us,
                    "class": letter.refusal_class,
                    "path": letter.path,
                    "message": letter.message,
                    "payload": letter.payload,
                }
                for letter in dead
            ]
            connection.execute(insert(connection, dead_letter).on_conflict_do_nothing(), rows)

    # reading

    def cases(self, query: CaseQuery) -> list[FailureCase]:
        wanted = _shown_columns().where(*_conditions(query))
        newest = wanted.order_by(failure_case.c.opened_at_us.desc(), failure_case.c.case_id).limit(query.limit)
        with self._transaction() as connection:
            return [_shown(row) for row in connection.execute(newest)]

    def case(self, reference: str) -> FailureCase:
        with self._transaction() as connection:
            return _shown(_found(connection, reference))

    def revisions(self, reference: str) -> list[Revision]:
        with self._transaction() as connection:
            case_id = _found(connection, reference).case_id
            wanted = sa.select(case_revision).where(case_revision.c.case_id == case_id)
            return [_revision(row) for row in connection.execute(wanted.order_by(case_revision.c.rev))]

    def counts(self) -> CaseCounts:
        columns = (failure_case.c.status, failure_case.c.episode_state, failure_case.c.root_class)
        status: Counter[str] = Counter()
        state: Counter[str] = Counter()
        root: Counter[str] = Counter()
        with self._transaction() as connection:
            for row in connection.execute(sa.select(*columns, sa.func.count().label("n")).group_by(*columns)):
                status[row.status] += row.n
                state[row.episode_state] += row.n
                root[row.root_class] += row.n
        return CaseCounts(status.total(), dict(status), dict(state), dict(root))

    def open_cases(self) -> dict[str, int]:
        root = failure_case.c.root_class
        wanted = sa.select(root, sa.func.count().label("n")).where(failure_case.c.closed_at_us.is_(None)).group_by(root)
        with self._transaction() as connection:
            return {row.root_class: row.n for row in connection.execute(wanted)}

    def dead_letters(self, limit: int = 100) -> list[SinkDeadLetter]:
        place = (dead_letter.c.topic, dead_letter.c.partition, dead_letter.c.offset)
        with self._transaction() as connection:
            rows = connection.execute(sa.select(dead_letter).order_by(*place).limit(limit))
            return [SinkDeadLetter(*row) for row in rows]

    # people

    def move(
        self, reference: str, move: Move, *, actor: str, at: datetime, rejection: str | None = None, note: str = ""
    ) -> FailureCase:
        because = rejection_reason(rejection) if rejection is not None else None
        with self._transaction(writes=True) as connection:
            row = _found(connection, reference, locks=True)
            edits = _edits(row)
            patch = move_patch(row.status, move, because, note)
            previous = {name: {"status": row.status, **edits}.get(name) for name in patch}
            revision = Revision(
                row.case_id, row.rev + 1, to_us(at), actor, note or rejection or move, row.content_hash, patch, previous
            )
            self._write_edit(connection, revision, folded(edits, patch))
        return self.case(revision.case_id)

    def _write_edit(self, connection: Connection, revision: Revision, edits: Fields) -> None:
        connection.execute(sa.insert(case_revision).values(**_revision_row(revision)))
        values = {"rev": revision.rev, "edits": _text(edits)}
        kept = insert(connection, case_edit).values(case_id=revision.case_id, **values)
        connection.execute(kept.on_conflict_do_update(index_elements=["case_id"], set_=values))
        mine = sa.update(failure_case).where(failure_case.c.case_id == revision.case_id)
        connection.execute(mine.values(rev=revision.rev, status=edits["status"]))

    # the database

    @contextmanager
    def _transaction(self, writes: bool = False, checked: bool = True) -> Iterator[Connection]:
        with translated():
            engine = self._engine.execution_options(**{WRITES: writes})
            with engine.begin() as connection:
                if checked and not self._checked:
                    _require_schema(connection)
                    self._checked = True
                yield connection


@dataclass(slots=True)
class _Held:
    """A case while a batch is applied: what is stored, moved on by each newer seq."""

    case_id: str
    tenant: str
    short_id: str
    opened_at_us: int
    seq: int = -1
    rev: int = 0
    document: Fields | None = None
    content_hash: str = ""
    case: FailureCase | None = None
    said: Fields | None = None  # the whole case as plain data; made once, it is hashed, compared and stored

    def take(self, tagged: TaggedCase) -> Revision | None:
        """The revision that ``tagged`` makes; None when it is not newer or says nothing new."""
        partial = tagged.enrichment is not None
        lacked = "enrichment" in (self.document or {})
        if not supersedes(tagged.episode.seq, partial, self.seq, lacked):
            return None
        case = case_of(tagged, self.short_id, instant(self.opened_at_us), closed_at(tagged), self.rev + 1)
        said = case.model_dump(mode="json", by_alias=True, exclude_none=True)
        document = without_peoples_fields(said)
        hash_ = content_hash(document)
        if hash_ == self.content_hash:
            return None
        patch = patch_between(self.document or {}, document)
        if self.document is None:
            patch["status"] = case.status
        filled_in = ", filled in" if tagged.episode.seq == self.seq else ""
        self.seq, self.rev, self.document, self.content_hash = tagged.episode.seq, case.rev, document, hash_
        self.case, self.said = case, said
        reason = f"episode {tagged.episode.state}, seq {tagged.episode.seq}{filled_in}"
        return Revision(self.case_id, self.rev, to_us(tagged.time), MACHINE, reason, hash_, patch)

    def tags(self) -> list[str]:
        return sorted({tag.tag for tag in self._taken().tags})

    def row(self) -> dict[str, Any]:
        case = self._taken()
        return {
            "case_id": self.case_id,
            "short_id": self.short_id,
            "tenant": case.tenant,
            "model": case.model.name,
            "slice": case.slice,
            "status": "new",
            "episode_state": case.episode.state,
            "episode_seq": self.seq,
            "root_class": case.root_class,
            "severity_level": case.severity.level,
            "severity_value": case.severity.value,
            "opened_at_us": self.opened_at_us,
            "onset_us": to_us(case.onset),
            "last_seen_us": to_us(case.last_seen),
            "closed_at_us": None if case.closed_at is None else to_us(case.closed_at),
            "count": case.count,
            "rev": self.rev,
            "fingerprint": _text(case.fingerprint.value),
            "search": search_text(case),
            "content_hash": self.content_hash,
            "body": _text(self.said),
        }

    def _taken(self) -> FailureCase:
        assert self.case is not None, "only a case that took a seq has a row"
        return self.case


def _held(connection: Connection, case_ids: set[str]) -> dict[str, _Held]:
    columns = (
        failure_case.c.case_id,
        failure_case.c.tenant,
        failure_case.c.short_id,
        failure_case.c.opened_at_us,
        failure_case.c.episode_seq,
        failure_case.c.rev,
        failure_case.c.content_hash,
        failure_case.c.body,
    )
    held: dict[str, _Held] = {}
    for ids in _chunks(sorted(case_ids)):
        wanted = sa.select(*columns).where(failure_case.c.case_id.in_(ids)).with_for_update()
        for row in connection.execute(wanted):
            held[row.case_id] = _Held(
                row.case_id,
                row.tenant,
                row.short_id,
                row.opened_at_us,
                row.episode_seq,
                row.rev,
                _document(row.body),
                row.content_hash,
            )
    return held


def _upsert_newer_seq(connection: Connection) -> Any:
    written = insert(connection, failure_case)
    # Not `status`: it is people's. Not what a case is born with: ids, tenant, time of opening.
    born = {"case_id", "short_id", "tenant", "status", "opened_at_us"}
    moved = {column.name: written.excluded[column.name] for column in failure_case.c if column.name not in born}
    return written.on_conflict_do_update(
        index_elements=["case_id"], set_=moved, where=written.excluded.episode_seq >= failure_case.c.episode_seq
    )


def _write_positions(connection: Connection, positions: Offsets, group: str, owner: str) -> None:
    for (topic, partition), next_offset in sorted(positions.items()):
        mine = {"consumer_group": group, "topic": topic, "partition": partition, "owner": owner}
        moved = connection.execute(
            sa.update(consumer_position).where(*_equal(consumer_position, mine)).values(next_offset=next_offset)
        )
        if moved.rowcount == 0:
            raise Fenced(f"another writer owns partition {partition} of {topic}; the newer one goes on")


def _conditions(query: CaseQuery) -> list[sa.ColumnElement[bool]]:
    exact = {
        "status": query.status,
        "model": query.model,
        "tenant": query.tenant,
        "root_class": query.root_class,
        "severity_level": query.severity,
    }
    found = _equal(failure_case, {name: value for name, value in exact.items() if value is not None})
    if query.since_us is not None:
        found.append(failure_case.c.last_seen_us >= query.since_us)
    if query.tag:
        under = case_tag.c.tag.startswith(f"{query.tag}:", autoescape=True)
        whose = case_tag.c.case_id == failure_case.c.case_id
        found.append(sa.exists().where(whose, sa.or_(case_tag.c.tag == query.tag, under)))
    found += [failure_case.c.search.contains(word, autoescape=True) for word in words(query.text)]
    return found


def _shown_columns() -> sa.Select[Any]:
    columns = (
        failure_case.c.case_id,
        failure_case.c.status,
        failure_case.c.rev,
        failure_case.c.content_hash,
        failure_case.c.body,
        case_edit.c.edits,
    )
    return sa.select(*columns).select_from(failure_case.outerjoin(case_edit))


def _shown(row: Row[Any]) -> FailureCase:
    return shown_case(json.loads(row.body), _edits(row), row.rev)


def _document(body: str) -> Fields:
    """The machine's document of a stored body, as it was written: no default of today gets into it."""
    document: Fields = json.loads(body)
    return without_peoples_fields(document)


def _edits(row: Row[Any]) -> Fields:
    edits: Fields = json.loads(row.edits) if row.edits is not None else {}
    return edits


def _found(connection: Connection, reference: str, locks: bool = False) -> Row[Any]:
    wanted = _shown_columns()
    if locks:
        wanted = wanted.with_for_update(of=failure_case)
    by_id = failure_case.c.case_id == reference.lower()
    by_short_id = failure_case.c.short_id.in_([reference, reference.upper()])
    rows = connection.execute(wanted.where(sa.or_(by_id, by_short_id)).limit(2)).all()
    if not rows and len(reference) >= _SHORTEST_PREFIX:
        by_prefix = failure_case.c.case_id.startswith(reference.lower(), autoescape=True)
        rows = connection.execute(wanted.where(by_prefix).limit(2)).all()
    if len(rows) > 1:
        raise NotFound("more than one case has this id; write the whole case_id that `errata cases list --json` shows")
    if not rows:
        newest = sa.select(failure_case.c.short_id).order_by(failure_case.c.opened_at_us.desc()).limit(_SUGGEST_FROM)
        near = suggestion(reference, connection.execute(newest).scalars())
        hint = f"did you mean {near}?" if near else "`errata cases list` shows them all"
        raise NotFound(f"no case has this id; {hint}")
    return rows[0]


def _revision_row(revision: Revision) -> dict[str, Any]:
    return {
        "case_id": revision.case_id,
        "rev": revision.rev,
        "valid_from_us": revision.valid_from_us,
        "actor": revision.actor,
        "reason": revision.reason,
        "content_hash": revision.content_hash,
        "patch": _text(revision.patch),
        "previous": _text(revision.previous),
    }


def _revision(row: Row[Any]) -> Revision:
    return Revision(
        row.case_id,
        row.rev,
        row.valid_from_us,
        row.actor,
        row.reason,
        row.content_hash,
        json.loads(row.patch),
        json.loads(row.previous),
    )


def _text(value: object) -> str:
    return canonical(value).decode()


def _equal(table: Table, values: Mapping[str, object]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in values.items()]


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _IN_CHUNK):
        yield ids[start : start + _IN_CHUNK]


def _schema(connection: Connection) -> str | None:
    """The migration a database is at; None for an empty one."""
    tables = set(sa.inspect(connection).get_table_names())
    if "alembic_version" not in tables:
        if tables:
            raise Misconfigured("catalogue: the database holds other tables; give errata a database of its own")
        return None
    version: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return version


def _require_schema(connection: Connection) -> None:
    found = _schema(connection)
    if found != SCHEMA:
        raise _wrong_schema(found)


def _wrong_schema(found: str | None) -> Misconfigured:
    if found is None:
        return Misconfigured("catalogue: the database is empty; run `errata catalog migrate`")
    if found in SCHEMAS:
        return Misconfigured(
            f"catalogue: the database is of schema {found}, this errata knows {SCHEMA}; run `errata catalog migrate`"
        )
    return Misconfigured(
        f"catalogue: the database is of schema {found}, this errata knows {SCHEMA}; install the errata that wrote it"
    )


def _upgrade(connection: Connection) -> None:
    # Imported here: Alembic costs a tenth of a second, and only the first start needs it.
    from alembic import command
    from alembic.config import Config

    found = _schema(connection)
    if found is not None and found not in SCHEMAS:
        raise _wrong_schema(found)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    with _ALEMBIC:
        command.upgrade(config, "head")
