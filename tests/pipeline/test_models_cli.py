"""``errata models``: where the models' windows stand and what they are judged by."""

import json
from pathlib import Path
from typing import Any

from tests.pipeline.chain_builder import apply_tables, batches, census_lines, dumps
from typer.testing import CliRunner

from errata.contracts import Contract, Reference
from errata_services.bootstrap import embedded_parts
from errata_services.cli.root import app
from errata_services.demo.stream import MODEL
from errata_services.embedded import Embedded


def models(data: Path, *words: str) -> str:
    result = CliRunner().invoke(app, ["models", "--data", str(data), *words], env={"NO_COLOR": "1", "COLUMNS": "160"})
    assert result.exception is None, result.exception
    return result.stdout


def event(model: str, **fields: Any) -> bytes:
    return dumps(
        {"event_id": f"{model}-1", "time": "2025-03-03T08:05:00Z", "model": {"name": model}, "prediction": "x"} | fields
    )


def fill(data: Path, lines: list[bytes], *tables: Contract | Reference) -> None:
    with embedded_parts(data) as parts:
        apply_tables(parts.transport, *tables)
        embedded = Embedded(parts, batch_size=500, now_us=1_800_000_000_000_000)
        embedded.feed(batches(lines, 500))
        embedded.close()


def test_without_a_model_it_says_what_to_do(tmp_path: Path) -> None:
    assert "errata demo" in models(tmp_path)
    assert json.loads(models(tmp_path, "--json")) == []


def test_each_model_says_how_it_is_judged(
    tmp_path: Path, census_contract: Contract, census_reference: Reference
) -> None:
    only_contract = Contract.model_validate({"model": "half"})
    only_reference = Reference.model_validate({"model": "other-half", "events": 10})
    lines = [*census_lines(510), event("half"), event("other-half"), event("nobody"), event("tried", purpose="drill")]
    fill(tmp_path, lines, census_contract, census_reference, only_contract, only_reference)
    found = {model["model"]: model for model in json.loads(models(tmp_path, "--json"))}
    assert sorted(found) == [MODEL, "half", "nobody", "other-half", "tried"]
    census = found[MODEL]
    assert (census["events"], census["windows"], census["open_window"], census["outcomes"]) == (510, 1, 10, 510)
    assert (census["late"], census["tenant"], census["purpose"]) == (0, "default", "live")
    assert census["contract"] == census_contract.content_hash
    assert census["reference"] is not None
    assert {name: model["judged_by"].split(":")[0] for name, model in found.items()} == {
        MODEL: "contract and reference",
        "half": "contract only",
        "other-half": "reference only",
        "nobody": "neither",
        "tried": "neither",
    }
    assert found["tried"]["purpose"] == "drill"
    table = models(tmp_path)
    assert "10 of 500" in table
    assert "contract and reference" in table


def test_looking_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path, [event("fraud")])
    assert models(tmp_path, "--json") == models(tmp_path, "--json")


def test_a_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    fill(tmp_path, [event("[red]x\x1b[2J")])
    text = models(tmp_path)
    assert "\x1b" not in text
    assert "[red]x" in text
