"""Tagged cases for the tests of the catalogue: one failure of a census model, varied by keyword."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from errata.adapters.sql import SqlCatalogue
from errata.contracts import TaggedCase, canonical
from errata.contracts.strict import instant

START_US = 1_767_571_200_000_000  # 2026-01-05T00:00:00Z


def case_id(name: str) -> str:
    return str(uuid5(NAMESPACE_OID, name))


def drift(subject: str = "RELP", **evidence: Any) -> dict[str, Any]:
    """A finding of the distribution shift of a feature that lost two categories."""
    return {
        "detector": "distribution_shift",
        "subject": subject,
        "level": "window",
        "reason": "distribution",
        "statistic": "psi",
        "value": 0.55,
        "threshold": 0.25,
        "direction": "both",
        "onset": instant(START_US),
        "count": 500,
        "evidence": {"kind": "category", "psi": 0.55, "gone": ["16", "17"], "categories": 18, **evidence},
    }


def tagged(name: str = "a", seq: int = 0, state: str = "open", minutes: int = 0, **changes: Any) -> TaggedCase:
    """Seq ``seq`` of the case called ``name``, recorded ``minutes`` after the start of 2026-01-05."""
    onset = instant(START_US)
    time = onset + timedelta(minutes=minutes)
    finding = drift()
    top = {key: finding[key] for key in ("level", "reason", "statistic", "value", "threshold", "direction")}
    values: dict[str, Any] = {
        "tenant": "default",
        "model": {"name": "census", "version": "7"},
        "detector": {"id": "distribution_shift", "version": "1", "config_hash": "c0"},
        "subject": "RELP",
        **top,
        "reference_hash": "r0",
        "contract_hash": "k0",
        "window": {"from": onset, "to": time, "n": 500},
        "onset": onset,
        "time": time,
        "count": 500 + seq,
        "exemplars": [{"topic": "errata.predictions.v1", "partition": 3, "offset": 11, "prediction_id": "p-11"}],
        "episode": {
            "id": case_id(name),
            "seq": seq,
            "state": state,
            "onset": onset,
            "last_seen": time,
            "count": 500 + seq,
        },
        "findings": [finding],
        "evidence": {"admitted_by": "window"},
        "context": [
            {
                "name": "deploy",
                "value": {"change_id": "d1", "from": "6", "to": "7", "minutes_before_onset": 20},
                "source": "errata.changes.v1",
                "observed_at": onset - timedelta(minutes=20),
                "freshness_s": 1200.0,
            }
        ],
        "rows": [
            {
                "role": "exemplar",
                "prediction_id": "p-11",
                "values": {"RELP": None, "AGEP": "[30,45)"},
                "observed": "employed",
                "expected": "unemployed",
                "raw_ref": "errata.predictions.v1/3/11",
            },
            {
                "role": "control",
                "prediction_id": "p-2",
                "values": {},
                "raw_ref": "errata.predictions.v1/3/2",
                "missing": "out_of_retention",
            },
        ],
        "tags": [{"tag": "data:population:category_vanished", "rule_id": "category-vanished", "confidence": 0.9}],
        "root_class": "data",
        "rule_out": [
            {
                "layer": "infrastructure",
                "check": "latency and statuses against the reference",
                "verdict": "ruled_out",
                "evidence": "no such finding in the episode",
            },
            {
                "layer": "data",
                "check": "inputs against the reference",
                "verdict": "implicated",
                "evidence": "distribution_shift of RELP",
            },
        ],
        "severity": {
            "value": 0.49,
            "level": "medium",
            "terms": {"harm": 0.6, "reach": 0.35, "effect": 0.7, "confidence": 0.9},
            "formula": "confidence × (0.5·harm + 0.3·reach + 0.2·effect)",
        },
        "fingerprint": {"value": ["data:population:category_vanished", "distribution_shift", "RELP", "both"]},
        "taxonomy_version": "1",
    }
    return TaggedCase.model_validate({**values, **changes})


def episode(name: str = "a", start_minute: int = 0, **changes: Any) -> list[TaggedCase]:
    """A whole episode: opened, updated, closed, reopened, closed again."""
    states = ("open", "update", "close", "reopen", "close")
    return [tagged(name, seq, state, start_minute + 10 * seq, **changes) for seq, state in enumerate(states)]


@cache
def blank_catalogue() -> bytes:
    """The file of an empty catalogue, migrated once for all tests."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "blank.sqlite"
        catalogue = SqlCatalogue(f"sqlite:///{file}")
        catalogue.migrate()
        catalogue.close()
        return file.read_bytes()


def dump(database: Path) -> bytes:
    """Every row of the catalogue as bytes, without the owners of positions (they name a process)."""
    tables: dict[str, list[list[Any]]] = {}
    with closing(sqlite3.connect(database)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        for (name,) in names:
            found = connection.execute(f'SELECT * FROM "{name}"')
            kept = [index for index, column in enumerate(found.description) if column[0] != "owner"]
            rows = [[_plain(row[index]) for index in kept] for row in found]
            tables[name] = sorted(rows, key=canonical)
    return canonical(tables)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
