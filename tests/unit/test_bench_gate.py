"""The gate of `make bench`: a row below its goal fails the run and is named, and a goal cannot be forgotten."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.benchmarks import run
from tests.benchmarks.measure import QUICK, Row, Scale, Variant, interleaved, speed_ratio
from tests.benchmarks.run import Goal, GoalError

GOALS = {"speed": Goal("at_least", 0.6), "false_cases": Goal("at_most", 0)}
GOOD = [
    Row("decode / orjson", 0.61, "speed"),
    Row("at the goal", 0.6, "speed"),
    Row("clean stream", 0, "false_cases"),
    Row("shown only", -5.0),
]


def test_rows_that_meet_their_goals_give_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.report(GOOD, GOALS) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("bad", "goal"),
    [(Row("slow path", 0.599, "speed"), "≥ 0.6"), (Row("noisy stream", 1, "false_cases"), "≤ 0")],
)
def test_a_row_below_its_goal_gives_exit_1_and_is_named(
    bad: Row, goal: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.report([*GOOD, bad], GOALS) == 1
    out, err = capsys.readouterr()
    assert f"{bad.name}: {bad.measured:.3f}, goal {goal}" in err
    assert not any(good.name in err for good in GOOD)
    assert [line.split("  ")[0] for line in out.splitlines() if "BELOW GOAL" in line] == [bad.name]


def test_not_a_number_meets_no_goal() -> None:
    rows = [Row("nothing measured", float("nan"), "speed"), Row("nothing counted", float("nan"), "false_cases")]
    assert run.failing(rows, GOALS) == rows


def test_a_row_whose_goal_is_not_written_down_is_an_error() -> None:
    with pytest.raises(GoalError, match="new row: no goal 'unwritten'"):
        run.report([Row("new row", 1.0, "unwritten")], GOALS)


@pytest.mark.parametrize(
    "text", ["[a]\nat_lest = 1", "[a]\nat_least = 1\nat_most = 2", '[a]\nat_most = "1"', "[a]", "a = 1"]
)
def test_a_goal_that_says_anything_else_than_one_number_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "goals.toml"
    path.write_text(text)
    with pytest.raises(GoalError, match="a must hold one number"):
        run.read_goals(path)


def test_the_command_ends_with_what_the_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Sequence[str], Scale]] = []

    def rows(names: Sequence[str], scale: Scale) -> list[Row]:
        given.append((names, scale))
        return [Row("hot path", 0.59, "hot_path")]

    assert run.main(["--quick", "storm"], measure=rows) == 1
    assert given == [(["storm"], QUICK)]


def test_the_goals_of_the_issue_stand_in_the_file() -> None:
    goals = run.read_goals(run.HERE / "goals.toml")
    written = {name: str(goal) for name, goal in goals.items()}
    assert written == {
        "decode": "≥ 0.75",
        "decode_bad_rows": "≥ 0.95",
        "hot_path": "≥ 0.6",
        "many_models": "≥ 0.7",
        "storm": "≥ 0.8",
        "planted_found": "≥ 50",
        "false_findings": "≤ 0",
        "stream_cases": "≤ 0",
        "permuted_cases": "≤ 1",
        "error_rate_delay": "≤ 1.15",
        "error_rate_missed": "≤ 0",
        "kafka_naive": "≥ 2",
        "kafka_faust": "≥ 8",
        "kafka_quixstreams": "≥ 1.3",
        "naive_at_least": "≥ 4",
        "naive_at_most": "≤ 8",
        "kafka_missed": "≤ 0",
        "kafka_differences": "≤ 0",
        "transactions_5000": "≥ 0.9",
        "transactions_2000": "≥ 0.8",
        "transactions_500": "≥ 0.6",
        "latency_p50_ms": "≤ 100",
        "latency_p99_ms": "≤ 500",
        "latency_lost": "≤ 0",
    }


def test_every_variant_runs_once_a_round_after_a_warm_up() -> None:
    calls: list[str] = []

    def variant(name: str) -> Variant:
        def run_it() -> int:
            calls.append(name)
            return 10

        return Variant(run_it, lambda: calls.append(f"ready {name}"))

    taken = interleaved({"a": variant("a"), "b": variant("b")}, rounds=2)
    assert calls == ["ready a", "a", "ready b", "b"] * 3
    assert {name: len(rounds) for name, rounds in taken.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    """Not the ratio of the medians: a slow round slows all variants of it."""
    taken = {"ours": [1.0, 10.0, 4.0], "theirs": [2.0, 20.0, 2.0]}
    assert speed_ratio(taken, "ours", "theirs") == 2.0


def test_the_middle_of_three_measurements_counts_and_one_that_is_no_number_is_told() -> None:
    takes = [Row("ratio", measured, "speed", f"take {measured}") for measured in (0.7, 0.5, 0.6)]
    assert run.median_row(takes) == takes[2]
    broken = Row("ratio", float("nan"), "speed", "the peer cannot be run")
    assert run.median_row([takes[0], broken, takes[1]]) is broken
