"""The decoder: record by record to typed rows in small chunks, chunk by chunk to columns.

Three ways lead to a row. The *typed* one is chosen by the record's key and knows the model's features by name; a row
in which one breaks its type is read once more as of any types. What it refuses because of another feature, and every
model without a contract, is read by the *open* one, whose features are a mapping that is then checked by name. What
that refuses is read as plain data by the *checks*, which make a row or a refusal. Only speed depends on the way: the
same bytes give the same row, violations or refusal.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain, compress, groupby, repeat, starmap
from math import nan
from operator import contains, itemgetter
from struct import Struct
from struct import error as StructError
from typing import Any, cast

import msgspec
import numpy as np
from msgspec.structs import astuple
from numpy.typing import NDArray

from errata.adapters.decode_msgspec.envelope import (
    NAMELESS,
    evident_refusal,
    has_hidden_faults,
    read_outcome,
    read_prediction,
)
from errata.adapters.decode_msgspec.plans import (
    FIELDS,
    LIMIT,
    PREDICTION_TYPE,
    UNREADABLE,
    UNUSABLE,
    Form,
    Found,
    InlineOutcome,
    OpenOutcome,
    OpenRow,
    Plan,
    Shape,
    Status,
)
from errata.contracts.refusals import MAX_AHEAD_US, clock_refusal
from errata.contracts.strict import MAX_BYTES
from errata.contracts.topics import OUTCOMES, PREDICTIONS, model_key
from errata.contracts.versions import refused_version
from errata.domain.columns import (
    PURPOSES,
    STATUS_CODES,
    Batch,
    Beat,
    Floats,
    Ints,
    Layout,
    Outcomes,
    Predictions,
    Refusal,
    Tick,
    Violation,
)
from errata.domain.detection.runs import flatnonzero, order_of
from errata.domain.hashing import id_hashes, seed_of
from errata.domain.instants import instants_us
from errata.domain.layouts import compile_layout
from errata.errors import Refused, RefusedDecode
from errata.ports import Headers, Record, columns_of

CHUNK = 96  # rows of one model alive at once: what they hold stays in the cache
ENOUGH = 84  # rows become columns: a chunk that lost some to bad records need not wait for the next
ROWS = 1_024  # put in order at once
PROBED = 64  # records of the first batch that show which fields events have
# A feature is read loosely once at least 8 and one in 64 of a model's rows of a batch broke its type, or held a
# category that its contract does not name.
LOOSENED = 8, 64
MAX_PLANS = 4_096  # kept beyond the layouts given: models that nobody described
MAX_SEEDS = 65_536

_IN_FEATURES = "$.features"  # a fault, as msgspec words it, that the open way may take
_NUL = b"\\u0000"
_BACKSLASH = ord("\\")  # one byte is found ten times as fast as six, and most events hold none
_JUDGED = frozenset(PURPOSES)
_PURPOSE = {name: at for at, name in enumerate(PURPOSES)}
_STATUS = {None: 0} | {name: at for at, name in enumerate(STATUS_CODES)}
_kin = itemgetter(0)
_plain = msgspec.json.Decoder().decode
_open_row = msgspec.json.Decoder(OpenRow).decode
_open_outcome = msgspec.json.Decoder(OpenOutcome).decode
_ROW_FIELDS = frozenset(FIELDS)
_OUTCOME_FIELDS = frozenset(OpenOutcome.__struct_fields__)


class MsgspecDecoder:
    """`errata.ports.Decoder`. ``key`` seeds the hashes of ids, so that they mean nothing outside of a deployment."""

    def __init__(self, key: bytes = b"errata") -> None:
        self._key = key.hex()
        self.plans: dict[bytes, Plan] = {}  # of the models that came last
        self._seeds: dict[tuple[str, str, str], int] = {}
        self.form = Form()
        self._learnt = False
        self.missed: list[bytes] = []  # an event with fields or segments that the form does not know yet

    def decode(self, records: Sequence[Record], layouts: Mapping[bytes, Layout]) -> Batch:
        if self.missed or not self._learnt:
            self._learn(
                self.missed or [record.value or b"" for record in records[:PROBED] if record.topic == PREDICTIONS]
            )
        if len(self.plans) > len(layouts) + MAX_PLANS:
            self.plans.clear()
        return _Pass(self, records, layouts).run()

    def _learn(self, raws: Sequence[bytes]) -> None:
        """Take fields and their order from events; what is decoded does not depend on it."""
        events = [seen for seen in map(_seen, raws) if seen is not None and "event_id" in seen]
        self.missed = []
        self._learnt = self._learnt or bool(events)
        grown = self.form.grown(events)
        if grown != self.form:
            self.form = grown
            self.plans.clear()

    def plan(self, key: bytes, layout: Layout | None, raw: bytes | None, tenant: str, model: str) -> Plan:
        """The plan of ``layout``, made anew when the layout is another one than last time, when ``raw`` is the
        first event to show in which order its features come, or when features are to be read loosely."""
        plan = self.plans.get(key)
        if plan is not None and plan.given is not layout:
            plan = None
        loose: frozenset[str] = plan.loose if plan else frozenset()
        if plan and plan.broken:
            loose |= plan.broken_often(*LOOSENED)
        if plan and loose == plan.loose and (plan.learnt or layout is None):
            return plan
        seen = (_seen(raw) or {}).get("features")
        if plan and loose == plan.loose and not isinstance(seen, dict):
            return plan
        known = layout or compile_layout(tenant, model, None, None)
        plan = Plan(known, self._key, self.form, seen if isinstance(seen, dict) else None, loose)
        plan.given = layout
        self.plans[key] = plan
        return plan

    def seed(self, tenant: str, source: str, kind: str) -> int:
        wanted = (tenant, source, kind)
        seed = self._seeds.get(wanted)
        if seed is None:
            if len(self._seeds) > MAX_SEEDS:
                self._seeds.clear()
            seed = self._seeds[wanted] = seed_of(self._key, *wanted)
        return seed


class _Pass:
    """One call of `decode`."""

    def __init__(self, decoder: MsgspecDecoder, records: Sequence[Record], layouts: Mapping[bytes, Layout]) -> None:
        self._decoder = decoder
        self._records = records
        self._values: Sequence[Any] = ()
        self._odd: set[int] = set()  # records that are too large or hold a NUL: not for the typed way
        self._partitions = self._offsets = self._times_us = _whole_numbers(())
        self._given = layouts
        self._plans: dict[bytes | None, Plan] = {}  # of this batch, by the key of their models
        self._layouts: list[Layout] = []
        self._used: list[Plan] = []
        self._found: dict[int, Found] = {}
        self._failed: dict[Plan, list[tuple[int, bytes, str]]] = defaultdict(list)  # (index, value, fault)
        self._refused: list[Refusal] = []
        self._skipped: dict[str, list[int]] = {}
        self._ticks: list[Tick] = []
        self._beats: list[Beat] = []
        self._misplaced: set[int] = set()
        self._predictions = _PredictionColumns(decoder, self._found)
        self._open: list[tuple[Plan, int, Any]] = []  # rows that came by the open way or the checks
        self._outcomes = _OutcomeColumns()

    def run(self) -> Batch:
        outcomes: list[int] = []
        for _, plan, indices in self._by_kin(self._by_key(outcomes)):
            for start in range(0, len(indices), CHUNK):
                self._chunk(plan, indices[start : start + CHUNK])
        self._try_again()
        self._flush_open()
        self._predictions.spread()
        self._reduce_outcomes(outcomes)
        at, received, keep = self._timed()
        predictions = self._predictions.done(self._used, self._partitions, self._offsets, at, received, keep)
        carried = self._outcomes.done(self._records)
        self._leave_out_idle_layouts(predictions, carried)
        self._refused.sort(key=lambda refusal: refusal.record)
        self._ticks.sort(key=lambda tick: tick.record)
        self._beats.sort(key=lambda beat: beat.record)
        misplaced = sorted(self._misplaced.difference(refusal.record for refusal in self._refused))
        return Batch(
            self._layouts, predictions, carried, self._ticks, self._refused, self._skipped, misplaced, self._beats
        )

    def _by_key(self, outcomes: list[int]) -> Mapping[bytes | None, list[int]]:
        """Indices of predictions by the key of their records; what is no prediction is dealt with or noted."""
        by_key: dict[bytes | None, list[int]] = defaultdict(list)
        if not self._records:
            return by_key
        topics, partitions, offsets, times_us, keys, values, headers = columns_of(self._records)
        foreign = self._of_other_versions(topics, headers) if any(headers) else set()
        whole = all(values)
        self._odd = _odd(cast(Sequence[bytes], values) if whole else [value or b"" for value in values])
        if topics.count(PREDICTIONS) == len(topics) and whole and not foreign:
            for index, key in enumerate(keys):
                by_key[key].append(index)
        else:
            for index, (topic, key, value) in enumerate(zip(topics, keys, values, strict=True)):
                if index in foreign:
                    continue
                if topic == PREDICTIONS and value is not None:
                    by_key[key].append(index)
                else:
                    self._other(index, self._records[index], outcomes)
        self._values = values
        self._partitions, self._offsets, self._times_us = map(_whole_numbers, (partitions, offsets, times_us))
        return by_key

    def _of_other_versions(self, topics: Sequence[str], headers: Sequence[Headers]) -> set[int]:
        """Records whose header says a major that is not read here: refused, whatever they hold."""
        found = set()
        for index, (topic, stated) in enumerate(zip(topics, headers, strict=True)):
            if stated and (refusal := refused_version(topic, stated)) is not None:
                self._refuse(index, refusal)
                found.add(index)
        return found

    def _by_kin(self, groups: Mapping[bytes | None, list[int]]) -> list[tuple[int, Plan | None, list[int]]]:
        """The plan of each model that a key names, None where nobody described it, and its records, kin beside kin."""
        found: list[tuple[int, Plan | None, list[int]]] = []
        for key, indices in groups.items():
            if key is None or (layout := self._given.get(key)) is None:
                found.append((-1, None, indices))
            else:
                plan = self._use(key, layout, self._values[indices[0]])
                found.append((plan.kin, plan, indices))
        found.sort(key=_kin)
        return found

    def _chunk(self, plan: Plan | None, indices: list[int]) -> None:
        """Records of one key: decoded and made columns while what they hold is in the cache."""
        raws = [self._values[index] for index in indices]
        if plan is None or plan.decode is None:
            for index, raw in zip(indices, raws, strict=True):
                self._slow(index, raw, _IN_FEATURES)
            return
        if self._odd and not self._odd.isdisjoint(indices):
            typed = [index not in self._odd for index in indices]
            for index, raw, well in zip(indices, raws, typed, strict=True):
                if not well:
                    self._slow(index, raw, "")
            indices = list(compress(indices, typed))
            raws = list(compress(raws, typed))
        rows: list[Any] = []
        failed: list[int] = []
        decoding = map(plan.decode, raws)
        while True:
            try:
                rows.extend(decoding)
                break
            except UNREADABLE as error:  # of the next row; the loop goes on behind it
                at = len(rows) + len(failed)
                self._failed[plan].append((indices[at], raws[at], str(error)))
                failed.append(at)
        for at in reversed(failed):
            del indices[at]
        if rows:
            self._predictions.add_typed(plan, rows, indices)

    def _try_again(self) -> None:
        """The rows that the typed way refused, all together: one between good rows finds nothing it needs in the cache,
        and costs half as much again."""
        for plan, failed in self._failed.items():
            for start in range(0, len(failed), CHUNK):
                rows: list[Any] = []
                indices: list[int] = []
                for index, raw, fault in failed[start : start + CHUNK]:
                    if (refusal := evident_refusal(fault, raw)) is not None:
                        self._refused.append(Refusal(index, refusal))
                    elif (row := self._of_other_types(plan, index, raw, fault)) is None:
                        self._slow(index, raw, fault)
                    else:
                        rows.append(row)
                        indices.append(index)
                if rows:
                    self._predictions.add_typed(plan, rows, indices)

    def _of_other_types(self, plan: Plan, index: int, raw: bytes, fault: str) -> Any:
        """A typed row all the same, when all that is wrong with it is the type of features; else None.

        So it becomes columns together with others: columns of its own cost as much as those of a hundred.
        """
        if _IN_FEATURES not in fault:
            return None
        plan.note_unknown(fault)
        found: Found = []
        row = plan.read_any_types(raw, found)
        if found:
            self._found[index] = found
        return row

    def _flush_open(self) -> None:
        for _, rows in groupby(sorted(self._open, key=_slot), _slot):
            (plan, *_), indices, mine = zip(*rows, strict=True)
            self._predictions.add_open(plan, mine, indices)
        self._open = []

    def _refuse(self, index: int, refusal: Refused) -> None:
        """Keep the refusal without the frames it came through: they hold the whole event, and cost more than naming."""
        refusal.__context__ = None
        self._refused.append(Refusal(index, refusal.with_traceback(None)))

    def _other(self, index: int, record: Record, outcomes: list[int]) -> None:
        if record.value is None:
            self._refused.append(Refusal(index, RefusedDecode("", "no value; send one JSON object")))
        elif record.topic == OUTCOMES:
            outcomes.append(index)
        else:
            self._skip("topic", index)

    def _skip(self, reason: str, index: int) -> None:
        self._skipped.setdefault(reason, []).append(index)

    def _plan_of(self, tenant: str, model: str, index: int) -> Plan:
        """The plan of the model that a row names. A typed row names the model of its record's key."""
        key = model_key(tenant, model)
        if self._records[index].key != key:
            self._misplaced.add(index)
        return self._plans.get(key) or self._use(key, self._given.get(key), None, tenant, model)

    def _use(self, key: bytes, layout: Layout | None, raw: bytes | None, tenant: str = "", model: str = "") -> Plan:
        """The plan of a model that occurs for the first time in the batch; a layout says itself whose it is."""
        plan = self._decoder.plans.get(key)
        if plan is None or plan.given is not layout or not plan.settled:
            plan = self._decoder.plan(key, layout, raw, tenant, model)
        self._plans[key] = plan
        plan.slot, plan.rows = len(self._layouts), 0
        self._layouts.append(plan.layout)
        self._used.append(plan)
        return plan

    def _slow(self, index: int, raw: bytes, fault: str) -> None:
        """A row by the open way or the checks, a refusal, or nothing for what is no prediction to judge.

        ``fault``: what the typed way said of it.
        """
        try:
            row = self._row(index, raw, fault)
        except Refused as refusal:
            self._refuse(index, refusal)
            return
        if row is None:
            return
        plan = self._plan_of(row.tenant, row.model.name, index)
        found: Found = []
        plan.fill(row, found)
        if found:
            self._found[index] = found
        self._open.append((plan, index, row))
        if len(self._open) >= CHUNK:
            self._flush_open()

    def _row(self, index: int, raw: bytes, fault: str) -> Any:
        missed = self._decoder.form.is_to_learn(fault)
        if (missed or _IN_FEATURES in fault) and len(raw) <= MAX_BYTES and _NUL not in raw:
            try:
                row = _open_row(raw)
            except UNREADABLE:
                pass
            else:
                if missed:
                    self._decoder.missed = [raw]
                return row
        return self._checked(index, self._records[index], raw)

    def _checked(self, index: int, record: Record, raw: bytes) -> Any:
        document = read_prediction(raw)
        purpose = document.get("purpose", "live")
        if purpose not in _JUDGED:
            self._unjudged(index, record, document, purpose)
            return None
        return _row_of(document)

    def _unjudged(self, index: int, record: Record, document: Mapping[str, Any], purpose: str) -> None:
        """A tick or a heartbeat."""
        at, _ = instants_us([document["time"]])
        time_us = int(at[0])
        if time_us - record.timestamp_us > MAX_AHEAD_US:
            raise clock_refusal("/time")
        if purpose == "tick":
            self._ticks.append(Tick(index, record.partition, record.timestamp_us))
        else:
            self._beats.append(Beat(index, record.partition, document["event_id"], time_us))

    def _timed(self) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """Event time and record time of the rows, and which rows stay; the others are refused here.

        Times are texts in a typed row, since one call for all of a batch costs a fraction of one for each.
        """
        columns = self._predictions
        record = columns.record
        received = self._times_us[record]
        at, good = instants_us(columns.times)
        if columns.other_times:
            _, are_times = instants_us([text for _, text in columns.other_times])
            good[[row for (row, _), is_time in zip(columns.other_times, are_times, strict=True) if not is_time]] = False
        good[columns.unanswered] = False
        huge = [row for row in columns.huge() if self._refusal(int(record[row])) is not None]
        # The id is the first field there is to check: nothing comes before it but a number that is none.
        nameless = set(columns.nameless).difference(huge)
        good[[*huge, *nameless]] = False
        ahead = at - received > MAX_AHEAD_US
        for row in flatnonzero(~good | ahead).tolist():
            index = int(record[row])
            self._found.pop(index, None)
            if row in nameless:
                self._refused.append(Refusal(index, NAMELESS))
            else:
                self._refuse(index, clock_refusal("/time") if good[row] else self._fault(index))
        return at, received, good & ~ahead

    def _refusal(self, index: int) -> Refused | None:
        try:
            read_prediction(self._records[index].value or b"")
        except Refused as refusal:
            return refusal
        return None

    def _fault(self, index: int) -> Refused:
        refusal = self._refusal(index)
        assert refusal is not None, "the typed decoder and the checks disagree"
        return refusal

    def _leave_out_idle_layouts(self, predictions: Predictions, outcomes: Outcomes) -> None:
        """A key may name a model of which no row came: `Batch.layouts` lists the layouts that occur."""
        occur = flatnonzero(np.bincount(np.concatenate([predictions.layout, outcomes.layout])))
        if len(occur) < len(self._layouts):
            predictions.layout = np.searchsorted(occur, predictions.layout)
            outcomes.layout = np.searchsorted(occur, outcomes.layout)
            self._layouts = [self._layouts[slot] for slot in occur]

    def _reduce_outcomes(self, indices: list[int]) -> None:
        for index in indices:
            record = self._records[index]
            try:
                self._outcome(index, record, record.value or b"")
            except Refused as refusal:
                self._refuse(index, refusal)

    def _outcome(self, index: int, record: Record, raw: bytes) -> None:
        outcome = _outcome_of(raw)
        at, _ = instants_us([outcome.observed_time])
        time_us = int(at[0])
        if time_us - record.timestamp_us > MAX_AHEAD_US:
            raise clock_refusal("/observed_time")
        if outcome.purpose not in _JUDGED:
            self._skip(outcome.purpose, index)
        elif outcome.kind != "ground_truth":
            self._skip("feedback", index)
        elif outcome.predicted is None:
            self._skip("waiting", index)
        else:
            plan = self._plan_of(outcome.tenant, outcome.model.name, index)
            self._outcomes.add(index, plan, outcome, time_us)


def _odd(values: Sequence[bytes]) -> set[int]:
    """Places of values that are too large or hold a NUL."""
    escaped = compress(range(len(values)), map(contains, values, repeat(_BACKSLASH)))
    found = {at for at in escaped if _NUL in values[at]}
    if max(map(len, values)) > MAX_BYTES:
        found.update(at for at, value in enumerate(values) if len(value) > MAX_BYTES)
    return found


def _seen(raw: bytes | None) -> dict[str, Any] | None:
    """The event in ``raw`` as plain data, if it is one."""
    try:
        found = _plain(raw or b"")
    except UNREADABLE:
        return None
    return found if isinstance(found, dict) else None


def _row_of(document: Mapping[str, Any]) -> Any:
    """A row of checked data. Columns are cut from names, outcome and status; the other parts are not looked at."""
    row = OpenRow(**{name: document[name] for name in document if name in _ROW_FIELDS})
    row.model = _Named(document["model"]["name"])
    status = document.get("status")
    if status is not None:
        row.status = Status(status.get("code"))
    outcome = document.get("outcome")
    if outcome is not None:
        known = InlineOutcome.__struct_fields__
        row.outcome = InlineOutcome(**{name: outcome[name] for name in outcome if name in known})
    return row


class _Named:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _outcome_of(raw: bytes) -> Any:
    if len(raw) <= MAX_BYTES and not has_hidden_faults(raw):
        try:
            outcome = _open_outcome(raw)
        except UNREADABLE:
            pass
        else:
            times = (outcome.observed_time, outcome.predicted_time, outcome.recorded_time)
            whole = (outcome.predicted is not None or outcome.prediction_id is not None) and (
                outcome.value is not None or outcome.score is not None
            )
            if whole and instants_us([time for time in times if time is not None])[1].all():
                return outcome
    document = read_outcome(raw)
    outcome = OpenOutcome(**{name: document[name] for name in document if name in _OUTCOME_FIELDS})
    outcome.model = _Named(document["model"]["name"])  # type: ignore[assignment]
    return outcome


def judge(predicted: Any, truth: Any) -> int:
    """1 wrong, 0 right, -1 when the two are no classes."""
    one, other = _class_text(predicted), _class_text(truth)
    return -1 if one is None or other is None else int(one != other)


def _class_text(value: Any) -> str | None:
    if value.__class__ is bool:
        return "true" if value else "false"
    return value if value.__class__ is str else None


class _Waiting:
    """Rows of one shape that wait to become columns: of any models, until they are enough."""

    def __init__(self, order: tuple[str, ...]) -> None:
        self.order = order
        self.clear()

    def clear(self) -> None:
        self.rows: list[Any] = []
        self.indices: list[int] = []  # of their records
        self.groups: list[tuple[Plan, int]] = []  # whose they are, and how many of each


class _PredictionColumns:
    """Columns of predictions in the order in which groups of rows were added; ``done`` puts them in receipt order."""

    def __init__(self, decoder: MsgspecDecoder, found: dict[int, Found]) -> None:
        self._decoder = decoder
        self._found = found
        self._typed = _Waiting(decoder.form.order)
        self._open = _Waiting(FIELDS)
        self.times: list[str] = []
        self.other_times: list[tuple[int, str]] = []  # (row, text)
        self.nameless: list[int] = []  # rows without an id
        self.unanswered: list[int] = []  # rows without a prediction that have no status code either
        self._indices: list[int] = []
        self._slots: list[int] = []  # of the layouts whose the rows are
        self._sizes: list[int] = []  # how many of each
        self._shapes: list[tuple[Shape, int]] = []  # of their features, and how many rows have it
        self._ids: list[str] = []
        self._prediction_ids: list[str] = []
        self._purpose = bytearray()
        self._status = bytearray()
        self._wrong = bytearray()  # of signed bytes
        self._seeds: dict[int, int] = {}  # row: the seed of a source or type of its own
        self._latency = bytearray()  # of doubles, as the next ones
        self._predicted = bytearray()
        self._confidence = bytearray()
        self._features: tuple[list[bytes], ...] = ([], [], [])  # numbers, categories, others

    def add_typed(self, plan: Plan, rows: Sequence[Any], indices: Sequence[int]) -> None:
        """Rows of a plan's typed decoder."""
        self._add(self._typed, plan, rows, indices)

    def add_open(self, plan: Plan, rows: Sequence[Any], indices: Sequence[int]) -> None:
        """Rows of the open type whose features stand in their places."""
        self._add(self._open, plan, rows, indices)

    def _add(self, waiting: _Waiting, plan: Plan, rows: Sequence[Any], indices: Sequence[int]) -> None:
        plan.rows += len(rows)
        waiting.rows += rows
        waiting.indices += indices
        waiting.groups.append((plan, len(rows)))
        if len(waiting.rows) >= ENOUGH:
            self._spread(waiting)

    def spread(self) -> None:
        self._spread(self._typed)
        self._spread(self._open)

    def _spread(self, waiting: _Waiting) -> None:
        """The rows that wait, field by field; nothing of them is kept but texts and numbers.

        ``astuple`` reads fields by their place: attributes of hundreds of types overflow Python's attribute cache.
        """
        if not waiting.rows:
            return
        first, n = len(self._indices), len(waiting.rows)
        absent = (None,) * n
        columns = dict(zip(waiting.order, zip(*map(astuple, waiting.rows), strict=True), strict=True)).get
        ids: Sequence[str] = columns("event_id", absent)
        predicted = columns("prediction", absent)
        self._indices += waiting.indices
        self._slots += [plan.slot for plan, _ in waiting.groups]
        self._sizes += [n for _, n in waiting.groups]
        self.times += columns("time", absent)
        if not all(ids):
            ids = list(ids)
            usual = next(filter(None, ids), "")  # ids of one length are hashed in a third of the time
            for at, name in enumerate(ids):
                if not name:
                    self.nameless.append(first + at)
                    ids[at] = usual
        self._ids += ids
        own = columns("prediction_id", absent)
        self._prediction_ids += ids if own.count(None) == n else map(_first, own, ids)
        purposes = columns("purpose", absent)
        given = purposes.count(None) < n and purposes.count("live") < n
        self._purpose += bytes(map(_PURPOSE.__getitem__, purposes)) if given else bytes(n)
        statuses = columns("status", absent)
        if statuses.count(None) == n:
            self._status += bytes(n)
        else:
            self._status += bytes([0 if status is None else _STATUS[status.code] for status in statuses])
        if not all(predicted) and None in predicted:
            self._unanswered(predicted, statuses, first)
        self._inline_outcomes(columns("outcome", absent), predicted, waiting.groups, first)
        sources, types = columns("source", absent), columns("type", absent)
        if sources.count(None) < n or (types.count(None) < n and types.count(PREDICTION_TYPE) < n):
            self._own_seeds(sources, types, waiting.groups, first)
        recorded = columns("recorded_time", absent)
        if recorded.count(None) < n:
            self.other_times += [(row, text) for row, text in enumerate(recorded, first) if text is not None]
        self._latency += _doubles(columns("latency_ms", absent))
        shares: Sequence[float | None] = columns("confidence", absent)
        if not all(shares) and None in shares:
            shares = list(map(_confidence, shares, columns("scores", absent), predicted))
        self._confidence += _doubles(shares)
        self._of_models(waiting, columns("features", absent), predicted)
        waiting.clear()

    def _of_models(self, waiting: _Waiting, features: Sequence[Any], predicted: Sequence[Any]) -> None:
        """What each model means by its features and answers; features of models of one shape column by column."""
        typed = waiting is self._typed
        if typed:
            try:
                features = list(map(astuple, features))
            except TypeError:
                plans = chain.from_iterable(repeat(plan, n) for plan, n in waiting.groups)
                pairs = zip(features, plans, strict=True)
                features = [plan.absent if one is None else astuple(one) for one, plan in pairs]
        numbers, categories, others = self._features
        end = 0
        for _, together in groupby(waiting.groups, _loose_or_shape_of if typed else _shape_of):
            whose, sizes = zip(*together, strict=True)
            plan, start, end = whose[0], end, end + sum(sizes)
            shape = plan.shape
            columns: list[Sequence[Any]] = list(zip(*features[start:end], strict=True))
            if plan.loose and typed:
                plan.check_loose(columns, waiting.indices[start:end], self._found)
            numbers += self._numbers(columns[: shape.numbers], whose, sizes, waiting.indices[start:end])
            cells: list[float | None] = []
            cells_of = zip(*[plan.cells_of for plan in whose], strict=True)
            for column, lookups in zip(columns[shape.numbers : shape.categories], cells_of, strict=True):
                _look_up(cells, column, lookups, sizes)
            categories.append(_doubles(cells))
            others += [_doubles(list(map(_presence, column))) for column in columns[shape.categories :]]
            self._shapes.append((shape, end - start))
        answers: list[float | None] = []
        whose, sizes = zip(*waiting.groups, strict=True)
        _look_up(answers, predicted, [plan.predicted for plan in whose], sizes)
        self._predicted += _doubles(answers)

    def _numbers(
        self, columns: Sequence[Sequence[Any]], whose: Sequence[Plan], sizes: Sequence[int], indices: Sequence[int]
    ) -> list[bytes]:
        """Each column as C doubles, None as NaN. A text is a violation."""
        pack = _packer("d", len(indices))
        packed: list[bytes] = []
        packing = starmap(pack, columns)
        while True:
            try:
                packed.extend(packing)
                return packed
            except StructError:  # of the column after those in `packed`; the loop goes on behind it
                at = len(packed)
                usable = list(columns[at])
                for row, kind in enumerate(map(type, columns[at])):
                    if kind is float:
                        continue
                    if usable[row] is None:
                        usable[row] = nan
                    elif kind is str:
                        plan = _whose(row, whose, sizes)
                        usable[row] = plan.unusable(at)
                        self._found.setdefault(indices[row], []).append((plan.names[at], "type"))
                packed.append(pack(*usable))

    def _unanswered(self, predicted: Sequence[Any], statuses: Sequence[Any], first: int) -> None:
        for row, (value, status) in enumerate(zip(predicted, statuses, strict=True), first):
            if value is None and (status is None or status.code is None):
                self.unanswered.append(row)

    def _inline_outcomes(
        self, outcomes: Sequence[Any], predicted: Sequence[Any], groups: Sequence[tuple[Plan, int]], first: int
    ) -> None:
        wrong = [-1] * len(outcomes)
        given = [at for at, outcome in enumerate(outcomes) if outcome is not None]
        judges = list(chain.from_iterable(repeat(plan.judges, n) for plan, n in groups)) if given else []
        for at in given:
            outcome, value = outcomes[at], predicted[at]
            if judges[at] and outcome.kind == "ground_truth":
                truth = outcome.value
                both = value.__class__ is str and truth.__class__ is str
                wrong[at] = value != truth if both else judge(value, truth)
            if outcome.observed_time is not None:
                self.other_times.append((first + at, outcome.observed_time))
            if outcome.recorded_time is not None:
                self.other_times.append((first + at, outcome.recorded_time))
        self._wrong += _packer("b", len(wrong))(*wrong)

    def _own_seeds(
        self, sources: Sequence[str | None], types: Sequence[str | None], groups: Sequence[tuple[Plan, int]], first: int
    ) -> None:
        layouts = chain.from_iterable(repeat(plan.layout, n) for plan, n in groups)
        for row, (source, kind, layout) in enumerate(zip(sources, types, layouts, strict=True), first):
            if source is not None or kind not in (None, PREDICTION_TYPE):
                whose = layout.model if source is None else source
                self._seeds[row] = self._decoder.seed(layout.tenant, whose, kind or PREDICTION_TYPE)

    @property
    def record(self) -> Ints:
        return _whole_numbers(self._indices)

    def huge(self) -> list[int]:
        """Rows with a number that may have been written as an integer of over 64 bits, which the contract refuses."""
        sizes = np.abs(self._cells(0))
        cells = flatnonzero((sizes >= LIMIT) & (sizes < np.inf))
        if not len(cells):
            return []
        rows = np.array([n for _, n in self._shapes], np.int64)
        held = rows * np.array([shape.numbers for shape, _ in self._shapes], np.int64)
        group = np.searchsorted(held.cumsum(), cells, side="right")
        found: list[int] = np.unique(_starts(rows)[group] + (cells - _starts(held)[group]) % rows[group]).tolist()
        return found

    def _cells(self, kind: int) -> Floats:
        """The features of a kind: those of rows of one shape column by column, as `_shapes` says."""
        return np.frombuffer(b"".join(self._features[kind]))

    def done(
        self,
        plans: Sequence[Plan],
        partitions: Ints,
        offsets: Ints,
        at: Ints,
        received: Ints,
        keep: NDArray[np.bool_],
    ) -> Predictions:
        """The columns of the rows in ``keep``, in receipt order. Partitions and offsets are of all records."""
        record = self.record
        rows = flatnonzero(keep)
        rows = rows[order_of(record[rows])]
        slot = np.repeat(np.array(self._slots, np.int64), np.array(self._sizes, np.int64))
        seeds = np.array([plan.seed for plan in plans], np.uint64)[slot]
        for row, seed in self._seeds.items():
            seeds[row] = seed
        sizes = np.array([n for _, n in self._shapes], np.int64)
        group = np.arange(len(sizes)).repeat(sizes)[rows]
        place = rows - _starts(sizes)[group]
        numbers, categories, others = (
            _in_order(self._cells(kind), [shape.places[kind] for shape, _ in self._shapes], sizes, group, place)
            for kind in range(len(self._features))
        )
        layout = slot[rows]
        widths = np.array([shape.widths for shape, _ in self._shapes], np.int64).reshape(-1, 3).T
        number_start, category_start, others_start = (_starts(wide[group]) for wide in widths)
        _fill_other(categories, category_start, layout, plans)
        kept = record[rows]
        faulty = sorted(self._found)
        row_of = dict(zip(faulty, np.searchsorted(kept, faulty).tolist(), strict=True))
        return Predictions(
            record=kept,
            layout=layout,
            purpose=np.frombuffer(self._purpose, np.int8)[rows],
            offset=offsets[kept],
            partition=partitions[kept],
            record_time_us=received[rows],
            time_us=at[rows],
            id_hash=id_hashes(self._ids, seeds)[rows],
            prediction_ids=list(map(self._prediction_ids.__getitem__, rows.tolist())),
            status=np.frombuffer(self._status, np.int8)[rows],
            latency_ms=np.frombuffer(self._latency, np.float64)[rows],
            predicted=np.frombuffer(self._predicted, np.float64)[rows],
            confidence=np.frombuffer(self._confidence, np.float64)[rows],
            wrong=np.frombuffer(self._wrong, np.int8)[rows],
            number_start=number_start,
            numbers=numbers,
            category_start=category_start,
            categories=categories,
            others_start=others_start,
            others=others.astype(np.int8),
            violations=[
                Violation(row_of[index], feature, reason) for index in faulty for feature, reason in self._found[index]
            ],
        )


class _OutcomeColumns:
    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int, int, int]] = []
        self._ids: list[str] = []
        self._prediction_ids: list[str] = []
        self._seeds: list[int] = []

    def add(self, index: int, plan: Plan, outcome: Any, time_us: int) -> None:
        wrong = judge(outcome.predicted, outcome.value) if plan.judges else -1
        self._rows.append((index, plan.slot, _PURPOSE[outcome.purpose], time_us, wrong, 0))
        self._ids.append(outcome.outcome_id)
        self._prediction_ids.append(outcome.prediction_id or "")
        self._seeds.append(plan.outcome_seed)

    def done(self, records: Sequence[Record]) -> Outcomes:
        index, slot, purpose, time_us, wrong, _ = np.array(self._rows, np.int64).reshape(-1, 6).T
        mine = [records[at] for at in index]
        return Outcomes(
            record=index,
            layout=slot,
            purpose=purpose.astype(np.int8),
            offset=np.array([one.offset for one in mine], np.int64),
            partition=np.array([one.partition for one in mine], np.int64),
            record_time_us=np.array([one.timestamp_us for one in mine], np.int64),
            time_us=time_us,
            id_hash=id_hashes(self._ids, np.array(self._seeds, np.uint64)),
            prediction_ids=self._prediction_ids,
            wrong=wrong.astype(np.int8),
        )


def _slot(row: tuple[Plan, int, Any]) -> int:
    return row[0].slot


def _shape_of(group: tuple[Plan, int]) -> Shape:
    return group[0].shape


def _loose_or_shape_of(group: tuple[Plan, int]) -> Plan | Shape:
    """A plan whose features are read loosely has its columns to itself."""
    return group[0] if group[0].loose else group[0].shape


def _look_up(
    found: list[float | None],
    values: Sequence[Any],
    lookups: Sequence[Callable[[Any], float | None]],
    sizes: Sequence[int],
) -> None:
    """Each value as its model means it: the first of ``lookups`` is for as many values as the first of ``sizes``."""
    if lookups.count(lookups[0]) == len(lookups):
        found.extend(map(lookups[0], values))
        return
    end = 0
    for look_up, n in zip(lookups, sizes, strict=True):
        start, end = end, end + n
        found.extend(map(look_up, values[start:end]))


def _presence(value: Any) -> float:
    return 0.0 if value is None else 2.0 if value is UNUSABLE else 1.0


def _whose(row: int, whose: Sequence[Plan], sizes: Sequence[int]) -> Plan:
    """The plan of a row, where rows come in groups of ``sizes``."""
    return whose[bisect_right(list(accumulate(sizes)), row)]


def _first(own: str | None, other: str) -> str:
    return own or other


def _confidence(own: float | None, scores: Mapping[str, float] | None, predicted: Any) -> float | None:
    """The confidence an event names, else the score of the predicted class."""
    if own is not None or not scores:
        return own
    return scores.get(predicted if predicted.__class__ is str else _class_text(predicted) or "")


def _whole_numbers(values: Sequence[int]) -> Ints:
    return np.frombuffer(_packer("q", len(values))(*values), np.int64)


@lru_cache(maxsize=64)  # those of full chunks; no two batches are alike, and a packer is made in 0.2 µs
def _packer(kind: str, n: int) -> Callable[..., bytes]:
    """Packs n numbers into native bytes: the quickest way from Python numbers to an array, a sixth of numpy's time."""
    return Struct(f"{n}{kind}").pack


def _doubles(values: Sequence[float | None]) -> bytes:
    """Numbers as C doubles, None as NaN."""
    pack = _packer("d", len(values))
    try:
        return pack(*values)
    except StructError:
        return pack(*[nan if value is None else value for value in values])


def _in_order(values: Floats, places: Sequence[Ints], sizes: Ints, group: Ints, place: Ints) -> Floats:
    """Ragged values row by row, each row's in the order of its layout.

    ``values`` are of one kind of features and stand group by group, in a group column by column. ``places`` are the
    columns of each group in the order of the layout, ``sizes`` its rows; ``group`` and ``place`` in it are of each row
    that is wanted.
    """
    if not len(values):
        return np.zeros(0)
    widths = np.array(list(map(len, places)), np.int64)
    columns = np.repeat(_starts(sizes * widths), widths) + sizes.repeat(widths) * np.concatenate(places)
    wide = widths[group]
    end, first_of = wide.cumsum(), _starts(widths)
    ordered = np.empty(int(end[-1]) if len(end) else 0)
    for low in range(0, len(group), ROWS):  # temporaries that stay in the cache
        mine = wide[low : low + ROWS]
        begin = int(end[low] - wide[low])
        cell = np.arange(mine.sum()) + np.repeat(first_of[group[low : low + ROWS]] - _starts(mine), mine)
        found = values[columns[cell] + np.repeat(place[low : low + ROWS], mine)]
        ordered[begin : begin + len(found)] = found
    return ordered


def _starts(widths: Ints) -> Ints:
    """Where each row begins in a ragged column, from the widths of the rows."""
    return widths.cumsum() - widths


def _fill_other(categories: Floats, start: Ints, slot: Ints, plans: Sequence[Plan]) -> None:
    """Unknown texts of categories without a closed set of values stand in the cell of the rest."""
    at = flatnonzero(np.isnan(categories))
    if not at.size:
        return
    row = np.searchsorted(start, at, side="right") - 1
    others = np.array(list(chain.from_iterable(plan.other_cells for plan in plans)), np.float64)
    first = np.concatenate(([0], np.cumsum([len(plan.other_cells) for plan in plans])))
    categories[at] = others[first[slot[row]] + at - start[row]]
