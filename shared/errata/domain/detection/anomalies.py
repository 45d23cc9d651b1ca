"""Moves of an episode as the messages that leave the detector. Nothing in them is a raw feature value."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid5

from errata.contracts import Anomaly, canonical
from errata.contracts.strict import instant
from errata.domain.detection.episodes import Move
from errata.domain.detection.state import Slot

_MOVED = "subject", "level", "reason", "statistic", "value", "threshold", "direction"
CASES = UUID("6f1d1c1e-7a55-5b0e-9a8e-2f6f0d5e4c11")  # the namespace of case ids; never changes


def case_id(tenant: str, model: str, slice_: str, event_key: str) -> str:
    """UUIDv5 of who failed and the key of the opening event: the same after any replay, on any version.

    >>> case_id("default", "fraud", "", '["default","fraud","errata.prediction.v1","e-1"]')
    'f71f2020-ee6a-5344-a761-71aa166bd43b'
    """
    return str(uuid5(CASES, canonical([tenant, model, slice_, event_key]).decode()))


def config_hash(detectors: Sequence[tuple[str, str]], constants: Mapping[str, Any]) -> str:
    """What the detectors judge by, so that a finding says which rules made it."""
    return sha256(canonical([sorted(detectors), dict(sorted(constants.items()))])).hexdigest()[:16]


def anomaly_of(slot: Slot, move: Move, versions: Mapping[str, str], config: str) -> Anomaly:
    """The episode as of one ``seq``, with the finding that moved it on top."""
    spell = move.spell
    signals = spell["signals"]
    moved = signals[spell["mover"]]["finding"]
    findings = [_finding(signal) for signal in signals.values()]
    count = max(signal["closed_count"] + signal["open_count"] for signal in signals.values())
    profile = slot.profile
    window = spell["window"]
    evidence = dict(moved["evidence"]) | {"admitted_by": spell["admitted_by"]}
    evidence |= {name: spell[name] for name in ("warm_up", "given_up") if name in spell}
    if spell["events"]:
        evidence["events"] = max(spell["events"], count)
    # Checked as a whole: to make each of its two dozen parts by itself costs twice as much.
    return Anomaly.model_validate(
        {
            "tenant": slot.tenant,
            "model": {"name": slot.model},
            "purpose": slot.purpose,
            "detector": {"id": moved["detector"], "version": versions[moved["detector"]], "config_hash": config},
            **{name: moved[name] for name in _MOVED},
            "reference_hash": profile.reference_hash,
            "contract_hash": profile.contract_hash,
            "window": {"from": instant(window[0]), "to": instant(window[1]), "n": window[2]} if window else None,
            "onset": instant(moved["onset_us"]),
            "time": instant(move.record_time_us),
            "count": count,
            "exemplars": [_row(row) for row in spell["exemplars"]],
            "controls": [_row(row) for row in spell["controls"]],
            "episode": {
                "id": spell["id"],
                "seq": spell["seq"],
                "state": move.state,
                "onset": instant(spell["onset_us"]),
                "last_seen": instant(spell["last_seen_us"]),
                "count": count,
            },
            "findings": findings,
            "evidence": evidence,
        }
    )


def _finding(signal: Mapping[str, Any]) -> dict[str, Any]:
    finding = dict(signal["finding"])
    onset = instant(finding.pop("onset_us"))
    count = signal["closed_count"] + signal["open_count"]
    return finding | {"onset": onset, "count": count, "windows": max(1, signal["windows"])}


def _row(row: Sequence[Any]) -> dict[str, Any]:
    return {"topic": row[1], "partition": row[2], "offset": row[3], "prediction_id": row[4]}
