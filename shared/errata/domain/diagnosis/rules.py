"""Rules from findings and context to tags, and the small language their conditions are written in.

A condition is a mapping with one word:

- ``all``, ``any``, ``none``: a list of conditions.
- ``finding``: some finding passes the filter. A filter names ``detector``, ``subject``, ``not_subject``, ``reason``,
  ``direction``, ``level``, ``grade`` (a text, or a list of which one must be it); ``value``, ``threshold``, ``count``,
  ``windows``, ``excess`` (value / threshold) by tests; and ``evidence``, figure by figure, by a text or a test.
- ``findings_at_least``: a filter with ``subjects`` or ``findings``: that many distinct subjects, or findings, pass it.
- ``same_subject``: a list of filters; for some subject each is passed by a finding of it.
- ``change``: a change of ``kind`` stands at most ``within_min`` minutes before the onset.

A test is a mapping of bounds ``min``, ``max`` (inclusive), ``above``, ``below`` (exclusive); with ``of: figure`` they
bound the ratio to another figure of the same evidence. ``complement_of: figure`` with ``within``: one minus that
figure, give or take. ``nonempty: true|false`` speaks of a list; ``any_item`` of the objects in a list, figure by
figure. A figure that is not there passes no test. There is no way to call code.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, get_args

from errata.contracts import Finding
from errata.contracts.events import ChangeKind
from errata.domain.diagnosis.documents import (
    entries_of,
    kind_of,
    number_of,
    only_keys,
    read_document,
    text_of,
    texts_of,
    version_of,
)
from errata.domain.diagnosis.taxonomy import Taxonomy
from errata.errors import Misconfigured

Witnesses = tuple[Finding, ...]

_TEXTS: Final = ("detector", "subject", "not_subject", "reason", "direction", "level", "grade")
_NUMBERS: Final = ("value", "threshold", "count", "windows", "excess")
_FILTER: Final = (*_TEXTS, *_NUMBERS, "evidence")
_BOUNDS: Final = ("min", "max", "above", "below")
_TEST: Final = (*_BOUNDS, "of", "complement_of", "within", "nonempty", "any_item")


@dataclass(frozen=True, slots=True)
class Facts:
    """What conditions speak of: the findings of an episode, and the changes before it as (kind, minutes before)."""

    findings: tuple[Finding, ...]
    changes: tuple[tuple[str, float], ...] = ()


Condition = Callable[[Facts], Witnesses | None]
"""The findings that make it hold (none, if it holds for another reason), or None when it does not hold."""

Filter = Callable[[Finding], bool]
Test = Callable[[Any, Mapping[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    id: str
    when: Condition
    tag: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that holds, with the findings that made it."""

    rule: Rule
    witnesses: Witnesses


@dataclass(frozen=True, slots=True)
class Ruleset:
    version: str
    rules: tuple[Rule, ...]

    def hits(self, facts: Facts) -> list[Hit]:
        """The rules that hold, in the order of the file."""
        found = ((rule, rule.when(facts)) for rule in self.rules)
        return [Hit(rule, witnesses) for rule, witnesses in found if witnesses is not None]


def load_rules(text: str, taxonomy: Taxonomy) -> Ruleset:
    """Rules from YAML. Raises ``Misconfigured`` that names the rule and the key; a tag must be in the taxonomy."""
    document = only_keys(read_document(text, "rules"), ("version", "rules"), "rules")
    rules: list[Rule] = []
    for at, entry in enumerate(entries_of(document, "rules", "rules")):
        rule = _rule(entry, at, taxonomy)
        if any(other.id == rule.id for other in rules):
            raise Misconfigured(f"rules: rule {rule.id}: the id stands twice; rename one")
        rules.append(rule)
    return Ruleset(version_of(document, "rules"), tuple(rules))


def default_rules(taxonomy: Taxonomy) -> Ruleset:
    """The rules that come with the package."""
    return load_rules(resources.files(__package__).joinpath("rules.yaml").read_text("utf-8"), taxonomy)


def _rule(entry: object, at: int, taxonomy: Taxonomy) -> Rule:
    fields = only_keys(entry, ("id", "when", "tag", "confidence"), f"rules: rules[{at}]")
    name = text_of(fields, "id", f"rules: rules[{at}]")
    where = f"rules: rule {name}"
    tag = text_of(fields, "tag", where)
    if tag not in taxonomy.tags:
        raise Misconfigured(
            f"{where}: tag: not in the taxonomy {taxonomy.version}; add it there or use one of its tags"
        )
    confidence = number_of(fields.get("confidence"), f"{where}: confidence", 0, 1)
    return Rule(name, _condition(fields.get("when"), f"{where}: when"), tag, round(confidence, 6))


def _condition(spec: object, where: str) -> Condition:
    makers: dict[str, Callable[[Any, str], Condition]] = {
        "all": _all,
        "any": _any,
        "none": _none,
        "finding": _finding,
        "findings_at_least": _findings_at_least,
        "same_subject": _same_subject,
        "change": _change,
    }
    fields = only_keys(spec, tuple(makers), where)
    if len(fields) != 1:
        raise Misconfigured(f"{where}: has {len(fields)} words; write one of {', '.join(sorted(makers))}")
    ((word, value),) = fields.items()
    return makers[word](value, f"{where}.{word}")


def _conditions(spec: object, where: str) -> list[Condition]:
    return [_condition(item, f"{where}[{at}]") for at, item in enumerate(_items(spec, where))]


def _items(spec: object, where: str) -> list[Any]:
    if not isinstance(spec, list) or not spec:
        raise Misconfigured(
            f"{where}: is {'empty' if spec == [] else kind_of(spec)}; write a list with an entry or more"
        )
    return spec


def _all(spec: object, where: str) -> Condition:
    conditions = _conditions(spec, where)

    def holds(facts: Facts) -> Witnesses | None:
        witnesses: Witnesses = ()
        for condition in conditions:
            found = condition(facts)
            if found is None:
                return None
            witnesses += found
        return witnesses

    return holds


def _any(spec: object, where: str) -> Condition:
    conditions = _conditions(spec, where)

    def holds(facts: Facts) -> Witnesses | None:
        found = [witnesses for condition in conditions if (witnesses := condition(facts)) is not None]
        return sum(found, ()) if found else None

    return holds


def _none(spec: object, where: str) -> Condition:
    conditions = _conditions(spec, where)
    return lambda facts: () if all(condition(facts) is None for condition in conditions) else None


def _finding(spec: object, where: str) -> Condition:
    passes = _filter(only_keys(spec, _FILTER, where), where)
    return lambda facts: tuple(finding for finding in facts.findings if passes(finding)) or None


def _findings_at_least(spec: object, where: str) -> Condition:
    fields = dict(only_keys(spec, (*_FILTER, "subjects", "findings"), where))
    subjects = number_of(fields.pop("subjects", 0), f"{where}.subjects", 0)
    findings = number_of(fields.pop("findings", 1), f"{where}.findings", 1)
    passes = _filter(fields, where)

    def holds(facts: Facts) -> Witnesses | None:
        found = tuple(finding for finding in facts.findings if passes(finding))
        enough = len(found) >= findings and len({finding.subject for finding in found}) >= subjects
        return found if enough else None

    return holds


def _same_subject(spec: object, where: str) -> Condition:
    filters = [
        _filter(only_keys(item, _FILTER, f"{where}[{at}]"), f"{where}[{at}]")
        for at, item in enumerate(_items(spec, where))
    ]

    def holds(facts: Facts) -> Witnesses | None:
        witnesses: Witnesses = ()
        for subject in sorted({finding.subject for finding in facts.findings}):
            own = [finding for finding in facts.findings if finding.subject == subject]
            if all(any(passes(finding) for finding in own) for passes in filters):
                witnesses += tuple(finding for finding in own if any(passes(finding) for passes in filters))
        return witnesses or None

    return holds


def _change(spec: object, where: str) -> Condition:
    fields = only_keys(spec, ("kind", "within_min"), where)
    kinds = _words(fields.get("kind"), f"{where}.kind")
    allowed = get_args(ChangeKind)
    if not kinds <= set(allowed):
        raise Misconfigured(f"{where}.kind: write one or more of {', '.join(allowed)}")
    within_min = number_of(fields.get("within_min"), f"{where}.within_min", 0)

    def holds(facts: Facts) -> Witnesses | None:
        return () if any(kind in kinds and 0 <= before <= within_min for kind, before in facts.changes) else None

    return holds


def _filter(fields: Mapping[str, Any], where: str) -> Filter:
    words = [(name, _words(fields[name], f"{where}.{name}")) for name in _TEXTS if name in fields]
    tests = [(name, _test(fields[name], f"{where}.{name}")) for name in _NUMBERS if name in fields]
    figures = _figures(fields["evidence"], f"{where}.evidence") if "evidence" in fields else []

    def passes(finding: Finding) -> bool:
        return (
            all(_is_word(finding, name, allowed) for name, allowed in words)
            and all(test(_figure(finding, name), finding.evidence) for name, test in tests)
            and _have(finding.evidence, figures)
        )

    return passes


def _is_word(finding: Finding, name: str, allowed: frozenset[str]) -> bool:
    if name == "not_subject":
        return finding.subject not in allowed
    return getattr(finding, name) in allowed


def _figure(finding: Finding, name: str) -> float | None:
    if name != "excess":
        return float(getattr(finding, name))
    return finding.value / finding.threshold if finding.threshold > 0 else None


def _have(evidence: Mapping[str, Any], figures: Sequence[tuple[str, Test]]) -> bool:
    return all(test(evidence.get(name), evidence) for name, test in figures)


def _figures(spec: object, where: str) -> list[tuple[str, Test]]:
    if not isinstance(spec, dict) or not spec:
        raise Misconfigured(f"{where}: is {kind_of(spec)}; write a mapping from a figure to a text or test")
    return [(str(name), _test(value, f"{where}.{name}")) for name, value in spec.items()]


def _words(spec: object, where: str) -> frozenset[str]:
    if isinstance(spec, str):
        return frozenset((spec,))
    words = texts_of(spec, where)
    if not words:
        raise Misconfigured(f"{where}: is empty; write a text or a list of texts")
    return frozenset(words)


def _test(spec: object, where: str) -> Test:
    if isinstance(spec, str | list):
        words = _words(spec, where)
        return lambda value, _: isinstance(value, str) and value in words
    fields = only_keys(spec, _TEST, where)
    tests = [test for make in (_bounds, _complement, _nonempty, _any_item) if (test := make(fields, where)) is not None]
    if not tests:
        raise Misconfigured(f"{where}: has no test; write one of {', '.join(_TEST)}")
    return lambda value, evidence: all(test(value, evidence) for test in tests)


def _bounds(fields: Mapping[str, Any], where: str) -> Test | None:
    bounds = {name: number_of(fields[name], f"{where}.{name}") for name in _BOUNDS if name in fields}
    of = text_of(dict(fields), "of", where) if "of" in fields else None
    if of is not None and not bounds:
        raise Misconfigured(f"{where}.of: says no bound; add min, max, above or below")
    if not bounds:
        return None

    def holds(value: Any, evidence: Mapping[str, Any]) -> bool:
        figure = _number(value)
        if figure is not None and of is not None:
            other = _number(evidence.get(of))
            figure = figure / other if other is not None and other > 0 else None
        return (
            figure is not None
            and bounds.get("min", -math.inf) <= figure <= bounds.get("max", math.inf)
            and bounds.get("above", -math.inf) < figure < bounds.get("below", math.inf)
        )

    return holds


def _complement(fields: Mapping[str, Any], where: str) -> Test | None:
    if "complement_of" not in fields:
        if "within" in fields:
            raise Misconfigured(f"{where}.within: stands alone; add complement_of")
        return None
    other_name = text_of(dict(fields), "complement_of", where)
    within = number_of(fields.get("within"), f"{where}.within", 0, 1)

    def holds(value: Any, evidence: Mapping[str, Any]) -> bool:
        figure, other = _number(value), _number(evidence.get(other_name))
        return figure is not None and other is not None and abs(figure - (1 - other)) <= within

    return holds


def _nonempty(fields: Mapping[str, Any], where: str) -> Test | None:
    if "nonempty" not in fields:
        return None
    wanted = fields["nonempty"]
    if not isinstance(wanted, bool):
        raise Misconfigured(f"{where}.nonempty: is {kind_of(wanted)}; write true or false")
    return lambda value, _: isinstance(value, list) and bool(value) == wanted


def _any_item(fields: Mapping[str, Any], where: str) -> Test | None:
    if "any_item" not in fields:
        return None
    figures = _figures(fields["any_item"], f"{where}.any_item")
    return lambda value, _: (
        isinstance(value, list) and any(isinstance(item, dict) and _have(item, figures) for item in value)
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
