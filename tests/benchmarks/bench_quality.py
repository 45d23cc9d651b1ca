"""False cases on the census stream, in its order and permuted, and the delay of the error-rate bank.

Features, predictions, scores and labels are real; times and latencies are simulated as in the demo.
"""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from tests.benchmarks.measure import Row, Scale
from tests.benchmarks.stages import BATCH, HotPath

from errata.adapters.decode_msgspec import MsgspecDecoder
from errata.adapters.memory import MemoryTransport
from errata.contracts import Anomaly, Contract, PredictionEvent, Reference
from errata.contracts.models import ErrorSketch
from errata.contracts.strict import instant, rfc3339
from errata.contracts.topics import CONTRACTS, PREDICTIONS, REFERENCES, TOPICS, model_key
from errata.domain.columns import Layout
from errata.domain.detection.error_rate import ALARM, ErrorRate, Labels, path
from errata.domain.detection.profile import compile_profile
from errata.domain.detection.state import BANK, Ints, Sampled, State
from errata.domain.profiles import build_reference
from errata.ports import Outgoing, Record
from errata_services.demo import stream

DATA = Path(__file__).parents[3] / "shared/data/nannyml"
IN_ORDER_ROWS = 69_126  # 2016, to its end
PERMUTED_ROWS = 57_126  # its part without change
REFERENCE_ROWS = 10_000
REFERENCE_SEEDS = (2015, 2016, 2017, 2018, 2019)
LATENCIES = 7  # stream of random numbers of the simulated latencies

BEFORE = AFTER = 5_000  # outcomes before and after a change
REFERENCE_OUTCOMES = 20_000
CUT = 250  # outcomes judged at once
CHANGES = ((0.05, 0.10, 429), (0.05, 0.20, 82), (0.20, 0.30, 332), (0.20, 0.50, 61))  # from, to, published delay


def rows(scale: Scale) -> list[Row]:
    if not DATA.is_dir():
        raise SystemExit(
            "quality reads ../shared/data/nannyml, which is not there; name the other benchmarks to run them"
        )
    return [*_census_rows(scale), *_delay_rows(scale)]


# -- false cases on the census stream ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over the stream: against which reference, in which permutation (None: in order)."""

    reference_seed: int
    permutation: int | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass came to. ``opened``: the detectors and subjects of the cases that opened."""

    run: Pass
    events: int
    opened: tuple[str, ...]


def _census_rows(scale: Scale) -> list[Row]:
    orders = (None, *range(scale.permutations))
    passes = [Pass(seed, order) for seed in REFERENCE_SEEDS for order in orders]
    processes = min(2, os.cpu_count() or 1)
    each = -(-len(passes) // processes)  # neighbours share a reference, which takes as long as a pass to build
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        outcomes = pool.map(judge, passes, chunksize=each)
    ordered = [one for one in outcomes if one.run.permutation is None]
    mixed = [one for one in outcomes if one.run.permutation is not None]
    judged = sum(one.events for one in mixed)
    return [
        Row("census in order: cases, five references", _cases(ordered), "stream_cases", _shown(ordered)),
        Row("census permuted: cases per 100,000 events", _cases(mixed) / judged * 1e5, "permuted_cases",
            f"{_cases(mixed)} in {judged:,} events {_shown(mixed)}"),
    ]  # fmt: skip


def _cases(outcomes: Sequence[Outcome]) -> int:
    return sum(len(one.opened) for one in outcomes)


def _shown(outcomes: Sequence[Outcome]) -> str:
    counted = Counter(what for one in outcomes for what in one.opened)
    return ", ".join(f"{what} × {n}" for what, n in counted.most_common(4))


def judge(run: Pass) -> Outcome:
    """The whole stream through a new detector stage, from bytes, in batches of a transaction."""
    contract, key = stream.contract(), model_key("default", stream.MODEL)
    transport = MemoryTransport(TOPICS)
    producer = transport.producer("setup")
    producer.begin()
    producer.produce(Outgoing(CONTRACTS, key, contract.to_json()))
    producer.produce(Outgoing(REFERENCES, key, _reference(run.reference_seed).to_json()))
    producer.commit()
    stage = HotPath(transport, MsgspecDecoder())
    stage.restore(0, {})
    bodies = _bodies()
    order = range(IN_ORDER_ROWS)
    if run.permutation is not None:
        order = np.random.default_rng([run.permutation, run.reference_seed]).permutation(PERMUTED_ROWS).tolist()
    opened: list[str] = []
    records = [_record(place, bodies[row], key) for place, row in enumerate(order)]
    for at in range(0, len(records), BATCH):
        batch = records[at : at + BATCH]
        stage.prepare(batch)
        result = stage.step(batch, None)
        stage.commit()
        assert not result.dead
        assert not result.dropped
        said = (Anomaly.model_validate_json(output.value or b"") for output in result.outputs)
        opened += [_what(one) for one in said if one.episode.state == "open"]
    return Outcome(run, len(records), tuple(opened))


def _what(anomaly: Anomaly) -> str:
    return " + ".join(f"{one.detector} {one.subject}" for one in anomaly.findings)


def _record(place: int, body: bytes, key: bytes) -> Record:
    """A row at a place of the stream: its id and time stand before what is its own."""
    at_us = stream.START_US + place * stream.SECOND_US
    head = f'{{"event_id":"census-{place}","time":"{rfc3339(instant(at_us))}",'.encode()
    return Record(PREDICTIONS, 0, place, at_us + 50_000, key, head + body)


@cache
def _bodies() -> list[bytes]:
    """Each row as JSON behind its id and time."""
    return [_line(event).split(b",", 2)[2] for event in _census("analysis", None)]


def _line(event: dict[str, Any]) -> bytes:
    return stream._line(event)


def _census(name: str, chosen: Sequence[int] | None) -> Iterator[dict[str, Any]]:
    """Rows of the census as the demo's events: all of 2016, or those chosen."""
    table = parquet.read_table(DATA / f"employment_MA_{name}.pq")
    table = table.slice(0, IN_ORDER_ROWS) if chosen is None else table.take(list(chosen))
    if chosen is None:
        targets = parquet.read_table(DATA / f"employment_MA_{name}_target.pq").slice(0, IN_ORDER_ROWS)
        assert targets["id"].to_pylist() == table["id"].to_pylist()
        table = table.append_column("employed", targets["employed"])
    seed = (LATENCIES, 0 if chosen is None else sum(chosen) % 2**32)
    latencies_ms = stream._latencies_ms(seed, table.num_rows)
    for place, row in enumerate(table.to_pylist()):
        features = tuple(int(row[feature]) for feature in stream.feature_names())
        ppm = round(row["predicted_probability"] * 1e6)
        source = stream.Row(place, features, ppm, int(row["employed"]))
        at_us = stream.REFERENCE_START_US + place * stream.SECOND_US
        yield stream._prediction(f"row-{place}", at_us, source, float(latencies_ms[place]))


@cache
def _reference(seed: int) -> Reference:
    """10,000 rows of 2015 by seed; the first seed is the demo's."""
    rows = parquet.read_metadata(DATA / "employment_MA_reference.pq").num_rows
    chosen = np.random.default_rng(seed).choice(rows, REFERENCE_ROWS, replace=False)
    events = (
        PredictionEvent.model_validate_json(_line(event)) for event in _census("reference", sorted(chosen.tolist()))
    )
    return build_reference(events, stream.contract(), dataset=None)


# -- delay of the error-rate bank --------------------------------------------------------------------------------------


def _delay_rows(scale: Scale) -> list[Row]:
    made = []
    early = missed = 0
    for before, after, published in CHANGES:
        figures = [_delays(before, after, seed) for seed in range(scale.streams)]
        early += sum(one.early for one in figures)
        found = [one.opening for one in figures if one.opening is not None]
        missed += len(figures) - len(found)
        alarms = [one.alarm for one in figures if one.alarm is not None]
        detail = f"alarm {mean(alarms):.0f}, opening {mean(found):.0f} events, published {published}" if found else ""
        ratio = mean(found) / published if found else float("inf")
        made.append(Row(f"error rate {before} → {after}: delay / published", ratio, "error_rate_delay", detail))
    made.append(Row("error rate: changes missed", missed, "error_rate_missed"))
    events = BEFORE * scale.streams * len(CHANGES)
    return [*made, Row(f"error rate: openings before the change, in {events:,} events", early)]


@dataclass(frozen=True, slots=True)
class Delay:
    """Outcomes from the change to the first alarm and to the opening, None when missed; openings before it."""

    alarm: int | None
    opening: int | None
    early: int


def _delays(before: float, after: float, seed: int) -> Delay:
    rng = np.random.default_rng([seed, round(before * 100), round(after * 100)])
    wrong = rng.random(BEFORE + AFTER) < np.repeat([before, after], [BEFORE, AFTER])
    fired = _openings(wrong, before)
    late = [at for at in fired if at >= BEFORE]
    alarms = [at for at in _alarms(wrong, before) if at >= BEFORE]
    return Delay(
        alarms[0] - BEFORE + 1 if alarms else None, late[0] - BEFORE + 1 if late else None, len(fired) - len(late)
    )


def _openings(wrong: "np.ndarray[Any, np.dtype[np.bool_]]", rate: float) -> list[int]:
    """The outcomes at which the detector fires, up to the first after the change."""
    state = _state(rate)
    fired: list[int] = []
    for start in range(0, len(wrong), CUT):
        part = wrong[start : start + CUT]
        places: Ints = np.arange(start, start + len(part))
        zeros: Ints = np.zeros(len(part), np.int64)
        labels = Labels(
            slot=zeros,
            starts=np.zeros(1, np.int64),
            record=places,
            record_time_us=places,
            time_us=places,
            wrong=part,
            window=zeros,
            id_hash=places.astype(np.uint64),
            row=_no_row,
        )
        fired += sorted(signal.record for signal in ErrorRate().step(labels, state, state.tables.profiles))
        if fired and fired[-1] >= BEFORE:
            break
    return fired


def _no_row(row: int) -> Sampled:
    return row, "", 0, row, ""


def _state(rate: float) -> State:
    error = ErrorSketch(outcomes=REFERENCE_OUTCOMES, wrong=round(rate * REFERENCE_OUTCOMES))
    reference = Reference(model="bernoulli", events=REFERENCE_OUTCOMES, error=error)
    state = State()
    layout = Layout("default", "bernoulli", Contract(model="bernoulli"), reference)
    state.add("default", "bernoulli", "live", 0, compile_profile(layout))
    return state


def _alarms(wrong: "np.ndarray[Any, np.dtype[np.bool_]]", rate: float) -> list[int]:
    """The first alarm of each CUSUM after the change, each sum starting over at an alarm."""
    bank = _state(rate).tables.bank[0]
    found = []
    for f in range(len(BANK)):
        x = np.where(wrong, bank[f, 1], bank[f, 0])
        start = 0
        while start < len(x):
            group: Ints = np.zeros(len(x) - start, np.int64)
            sums = path(group, x[start:], group, np.zeros(1, np.int64))
            over = np.flatnonzero(sums >= ALARM)
            if not len(over):
                break
            found.append(start + int(over[0]))
            if found[-1] >= BEFORE:
                break
            start = found[-1] + 1
    return sorted(found)
