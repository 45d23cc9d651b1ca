import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.case_builder import blank_catalogue, case_id, episode, tagged
from typer.testing import CliRunner, Result

from errata.contracts import FailureCase, TaggedCase, canonical
from errata_services import bootstrap
from errata_services.cli.cases import app, case_lines

HOSTILE = "[red]x[/red]\x1b]0;owned\x07\u202e"
PLACE = ("errata.tagged.v1", 0)


def _fill(data: Path, *cases: TaggedCase) -> None:
    (data / bootstrap.CATALOGUE_FILE).write_bytes(blank_catalogue())
    catalogue = bootstrap.open_catalogue(data)
    catalogue.claim("g", "o", [PLACE])
    catalogue.apply(cases, {PLACE: len(cases)}, "g", "o")
    catalogue.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    _fill(tmp_path, *episode("a"), tagged("b", minutes=50, model={"name": "fraud"}, root_class="unknown", tags=[]))
    return tmp_path


def _run(data: Path, *words: str, **environment: str) -> Result:
    variables = {"COLUMNS": "80", "NO_COLOR": None, "FORCE_COLOR": None, "TTY_COMPATIBLE": None, **environment}
    return CliRunner().invoke(app, [*words, "--data", str(data)], env=variables)


def _json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_shows_a_line_of_fields_and_a_sentence_for_each_case(data: Path) -> None:
    lines = _run(data, "list").stdout.splitlines()
    assert lines[0].split() == ["CASE", "OPENED", "(UTC)", "MODEL", "STATUS", "SEVERITY", "ROOT", "CLASS"]
    assert lines[1].split() == ["CASE-2", "2026-01-05", "00:50", "fraud", "new", "medium", "unknown"]
    assert lines[4].strip() == "RELP lost 2 of its 18 values (16, 17)."


def test_json_is_the_canonical_case(data: Path) -> None:
    listed = _run(data, "list", "--json").stdout.strip()
    assert listed.encode() == canonical(json.loads(listed))
    cases = [FailureCase.model_validate_json(json.dumps(case)) for case in json.loads(listed)]
    assert [case.short_id for case in cases] == ["CASE-2", "CASE-1"]
    assert _json(_run(data, "show", "case-1", "--json")) == json.loads(listed)[1]


def test_list_and_search_filter(data: Path) -> None:
    def ids(*words: str) -> list[str]:
        return [case["short_id"] for case in _json(_run(data, *words, "--json"))]

    assert ids("list", "--model", "fraud") == ["CASE-2"]
    assert ids("list", "--root-class", "data") == ["CASE-1"]
    assert ids("list", "--tag", "data:population") == ["CASE-1"]
    assert ids("list", "--since", "2026-01-05T00:45:00Z") == ["CASE-2"]
    assert ids("list", "--status", "resolved") == []
    assert ids("list", "--limit", "1") == ["CASE-2"]
    assert ids("search", "relp", "CENSUS") == ["CASE-1"]
    assert ids("search", "nothing-like-it") == []


def test_a_list_that_was_cut_says_so(data: Path) -> None:
    assert "The newest 1; more with --limit." in _run(data, "list", "--limit", "1").stdout
    assert "--limit" not in _run(data, "list").stdout


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    odd = tmp_path / "a ?b=c#%41 ü"
    bootstrap.open_catalogue(odd).close()
    assert (odd / bootstrap.CATALOGUE_FILE).is_file()
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]


def test_an_empty_catalogue_says_what_to_do(tmp_path: Path) -> None:
    assert "errata demo" in _run(tmp_path, "list").stdout
    assert _json(_run(tmp_path, "list", "--json")) == []


def test_show_reads_like_a_page(data: Path) -> None:
    text = _run(data, "show", case_id("a")[:8]).stdout
    heads = ["When", "Why", "Findings", "Context", "Exemplars and controls", "What to do next"]
    places = [re.search(rf"^{head}", text, re.MULTILINE) for head in heads]
    starts = [place.start() for place in places if place is not None]
    assert len(starts) == len(heads)
    assert starts == sorted(starts)
    assert text.splitlines()[:2] == ["CASE-1  census version 7", "RELP lost 2 of its 18 values (16, 17)."]
    assert "20 minutes before the onset" in text
    assert re.search(r"distribution_shift +RELP +psi 0\.55 +0\.25 +500", text)
    assert "History" not in text
    assert "errata cases ack CASE-1" in text


@pytest.mark.parametrize("width", [80, 120])
def test_pages_fit_the_terminal(tmp_path: Path, width: int) -> None:
    long = "a_feature_with_a_name_that_goes_on_for_quite_a_while_" * 3
    severity = {"value": 0.9, "level": "critical", "terms": {}, "formula": "f"}
    changes: dict[str, Any] = {"model": {"name": long}, "root_class": "infrastructure", "severity": severity}
    _fill(tmp_path, tagged(tenant="a-tenant-of-a-long-name", **changes), tagged("b", findings=[]))
    for words in (["list"], ["show", "CASE-1"], ["show", case_id("a")]):
        lines = _run(tmp_path, *words, COLUMNS=str(width)).stdout.splitlines()
        assert len(lines) > 3
        assert max(map(len, lines)) <= width
    assert "infrastructure" in _run(tmp_path, "list", COLUMNS=str(width)).stdout, "names give way, classes do not"


def test_lines_of_a_list_fit_whatever_they_hold() -> None:
    assert all(line.cell_len <= 20 for line in case_lines([], 20))


def test_moves_walk_the_life_cycle_and_leave_their_trace(data: Path) -> None:
    assert _run(data, "ack", "CASE-1", "--note", "on it").stdout.startswith("CASE-1 is triaged now: RELP lost")
    again = _run(data, "ack", "CASE-1")
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr == "errata: a case that is triaged cannot be moved by ack; allowed: resolve, reject\n"
    resolved = _json(_run(data, "resolve", "CASE-1", "--note", "rolled back", "--json"))
    assert (resolved["status"], resolved["resolution"]) == ("resolved", {"kind": "resolved", "note": "rolled back"})
    rejected = _json(_run(data, "reject", "CASE-2", "--reason", "label_error", "--json"))
    assert (rejected["status"], rejected["resolution"]["reason"]) == ("rejected", "label_error")
    page = _run(data, "show", "CASE-1").stdout
    assert "new → triaged (on it)" in page
    assert "triaged → resolved (rolled back)" in page
    assert "Nothing: the case is resolved." in page


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "CASE-11"], 1, "did you mean CASE-1?"),
        (["reject", "CASE-1", "--reason", "boring"], 78, "not_a_failure"),
        (["list", "--status", "open"], 78, "--status"),
        (["list", "--since", "whenever"], 78, "--since"),
        (["list", "--limit", "0"], 78, "--limit"),
    ],
)
def test_an_error_is_one_readable_line_with_its_exit_code(data: Path, words: list[str], code: int, said: str) -> None:
    result = _run(data, *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _run(tmp_path / "file", "list")
    assert (result.exit_code, "--data" in result.stderr) == (78, True)


def test_colour_is_for_terminals_and_not_with_no_color(data: Path) -> None:
    colour = re.compile(r"\x1b\[[\d;]*3\d")
    for words in (["list"], ["show", "CASE-1"]):
        assert "\x1b" not in _run(data, *words).stdout
        assert colour.search(_run(data, *words, FORCE_COLOR="1").stdout)
        assert not colour.search(_run(data, *words, FORCE_COLOR="1", NO_COLOR="1").stdout)


def test_hostile_text_neither_styles_nor_steers_the_terminal(tmp_path: Path) -> None:
    finding = {**tagged().model_dump()["findings"][0], "subject": HOSTILE, "detector": HOSTILE, "evidence": {}}
    _fill(tmp_path, tagged(model={"name": HOSTILE}, findings=[finding], tenant=HOSTILE))
    for words in (["list"], ["show", case_id("a")]):
        plain = _run(tmp_path, *words, COLUMNS="200").stdout
        assert "[red]x[/red]\\x1b]0;owned\\x07" in plain
        assert not set(plain) & set("\x1b\x07\u202e")
        assert "\x1b]" not in _run(tmp_path, *words, FORCE_COLOR="1").stdout


def test_the_data_folder_is_the_option_else_the_variable(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_DATA", str(data))
    assert bootstrap.data_folder(None) == data
    assert bootstrap.data_folder(tmp_path / "other") == tmp_path / "other"
    monkeypatch.delenv("ERRATA_DATA")
    assert bootstrap.data_folder(None).name == "errata"
