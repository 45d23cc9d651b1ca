"""A case in words. Pure: the case comes in, plain lines go out, and no text of a publisher can steer a terminal."""

import math
import shlex
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from errata.contracts import ContextEntry, EvidenceRow, FailureCase, Finding, Tag, canonical
from errata.contracts.base import Fields
from errata.contracts.strict import instant
from errata.domain.catalogue.lifecycle import Revision, allowed_moves

MAX_SHOWN = 160  # characters of one foreign text
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # control, format (bidi, zero width), surrogates …

SHOWN_ROWS = 3  # of each role on the page of a case


@dataclass(frozen=True, slots=True)
class FindingLine:
    """A row of the table of findings."""

    detector: str
    subject: str
    measured: str
    threshold: str
    n: str


@dataclass(frozen=True, slots=True)
class Page:
    """A case as a page: one sentence, then what one asks about a failure in the order in which one asks."""

    title: str
    headline: str
    when: tuple[str, ...]
    why: tuple[str, ...]
    findings: tuple[FindingLine, ...]
    context: tuple[str, ...]
    rows: tuple[str, ...]
    history: tuple[str, ...]
    next: tuple[str, ...]


def clean(text: str, most: int = MAX_SHOWN) -> str:
    """``text`` on one line, what a terminal would act on made visible, cut to ``most`` characters.

    >>> clean("a\\x1b[31mb\\nc\\u202e")
    'a\\\\x1b[31mb\\\\x0ac\\\\u202e'
    >>> clean("abcdef", 4)
    'abc…'
    """
    shown = "".join(_seen(character) for character in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _seen(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def time_text(at: datetime) -> str:
    """A time people can read.

    >>> time_text(datetime(2026, 1, 5, 12, 30, 1, tzinfo=UTC))
    '2026-01-05 12:30:01 UTC'
    """
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration_text(length: timedelta) -> str:
    """A length of time in its largest fitting unit.

    >>> duration_text(timedelta(minutes=40)), duration_text(timedelta(days=3)), duration_text(timedelta(seconds=1))
    ('40 minutes', '3 days', '1 second')
    """
    seconds = max(0, round(length.total_seconds()))
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size or seconds == size:
            return _plural(round(seconds / size), unit)
    return _plural(seconds, "second")


def number_text(value: float) -> str:
    """A number with four significant digits, thousands apart.

    >>> number_text(0.5512345), number_text(12000), number_text(3.0)
    ('0.5512', '12,000', '3')
    """
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def headline(case: FailureCase) -> str:
    """What happened, in one plain sentence; a title that a person gave comes first."""
    if case.title:
        return clean(case.title)
    sentence = _what_happened(case)
    return sentence if case.purpose == "live" else f"({case.purpose}) {sentence}"


def _what_happened(case: FailureCase) -> str:
    main = main_finding(case)
    others = len({(finding.detector, finding.subject) for finding in case.findings}) - 1
    more = f", with {_plural(others, 'other signal')}" if others > 0 else ""
    return f"{_sentence(main)}{more}." if main is not None else f"{clean(case.subject)}: {clean(case.reason)}."


def main_finding(case: FailureCase) -> Finding | None:
    """The finding that the fingerprint names, else the one with the earliest onset."""
    named = tuple(case.fingerprint.value[1:3])
    for finding in case.findings:
        if (finding.detector, finding.subject) == named:
            return finding
    return min(case.findings, key=lambda finding: finding.onset, default=None)


def page(case: FailureCase, history: Sequence[Revision] = ()) -> Page:
    """All of a case, in plain lines."""
    return Page(
        title=f"{clean(case.short_id)}  {clean(case.model.name)}{_version(case)}{_slice(case)}",
        headline=headline(case),
        when=_when(case),
        why=_why(case),
        findings=tuple(_finding_line(finding) for finding in _by_weight(case)),
        context=tuple(_context_line(entry, case.onset) for entry in case.context),
        rows=_row_lines(case.rows),
        history=tuple(_history_line(revision) for revision in history if revision.previous),
        next=_next(case),
    )


# what happened


def _sentence(finding: Finding) -> str:
    words = _SENTENCES.get(finding.detector)
    said = words(finding) if words is not None else None
    return said or _plain_sentence(finding)


def _plain_sentence(finding: Finding) -> str:
    subject, statistic = clean(finding.subject), clean(finding.statistic)
    return f"{subject}: {statistic} reached {number_text(finding.value)}, limit {number_text(finding.threshold)}"


def _violation(finding: Finding) -> str:
    subject = clean(finding.subject)
    what = {
        "type": f"{subject} has the wrong type",
        "range": f"{subject} is out of its range",
        "extra": f"{subject} is not in the contract",
        "unseen_category": f"{subject} has values that the contract does not name",
        "missing": f"{subject} is missing",
    }.get(finding.reason, f"{subject} breaks the contract ({clean(finding.reason)})")
    return f"{what} in {_plural(finding.count, 'event')}"


def _missing(finding: Finding) -> str:
    # `share` of the evidence is the one at which the alarm went off; the count is exact and goes on.
    said = f"{clean(finding.subject)} is missing in {_plural(finding.count, 'event')}"
    usual = _figure(finding, "reference_share")
    if usual is None:
        return said
    return f"{said}, usually {f'in {_percent(usual)} of them' if usual else 'never'}"


def _bad_status(finding: Finding) -> str:
    return f"{_plural(finding.count, 'prediction')} ended with status {clean(finding.subject)}"


def _invalid_output(finding: Finding) -> str:
    return f"The {clean(finding.subject)} is invalid ({clean(finding.reason)}) in {_plural(finding.count, 'event')}"


def _policy(finding: Finding) -> str:
    return f"The output breaks policy {clean(finding.subject)} in {_plural(finding.count, 'event')}"


def _latency(finding: Finding) -> str | None:
    ratio = _figure(finding, "median_ratio")
    if ratio is not None and ratio >= 1.05:
        return f"Latency is {number_text(round(ratio, 1))} times what it was"
    if finding.detector == "latency_limit":
        return f"Latency is over its limit of {number_text(finding.threshold)} ms in {_plural(finding.count, 'event')}"
    return "Latency is higher than it was"


def _shift(finding: Finding) -> str:
    subject = clean("The prediction" if finding.subject == "prediction" else finding.subject)
    gone = finding.evidence.get("gone")
    if isinstance(gone, list) and gone and finding.evidence.get("kind", "category") == "category":
        return f"{subject} lost {_lost(gone, finding.evidence)}"
    ratio = _figure(finding, "median_ratio")
    if ratio is not None and (ratio >= 1.5 or 0 < ratio <= 1 / 1.5):
        return f"{subject} is about {number_text(round(ratio, 1 if ratio >= 1 else 3))} times what it was"
    new_share = _figure(finding, "new_share")
    if new_share is not None and new_share >= 0.05:
        return f"{subject} has values never seen before in {_percent(new_share)} of the events"
    limits = f"PSI {number_text(finding.value)}, limit {number_text(finding.threshold)}"
    return f"{subject} is distributed differently than before ({limits})"


def _lost(gone: list[Any], evidence: Fields) -> str:
    known = evidence.get("categories")
    names = ", ".join(clean(str(name), 20) for name in gone[:3]) + (", …" if len(gone) > 3 else "")
    if isinstance(known, int) and not isinstance(known, bool) and known >= len(gone):
        return f"{len(gone)} of its {_plural(known, 'value')} ({names})"
    return f"{len(gone)} of its values ({names})"


def _confidence(finding: Finding) -> str:
    word = {"up": "higher", "down": "lower"}.get(str(finding.evidence.get("direction", finding.direction)))
    return f"The model is {word} in confidence than before" if word else "The model's confidence shifted"


def _error_rate(finding: Finding) -> str | None:
    rate, usual = _figure(finding, "error_rate"), _figure(finding, "reference_error_rate")
    if rate is None or usual is None:
        return "The error rate rose"
    return f"The error rate rose from {_percent(usual)} to {_percent(rate)}"


_SENTENCES: dict[str, Callable[[Finding], str | None]] = {
    "contract_violation": _violation,
    "missing_values": _missing,
    "bad_status": _bad_status,
    "invalid_output": _invalid_output,
    "policy_violation": _policy,
    "latency_limit": _latency,
    "latency_shift": _latency,
    "distribution_shift": _shift,
    "confidence_shift": _confidence,
    "error_rate": _error_rate,
}


# when and why


def _when(case: FailureCase) -> tuple[str, ...]:
    lasted = duration_text(case.last_seen - case.onset)
    state = {
        "open": "open",
        "update": "open",
        "close": "closed" if case.closed_at is None else f"closed {time_text(case.closed_at)}",
        "reopen": "open again",
    }[case.episode.state]
    return (
        f"onset      {time_text(case.onset)}",
        f"last seen  {time_text(case.last_seen)} ({lasted} later, {_plural(case.count, 'event')} concerned)",
        f"episode    {state}",
        f"status     {case.status}{_resolution(case)}",
    )


def _resolution(case: FailureCase) -> str:
    resolution = case.resolution
    if not isinstance(resolution, dict):
        return ""
    said = [clean(str(resolution[name])) for name in ("reason", "note") if name in resolution]
    return f" ({', '.join(said)})" if said else ""


def _why(case: FailureCase) -> tuple[str, ...]:
    lines = [f"root class {case.root_class}{'' if case.tags else ', no rule matched'}"]
    lines.append(f"severity   {case.severity.level} ({number_text(case.severity.value)}: {_terms(case)})")
    lines += [f"tag        {_tag(tag)}" for tag in case.tags]
    for check in case.rule_out:
        verdict = check.verdict.replace("_", " ")
        lines.append(f"{check.layer}: {verdict}; {clean(check.check)}: {clean(check.evidence)}")
    return tuple(lines)


def _tag(tag: Tag) -> str:
    return f"{clean(tag.tag)} (rule {clean(tag.rule_id)}, confidence {number_text(tag.confidence)})"


def _terms(case: FailureCase) -> str:
    return ", ".join(f"{clean(name)} {number_text(value)}" for name, value in sorted(case.severity.terms.items()))


def _by_weight(case: FailureCase) -> list[Finding]:
    main = main_finding(case)
    return sorted(case.findings, key=lambda finding: (finding is not main, finding.onset, finding.subject))


def _finding_line(finding: Finding) -> FindingLine:
    return FindingLine(
        clean(finding.detector),
        clean(finding.subject),
        f"{clean(finding.statistic)} {number_text(finding.value)}",
        number_text(finding.threshold),
        f"{finding.count:,}",
    )


# context, rows, history


def _context_line(entry: ContextEntry, onset: datetime) -> str:
    name = clean(entry.name)
    if entry.missing is not None:
        return f"{name}: not known ({clean(entry.missing)})"
    if entry.value == []:
        return f"{name}: looked for, none in the time before the onset"
    return f"{name}: {_value(entry.value)}{_before(entry, onset)}"


def _before(entry: ContextEntry, onset: datetime) -> str:
    if entry.observed_at is None:
        return ""
    side = "before" if entry.observed_at <= onset else "after"
    return f", {duration_text(abs(onset - entry.observed_at))} {side} the onset"


def _value(value: object) -> str:
    """A change as ``6 → 7 (by ann, change d1)``; anything else as canonical JSON."""
    if not isinstance(value, dict) or "change_id" not in value:
        return clean(canonical(value).decode())
    moved = " → ".join(clean(str(value[name])) for name in ("from", "to") if value.get(name) is not None)
    who = f"by {clean(str(value['actor']))}, " if value.get("actor") is not None else ""
    return f"{moved} ({who}change {clean(str(value['change_id']))})".strip()


def _row_lines(rows: Sequence[EvidenceRow]) -> tuple[str, ...]:
    """A few rows of each role: enough to see what failed beside what did not."""
    shown = [row for role in ("exemplar", "control") for row in [r for r in rows if r.role == role][:SHOWN_ROWS]]
    more = (f"… and {len(rows) - len(shown)} more, with --json",) if len(shown) < len(rows) else ()
    return (*(_row_line(row) for row in shown), *more)


def _row_line(row: EvidenceRow) -> str:
    start = f"{row.role} {clean(row.prediction_id, 40)}"
    if row.missing is not None:
        return f"{start}: not kept ({clean(row.missing)}), {clean(row.raw_ref)}"
    judged = [f"{name} {clean(_scalar(value))}" for name, value in _judged(row) if value is not None]
    values = ", ".join(f"{clean(name, 40)}={_short(clean(_scalar(value), 40))}" for name, value in _flat(row.values))
    return f"{start}: {'; '.join([*judged, values] if values else judged)}"


def _short(text: str) -> str:
    """A pseudonym by its first digits, as many as tell two of them apart."""
    return f"{text[:13]}…" if text.startswith("hmac:") else text


def _judged(row: EvidenceRow) -> tuple[tuple[str, object], ...]:
    return (("said", row.observed), ("was", row.expected))


def _flat(values: Fields) -> list[tuple[str, object]]:
    flat: list[tuple[str, object]] = []
    for name, value in sorted(values.items()):
        flat += sorted(value.items()) if isinstance(value, dict) else [(name, value)]
    return flat


def _scalar(value: object) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else canonical(value).decode()


def _history_line(revision: Revision) -> str:
    at = time_text(instant(revision.valid_from_us))
    before, after = revision.previous.get("status"), revision.patch.get("status")
    return f"{at}  {clean(revision.actor)}: {before} → {after} ({clean(revision.reason)})"


# what next

_ADVICE = {
    "data": "Ask who provides {subject} what changed at the onset, and compare exemplars with controls.",
    "model": "Compare the model's output with the labels of the exemplars, and the version with the one before it.",
    "deployment": "Look at the change before the onset; going back to the version before it is the first thing to try.",
    "infrastructure": "Look at the endpoint's load, time-outs and dependencies around the onset.",
    "integration": "Look at what calls the model and at what it hands on, around the onset.",
    "unknown": "No rule explains this one: start from the findings with the earliest onset and the changes before it.",
}


def _next(case: FailureCase) -> tuple[str, ...]:
    main = main_finding(case)
    subject = clean(main.subject if main is not None else case.subject)
    moves = allowed_moves(case.status)
    if not moves:
        return (f"Nothing: the case is {case.status}.",)
    id_ = shlex.quote(clean(case.short_id))
    options = {"ack": "", "resolve": " --note TEXT", "reject": " --reason false_positive"}
    return (
        _ADVICE[case.root_class].format(subject=subject),
        *(f"errata cases {move} {id_}{options[move]}" for move in moves),
    )


def _version(case: FailureCase) -> str:
    return f" version {clean(case.model.version)}" if case.model.version else ""


def _slice(case: FailureCase) -> str:
    return f", slice {clean(case.slice)}" if case.slice else ""


def _figure(finding: Finding, name: str) -> float | None:
    value = finding.evidence.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def _plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
