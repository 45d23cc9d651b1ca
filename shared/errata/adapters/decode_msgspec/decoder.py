"""The decoder: record by record to typed rows in small chunks, chunk by chunk to columns.

Three ways lead to a row. The *typed* one is chosen by the record's key and knows the model's features by name. What it
refuses because of a feature, and every model without a contract, is read by the *open* one, whose features are a
mapping that is then checked by name. What that refuses is read as plain data by the *checks*, which make a row or a
refusal. Only speed depends on the way: the same bytes give the same row, violations or refusal.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from struct import Struct
from struct import error as StructError
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import astuple
from numpy.typing import NDArray

from errata.adapters.decode_msgspec.envelope import has_hidden_faults, read_outcome, read_prediction
from errata.adapters.decode_msgspec.plans import (
    FIELDS,
    PREDICTION_TYPE,
    UNUSABLE,
    Envelope,
    Found,
    InlineOutcome,
    OpenOutcome,
    Plan,
    Status,
    arranged,
)
from errata.contracts.refusals import MAX_AHEAD_US, clock_refusal
from errata.contracts.strict import MAX_BYTES
from errata.contracts.topics import OUTCOMES, PREDICTIONS, model_key
from errata.domain.columns import (
    PURPOSES,
    STATUS_CODES,
    Batch,
    Floats,
    Ints,
    Layout,
    Outcomes,
    Predictions,
    Refusal,
    Tick,
    Violation,
)
from errata.domain.hashing import id_hashes, seed_of
from errata.domain.instants import instants_us
from errata.domain.layouts import compile_layout
from errata.errors import Refused, RefusedDecode
from errata.ports import Record

CHUNK = 128  # rows of one model alive at once: what they hold stays in the cache
PROBED = 16  # records looked at for the order of fields, until one is an event
MAX_PLANS = 4_096  # kept beyond the layouts given: models that nobody described
MAX_SEEDS = 65_536

_NUL = b"\\u0000"
_BACKSLASH = b"\\"  # one byte is found ten times as fast as six, and most events hold none
_JUDGED = frozenset(PURPOSES)
_PURPOSE = {name: at for at, name in enumerate(PURPOSES)}
_STATUS = {None: 0} | {name: at for at, name in enumerate(STATUS_CODES)}
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError)
_plain = msgspec.json.Decoder().decode
_open_outcome = msgspec.json.Decoder(OpenOutcome).decode
_ROW_FIELDS = frozenset(FIELDS)
_OUTCOME_FIELDS = frozenset(OpenOutcome.__struct_fields__)


class MsgspecDecoder:
    """`errata.ports.Decoder`. ``key`` seeds the hashes of ids, so that they mean nothing outside of a deployment."""

    def __init__(self, key: bytes = b"errata") -> None:
        self._key = key.hex()
        self._plans: dict[bytes, Plan] = {}
        self._seeds: dict[tuple[str, str, str], int] = {}
        self.envelope = Envelope(FIELDS)
        self._learnt = False

    def decode(self, records: Sequence[Record], layouts: Mapping[bytes, Layout]) -> Batch:
        if not self._learnt:
            self._learn(records[:PROBED])
        if len(self._plans) > len(layouts) + MAX_PLANS:
            self._plans.clear()
        return _Pass(self, records, layouts).run()

    def _learn(self, records: Sequence[Record]) -> None:
        """Take the order of fields from the first event that is one; what is decoded does not depend on it."""
        for record in records:
            seen = _seen(record.value) if record.topic == PREDICTIONS else None
            if seen is not None and "prediction" in seen:
                self.envelope = Envelope(arranged(FIELDS, seen))
                self._plans.clear()
                self._learnt = True
                return

    def plan(self, key: bytes, layout: Layout | None, tenant: str, model: str, raw: bytes | None = None) -> Plan:
        """The plan of ``layout``, made anew when the layout is another one than last time, or when ``raw`` is the
        first event to show in which order its features come."""
        plan = self._plans.get(key)
        if plan is None or plan.given is not layout or not plan.learnt:
            seen = None if layout is None else (_seen(raw) or {}).get("features")
            if plan is not None and plan.given is layout and not seen:
                return plan
            order = self.envelope.order
            known = layout or compile_layout(tenant, model, None, None)
            plan = Plan(known, self._key, order, seen if isinstance(seen, dict) else None)
            plan.given = layout
            self._plans[key] = plan
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
        self._given = layouts
        self._plans: dict[bytes | None, Plan] = {}  # of this batch, by the key of their models
        self._layouts: list[Layout] = []
        self._used: list[Plan] = []
        self._found: dict[int, Found] = {}
        self._refused: list[Refusal] = []
        self._skipped: dict[str, list[int]] = {}
        self._ticks: list[Tick] = []
        self._predictions = _PredictionColumns()
        self._outcomes = _OutcomeColumns()

    def run(self) -> Batch:
        outcomes: list[int] = []
        by_key: dict[bytes | None, list[int]] = defaultdict(list)
        for index, record in enumerate(self._records):
            if record.topic == PREDICTIONS and record.value is not None:
                by_key[record.key].append(index)
            else:
                self._other(index, record, outcomes)
        for key, indices in by_key.items():
            for start in range(0, len(indices), CHUNK):
                self._chunk(key, indices[start : start + CHUNK])
        for plan in self._used:  # rows of a model that came under another key
            self._flush(plan)
        self._predictions.spread(self._records, self._decoder)
        self._reduce_outcomes(outcomes)
        at, received, keep = self._timed()
        predictions = self._predictions.done(self._used, self._found, at, received, keep)
        carried = self._outcomes.done(self._records)
        self._leave_out_idle_layouts(predictions, carried)
        for plan in self._used:
            plan.slot = -1
        self._refused.sort(key=lambda refusal: refusal.record)
        self._ticks.sort(key=lambda tick: tick.record)
        return Batch(self._layouts, predictions, carried, self._ticks, self._refused, self._skipped)

    def _chunk(self, key: bytes | None, indices: Sequence[int]) -> None:
        """Records of one key: decoded and made columns while what they hold is in the cache."""
        records = self._records
        plan = self._plans.get(key) or self._plan_of_key(key, records[indices[0]].value or b"")
        if plan is None or plan.decode is None:
            for index in indices:
                self._slow(index, records[index], records[index].value or b"", typed=False)
            return
        decode, keep, mark = plan.decode, plan.rows.append, plan.indices.append
        for index in indices:
            raw = records[index].value or b""
            if (_BACKSLASH in raw and _NUL in raw) or len(raw) > MAX_BYTES:
                self._slow(index, records[index], raw, typed=False)
                continue
            try:
                row = decode(raw)
            except _UNREADABLE as error:
                self._slow(index, records[index], raw, typed="$.features" not in str(error))
                continue
            keep(row)
            mark(index)
        self._flush(plan)

    def _refuse(self, index: int, refusal: Refused) -> None:
        """Keep the refusal without the frames it came through: they hold the whole event, and cost more than naming."""
        refusal.__context__ = None
        self._refused.append(Refusal(index, refusal.with_traceback(None)))

    def _flush(self, plan: Plan) -> None:
        if plan.rows:
            self._predictions.add(plan, self._records, self._decoder)
            plan.rows, plan.indices = [], []

    def _other(self, index: int, record: Record, outcomes: list[int]) -> None:
        if record.value is None:
            self._refused.append(Refusal(index, RefusedDecode("", "no value; send one JSON object")))
        elif record.topic == OUTCOMES:
            outcomes.append(index)
        else:
            self._skip("topic", index)

    def _skip(self, reason: str, index: int) -> None:
        self._skipped.setdefault(reason, []).append(index)

    def _plan_of_key(self, key: bytes | None, raw: bytes) -> Plan | None:
        layout = self._given.get(key) if key is not None else None
        return self._plan_of(layout.tenant, layout.model, raw) if layout is not None else None

    def _plan_of(self, tenant: str, model: str, raw: bytes | None = None) -> Plan:
        key = model_key(tenant, model)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._decoder.plan(key, self._given.get(key), tenant, model, raw)
            plan.slot = len(self._layouts)
            self._layouts.append(plan.layout)
            self._used.append(plan)
            self._plans[key] = plan
        return plan

    def _slow(self, index: int, record: Record, raw: bytes, *, typed: bool) -> None:
        """A row by the open way or the checks, a refusal, or nothing for what is no prediction to judge."""
        try:
            row = self._row(index, record, raw, typed)
        except Refused as refusal:
            self._refuse(index, refusal)
            return
        if row is None:
            return
        plan = self._plan_of(row.tenant, row.model.name)
        found: Found = []
        plan.fill(row, found)
        plan.mixed = True
        if found:
            self._found[index] = found
        plan.rows.append(row)
        plan.indices.append(index)

    def _row(self, index: int, record: Record, raw: bytes, typed: bool) -> Any:
        if not typed and len(raw) <= MAX_BYTES and _NUL not in raw:
            try:
                return self._decoder.envelope.decode(raw)
            except _UNREADABLE:
                pass
        return self._checked(index, record, raw)

    def _checked(self, index: int, record: Record, raw: bytes) -> Any:
        document = read_prediction(raw)
        purpose = document.get("purpose", "live")
        if purpose not in _JUDGED:
            self._unjudged(index, record, document["time"], purpose)
            return None
        return _row_of(document, self._decoder.envelope)

    def _unjudged(self, index: int, record: Record, time: str, purpose: str) -> None:
        at, _ = instants_us([time])
        if int(at[0]) - record.timestamp_us > MAX_AHEAD_US:
            raise clock_refusal("/time")
        if purpose == "tick":
            self._ticks.append(Tick(index, record.partition, record.timestamp_us))
        else:
            self._skip(purpose, index)

    def _timed(self) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """Event time and record time of the rows, and which rows stay; the others are refused here.

        Times are texts in a typed row, since one call for all of a batch costs a fraction of one for each.
        """
        columns = self._predictions
        at, good = instants_us(columns.times)
        if columns.other_times:
            _, are_times = instants_us([text for _, text in columns.other_times])
            good[[row for (row, _), is_time in zip(columns.other_times, are_times, strict=True) if not is_time]] = False
        good[columns.unanswered] = False
        received, record = columns.received, columns.record
        ahead = at - received > MAX_AHEAD_US
        for row in np.flatnonzero(~good | ahead).tolist():
            index = int(record[row])
            self._found.pop(index, None)
            self._refuse(index, clock_refusal("/time") if good[row] else self._fault(index))
        return at, received, good & ~ahead

    def _fault(self, index: int) -> Refused:
        try:
            read_prediction(self._records[index].value or b"")
        except Refused as refusal:
            return refusal
        raise AssertionError("the typed decoder and the checks disagree")

    def _leave_out_idle_layouts(self, predictions: Predictions, outcomes: Outcomes) -> None:
        """A key may name a model of which no row came: `Batch.layouts` lists the layouts that occur."""
        occur = np.unique(np.concatenate([predictions.layout, outcomes.layout]))
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
            plan = self._plan_of(outcome.tenant, outcome.model.name)
            self._outcomes.add(index, plan, outcome, time_us)


def _seen(raw: bytes | None) -> dict[str, Any] | None:
    """The event in ``raw`` as plain data, if it is one."""
    try:
        found = _plain(raw or b"")
    except _UNREADABLE:
        return None
    return found if isinstance(found, dict) else None


def _row_of(document: Mapping[str, Any], envelope: Envelope) -> Any:
    """A row of checked data. Columns are cut from names, outcome and status; the other parts are not looked at."""
    row = envelope.row(**{name: document[name] for name in document if name in _ROW_FIELDS})
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
        except _UNREADABLE:
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
    if predicted.__class__ is str and truth.__class__ is str:
        return int(predicted != truth)
    one, other = _class_text(predicted), _class_text(truth)
    return -1 if one is None or other is None else int(one != other)


def _class_text(value: Any) -> str | None:
    if value.__class__ is bool:
        return "true" if value else "false"
    return value if value.__class__ is str else None


class _PredictionColumns:
    """Columns of predictions in the order in which groups of rows were added; ``done`` puts them in receipt order."""

    def __init__(self) -> None:
        self.rows = 0
        self._record = bytearray()  # of 64-bit integers, as the next three
        self._received = bytearray()
        self.times: list[str] = []
        self.other_times: list[tuple[int, str]] = []  # (row, text)
        self.unanswered: list[int] = []  # rows without a prediction that have no status code either
        self._offset = bytearray()
        self._partition = bytearray()
        self._slot = bytearray()
        self._ids: list[str] = []
        self._prediction_ids: list[str] = []
        self._purpose = bytearray()
        self._status = bytearray()
        self._wrong = array("b")
        self._seeds: dict[int, int] = {}  # row: the seed of a source or type of its own
        self._latency = bytearray()  # of doubles, as the next two
        self._predicted = bytearray()
        self._confidence = bytearray()
        self._features: tuple[list[NDArray[Any]], ...] = ([], [], [])  # numbers, categories, others
        self._waiting: list[tuple[Any, ...]] = []  # rows of any models, until there are enough
        self._indices: list[int] = []
        self._groups: list[tuple[Plan, int]] = []  # whose they are

    def add(self, plan: Plan, records: Sequence[Record], decoder: MsgspecDecoder) -> None:
        """The rows that wait at a plan. What only the plan can read is read now, the rest with other models' rows.

        ``astuple`` reads fields by their place: attributes of hundreds of types overflow Python's attribute cache.
        """
        place = decoder.envelope.place
        rows = list(map(astuple, plan.rows))
        at, wanted = place["prediction"], place["features"]
        self._predicted += _doubles(list(map(plan.predicted, [row[at] for row in rows])))
        features = [row[wanted] for row in rows]
        plan.mixed = plan.mixed or None in features
        self._add_features(features, plan)
        plan.mixed = False
        self._waiting += rows
        self._indices += plan.indices
        self._groups.append((plan, len(rows)))
        if len(self._waiting) >= CHUNK:
            self.spread(records, decoder)

    def spread(self, records: Sequence[Record], decoder: MsgspecDecoder) -> None:
        """The rows that wait, field by field; nothing of them is kept but texts and numbers."""
        if not self._waiting:
            return
        first, n = self.rows, len(self._waiting)
        self.rows += n
        columns = tuple(zip(*self._waiting, strict=True))
        place = decoder.envelope.place
        ids, predicted, statuses = (columns[place[name]] for name in ("event_id", "prediction", "status"))
        prediction_ids, sources, types = (columns[place[name]] for name in ("prediction_id", "source", "type"))
        mine = [records[index] for index in self._indices]
        whole = _packer("q", n)
        self._record += whole(*self._indices)
        self._received += whole(*[record.timestamp_us for record in mine])
        self._offset += whole(*[record.offset for record in mine])
        self._partition += whole(*[record.partition for record in mine])
        plans = [plan for plan, rows in self._groups for _ in range(rows)]
        self._slot += whole(*[plan.slot for plan in plans])
        self.times += columns[place["time"]]
        self._ids += ids
        if prediction_ids.count(None) == n:
            self._prediction_ids += ids
        else:
            self._prediction_ids += [own or id_ for own, id_ in zip(prediction_ids, ids, strict=True)]
        self._purpose += bytes(map(_PURPOSE.__getitem__, columns[place["purpose"]]))
        if statuses.count(None) == n:
            self._status += bytes(n)
        else:
            self._status += bytes([0 if status is None else _STATUS[status.code] for status in statuses])
        if None in predicted:
            self._unanswered(predicted, statuses, first)
        self._inline_outcomes(columns[place["outcome"]], predicted, plans, first)
        if sources.count(None) < n or types.count(PREDICTION_TYPE) < n:
            self._own_seeds(sources, types, plans, first, decoder)
        recorded = columns[place["recorded_time"]]
        if recorded.count(None) < n:
            self.other_times += [(row, text) for row, text in enumerate(recorded, first) if text is not None]
        self._latency += _doubles(columns[place["latency_ms"]])
        shares: Sequence[float | None] = columns[place["confidence"]]
        if None in shares:
            shares = [
                own if own is not None or not score else _score(score, value)
                for own, score, value in zip(shares, columns[place["scores"]], predicted, strict=True)
            ]
        self._confidence += _doubles(shares)
        self._waiting, self._indices, self._groups = [], [], []

    def _unanswered(self, predicted: Sequence[Any], statuses: Sequence[Any], first: int) -> None:
        for row, (value, status) in enumerate(zip(predicted, statuses, strict=True), first):
            if value is None and (status is None or status.code is None):
                self.unanswered.append(row)

    def _inline_outcomes(
        self, outcomes: Sequence[Any], predicted: Sequence[Any], plans: Sequence[Plan], first: int
    ) -> None:
        wrong = array("b", [-1]) * len(outcomes)
        if outcomes.count(None) < len(outcomes):
            for at, outcome in enumerate(outcomes):
                if outcome is None:
                    continue
                if plans[at].judges and outcome.kind == "ground_truth":
                    wrong[at] = judge(predicted[at], outcome.value)
                if outcome.observed_time is not None:
                    self.other_times.append((first + at, outcome.observed_time))
                if outcome.recorded_time is not None:
                    self.other_times.append((first + at, outcome.recorded_time))
        self._wrong += wrong

    def _own_seeds(
        self,
        sources: Sequence[str | None],
        types: Sequence[str],
        plans: Sequence[Plan],
        first: int,
        decoder: MsgspecDecoder,
    ) -> None:
        for row, (source, kind) in enumerate(zip(sources, types, strict=True), first):
            if source is not None or kind != PREDICTION_TYPE:
                layout = plans[row - first].layout
                self._seeds[row] = decoder.seed(layout.tenant, layout.model if source is None else source, kind)

    def _add_features(self, features: Sequence[Any], plan: Plan) -> None:
        """Feature by feature, then row by row in the order of the layout."""
        rows: Iterable[tuple[Any, ...]] = map(astuple, features)
        if plan.mixed:  # some are tuples already, or absent
            rows = [
                feature if feature.__class__ is tuple else plan.absent if feature is None else astuple(feature)
                for feature in features
            ]
        columns = tuple(zip(*rows, strict=True))
        numbers: Sequence[Sequence[Any]] = columns[: plan.numbers]
        others = columns[plan.categories :]
        categories: Sequence[Sequence[Any]] = [
            list(map(cells.get, column))
            for cells, column in zip(plan.cells, columns[plan.numbers : plan.categories], strict=True)
        ]
        present: Sequence[Sequence[Any]] = [
            [0.0 if v is None else 2.0 if v is UNUSABLE else 1.0 for v in column] for column in others
        ]
        for held, places, values in zip(self._features, plan.places, (numbers, categories, present), strict=True):
            if values:
                table = np.frombuffer(b"".join(map(_doubles, values)), np.float64).reshape(len(values), -1)
                held.append(table[places].T.ravel())

    @property
    def record(self) -> Ints:
        return np.frombuffer(self._record, np.int64)

    @property
    def received(self) -> Ints:
        return np.frombuffer(self._received, np.int64)

    def done(
        self, plans: Sequence[Plan], found: Mapping[int, Found], at: Ints, received: Ints, keep: NDArray[np.bool_]
    ) -> Predictions:
        """The columns of the rows in ``keep``, in receipt order."""
        record = self.record
        rows = np.flatnonzero(keep)
        rows = rows[np.argsort(record[rows])]
        order = rows.tolist()
        slot = np.frombuffer(self._slot, np.int64)
        seeds = np.array([plan.seed for plan in plans], np.uint64)[slot]
        for row, seed in self._seeds.items():
            seeds[row] = seed
        widths = np.array([plan.widths for plan in plans], np.int64).reshape(-1, 3).T
        numbers, categories, others = (
            _in_order(np.concatenate(held), wide[slot], rows) if held else np.zeros(0)
            for held, wide in zip(self._features, widths, strict=True)
        )
        layout = slot[rows]
        number_start, category_start, others_start = (_starts(wide[layout]) for wide in widths)
        _fill_other(categories, category_start, layout, plans)
        kept = record[rows]
        faulty = sorted(found)
        row_of = dict(zip(faulty, np.searchsorted(kept, faulty).tolist(), strict=True))
        return Predictions(
            record=kept,
            layout=layout,
            purpose=np.frombuffer(bytes(self._purpose), np.int8)[rows],
            offset=np.frombuffer(self._offset, np.int64)[rows],
            partition=np.frombuffer(self._partition, np.int64)[rows],
            record_time_us=received[rows],
            time_us=at[rows],
            id_hash=id_hashes(self._ids, seeds)[rows],
            prediction_ids=list(map(self._prediction_ids.__getitem__, order)),
            status=np.frombuffer(bytes(self._status), np.int8)[rows],
            latency_ms=np.frombuffer(self._latency, np.float64)[rows],
            predicted=np.frombuffer(self._predicted, np.float64)[rows],
            confidence=np.frombuffer(self._confidence, np.float64)[rows],
            wrong=np.array(self._wrong, np.int8)[rows],
            number_start=number_start,
            numbers=numbers,
            category_start=category_start,
            categories=categories,
            others_start=others_start,
            others=others.astype(np.int8),
            violations=[
                Violation(row_of[index], feature, reason) for index in faulty for feature, reason in found[index]
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


def _score(scores: Mapping[str, float], predicted: Any) -> float | None:
    return scores.get(predicted if predicted.__class__ is str else _class_text(predicted) or "")


@lru_cache(maxsize=8_192)
def _packer(kind: str, n: int) -> Callable[..., bytes]:
    """Packs n numbers into native bytes: the quickest way from Python numbers to an array, a sixth of numpy's time."""
    return Struct(f"{n}{kind}").pack


def _doubles(values: Sequence[float | None]) -> bytes:
    """Numbers as C doubles, None as NaN."""
    try:
        return _packer("d", len(values))(*values)
    except StructError:
        return np.array(values, np.float64).tobytes()


def _in_order(values: NDArray[Any], widths: Ints, rows: Ints) -> NDArray[Any]:
    """Ragged values of all rows, those of ``rows`` in that order."""
    starts, wide = _starts(widths)[rows], widths[rows]
    ordered: NDArray[Any] = values[np.arange(wide.sum()) + np.repeat(starts - _starts(wide), wide)]
    return ordered


def _starts(widths: Ints) -> Ints:
    """Where each row begins in a ragged column, from the widths of the rows."""
    return np.cumsum(widths) - widths


def _fill_other(categories: Floats, start: Ints, slot: Ints, plans: Sequence[Plan]) -> None:
    """Unknown texts of categories without a closed set of values stand in the cell of the rest."""
    at = np.flatnonzero(np.isnan(categories))
    if not at.size:
        return
    row = np.searchsorted(start, at, side="right") - 1
    others = np.array(list(chain.from_iterable(plan.other_cells for plan in plans)), np.float64)
    first = np.concatenate(([0], np.cumsum([len(plan.other_cells) for plan in plans])))
    categories[at] = others[first[slot[row]] + at - start[row]]
