"""Runs the benchmarks and judges them by ``goals.toml``: ``python tests/benchmarks/run.py [--quick] [names…]``.

Exits 1 and names each row that misses its goal.
"""

import argparse
import importlib
import os
import platform
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # run as a file: the package "tests" is not on the path
    sys.path[:0] = [str(Path(__file__).parents[2])]

from tests.benchmarks.measure import FULL, QUICK, Row, Scale, heap_of_services

HERE = Path(__file__).parent
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
BENCHMARKS = ("hot_path", "models", "storm", "quality", "kafka", "transactions", "latency")
REPEATED = ("hot_path", "models", "storm")  # whose rows are ratios of microseconds
PROCESSES = 3
PACKAGES = ("numpy", "msgspec", "orjson", "pydantic", "pyarrow")


class GoalError(Exception):
    """``goals.toml`` and the rows do not fit together."""


@dataclass(frozen=True, slots=True)
class Goal:
    side: Literal["at_least", "at_most"]
    value: float

    def met(self, measured: float) -> bool:
        return measured >= self.value if self.side == "at_least" else measured <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.side == 'at_least' else '≤'} {self.value:g}"


def read_goals(path: Path) -> dict[str, Goal]:
    goals: dict[str, Goal] = {}
    for name, said in tomllib.loads(path.read_text(encoding="utf-8")).items():
        match said:
            case {"at_least": int() | float() as value, **rest} if not rest:
                goals[name] = Goal("at_least", value)
            case {"at_most": int() | float() as value, **rest} if not rest:
                goals[name] = Goal("at_most", value)
            case _:
                raise GoalError(f"{path.name}: {name} must hold one number, at_least or at_most")
    return goals


def failing(rows: Iterable[Row], goals: Mapping[str, Goal]) -> list[Row]:
    """The rows that miss their goals. Raises ``GoalError`` for a row whose goal is not written down."""
    return [row for row in rows if not _verdict(row, goals)]


def _verdict(row: Row, goals: Mapping[str, Goal]) -> bool:
    if row.goal is None:
        return True
    if row.goal not in goals:
        raise GoalError(f"{row.name}: no goal {row.goal!r} in goals.toml; write it there")
    return goals[row.goal].met(row.measured)


def table(rows: Sequence[Row], goals: Mapping[str, Goal]) -> str:
    width = max(len(row.name) for row in rows)
    lines = [f"{'name':{width}}  {'measured':>9}  {'goal':>7}  verdict"]
    for row in rows:
        verdict = "" if row.goal is None else "ok" if _verdict(row, goals) else "BELOW GOAL"
        goal = "" if row.goal is None else str(goals[row.goal])
        lines.append(f"{row.name:{width}}  {row.measured:9.3f}  {goal:>7}  {verdict:10}  {row.detail}".rstrip())
    return "\n".join(lines)


def report(rows: Sequence[Row], goals: Mapping[str, Goal]) -> int:
    """Print the table and what failed; the exit code."""
    print(table(rows, goals))
    missed = failing(rows, goals)
    for row in missed:
        assert row.goal is not None
        print(f"below its goal: {row.name}: {row.measured:.3f}, goal {goals[row.goal]}", file=sys.stderr)
    return 1 if missed else 0


def measured(names: Sequence[str], scale: Scale) -> list[Row]:
    os.environ |= dict.fromkeys(THREADS, "1")  # before a benchmark imports numpy
    made: list[Row] = []
    for name in names:
        start_s = time.perf_counter()
        made += _of_processes(name, scale) if name in REPEATED and not scale.quick else _rows(name, scale)
        print(f"{name}: {time.perf_counter() - start_s:.0f} s", file=sys.stderr)
    return made


def _rows(name: str, scale: Scale) -> list[Row]:
    heap_of_services()
    rows: list[Row] = importlib.import_module(f"tests.benchmarks.bench_{name}").rows(scale)
    return rows


def _of_processes(name: str, scale: Scale) -> list[Row]:
    """The median of each row over fresh processes: where things happen to lie in memory is worth ten per cent."""
    part = replace(scale, rounds=max(1, scale.rounds // PROCESSES))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        takes = [pool.submit(_rows, name, part).result() for _ in range(PROCESSES)]
    return [median_row(rows) for rows in zip(*takes, strict=True)]


def median_row(rows: Sequence[Row]) -> Row:
    """The middle one of an odd number of measurements of one row; one that is no number is the verdict."""
    broken = [row for row in rows if row.measured != row.measured]
    return broken[0] if broken else sorted(rows, key=lambda row: row.measured)[len(rows) // 2]


def main(
    arguments: Sequence[str] | None = None, measure: Callable[[Sequence[str], Scale], list[Row]] = measured
) -> int:
    parser = argparse.ArgumentParser(description="Run the benchmarks; exit 1 when a row misses its goal.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, events and permutations")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHMARKS)}; all unless told")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    goals = read_goals(HERE / "goals.toml")
    print(f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES), sep=", ")
    return report(measure(asked.names or BENCHMARKS, QUICK if asked.quick else FULL), goals)


if __name__ == "__main__":
    sys.exit(main())
