"""The demo's promise: one case for the real failure, one for each planted one, none beside them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.chain_builder import batches, cases_of, census_lines, chain, chain_parts, tagged_of

from errata.contracts import Contract, FailureCase, Reference
from errata.domain.diagnosis.rules import default_rules
from errata.domain.diagnosis.taxonomy import default_taxonomy
from errata_services.bootstrap import Parts
from errata_services.demo.stream import CLEAN_ROWS, MODEL, DemoPlan, Planted, Truth, events, plan, truth
from errata_services.tagger import Tagger

pytestmark = pytest.mark.whole

NEAR = timedelta(seconds=500)  # a window; the stream has one event a second
Tables = tuple[Contract, Reference]


@pytest.fixture(scope="module")
def tables(census_contract: Contract, census_reference: Reference) -> Tables:
    return census_contract, census_reference


@contextmanager
def judged(lines: Iterable[bytes], folder: Path, tables: Tables, tagger: Tagger | None = None) -> Iterator[Parts]:
    with chain_parts(folder, *tables) as parts:
        summary = chain(parts, tagger=tagger).feed(batches(lines, 2_000))
        assert (summary.dead, summary.dropped, summary.late) == ([], {}, 0)
        yield parts


def cases_by_truth(planned: DemoPlan, folder: Path, tables: Tables) -> list[tuple[Truth, FailureCase]]:
    """Every failure of the stream beside its case. Fails if there is another case, or none for one of them."""
    with judged(events(planned), folder, tables) as parts:
        cases = cases_of(parts)
    told = truth(planned)
    assert [case.detector.id for case in cases if not any(near(case, t) for t in told)] == []
    assert len(cases) == len(told)
    assert all(near(case, t) for case, t in zip(cases, told, strict=True))
    return list(zip(told, cases, strict=True))


def near(case: FailureCase, told: Truth) -> bool:
    return abs(case.episode.onset - told.first) <= NEAR


def changes_on(case: FailureCase) -> list[Any]:
    return [entry.value["change_id"] for entry in case.context if entry.name == "deploy"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_case_for_each_failure_and_the_deploy_on_its_own(seed: int, tables: Tables, tmp_path: Path) -> None:
    found = cases_by_truth(plan(seed), tmp_path, tables)
    assert len(found) == 5
    last_planted = found[3][1]
    assert changes_on(last_planted) == [f"deploy-{MODEL}-serving-42"]
    assert last_planted.model.name == MODEL
    others = {change for _, case in found if case is not last_planted for change in changes_on(case)}
    assert not any("churn" in change or "serving-41" in change or "serving-43" in change for change in others)
    assert {case.root_class for _, case in found} != {"unknown"}


def test_with_planting_off_there_is_exactly_the_real_case(tables: Tables, tmp_path: Path) -> None:
    [(told, case)] = cases_by_truth(plan(1, plant=False), tmp_path, tables)
    assert told.kind == "relp_vanished"
    assert "RELP" in {finding.subject for finding in case.findings}


def test_with_the_real_block_cut_out_only_the_vanishing_is_left(tables: Tables, tmp_path: Path) -> None:
    [(told, case)] = cases_by_truth(plan(1, plant=False, real_block=False), tmp_path, tables)
    assert told.kind == "relp_vanished"
    assert {finding.subject for finding in case.findings} == {"RELP"}


def test_a_failure_that_comes_again_after_5_000_clean_events_is_never_silent(tables: Tables, tmp_path: Path) -> None:
    first, second = Planted("schl_absent", 1_200, 800), Planted("schl_absent", 1_200 + 800 + 5_000, 800)
    with judged(census_lines(8_500, first, second), tmp_path, tables) as parts:
        assert len(cases_of(parts)) in (1, 2)
        moves = [(case.episode.state, case.time) for case in tagged_of(parts) if case.episode.state != "update"]
    told = [t.first for t in truth(DemoPlan(1, (first, second)))]
    assert [state for state, _ in moves[:2]] == ["open", "close"]
    assert moves[2][0] in ("open", "reopen")
    assert moves[0][1] - told[0] <= NEAR
    assert timedelta(0) <= moves[2][1] - told[1] <= NEAR


def test_with_the_rules_emptied_every_case_is_unknown(tables: Tables, tmp_path: Path) -> None:
    lines = census_lines(3_000, Planted("schl_absent", 500, 600), Planted("latency_times_3", 2_200, 600))
    no_rules = replace(default_rules(default_taxonomy()), rules=())
    with judged(lines, tmp_path / "without", tables, Tagger(rules=no_rules)) as parts:
        without = cases_of(parts)
    with judged(lines, tmp_path / "with", tables) as parts:
        assert "unknown" not in {case.root_class for case in cases_of(parts)}  # the control
        assert len(cases_of(parts)) == len(without) >= 1
    assert {case.root_class for case in without} == {"unknown"}


def test_a_clean_stream_has_no_case(tables: Tables, tmp_path: Path) -> None:
    with judged(census_lines(6_000), tmp_path, tables) as parts:
        assert cases_of(parts) == []
    assert CLEAN_ROWS > 6_000
