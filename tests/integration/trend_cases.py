"""Tagged cases made to be counted, and the count of them that is done in the plainest way."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from errata.contracts import TaggedCase, canonical

EXAMPLE = json.loads(
    (Path(__file__).parents[2] / "schemas/examples/good/tagged-case-vanished.json").read_text(encoding="utf-8")
)
START = datetime(2026, 2, 4, tzinfo=UTC)
HOUR, STEP = timedelta(hours=1), timedelta(minutes=10)
SEVERITIES = ("critical", "high", "medium", "low", "info")
Key = tuple[datetime, str, str, str, str, str]


def case(
    name: str,
    seq: int,
    at: datetime = START,
    *,
    counts: dict[tuple[str, str], int] | None = None,
    state: str | None = None,
    model: str = "fraud",
    tenant: str = "default",
    tags: Sequence[str] = ("a:b:c",),
    severity: str = "high",
    **more: Any,
) -> TaggedCase:
    """A case as of one ``seq``; ``counts`` by detector and subject, the first of them the one that moved it."""
    counts = counts or {("error_rate", "all"): 1}
    when = at.isoformat().replace("+00:00", "Z")
    (detector, subject), *_ = counts
    signals = [EXAMPLE["findings"][0] | {"detector": one, "subject": on, "count": n} for (one, on), n in counts.items()]
    changed = {
        "tenant": tenant,
        "model": {"name": model, "version": "1"},
        "detector": EXAMPLE["detector"] | {"id": detector},
        "subject": subject,
        "episode": EXAMPLE["episode"]
        | {"id": name, "seq": seq, "state": state or ("open" if seq == 1 else "update"), "last_seen": when},
        "findings": signals,
        "tags": [{"tag": tag, "rule_id": "r", "confidence": 0.5} for tag in tags],
        "severity": EXAMPLE["severity"] | {"level": severity},
    }
    return TaggedCase.model_validate_json(canonical(EXAMPLE | changed | more))


def story(cases: int, seed: int, *, moves: int = 6, hours: float = 5.0) -> list[TaggedCase]:
    """Cases of several models that grow, in an order in which a partition may hold them; some records come twice."""
    chance = random.Random(seed)
    told: list[TaggedCase] = []
    open_cases: list[tuple[str, int, dict[tuple[str, str], int], dict[str, Any]]] = []
    for number in range(cases):
        fixed: dict[str, Any] = {
            "model": f"m-{chance.randrange(4)}",
            "tags": chance.sample(("data:a:b", "model:c:d", "unknown:e:f"), chance.randrange(1, 3)),
        }
        detector = chance.choice(("error_rate", "latency_shift", "missing_values"))
        open_cases.append((f"{seed}-{number}", 0, {(detector, "all"): chance.randrange(1, 9)}, fixed))
    steps = cases * moves
    for step in range(steps):
        at = START + timedelta(hours=hours * step / steps, seconds=chance.randrange(60))
        number = chance.randrange(cases)
        name, seq, counts, fixed = open_cases[number]
        grown = {signal: n + chance.randrange(5) for signal, n in counts.items()}
        if chance.random() < 0.2:
            grown.setdefault((chance.choice(("error_rate", "bad_status")), f"f{chance.randrange(3)}"), 2)
        open_cases[number] = (name, seq + 1, grown, fixed)
        made = case(name, seq + 1, at, counts=grown, severity=chance.choice(SEVERITIES), **fixed)
        told.append(made)
        if chance.random() < 0.05:
            told.append(made)
    return told


def recounted(cases: Iterable[TaggedCase]) -> dict[Key, tuple[int, int]]:
    """Every window of these records in their order, window by window and case by case."""
    newest: dict[str, tuple[int, dict[tuple[str, str], int]]] = {}
    counts: dict[Key, list[int]] = defaultdict(lambda: [0, 0])
    for one in cases:
        seq, before = newest.get(one.episode.id, (-1, {}))
        if one.episode.seq <= seq:
            continue
        now = {(finding.detector, finding.subject): finding.count for finding in one.findings}
        opened = seq < 0 and one.episode.state == "open"
        by_detector: dict[str, int] = defaultdict(int)
        for signal, n in now.items():
            by_detector[signal[0]] += n - before.get(signal, 0)
        at = one.episode.last_seen
        for detector, n in by_detector.items():
            first = opened and detector == one.detector.id
            if not n and not first:
                continue
            for tag in [tag.tag for tag in one.tags]:
                start = START + (at - START) // STEP * STEP  # the last window that it lies in
                while at < start + HOUR:
                    key = (start, one.tenant, one.model.name, detector, tag, one.severity.level)
                    counts[key][0] += int(first)
                    counts[key][1] += n
                    start -= STEP
        newest[one.episode.id] = (one.episode.seq, now)
    return {key: (opened, n) for key, (opened, n) in counts.items()}
