"""The runner of the plan of faults and its judge: what is missed is said, and a scenario that breaks off is missed."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.events import START_US
from tests.benchmarks.run import Goal, GoalError
from tests.faults import judge, run, story
from tests.faults.judge import Judgement, Oracle
from tests.faults.members import Counts
from tests.faults.rig import FULL, QUICK, Row
from tests.pipeline.case_builder import tagged

from errata.adapters.sql import SqlCatalogue
from errata.contracts.topics import ANOMALIES, PREDICTIONS, TOPICS
from errata.domain.catalogue.queries import CaseQuery
from errata.domain.partitioner import partition_of
from errata.ports import Outgoing, Record

pytestmark = pytest.mark.whole

GOALS = {"lost": Goal("at_most", 0), "completed": Goal("at_least", 1), "kills": Goal("at_least", 500)}
HERE = Path(run.__file__).parent


def quiet(line: str) -> None:
    """Progress is for people."""


def test_a_row_that_misses_its_goal_is_named_in_the_table() -> None:
    rows = [Row("lost under kills", 3, "lost", "3 events"), Row("median", 1.25), Row("kills", 504, "kills")]
    assert run.missing(rows, GOALS) == rows[:1]
    table = run.table(rows, GOALS).splitlines()
    assert re.search(r"lost under kills +3 +≤ 0 +MISSES +3 events$", table[1])
    assert re.search(r"median +1\.25$", table[2])
    assert re.search(r"kills +504 +≥ 500 +ok$", table[3])


def test_a_row_without_its_goal_written_down_is_an_error() -> None:
    with pytest.raises(GoalError, match=r"no goal 'fast' in goals.toml"):
        run.missing([Row("speed", 1, "fast")], GOALS)


def test_a_scenario_that_breaks_off_is_a_row_that_misses(capsys: pytest.CaptureFixture[str]) -> None:
    def breaks() -> list[Row]:
        raise AssertionError("ended with 70\nand much more")

    (row,) = run.scenario("kills", breaks, quiet)
    assert (row.goal, row.detail) == ("completed", "AssertionError: ended with 70")
    assert run.missing([row], GOALS) == [row]
    assert "ended with 70" in capsys.readouterr().err


def test_the_time_of_a_scenario_stands_at_its_first_row() -> None:
    first, second = run.scenario("kills", lambda: [Row("a", 1), Row("b", 2)], quiet)
    assert first.took_s > 0
    assert second.took_s == 0


def test_every_goal_that_a_scenario_names_is_written_down_and_used() -> None:
    written = run.goals_of(FULL)
    sources = "\n".join(path.read_text() for path in HERE.glob("*.py"))
    assert set(run.QUICK_GOALS) <= set(written)
    unused = [name for name in written if f'"{name}"' not in sources]
    assert unused == []


def test_a_quick_run_has_smaller_amounts_but_the_same_promises() -> None:
    full, quick = run.goals_of(FULL), run.goals_of(QUICK)
    assert {name for name in full if str(full[name]) != str(quick[name])} == set(run.QUICK_GOALS)
    assert full["kills"].value == 500
    assert quick["kills"].met(QUICK.kills)


def test_an_unknown_scenario_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["everything"])
    assert "no scenario 'everything'" in capsys.readouterr().err


def test_each_scenario_is_a_module_with_rows() -> None:
    for name in run.SCENARIOS:
        assert "def rows(rig: Rig) -> list[Row]:" in (HERE / f"{name}.py").read_text()


# The judge.


def multiset(seen: str, wanted: str) -> Judgement:
    found = Judgement()
    judge._judge_multiset(found, "findings", Counter(seen), Counter(wanted))
    return found


@pytest.mark.parametrize(
    ("seen", "lost", "doubled", "wrong"),
    [("abc", 0, 0, 0), ("ab", 1, 0, 0), ("abcc", 0, 1, 0), ("abx", 1, 0, 1), ("", 3, 0, 0)],
)
def test_what_is_lost_doubled_or_strange_is_counted(seen: str, lost: int, doubled: int, wrong: int) -> None:
    found = multiset(seen, "abc")
    assert (found.lost, found.doubled, found.wrong) == (lost, doubled, wrong)
    assert found.right == (seen == "abc")


def test_the_order_of_an_episode_counts() -> None:
    outputs = [Outgoing(ANOMALIES, key, value) for key, value in ((b"x", b"1"), (b"y", b"2"), (b"x", b"3"))]
    records = [Record(ANOMALIES, 0, at, 0, one.key, one.value) for at, one in enumerate(outputs)]
    calm, swapped = Judgement(), Judgement()
    judge._judge_findings(calm, [records[1], records[0], records[2]], outputs)
    judge._judge_findings(swapped, [records[2], records[1], records[0]], outputs)
    assert calm.right
    assert swapped.wrong == 1


def test_state_is_compared_by_its_bytes() -> None:
    wanted = {(0, b"a"): b"1", (1, b"b"): b"2"}
    found = Judgement()
    judge._judge_state(found, {(0, b"a"): b"1", (1, b"b"): b"3", (2, b"c"): b""}, wanted)
    assert found.state == 2
    assert "2 of 3 entries differ (1 b, 2 c)" in found.said


# The story, and the oracle over it.


def records_of(told: story.Story, count: int) -> dict[int, list[Record]]:
    """A story's records as a topic has them."""
    logs: dict[int, list[Record]] = {}
    for made in (told.take() for _ in range(count)):
        number = partition_of(made.key or b"", TOPICS[PREDICTIONS].partitions)
        log = logs.setdefault(number, [])
        log.append(Record(PREDICTIONS, number, len(log), START_US + len(log), made.key, made.value))
    return logs


def oracle_of(logs: dict[int, list[Record]], tables: Any) -> Oracle:
    return Oracle(tables).run(sorted(logs.items()))


def test_the_oracle_finds_the_planted_faults_whatever_its_batches() -> None:
    told = story.Story(models=4, phase=700)
    logs = records_of(told, 4_500)
    whole = oracle_of(logs, told.tables)
    assert whole.outputs
    assert whole.events == 4_500
    pieces = Oracle(told.tables, batch=77).run(sorted(logs.items()))
    assert [one.value for one in pieces.outputs] == [one.value for one in whole.outputs]
    found = Judgement()
    judge._judge_state(found, pieces.state, whole.state)
    assert found.right


def test_the_oracle_differs_when_one_event_is_lost() -> None:
    told = story.Story(models=4, phase=700)
    logs = records_of(told, 3_000)
    whole = oracle_of(logs, told.tables)
    number = next(iter(logs))
    lossy = oracle_of(logs | {number: logs[number][:-1]}, told.tables)
    found = Judgement()
    judge._judge_state(found, lossy.state, whole.state)
    assert found.state > 0


def test_every_kind_of_poison_is_a_dead_letter_and_nothing_else_is() -> None:
    told = story.Story(models=4, poison_every=20)
    logs = records_of(told, 20 * 2 * len(story.POISON))
    found = oracle_of(logs, told.tables)
    assert len(found.dead) == 2 * len(story.POISON)
    assert story.Story(models=4).take() == story.Story(models=4).take()


def test_aborts_are_counted_for_each_rebalance_and_member() -> None:
    counts = Counts(aborts={1: 0.0, 2: 3.0}, rebalances={1: 4.0, 2: 2.0})
    assert counts.worst == 1.5


def test_a_revision_more_is_explained_by_context_that_was_filled_in_later_and_by_nothing_else() -> None:
    catalogue = SqlCatalogue("sqlite://")
    catalogue.migrate()
    catalogue.claim("g", "o", [])
    catalogue.apply([tagged("a")], {}, "g", "o")
    (case,) = catalogue.cases(CaseQuery())
    catalogue.close()
    later = case.model_copy(update={"rev": case.rev + 1})
    found = Judgement()
    assert judge._case(found, later, case, True, 1) == []
    assert found.marked == 1
    assert len(judge._case(found, later, case, True, 0)) == 1
    assert len(judge._case(found, case, later, True, 1)) == 1
    assert judge._case(found, case, case, True, 0) == []
