"""Runs the plan of faults on real servers: ``python tests/faults/run.py [--quick] [--soak MINUTES] [names…]``.

Prints one table, judged by ``goals.toml``; exits 1 and names each row that misses its goal. A scenario that fails is a
row that misses, and the others go on.
"""

import argparse
import faulthandler
import importlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

if __name__ == "__main__":  # run as a file: the package "tests" is not on the path
    sys.path[:0] = [str(Path(__file__).parents[2])]

from tests.benchmarks.run import Goal, GoalError, read_goals
from tests.faults.rig import FULL, QUICK, Rig, Row, Scale, attempted, told_on_stderr

HERE = Path(__file__).parent
SCENARIOS = ("kills", "recovery", "scaling", "broker", "outages", "poison", "fuzzing", "spike", "soak")
QUICK_GOALS: Mapping[str, float] = {"kills": 40, "kill_events": 50_000, "recovery_kills": 6}  # amounts, not promises
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Break things on purpose; exit 1 when a promise does not hold.")
    parser.add_argument("--quick", action="store_true", help="fewer kills, events and seconds of everything")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="run everything at random so long")
    parser.add_argument("--kills", type=int, metavar="N", help="another number of kills")
    parser.add_argument("--events", type=int, metavar="N", help="… of events in the run with kills")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--keep", action="store_true", help="leave the folder with all logs, and say where it is")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(SCENARIOS)}; all unless told")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.names) - set(SCENARIOS))
    if unknown:
        parser.error(f"no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    scale = replace(QUICK if asked.quick else FULL, soak_min=asked.soak)
    scale = replace(scale, kills=asked.kills or scale.kills, kill_events=asked.events or scale.kill_events)
    names = asked.names or [name for name in SCENARIOS if name != "soak" or asked.soak]
    goals = goals_of(scale)
    made = run(names, scale, keep=asked.keep)
    print(table(made, goals))
    if asked.json:
        asked.json.write_text(json.dumps(figures(made, goals, scale), indent=1) + "\n")
    missed = missing(made, goals)
    for row in missed:
        print(f"misses its goal: {row.promise}: {shown(row.measured)}, goal {goals[row.goal or '']}", file=sys.stderr)
    return 1 if missed else 0


def goals_of(scale: Scale) -> dict[str, Goal]:
    """The goals; of a smaller run its own amounts."""
    goals = read_goals(HERE / "goals.toml")
    if scale.quick:
        goals |= {name: Goal("at_least", value) for name, value in QUICK_GOALS.items()}
    own = {"kills": scale.kills, "kill_events": scale.kill_events}
    return goals | {name: Goal("at_least", value) for name, value in own.items() if value < goals[name].value}


def run(names: Sequence[str], scale: Scale, *, keep: bool = False) -> list[Row]:
    os.environ |= dict.fromkeys(THREADS, "1")
    faulthandler.register(signal.SIGUSR1)  # where it is, when it seems to stand still
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # in good order: services are stopped
    folder = Path(tempfile.mkdtemp(prefix="errata-faults-"))
    folder.chmod(0o755)  # PostgreSQL's own user enters it
    tell = told_on_stderr(time.monotonic())
    try:
        with ExitStack() as stack:
            rig = Rig(folder, scale, stack, tell)
            return [row for name in names for row in scenario(name, lambda name=name: _module(name)(rig), tell)]  # type: ignore[misc]
    finally:
        if keep:
            tell(f"logs are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def scenario(name: str, rows: Callable[[], list[Row]], tell: Callable[[str], None]) -> list[Row]:
    """Its rows; when it breaks off, one row that says so and misses its goal."""
    began_s = time.monotonic()
    tell(f"{name}: begins")
    made = attempted(name, rows)
    for row in made:
        tell(f"{name}: {row.promise}: {shown(row.measured)}  {row.detail}".rstrip())
    took_s = time.monotonic() - began_s
    tell(f"{name}: done in {took_s:.0f} s")
    return [replace(made[0], took_s=took_s), *made[1:]] if made else []


def _module(name: str) -> Callable[[Rig], list[Row]]:
    rows: Callable[[Rig], list[Row]] = importlib.import_module(f"tests.faults.{name}").rows
    return rows


def missing(rows: Sequence[Row], goals: Mapping[str, Goal]) -> list[Row]:
    """Rows that miss their goals. Raises ``GoalError`` for a row whose goal is not written down."""
    return [row for row in rows if not met(row, goals)]


def met(row: Row, goals: Mapping[str, Goal]) -> bool:
    if row.goal is None:
        return True
    if row.goal not in goals:
        raise GoalError(f"{row.promise}: no goal {row.goal!r} in goals.toml; write it there")
    return goals[row.goal].met(row.measured)


def table(rows: Sequence[Row], goals: Mapping[str, Goal]) -> str:
    width = max((len(row.promise) for row in rows), default=7)
    lines = [f"{'promise':{width}}  {'measured':>10}  {'goal':>11}  {'verdict':7}  {'time':>6}"]
    for row in rows:
        verdict = "" if row.goal is None else "ok" if met(row, goals) else "MISSES"
        goal = "" if row.goal is None else _goal(goals[row.goal])
        took = f"{row.took_s:.0f} s" if row.took_s else ""
        line = f"{row.promise:{width}}  {shown(row.measured):>10}  {goal:>11}  {verdict:7}  {took:>6}  {row.detail}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _goal(goal: Goal) -> str:
    return f"{'≥' if goal.side == 'at_least' else '≤'} {shown(goal.value)}"


def shown(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def figures(rows: Sequence[Row], goals: Mapping[str, Goal], scale: Scale) -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "scale": asdict(scale),
        "rows": [asdict(row) | {"met": met(row, goals)} for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())
