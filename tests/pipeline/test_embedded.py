"""The whole chain in one process: equal bytes whatever the batches, crashes and repetitions."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import pytest
from tests.pipeline.case_builder import dump
from tests.pipeline.chain_builder import (
    EVERY_POINT,
    NOW_US,
    cases_of,
    census_lines,
    chain,
    chain_parts,
    odd_lines,
    packaged_tagger,
    passed_on,
)

from errata.contracts import Contract, Reference
from errata.runtime.crash_points import CrashPoint, CrashPoints
from errata_services.bootstrap import CATALOGUE_FILE, Parts
from errata_services.cli.reports import summary_lines
from errata_services.demo.stream import Planted
from errata_services.embedded import Embedded, Summary
from errata_services.intake.files import FileSource

Tables = tuple[Contract, Reference]
Made = tuple[bytes, bytes]  # the catalogue, and what the stages passed on
CRASH_BATCH = 250
QUICK = ("MID_PRODUCE", "AFTER_POSITION")  # within a transaction of each stage; the other points are `make test`'s


@pytest.fixture(scope="module")
def tables(census_contract: Contract, census_reference: Reference) -> Tables:
    return census_contract, census_reference


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """A failure that opens, is updated and closes; then broken outputs and lines of every other kind."""
    good = census_lines(1_600, Planted("schl_absent", 250, 200))
    return [*good[:400], *odd_lines(good[:400], "a"), *good[400:], *odd_lines(good, "b")]


@pytest.fixture(scope="module")
def file(lines: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "events.jsonl"
    path.write_bytes(b"".join(lines))
    return path


@pytest.fixture(scope="module")
def whole(file: Path, tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What a run without crashes makes."""
    folder = tmp_path_factory.mktemp("whole")
    with chain_parts(folder, *tables) as parts:
        summary = run(chain(parts), file)
        assert len(summary.opened) + len(summary.reopened) >= 2
        assert summary.closed
        assert summary.dropped == {"duplicate": 4}
        assert len(summary.dead) == 6
        return made(parts, folder)


def run(embedded: Embedded, file: Path) -> Summary:
    with file.open("rb") as stream:
        return embedded.run(stream, path=file)


def made(parts: Parts, folder: Path) -> Made:
    return dump(folder / CATALOGUE_FILE), passed_on(parts)


def run_with_crash(parts: Parts, file: Path, crash: CrashPoints, kind: type[Embedded] = Embedded) -> bool:
    """Run until the crash, then a new chain on the same adapters to the end; whether there was a crash."""

    def embedded(crash: CrashPoints) -> Embedded:
        return kind(parts, batch_size=CRASH_BATCH, now_us=NOW_US, crash=crash, tagger=packaged_tagger())

    try:
        run(embedded(crash), file)
    except CrashPoint:
        run(embedded(CrashPoints.off()), file)
        return True
    return False


@pytest.mark.parametrize(
    "size", [pytest.param(7, marks=pytest.mark.whole), pytest.param(499, marks=pytest.mark.whole), 5_000]
)
def test_batches_of_any_size_give_equal_bytes(
    size: int, whole: Made, file: Path, tables: Tables, tmp_path: Path
) -> None:
    with chain_parts(tmp_path, *tables) as parts:
        run(chain(parts, size), file)
        assert made(parts, tmp_path) == whole


@pytest.mark.whole
def test_line_by_line_gives_equal_bytes(lines: list[bytes], tables: Tables, tmp_path: Path) -> None:
    found = []
    for size in (1, 500):
        folder = tmp_path / str(size)
        with chain_parts(folder, *tables) as parts:
            summary = chain(parts, size).feed([lines[i : i + size] for i in range(0, 750, size)])
            assert summary.opened
            found.append(made(parts, folder))
    assert found[0] == found[1]


@pytest.mark.parametrize("nth", [1, pytest.param(2, marks=pytest.mark.whole)])
@pytest.mark.parametrize(
    ("stage", "point"),
    [one if one[1] in QUICK else pytest.param(*one, marks=pytest.mark.whole) for one in EVERY_POINT],
)
def test_a_crash_anywhere_leaves_no_trace(
    stage: str, point: str, nth: int, whole: Made, file: Path, tables: Tables, tmp_path: Path
) -> None:
    with chain_parts(tmp_path, *tables) as parts:
        assert run_with_crash(parts, file, CrashPoints.raising(stage, point, nth))
        assert made(parts, tmp_path) == whole


class Forgetful(FileSource):
    """A source that does not know how far it was: a run that was killed publishes the file from its start."""

    def skip_known(self, stream: BinaryIO) -> int:
        return 0


class ForgetfulChain(Embedded):
    def _source(self, name: str | None) -> FileSource:
        return Forgetful(self.parts.transport, self.parts.router, name=name, now_us=self._now_us, crash=self._crash)


def test_a_source_that_forgets_its_position_is_found_out(
    whole: Made, file: Path, tables: Tables, tmp_path: Path
) -> None:
    """The control of the test before it: the comparison sees a loop that is wrong."""
    crash = CrashPoints.raising("intake", "AFTER_COMMIT", 1)
    with chain_parts(tmp_path, *tables) as parts:
        assert run_with_crash(parts, file, crash, ForgetfulChain)
        catalogue, passed = made(parts, tmp_path)
        assert catalogue != whole[0]
        assert passed != whole[1]


def test_the_same_file_again_changes_nothing(whole: Made, file: Path, tables: Tables, tmp_path: Path) -> None:
    with chain_parts(tmp_path, *tables) as parts:
        run(chain(parts), file)
        assert made(parts, tmp_path) == whole
        for _ in range(2):
            summary = run(chain(parts), file)
            assert summary.lines == 0
            assert summary.resumed_at_bytes == file.stat().st_size
            assert (summary.opened, summary.reopened, summary.closed, summary.dropped) == ([], [], [], {})
            assert made(parts, tmp_path) == whole


def test_the_same_lines_under_another_name_are_duplicates(
    whole: Made, file: Path, lines: list[bytes], tables: Tables, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(file.read_bytes())
    with chain_parts(tmp_path, *tables) as parts:
        run(chain(parts), file)
        summary = run(chain(parts), copy)
        assert summary.lines == sum(1 for line in lines if line.strip())
        changes = sum(line.startswith(b'{"change_id"') for line in lines)
        assert summary.dropped == {"duplicate": summary.lines - len(summary.dead) - changes}
        assert len(summary.dead) == 6
        assert made(parts, tmp_path) == whole


def test_of_a_file_that_grew_only_the_new_lines_are_read(
    whole: Made, file: Path, lines: list[bytes], tables: Tables, tmp_path: Path
) -> None:
    growing = tmp_path / "growing.jsonl"
    with chain_parts(tmp_path, *tables) as parts:
        for cut in (100, 1_000, len(lines)):
            before = growing.stat().st_size if growing.exists() else 0
            growing.write_bytes(b"".join(lines[:cut]))
            summary = run(chain(parts), growing)
            assert summary.resumed_at_bytes == before
        assert summary.lines == count(lines[1_000:])
        assert made(parts, tmp_path) == whole


def test_another_file_under_the_same_name_is_read_from_its_start(
    lines: list[bytes], tables: Tables, tmp_path: Path
) -> None:
    name = tmp_path / "events.jsonl"
    with chain_parts(tmp_path, *tables) as parts:
        name.write_bytes(b"".join(lines[:100]))
        run(chain(parts), name)
        name.write_bytes(b"".join(lines[100:300]))
        summary = run(chain(parts), name)
        assert summary.resumed_at_bytes == 0
        assert summary.lines == 200


def test_a_partial_window_stays_open_and_is_told(tables: Tables, tmp_path: Path) -> None:
    with chain_parts(tmp_path, *tables) as parts:
        good = census_lines(1_000)
        shifted = [*good[:-500], *(line.replace(b'"SEX":"2"', b'"SEX":"1"') for line in good[-500:])]
        summary = chain(parts).feed([shifted[:-1]])
        assert [(w.model, w.events, w.outcomes) for w in summary.open_windows] == [("employment-ma", 499, 499)]
        assert cases_of(parts) == []
        assert any("499 events, 499 outcomes wait in an open window" in line for line in summary_lines(summary))
        summary = chain(parts).feed([shifted[-1:]])  # the last event of the window ends it
        assert summary.open_windows == []
        assert [case.subject for case in cases_of(parts)] == ["SEX"]


def test_an_open_window_goes_on_in_the_next_run(
    whole: Made, lines: list[bytes], tables: Tables, tmp_path: Path
) -> None:
    with chain_parts(tmp_path, *tables) as parts:
        for part in (lines[:650], lines[650:]):
            chain(parts).feed([part])
        assert made(parts, tmp_path) == whole


def count(lines: Iterable[bytes]) -> int:
    return sum(1 for line in lines if line.strip())
