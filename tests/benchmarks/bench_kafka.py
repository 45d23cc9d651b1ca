"""The detector's process as shipped beside a naive loop, a faust agent and a quixstreams map, on one preloaded topic.

Ours does all its work: transactions, changelog, receipts, redaction, dead letters. Rounds alternate the order. CPU is
that of the client's process, user and system, on a core of its own, from the poll that brings the first event on; for
ours that one also restores the state.
"""

import sys
from collections.abc import Callable, Sequence
from statistics import median

import orjson
from tests.benchmarks import kafka_peers
from tests.benchmarks.kafka_findings import Findings, differences, findings_of
from tests.benchmarks.kafka_lap import Lap, make_lap, tables
from tests.benchmarks.kafka_peers import PeerError
from tests.benchmarks.kafka_rig import RigError, Round, Taken, broker, round_of
from tests.benchmarks.measure import Row, Scale, Variant, cost, interleaved, speed_ratio

# Of each of five models: 200,000 and 20,000 events. What a process does once, from its partitions' state to its first
# pages of memory, took a twentieth of a run of 100,000.
WINDOWS, QUICK_WINDOWS = 80, 8
ROUNDS, QUICK_ROUNDS = 9, 2  # a machine that others use as well is slow for seconds: of five rounds too often in three
BATCH_SIZE = 5_000
FAUST_EVENTS = 30_000  # it reads no more of a lap: at its speed that is long enough
CHUNK = 500
NAIVE, FAUST, QUIX = "naive loop", "faust agent, reading only", "quixstreams map, 1 of 100 sent"
OURS = "detector process"
Measured = dict[str, list[Taken]]
Stage = Callable[[Round, Lap], Taken]


def rows(scale: Scale) -> list[Row]:
    lap = make_lap(QUICK_WINDOWS if scale.quick else WINDOWS)
    rounds = QUICK_ROUNDS if scale.quick else ROUNDS
    measured: Measured = {}
    scans: list[float] = []
    differing: list[str] = []
    missed: list[str] = []
    broken: dict[str, str] = {}
    with broker() as address:
        for turn in range(rounds):
            with round_of(address, lap.events, tables()) as one:
                _take_turns(one, lap, turn, measured, broken)
                scans.append(_scan_us(lap))
                ours = _ours(one)
            naive = measured.get(NAIVE)
            differing += differences(ours, Findings(**naive[-1].told["findings"])) if naive else ["no naive loop"]
            missed += _missed(ours, lap)
    return [
        *_speed_rows(measured, scans, broken),
        Row("planted faults, refused rows and duplicates not found", len(missed), "kafka_missed", _first(missed)),
        Row("findings of ours that the naive loop has not, or other", len(differing), "kafka_differences",
            _first(differing)),
    ]  # fmt: skip


def _take_turns(one: Round, lap: Lap, turn: int, measured: Measured, broken: dict[str, str]) -> None:
    """Every stage once, each round beginning with another; what cannot be run is told in its row."""
    stages = list(_STAGES.items())
    at = turn % len(stages)
    for name, stage in stages[at:] + stages[:at]:
        if name in broken:
            continue
        try:
            measured.setdefault(name, []).append(stage(one, lap))
        except (PeerError, RigError) as error:
            if name == OURS:
                raise
            measured.pop(name, None)
            broken[name] = str(error)
            print(f"{name}: {error}", file=sys.stderr)


_STAGES: dict[str, Stage] = {
    OURS: lambda one, lap: one.detector(len(lap.events), batch_size=BATCH_SIZE),
    NAIVE: lambda one, lap: one.naive(len(lap.events)),
    QUIX: lambda one, lap: kafka_peers.quixstreams(one, len(lap.events)),
    FAUST: lambda one, lap: kafka_peers.faust(one, min(FAUST_EVENTS, len(lap.events))),
}
_GOALS = {NAIVE: "kafka_naive", FAUST: "kafka_faust", QUIX: "kafka_quixstreams"}


def _ours(one: Round) -> Findings:
    transport = one.transport()
    try:
        return findings_of(transport)
    finally:
        transport.close()


def _scan_us(lap: Lap) -> float:
    """``orjson.loads`` of every value in chunks of 500, CPU in µs per event."""
    values = [value for _, value in lap.events]

    def scan() -> int:
        for at in range(0, len(values), CHUNK):
            _parse(values[at : at + CHUNK])
        return len(values)

    return median(interleaved({"scan": Variant(scan)}, 1)["scan"])


def _parse(chunk: Sequence[bytes]) -> int:
    loads = orjson.loads
    return len([loads(value) for value in chunk])


def _missed(ours: Findings, lap: Lap) -> list[str]:
    """What was planted and is not in our findings with its exact count."""
    planted = Findings(refused=lap.refused, duplicates=lap.duplicates)
    for (model, signal), events in lap.planted.items():
        planted.signals[f"{model}|{signal}"] = [events, ours.signals.get(f"{model}|{signal}", [0, 0])[1]]
    found = {name: figures for name, figures in ours.signals.items() if name in planted.signals}
    return differences(Findings(found, ours.refused, ours.duplicates), planted)


def _speed_rows(measured: Measured, scans: list[float], broken: dict[str, str]) -> list[Row]:
    cpu = {name: [one.cpu_us for one in taken] for name, taken in measured.items()} | {"orjson": scans}
    made = [Row(OURS, median(cpu[OURS]), None, _detail(measured[OURS], "µs of CPU an event"))]
    for name, goal in _GOALS.items():
        title = f"{OURS} / {name}"
        if name in broken:
            made.append(Row(title, float("nan"), goal, " ".join(broken[name].split())[-200:]))
        else:
            made.append(Row(title, speed_ratio(cpu, OURS, name), goal, _detail(measured[name], cost(cpu, name))))
    factor = float("nan") if NAIVE in broken else 1 / speed_ratio(cpu, NAIVE, "orjson")
    return [
        *made,
        Row("naive loop's CPU in orjson.loads: no straw man", factor, "naive_at_most", cost(cpu, "orjson")),
        Row("naive loop's CPU in orjson.loads: no less work", factor, "naive_at_least"),
    ]


def _detail(taken: list[Taken], cpu: str) -> str:
    per_s = median(one.per_s for one in taken)
    return f"{cpu}, wall {per_s / 1_000:.1f} k events/s"


def _first(faults: list[str]) -> str:
    return str(faults[:3]) if faults else ""
