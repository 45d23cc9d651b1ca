"""``errata contract``, ``errata reference`` and ``errata validate`` as people meet them."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from errata.contracts import Contract, Reference
from errata.contracts.topics import CONTRACTS, REFERENCES
from errata.domain.profiles import content_hash
from errata.errors import ErrataError, Misconfigured, NotFound
from errata_services.bootstrap import embedded_parts
from errata_services.cli import contracts, references, validate
from errata_services.cli.contracts import read_contract, to_yaml
from errata_services.demo import stream

app = typer.Typer()
app.add_typer(contracts.app, name="contract")
app.add_typer(references.app, name="reference")
app.command("validate")(validate.validate)


def run(*words: object, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit | ErrataError), result.exception
    return result


def failure(result: Result) -> ErrataError:
    assert isinstance(result.exception, ErrataError)
    assert "\n" not in str(result.exception)
    return result.exception


def prediction(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "event_id": f"e-{number}",
        "time": "2026-01-05T12:00:00Z",
        "model": {"name": "fraud"},
        "features": {"amount": number, "country": "DE" if number % 2 else "FR"},
        "prediction": "ok",
        "latency_ms": 10 + number,
        "outcome": {"value": "ok"},
    } | fields


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


@pytest.fixture
def events(tmp_path: Path) -> Path:
    return write(tmp_path / "events.jsonl", *(prediction(i) for i in range(101)))


@pytest.fixture
def contract(tmp_path: Path, events: Path) -> Path:
    path = tmp_path / "contract.yaml"
    assert run("contract", "infer", events, "--model", "fraud", "--out", path).exit_code == 0
    return path


def edited(path: Path, **fields: Any) -> Path:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")
    return path


def test_infer_writes_yaml_as_people_write_it(events: Path) -> None:
    result = run("contract", "infer", events, "--model", "fraud")
    assert result.exit_code == 0
    assert result.stdout.startswith("# ")
    assert yaml.safe_load(result.stdout) == {
        "model": "fraud",
        "features": {
            "amount": {"type": "integer", "required": True, "range": {"min": -10, "max": 110}},
            "country": {"type": "category", "required": True, "categories": ["DE", "FR"]},
        },
        "output": {"classes": ["ok"]},
    }
    assert "{min: -10, max: 110}" in result.stdout


def test_infer_of_a_model_that_is_not_there(events: Path) -> None:
    assert "'absent'" in str(failure(run("contract", "infer", events, "--model", "absent")))
    assert isinstance(failure(run("contract", "infer", events, "--model", "absent")), NotFound)


def test_infer_says_what_it_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "some.jsonl", prediction(1), "nope", prediction(2))
    result = run("contract", "infer", file, "--model", "fraud")
    assert result.exit_code == 0
    assert "1 lines left out" in result.stderr
    assert "line 2: " in result.stderr
    assert "left out" not in result.stdout


def test_the_demo_contract_survives_yaml(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(to_yaml(stream.contract()), encoding="utf-8")
    assert read_contract(path) == stream.contract()


def test_an_inferred_contract_is_sound_and_its_events_keep_it(contract: Path, events: Path) -> None:
    assert run("contract", "check", contract).stdout == f"{contract}: sound\n"
    result = run("contract", "check", contract, events)
    assert (result.exit_code, "all 101 events" in result.stdout) == (0, True)


def test_check_names_what_breaks_it_once_with_count_and_first_line(contract: Path, tmp_path: Path) -> None:
    bad = {"amount": 900, "country": "XX"}
    file = write(
        tmp_path / "bad.jsonl",
        prediction(1),
        prediction(2, features=bad),
        prediction(3, features=bad),
        '{"event_id": "x"}',
        prediction(4, model={"name": "another"}, features={}),
    )
    result = run("contract", "check", contract, file, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["events"] == 3
    assert [(f["path"], f["reason"], f["first_line"], f["count"]) for f in report["faults"]] == [
        ("/features/amount", "range", 2, 2),
        ("/features/country", "unseen_category", 2, 2),
        ("/time", "schema", 4, 1),
    ]
    said = run("contract", "check", contract, file)
    assert said.exit_code == 1
    assert "/features/amount: range: a number above the contract's 110 (2 lines, the first is 2)" in said.stdout
    assert "900" not in said.stdout
    assert "XX" not in said.stdout


def test_check_shows_names_from_outside_without_their_escapes(contract: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "hostile.jsonl", prediction(1, features={"amount": 1, "country": "DE", "\x1b[31mred": 1}))
    said = run("contract", "check", contract, file)
    assert said.exit_code == 1
    assert "\x1b" not in said.stdout
    assert "/features/\\x1b[31mred: extra" in said.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [", "not YAML (line "),
        ("- a", "begins with model: NAME; this is a list"),
        ("", "begins with model: NAME; this is null"),
        ("features: {}", "/model: required and missing"),
        ("model: 3", "/model: "),
        ("{model: m, output: {classes: [yes, no]}}",
         "/output/classes/0: input should be a valid string, this is a bool; write it in quotes (and 1 more)"),
        ("{model: m, features: {a/b: {type: int}}}", "/features/a~1b/type: "),
        ("{model: m, features: {a: {type: integer, policy: keeep}}}", "/features/a/policy: "),
    ],
)  # fmt: skip
def test_a_faulty_contract_is_refused_in_one_line_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(text, encoding="utf-8")
    error = failure(run("contract", "check", path))
    assert isinstance(error, Misconfigured)
    assert str(error).startswith(f"{path}: ")
    assert said in str(error)


def test_check_finds_a_field_written_wrongly(contract: Path) -> None:
    result = run("contract", "check", edited(contract, slo={"latency_ms": {"max": 3}}))
    assert result.exit_code == 1
    assert "/slo: no such field" in result.stdout


def test_apply_refuses_a_contract_without_sense_and_a_file_that_is_not_there(contract: Path, tmp_path: Path) -> None:
    error = failure(run("contract", "apply", edited(contract, slo={}), "--data", tmp_path / "data"))
    assert "/slo: no such field" in str(error)
    assert "no such file" in str(failure(run("contract", "apply", tmp_path / "absent.yaml")))
    assert not (tmp_path / "data").exists()


def test_a_reference_is_built_shown_and_read_back(contract: Path, events: Path, tmp_path: Path) -> None:
    out = tmp_path / "reference.json"
    assert run("reference", "build", events, "--contract", contract, "--out", out).exit_code == 0
    built = Reference.model_validate_json(out.read_bytes())
    assert (built.events, built.dataset, built.content_hash) == (101, "events.jsonl", content_hash(built))
    assert run("reference", "build", events, "--contract", contract).stdout.strip() == out.read_text("utf-8").strip()
    assert run("reference", "show", out, "--json").stdout.encode().strip() == built.to_json()
    shown = run("reference", "show", out).stdout
    for expected in ("fraud: reference", "101 events", "amount", "FR 50.5%", "latency p95"):
        assert expected in shown


def test_a_reference_without_a_contract_needs_the_model(events: Path) -> None:
    assert "--contract" in str(failure(run("reference", "build", events)))
    assert "read once" in str(failure(run("reference", "build", "-", "--model", "fraud", stdin=b"")))
    built = Reference.model_validate_json(run("reference", "build", events, "--model", "fraud").stdout)
    assert set(built.sketches) == {"amount", "country"}


def test_a_reference_changed_by_hand_is_refused(contract: Path, events: Path, tmp_path: Path) -> None:
    out = tmp_path / "reference.json"
    run("reference", "build", events, "--contract", contract, "--out", out)
    out.write_text(out.read_text("utf-8").replace('"events":101', '"events":102'), "utf-8")
    assert "/content_hash" in str(failure(run("reference", "show", out)))
    assert "/content_hash" in str(failure(run("reference", "apply", out, "--data", tmp_path / "data")))
    out.write_text("{}", "utf-8")
    assert "/model" in str(failure(run("reference", "show", out)))


def test_validate_names_line_class_pointer_and_reason(tmp_path: Path) -> None:
    outcome = {"outcome_id": "o", "model": {"name": "m"}, "observed_time": "2026-01-05T12:00:00Z", "value": 1}
    file = write(
        tmp_path / "mixed.jsonl",
        prediction(1),
        "",
        "{not json",
        outcome | {"prediction_id": "e-1"},
        outcome,
        {"change_id": "c", "kind": "deploy", "subject": "m", "time": "2026-01-05T12:00:00Z"},
        {"change_id": "c", "kind": "party", "subject": "m", "time": "2026-01-05T12:00:00Z"},
        prediction(2, time="2026-01-05T12:00:00"),
        "[1]",
        '{"hello": 1}',
    )
    result = run("validate", file, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["lines"], report["good"]) == (9, 3)
    assert [(bad["line"], bad["class"], bad["path"]) for bad in report["bad"]] == [
        (3, "decode", ""),
        (5, "schema", "/prediction_id"),
        (7, "schema", "/kind"),
        (8, "schema", "/time"),
        (9, "schema", ""),
        (10, "schema", "/event_id"),
    ]
    said = run("validate", file).stdout.splitlines()
    assert len(said) == 7
    assert said[0].startswith("3: decode: /: not JSON")
    assert said[-1] == "9 lines: 3 good, 6 bad"


def test_validate_of_good_lines_from_standard_input() -> None:
    lines = "".join(json.dumps(prediction(i)) + "\n" for i in range(3)).encode()
    result = run("validate", "-", stdin=lines)
    assert (result.exit_code, result.stdout) == (0, "3 lines: 3 good, 0 bad\n")


def test_validate_of_hostile_bytes_neither_crashes_nor_repeats_them(tmp_path: Path) -> None:
    file = tmp_path / "hostile.jsonl"
    deep = b"[" * 100_000
    huge = b'{"event_id":"' + b"x" * 300_000 + b'"}'
    canary = json.dumps(prediction(1, time="canary \x1b[2J")).encode()
    file.write_bytes(
        b"\n".join([b"\xff\xfe", b"\x00", deep, huge, b"NaN", b'{"event_id":' + b"9" * 5_000 + b"}", canary])
    )
    result = run("validate", file, "--json")
    classes = [bad["class"] for bad in json.loads(result.stdout)["bad"]]
    assert classes == ["decode", "decode", "decode", "oversize", "decode", "decode", "schema"]
    said = run("validate", file).stdout
    assert "canary" not in said
    assert "\x1b" not in said


def test_a_contract_hash_does_not_hang_on_how_the_yaml_is_written(contract: Path) -> None:
    before = read_contract(contract)
    assert isinstance(before, Contract)
    assert read_contract(edited(contract)).content_hash == before.content_hash
    assert read_contract(edited(contract, version=2)).content_hash != before.content_hash


def test_apply_publishes_to_the_tables_and_names_the_hash(contract: Path, events: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "reference.json"
    run("reference", "build", events, "--contract", contract, "--out", out)
    applied = [run("contract", "apply", contract, "--data", data), run("reference", "apply", out, "--data", data)]
    assert [result.exit_code for result in applied] == [0, 0]
    built = Reference.model_validate_json(out.read_bytes())
    with embedded_parts(data) as parts:
        tables = {topic: [*parts.transport.read_from((topic, 0))] for topic in (CONTRACTS, REFERENCES)}
    assert [record.value for record in tables[CONTRACTS]] == [read_contract(contract).to_json()]
    assert [record.value for record in tables[REFERENCES]] == [built.to_json()]
    assert (built.content_hash or "")[:12] in applied[1].stdout
