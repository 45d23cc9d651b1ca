"""The loop around a stage: read a batch, step, and write all that came of it in one transaction.

Outputs, state changes with the position record, dead letters, the receipt and the input offsets become visible
together or not at all. No transaction spans a poll, a rebalance or a call to the outside.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from errata.contracts import Receipt
from errata.errors import Aborted, ErrataError, Fenced, Misconfigured, Refused, StateDamaged, Unavailable
from errata.ports import (
    Cipher,
    DeadInput,
    Offsets,
    Outgoing,
    Record,
    Stage,
    StateChange,
    StepResult,
    TopicPartition,
    Transport,
)
from errata.runtime import crash_points
from errata.runtime.changelog import (
    PartitionLog,
    Position,
    check_digest,
    check_position,
    entries_of,
    located,
    read_records,
    unreadable,
)
from errata.runtime.crash_points import CrashPoints
from errata.runtime.dead_letters import HandlerFailure, OversizeOutput, dead_letter
from errata.runtime.health import Health
from errata.runtime.poison import PoisonGuard
from errata.runtime.receipts import Taken, receipt, receipt_record, taken_by_partition
from errata.runtime.telemetry import NoTelemetry, RebalanceKind, Telemetry, abort_reason, batch_report

DEFAULT_BATCH_SIZE = 5_000
MAX_OUTPUT_BYTES = 1_000_000
MAX_ABORTS_IN_A_ROW = 5
REBUILD_S = 6 * 3_600.0  # a restore that makes the state anew reads a week of input
BATCH_SIZE_AFTER_POISON = 64  # then doubled with each clean batch: where one record is bad, the next often is

OnProgress = Callable[[Receipt], None]
OnRewind = Callable[[int, Offsets], None]


@dataclass(frozen=True, slots=True)
class _Judged:
    """A batch after its step, or its beginning up to and with the first record that breaks the step."""

    records: Sequence[Record]
    result: StepResult
    poison: DeadInput | None = None
    stops: bool = False  # whether places have too many dead letters, so that what lies behind was left out

    @property
    def dead(self) -> list[DeadInput]:
        """All dead letters in the order of the log."""
        every = [*self.result.dead, *([self.poison] if self.poison else [])]
        return sorted(every, key=lambda dead: (dead.record.topic, dead.record.partition, dead.record.offset))

    def left_of(self, batch: Sequence[Record]) -> Sequence[Record]:
        """What of the batch is not among these records: its end, and for a stopped place all behind its last record."""
        if not self.stops:
            return batch[len(self.records) :]
        last = {(record.topic, record.partition): record.offset for record in self.records}
        return [record for record in batch if record.offset > last.get((record.topic, record.partition), -1)]


class Worker:
    """Runs one stage as one member of its group.

    A stage with state has an attribute ``state_topic``; its changelog is restored and checked when partitions are
    assigned. ``Fenced``, ``StateDamaged`` and ``Unavailable`` pass through `run_once`; after any of them but
    ``Unavailable`` the worker must not be used again. ``instance`` names this member: of two live workers with one
    instance the newer wins.
    """

    def __init__(
        self,
        stage: Stage,
        transport: Transport,
        *,
        instance: str,
        build: str,
        cipher: Cipher | None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        crash: CrashPoints | None = None,
        config_hash: str = "",
        on_progress: OnProgress | None = None,
        on_rewind: OnRewind | None = None,
        telemetry: Telemetry | None = None,
        health: Health | None = None,
        clock: Callable[[], float] = time.monotonic,
        guard: PoisonGuard | None = None,
    ) -> None:
        """``clock`` gives seconds that never go back; it measures, and nothing but ``guard`` depends on it. That is the
        breaker: without one every record is read, however many dead letters that makes."""
        self._stage = stage
        self._transport = transport
        self._instance = instance
        self._build = build
        self._cipher = cipher
        self._batch_size = batch_size
        self._batch_limit = batch_size
        self._crash = crash or CrashPoints.off()
        self._config_hash = config_hash
        self._on_progress = on_progress
        self._on_rewind = on_rewind
        self._telemetry: Telemetry = telemetry or NoTelemetry()
        self._health = health or Health(stage=stage.name, instance=instance, build=build, config_hash=config_hash)
        self._clock = clock
        self._guard = guard
        self._state_topic: str | None = getattr(stage, "state_topic", None)
        self._due: Callable[[], bool] = getattr(stage, "due", lambda: False)
        self._inputs = (stage.input, *stage.side_inputs)
        self._next: Offsets = {}
        self._logs: dict[int, PartitionLog] = {}
        group = f"errata.{stage.name}"
        # The producer comes first: it aborts what a killed predecessor left open, before its offsets are read.
        self._producer = transport.producer(f"{group}-{instance}")
        self._health.started()
        self._consumer = transport.consumer(
            group,
            stage.input,
            instance=instance,
            side_inputs=stage.side_inputs,
            on_assign=self._assign,
            on_revoke=self._revoke,
        )

    def run_once(self, timeout_s: float = 0.0) -> int:
        """Take what is there, at most one batch, through one transaction; the number of records taken.

        A void transaction is tried again from the batch's start; the fifth in a row raises ``Unavailable``. What a
        stage has to do by itself (see `errata.ports.Stage`) comes first, in a transaction of its own.
        """
        self._heed_guard()
        self._own_work()
        for _ in range(MAX_ABORTS_IN_A_ROW):
            batch = self._consumer.poll(self._batch_limit, timeout_s)
            if not batch:
                return 0
            self._telemetry.reading(len(batch))
            try:
                return self._process(batch)
            except Exception as error:
                self._void(error)
        raise Unavailable(f"{self._stage.name}: {MAX_ABORTS_IN_A_ROW} transactions in a row were void; start it again")

    def _own_work(self) -> None:
        if self._due():
            try:
                self._process([])
            except Exception as error:
                self._void(error)

    def _void(self, error: Exception) -> None:
        """Tell of a transaction that was taken back. Raises the error unless it can be tried again at once."""
        self._health.failed(error)
        self._telemetry.aborted(abort_reason(error))
        if not isinstance(error, Aborted):
            raise error

    def close(self) -> None:
        """Leave the group and drop the state. What was read and not committed is read again by the next member."""
        partitions = sorted(number for topic, number in self._consumer.assignment() if topic == self._stage.input)
        self._consumer.close()
        self._producer.close()
        for number in partitions:
            self._stage.revoke(number)
        self._next, self._logs = {}, {}

    def _process(self, batch: Sequence[Record]) -> int:
        """One batch, or its beginning when a record breaks the step; the number of records taken.

        Whatever fails leaves state, offsets and positions as they were before.
        """
        began_s = self._clock()
        try:
            judged = self._stopping(self._judge(batch))
            self._crash.at(self._stage.name, crash_points.AFTER_STEP)
            stepped_s = self._clock()
            message, written = self._transact(judged)
        except Fenced:
            self._drop_step()
            raise
        except Exception:
            self._drop_step()
            self._seek_back(batch)
            raise
        self._crash.at(self._stage.name, crash_points.AFTER_COMMIT)
        self._stage.commit()
        for log in self._logs.values():
            log.commit()
        self._seek_back(judged.left_of(batch))
        self._batch_limit = min(BATCH_SIZE_AFTER_POISON if judged.poison else 2 * self._batch_limit, self._batch_size)
        self._report(judged, message, written, began_s, stepped_s)
        if self._on_progress is not None:
            self._on_progress(message)
        self._guarded(judged, message)
        return len(judged.records)

    def _report(
        self, judged: _Judged, message: Receipt, written: Sequence[Outgoing], began_s: float, stepped_s: float
    ) -> None:
        self._health.committed(self._next, message)
        for topic, n in Counter(record.topic for record in judged.result.rekeyed).items():
            self._telemetry.rekeyed(topic, n)
        if judged.result.newest_heartbeat_us is not None:
            self._telemetry.heartbeat(judged.result.newest_heartbeat_us / 1_000_000)
        report = batch_report(
            message,
            written=written,
            dead=judged.dead,
            state_topic=self._state_topic,
            processing_s=stepped_s - began_s,
            commit_s=self._clock() - stepped_s,
        )
        self._telemetry.batch(report)

    # The step, and the search for the record that breaks it.

    def _judge(self, batch: Sequence[Record]) -> _Judged:
        """Step the batch, or all before its first poisoned record. The step then awaits a commit or a rollback.

        To end a batch early changes no output: a step does not depend on how records are cut into batches.
        """
        outcome = self._try_step(batch)
        if isinstance(outcome, StepResult):
            return _Judged(batch, outcome)
        if not batch:  # no record is at fault
            raise outcome
        self._stage.rollback()
        passes, why = self._find_poison(batch, outcome)
        result = self._try_step(batch[:passes]) if passes else StepResult()
        if not isinstance(result, StepResult):
            raise RuntimeError(f"stage {self._stage.name} is not deterministic: a step that passed fails when repeated")
        return _Judged(batch[: passes + 1], result, DeadInput(batch[passes], why))

    def _find_poison(self, records: Sequence[Record], failure: Refused) -> tuple[int, Refused]:
        """The first record that breaks the step, by throw-away steps: its index and why.

        Steps grow from the start before they are halved, so that a near poison is found at little cost.
        """
        passes, fails, why, stride = 0, len(records), failure, 1
        while passes + 1 < fails:
            size = passes + stride if passes + stride < fails else (passes + fails) // 2
            outcome = self._try_step(records[:size])
            self._stage.rollback()
            if isinstance(outcome, StepResult):
                passes, stride = size, 2 * stride
            else:
                fails, why, stride = size, outcome, len(records)
        return passes, why

    def _try_step(self, records: Sequence[Record]) -> StepResult | Refused:
        """The result of a step, or why it cannot be had: a bug, a refusal that escaped, an output too large."""
        try:
            result = self._stage.step(records, self._stage.prepare(records))
        except Refused as refusal:
            return refusal
        except (ErrataError, MemoryError):
            raise
        except Exception as error:
            return HandlerFailure(error)
        if any(_size(output) > MAX_OUTPUT_BYTES for output in result.outputs):
            return OversizeOutput("", f"an output of this input is larger than {MAX_OUTPUT_BYTES:,} bytes")
        return result

    # The breaker.

    def _stopping(self, judged: _Judged) -> _Judged:
        """The batch without what lies behind the dead letter that is one too many of its place."""
        if self._guard is None:
            return judged
        last = self._guard.look(judged.records, judged.dead)
        if not last:
            return judged
        kept = [one for one in judged.records if one.offset <= last.get((one.topic, one.partition), one.offset)]
        if len(kept) < len(judged.records):
            self._stage.rollback()
            judged = self._judge(kept)
            self._guard.look(judged.records, judged.dead)
        return replace(judged, stops=True)

    def _guarded(self, judged: _Judged, message: Receipt) -> None:
        """The batch is committed: stop what has too many dead letters."""
        if self._guard is None:
            return
        delivered = {(part.topic, part.partition): part.delivered for part in message.inputs}
        if self._guard.committed(delivered, judged.dead, self._clock()):
            self._stop()

    def _stop(self) -> None:
        """Have the places that are to stand still do so; also after an assignment, which knows nothing of them."""
        if self._guard is not None:
            assigned = self._consumer.assignment()
            self._consumer.pause(self._guard.stopped & assigned)
            self._guard.tell(assigned)

    def _heed_guard(self) -> None:
        """Stop for a bug that comes again and again; read what was stopped and that somebody has asked back."""
        if self._guard is None:
            return
        self._guard.check()
        if places := self._guard.back():
            assigned = self._consumer.assignment()
            self._consumer.resume(places & assigned)
            self._guard.tell(assigned)

    # The transaction.

    def _transact(self, judged: _Judged) -> tuple[Receipt, list[Outgoing]]:
        """Write all that came of a batch, and its offsets; the receipt, and what was written."""
        result, dead = judged.result, judged.dead
        taken = taken_by_partition(judged.records, self._next)
        message = receipt(
            stage=self._stage.name,
            instance=self._instance,
            build=self._build,
            taken=taken,
            out=len(result.outputs),
            dlq=len(dead),
            dropped=result.dropped,
            max_event_time_us=result.max_event_time_us,
        )
        letters = [dead_letter(self._stage.name, self._build, one, self._cipher) for one in dead]
        bookkeeping = [*self._changelog_records(result, taken, message), *result.notes, receipt_record(message)]
        # Without records the offsets stay where they are: the group then refuses a member that it has replaced.
        offsets: Offsets = {place: part.end for place, part in taken.items()} or self.positions
        results = [*result.outputs, *letters, *result.rekeyed]
        self._producer.begin()
        try:
            self._write(results, bookkeeping, offsets)
        except Fenced:
            raise
        except Exception:
            self._producer.abort()
            raise
        self._next.update(offsets)
        return message, [*results, *bookkeeping]

    def _write(self, results: Sequence[Outgoing], bookkeeping: Sequence[Outgoing], offsets: Offsets) -> None:
        name = self._stage.name
        for record in results:
            self._producer.produce(record)
        self._crash.at(name, crash_points.MID_PRODUCE)
        for record in bookkeeping:
            self._producer.produce(record)
        self._crash.at(name, crash_points.AFTER_PRODUCE)
        self._producer.send_offsets(offsets, self._consumer)
        self._crash.at(name, crash_points.AFTER_OFFSETS)
        self._producer.commit()

    def _changelog_records(
        self, result: StepResult, taken: Mapping[TopicPartition, Taken], message: Receipt
    ) -> list[Outgoing]:
        """Changes and the position record of every partition that the batch or the step touched."""
        if self._state_topic is None:
            if result.changes:
                raise Misconfigured(f"stage {self._stage.name} changes state but names no state_topic")
            return []
        changes: dict[int, list[StateChange]] = {number: [] for _, number in taken}
        for change in result.changes:
            changes.setdefault(change.partition, []).append(change)
        records: list[Outgoing] = []
        for number in sorted(changes):
            if number not in self._logs:
                raise Misconfigured(f"stage {self._stage.name} changes partition {number}, which is not assigned to it")
            position = self._position(number, taken, message, result.max_event_time_us)
            records += self._logs[number].stage(self._state_topic, changes[number], position)
        return records

    def _position(
        self, number: int, taken: Mapping[TopicPartition, Taken], message: Receipt, event_time_us: int | None
    ) -> Position:
        before = self._logs[number].position
        inputs: dict[str, Taken] = {}
        for topic in self._inputs:
            if (topic, number) in taken:
                inputs[topic] = taken[topic, number]
            elif before is not None and topic in before.inputs:
                end = before.inputs[topic].end
                inputs[topic] = Taken(end, end, 0)
        watermarks = [us for us in (before.watermark_us if before else None, event_time_us) if us is not None]
        return Position(
            inputs,
            out=message.out,
            dlq=message.dlq,
            dropped=message.dropped,
            config_hash=self._config_hash,
            watermark_us=max(watermarks, default=None),
        )

    # Partitions that come and go, and batches that are taken back.

    def _assign(self, partitions: set[TopicPartition]) -> None:
        committed = self._consumer.committed(partitions)
        numbers = sorted({number for topic, number in partitions if topic == self._stage.input})
        with self._health.restoring(len(numbers)):
            for number in numbers:
                began_s = self._clock()
                self._restore(number, committed)
                self._telemetry.restored(self._clock() - began_s)
        self._next.update({place: self._consumer.position(place) for place in partitions} | committed)
        self._rebalanced("assigned", self._consumer.assignment())
        self._stop()

    def _restore(self, number: int, committed: Offsets) -> None:
        if self._state_topic is None:
            self._stage.restore(number, {})
            return
        entries = self._restored(self._state_topic, number, committed)
        try:
            self._stage.restore(number, entries)
        except StateDamaged as error:
            raise located(error, self._state_topic, number) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise unreadable(self._state_topic, number) from error

    def _restored(self, topic: str, number: int, committed: Offsets) -> dict[bytes, bytes]:
        records, position, hashes = self._checked(topic, number, committed)
        self._logs[number] = PartitionLog(number, records, position, hashes)
        return entries_of(records)

    def _checked(
        self, topic: str, number: int, committed: Offsets
    ) -> tuple[dict[bytes, bytes], Position | None, dict[bytes, int]]:
        """The records of a changelog that is whole and belongs to the group's offsets, and their hashes."""
        records, position = read_records(self._transport, topic, number)
        hashes = check_digest(topic, number, records, position)
        check = partial(
            check_position,
            inputs=self._inputs,
            config_hash=self._config_hash,
            migrates=getattr(self._stage, "migrates", ()),
        )
        try:
            check(topic, number, position, committed)
        except StateDamaged as error:
            if self._on_rewind is None or error.reason != "state_ahead":
                raise
            with self._health.waiting("rebuild", REBUILD_S):
                self._on_rewind(number, committed)
            records, position = read_records(self._transport, topic, number)
            hashes = check_digest(topic, number, records, position)
            check(topic, number, position, committed)
        return records, position, hashes

    def _revoke(self, partitions: set[TopicPartition]) -> None:
        for place in partitions:
            self._next.pop(place, None)
        for number in sorted({number for topic, number in partitions if topic == self._stage.input}):
            self._logs.pop(number, None)
            self._stage.revoke(number)
        held = self._consumer.assignment() - partitions  # they are held until this returns
        self._rebalanced("revoked", held)
        if self._guard is not None:
            self._guard.revoked(partitions)
            self._guard.tell(held)

    def _rebalanced(self, kind: RebalanceKind, assigned: set[TopicPartition]) -> None:
        self._telemetry.rebalanced(kind, sum(topic == self._stage.input for topic, _ in assigned))
        self._health.assigned({place: self._next.get(place, 0) for place in assigned})

    @property
    def positions(self) -> Offsets:
        """The next offset of each partition, as committed."""
        return dict(self._next)

    def _drop_step(self) -> None:
        self._stage.rollback()
        for log in self._logs.values():
            log.rollback()

    def _seek_back(self, batch: Sequence[Record]) -> None:
        """To the batch's first offset of every partition that is still ours."""
        ours = self._consumer.assignment()
        first: Offsets = {}
        for record in batch:
            first.setdefault((record.topic, record.partition), record.offset)
        for place, offset in first.items():
            if place in ours:
                self._consumer.seek(place, offset)


def _size(output: Outgoing) -> int:
    headers = sum(len(name) + len(content) for name, content in output.headers)
    return len(output.key or b"") + len(output.value or b"") + headers
