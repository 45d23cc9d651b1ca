"""``errata run`` as people meet it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.chain_builder import apply_tables, census_lines
from typer.testing import CliRunner, Result

from errata import __version__
from errata.adapters.journal import DataLock
from errata.contracts import Contract, Reference
from errata.errors import ErrataError, Misconfigured
from errata_services import cli
from errata_services.bootstrap import embedded_parts
from errata_services.cli.root import app
from errata_services.demo.stream import Planted

GOOD = {"event_id": "e-1", "time": "2026-01-05T12:00:00Z", "model": {"name": "fraud"}, "prediction": "ok"}


def errata(*words: object, stdin: bytes | None = None, **environment: str | None) -> Result:
    variables = {"NO_COLOR": "1", "COLUMNS": "100", "ERRATA_CRASH": None, "ERRATA_BATCH_SIZE": None, **environment}
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin, env=variables)
    assert result.exception is None or isinstance(result.exception, SystemExit | ErrataError), result.exception
    return result


def fault(result: Result) -> str:
    """The one line that a person reads."""
    assert isinstance(result.exception, Misconfigured)
    assert result.exception.exit_code == 78
    assert "\n" not in str(result.exception)
    return str(result.exception)


def write(path: Path, *events: dict[str, Any] | bytes) -> Path:
    path.write_bytes(b"".join((e if isinstance(e, bytes) else json.dumps(e).encode()) + b"\n" for e in events))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "events.jsonl", GOOD, GOOD | {"event_id": "e-2"}, GOOD, b"nope", b"")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_without_embedded_it_says_so(file: Path, data: Path) -> None:
    assert "--embedded" in fault(errata("run", "--input", file, "--data", data))
    assert not data.exists()


def test_only_a_service_can_leave_a_group(file: Path, data: Path) -> None:
    assert fault(errata("run", "--embedded", "--leave", "--input", file, "--data", data)).startswith("--leave: ")
    assert not data.exists()


def test_a_file_that_is_not_there_is_named(tmp_path: Path, data: Path) -> None:
    gone = tmp_path / "gone.jsonl"
    assert str(gone) in fault(errata("run", "--embedded", "--input", gone, "--data", data))


@pytest.mark.parametrize("size", [0, -1, 5_001])
def test_a_batch_size_out_of_bounds(size: int, file: Path, data: Path) -> None:
    result = errata("run", "--embedded", "--input", file, "--data", data, f"--batch-size={size}")
    assert "--batch-size: from 1 to 5,000" in fault(result)


def test_a_variable_that_nobody_knows(file: Path, data: Path) -> None:
    result = errata("run", "--embedded", "--input", file, "--data", data, ERRATA_BATCHSIZE="7")
    assert "did you mean ERRATA_BATCH_SIZE?" in fault(result)


def test_a_crash_point_that_cannot_be_read(file: Path, data: Path) -> None:
    result = errata("run", "--embedded", "--input", file, "--data", data, ERRATA_CRASH="tagger")
    assert "ERRATA_CRASH must read" in fault(result)


def test_a_folder_that_another_process_holds(file: Path, data: Path) -> None:
    with DataLock(data):
        assert "in use by another errata process" in fault(errata("run", "--embedded", "--input", file, "--data", data))
    assert errata("run", "--embedded", "--input", file, "--data", data).exit_code == 0


def test_the_summary_leaves_nothing_out(file: Path, data: Path) -> None:
    result = errata("run", "--embedded", "--input", file, "--data", data)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "4 lines read: no case moved"
    assert lines[1] == "1 dead letters: decode 1"
    assert lines[2].startswith("  decode at /: ")
    assert lines[3].startswith("1 duplicates")
    assert lines[4] == "fraud: 2 events wait in an open window, not yet judged"
    again = errata("run", "--embedded", "--input", file, "--data", data).stdout.splitlines()
    assert again[0] == f"0 new lines ({file.stat().st_size:,} bytes were read before): no case moved"
    assert "dead letters" not in "\n".join(again)


def test_the_summary_as_json(file: Path, data: Path) -> None:
    result = errata("run", "--embedded", "--input", file, "--data", data, "--json")
    found = json.loads(result.stdout)
    assert set(found) == {
        "lines", "resumed_at_bytes", "dead_letters", "dropped", "late", "clamped", "opened", "reopened", "closed",
        "open_windows",
    }  # fmt: skip
    assert (found["lines"], found["dropped"]) == (4, {"duplicate": 1})
    [letter] = found["dead_letters"]
    assert (letter["class"], letter["path"], letter["topic"]) == ("decode", "", "errata.predictions.v1")
    assert found["open_windows"] == [{"model": "fraud", "events": 2, "outcomes": 0}]


def test_standard_input_is_read_and_has_no_position(data: Path) -> None:
    line = json.dumps(GOOD).encode()
    for dropped in ({}, {"duplicate": 1}):
        result = errata("run", "--embedded", "--input", "-", "--data", data, "--json", stdin=line + b"\n")
        found = json.loads(result.stdout)
        assert (found["lines"], found["resumed_at_bytes"], found["dropped"]) == (1, 0, dropped)


def test_more_dead_letters_than_fit_are_counted(tmp_path: Path, data: Path) -> None:
    file = write(tmp_path / "bad.jsonl", *[b"nope"] * 7)
    text = errata("run", "--embedded", "--input", file, "--data", data).stdout
    assert "7 dead letters: decode 7" in text
    assert text.count("  decode at /") == 5
    assert "errata validate FILE" in text


def test_a_case_is_told_when_it_opens(
    tmp_path: Path, data: Path, census_contract: Contract, census_reference: Reference
) -> None:
    with embedded_parts(data) as parts:
        apply_tables(parts.transport, census_contract, census_reference)
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"".join(census_lines(400, Planted("schl_absent", 100, 200))))
    text = errata("run", "--embedded", "--input", file, "--data", data).stdout
    assert re.search(r"2025-03-03 08:0\d:\d\d  opened    [0-9a-f]{8}  employment-ma: \S+ of SCHL \(data:", text)
    assert "cases 1 opened" in text
    assert "Look at them: errata cases list" in text
    assert "CASE-1" in errata("cases", "list", "--data", data).stdout


def test_what_a_line_says_cannot_steer_the_terminal(tmp_path: Path, data: Path) -> None:
    hostile = "[red]x\x1b]0;owned\x07"
    file = write(tmp_path / "events.jsonl", GOOD | {"model": {"name": hostile}})
    text = errata("run", "--embedded", "--input", file, "--data", data).stdout
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]x" in text


def test_an_error_is_one_line_and_the_exit_code_of_its_class(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["errata", "run", "--input", str(file)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 78
    assert capsys.readouterr().err.splitlines() == ["errata: run: name one service, or say --embedded --input FILE"]


def test_the_version_and_the_help() -> None:
    assert errata("--version").stdout == f"errata {__version__}\n"
    text = errata("--help").stdout
    assert all(word in text for word in ("demo", "run", "cases", "models", "validate", "contract", "reference"))
