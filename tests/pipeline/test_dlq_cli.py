"""``errata dlq`` on a data folder: what an operator sees, and that a letter mended is an event at last."""

import json
import os
import pwd
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from errata.adapters.aead import KEY_FILE
from errata.contracts.topics import PREDICTIONS, RESOLUTIONS
from errata.errors import ErrataError, Misconfigured, NotFound
from errata_services.bootstrap import embedded_parts
from errata_services.cli.root import app

GOOD = {"event_id": "e-1", "time": "2026-01-05T12:00:00Z", "model": {"name": "fraud"}, "prediction": "ok"}
LINES = [
    json.dumps(GOOD),
    json.dumps(GOOD | {"event_id": "e-2", "time": "2026-01-05T12:00:00"}),
    json.dumps(GOOD | {"event_id": "e-3", "model": {"name": 4}}),
    '{"nonsense \x1b[31m',
]


def errata(*words: object, **environment: str | None) -> Result:
    bare = {"NO_COLOR": "1", "COLUMNS": "100", "ERRATA_CRASH": None}
    bare |= {"ERRATA_KEY": None, "ERRATA_DATABASE_URL": None, "ERRATA_KAFKA__BOOTSTRAP_SERVERS": None}
    result = CliRunner().invoke(app, [str(word) for word in words], env={**bare, **environment})
    assert result.exception is None or isinstance(result.exception, SystemExit | ErrataError), result.exception
    return result


def fault(result: Result, kind: type[ErrataError] = Misconfigured) -> str:
    assert type(result.exception) is kind
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(LINES) + "\n")
    return path


def run_of(file: Path, folder: Path) -> Path:
    assert errata("run", "--embedded", "--input", file, "--data", folder).exit_code == 0
    return folder


@pytest.fixture
def data(tmp_path: Path, file: Path) -> Path:
    return run_of(file, tmp_path / "data")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder for commands that change nothing in it."""
    folder = tmp_path_factory.mktemp("asked")
    (folder / "events.jsonl").write_text("\n".join(LINES) + "\n")
    return run_of(folder / "events.jsonl", folder / "data")


def listed(data: Path, *words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(errata("dlq", "list", "--json", "--data", data, *words).stdout)
    return found


def test_list_names_causes_and_counts(asked: Path) -> None:
    found = listed(asked)
    assert (found["open"], found["settled"], len(found["letters"])) == (3, {}, 3)
    assert sorted((cause["class"], cause["open"]) for cause in found["causes"]) == [
        ("decode", 1), ("schema", 1), ("schema", 1),
    ]  # fmt: skip
    assert all("payload" not in letter for letter in found["letters"])
    text = errata("dlq", "list", "--data", asked).stdout
    assert all(letter["dead_letter_id"][:8] in text for letter in found["letters"])
    assert max(map(len, text.splitlines())) <= 100


def test_list_by_class_fingerprint_id_and_time(asked: Path) -> None:
    (letter,) = listed(asked, "--class", "decode")["letters"]
    assert listed(asked, "--fingerprint", letter["fingerprint"][:6])["open"] == 1
    assert listed(asked, "--id", letter["dead_letter_id"][:8].upper())["open"] == 1
    assert listed(asked, "--since", "2026-01-05T12:00:01Z")["open"] == 0
    assert listed(asked, "--since", "2026-01-05")["open"] == 3
    assert listed(asked, "--stage", "tagger", "--stage", "enricher")["open"] == 0


def test_show_prints_the_payload_and_nothing_that_moves_a_cursor(asked: Path) -> None:
    (letter,) = listed(asked, "--class", "decode")["letters"]
    page = errata("dlq", "show", letter["dead_letter_id"], "--data", asked).stdout
    assert r'{"nonsense \x1b[31m' in page
    assert "\x1b" not in page
    shown = json.loads(errata("dlq", "show", "--class", "decode", "--json", "--data", asked).stdout)
    assert shown["payload"] == LINES[3]


def test_mended_letters_become_events(data: Path, file: Path, tmp_path: Path) -> None:
    patch = tmp_path / "mend.json"
    patch.write_text('{"time": "2026-01-05T12:00:00Z", "model": {"name": "fraud"}}')
    words = ("dlq", "replay", "--class", "schema", "--patch", patch, "--data", data)
    assert "2 letters would be replayed." in errata(*words, "--dry-run").stdout
    assert listed(data)["open"] == 3
    assert "2 letters replayed." in errata(*words, "--reason", "mended", LOGNAME="somebody", USER="else").stdout
    assert listed(data) == {**listed(data), "open": 1, "settled": {"replayed": 2}}
    run = json.loads(errata("run", "--embedded", "--input", file, "--data", data, "--json").stdout)
    assert (run["lines"], run["dead_letters"]) == (0, [])
    assert run["open_windows"] == [{"model": "fraud", "events": 3, "outcomes": 0}]
    assert errata("ledger", "audit", "--data", data).exit_code == 0
    again = errata(*words, "--reason", "mended")
    assert "0 letters replayed." in again.stdout
    assert "2 left: settled already; --force replays them once more." in again.stderr
    (settled, *_) = listed(data, "--all", "--class", "schema")["letters"]
    assert settled["resolution"] | {"at": "", "who": ""} == {
        "action": "replayed", "why": "mended", "at": "", "who": "", "replays": 1, "patched": True,
    }  # fmt: skip
    assert settled["resolution"]["who"] == pwd.getpwuid(os.getuid()).pw_name
    assert errata(*words, "--reason", "again", "--force", "--json").exit_code == 0


def test_replay_that_is_refused_again_is_a_new_letter(data: Path, file: Path) -> None:
    assert errata("dlq", "replay", "--class", "decode", "--reason", "try", "--data", data).exit_code == 0
    errata("run", "--embedded", "--input", file, "--data", data)
    first, second = sorted(listed(data, "--class", "decode", "--all")["letters"], key=lambda one: one["hops"])
    assert (second["replay_of"], second["hops"]) == (first["dead_letter_id"], 1)


def test_discarded_is_put_away(data: Path) -> None:
    (letter,) = listed(data, "--class", "decode")["letters"]
    words = ("dlq", "discard", "--id", letter["dead_letter_id"], "--reason", "a test", "--data", data)
    assert "1 letter discarded." in errata(*words).stdout
    assert listed(data)["settled"] == {"discarded": 1}
    again = errata(*words)
    assert (again.exit_code, "1 left: settled already." in again.stderr) == (1, True)
    assert "Settled: 1 discarded." in errata("dlq", "list", "--data", data).stdout


def test_export_writes_lines_that_only_their_owner_reads(asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "letters.jsonl"
    assert errata("dlq", "export", "--output", out, "--data", asked).exit_code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["payload"] for line in lines) == sorted(LINES[1:])
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "--output: " in fault(errata("dlq", "export", "--output", out, "--data", asked))
    printed = errata("dlq", "export", "--class", "schema", "--data", asked).stdout
    assert len(printed.splitlines()) == 2


def test_another_key_opens_nothing_and_sends_nothing(data: Path) -> None:
    (data / KEY_FILE).write_bytes(b"o" * 32)
    assert listed(data)["open"] == 3
    for words in (("show", "--class", "schema"), ("replay", "--class", "schema", "--reason", "x"), ("export",)):
        assert "ERRATA_KEY: does not open letter" in fault(errata("dlq", *words, "--data", data))
    with embedded_parts(data) as parts:
        assert parts.transport.end_offset((RESOLUTIONS, 0)) == 0
        records = [r for n in range(12) for r in parts.transport.read_from((PREDICTIONS, n))]
        assert len(records) == len(LINES)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("replay", "--reason", "x"), "say which letters"),
        (("discard", "--reason", "x"), "say which letters"),
        (("show",), "name a letter"),
        (("replay", "--class", "schema"), "--reason: is missing"),
        (("discard", "--class", "schema", "--reason", " "), "--reason: is missing"),
        (("replay", "--class", "shema", "--reason", "x"), "--class: must be one of decode, schema"),
        (("list", "--stage", "detector"), "--stage: must be one of anomaly-detector"),
        (("list", "--id", "1234567"), "--id: give 8 characters"),
        (("list", "--since", "yesterday"), "--since: "),
        (("replay", "--class", "schema", "--reason", "x", "--rate", "fast"), "--rate: "),
        (("replay", "--class", "schema", "--reason", "x", "--patch", "gone.json"), "--patch: the file cannot be read"),
    ],
)
def test_what_is_asked_wrongly_is_told(words: tuple[str, ...], why: str, asked: Path) -> None:
    assert why in fault(errata("dlq", *words, "--data", asked))


@pytest.mark.parametrize("patch", ["[]", "{}", "no json", '"text"', "[" * 10_000])
def test_patch_must_be_an_object(patch: str, asked: Path, tmp_path: Path) -> None:
    path = tmp_path / "patch.json"
    path.write_text(patch)
    words = ("dlq", "replay", "--class", "schema", "--reason", "x", "--patch", path, "--data", asked)
    assert "--patch: must be a JSON object" in fault(errata(*words))


def test_nothing_that_fits_and_no_such_folder(asked: Path, tmp_path: Path) -> None:
    assert "no dead letter fits" in fault(errata("dlq", "show", "00000000", "--data", asked), NotFound)
    assert "no dead letter fits" in fault(
        errata("dlq", "replay", "--class", "sink", "--reason", "x", "--data", asked), NotFound
    )
    assert "--data: there is no such folder" in fault(errata("dlq", "list", "--data", tmp_path / "gone"))
    assert not (tmp_path / "gone").exists()


def test_patch_that_does_not_fit_is_told(asked: Path, tmp_path: Path) -> None:
    patch = tmp_path / "patch.json"
    patch.write_text('{"a": 1}')
    result = errata("dlq", "replay", "--class", "decode", "--reason", "x", "--patch", patch, "--data", asked)
    assert (result.exit_code, "1 left: no JSON objects" in result.stderr) == (1, True)
    assert listed(asked)["open"] == 3
