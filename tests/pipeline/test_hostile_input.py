"""A thousand malformed and hostile lines among good ones: each a dead letter, none lost, and the good are judged."""

from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest
from tests.contracts.corpus import LINES, OUTCOMES, Line
from tests.contracts.corpus import outcome as good_outcome
from tests.pipeline.chain_builder import batches, cases_of, census_lines, chain, chain_parts, dumps, values_of

from errata.contracts import Contract, Reference
from errata.contracts.topics import CHANGES
from errata.domain.detection import state as at
from errata.runtime.dead_letters import read_payload
from errata_services.bootstrap import Parts
from errata_services.demo.stream import MODEL, Planted
from errata_services.embedded import Embedded, Summary

BAD = 1_000


def change(**fields: object) -> bytes:
    event = {"change_id": "c", "kind": "deploy", "subject": MODEL, "time": "2025-03-03T08:00:00Z"} | fields
    return dumps({name: value for name, value in event.items() if value is not ...}).strip()


BAD_CHANGES = [
    Line("no kind", change(kind=...), "schema", "/kind"),
    Line("bad kind", change(kind="party"), "schema", "/kind"),
    Line("no subject", change(subject=...), "schema", "/subject"),
    Line("number as subject", change(subject=5), "schema", "/subject"),
    Line("naive time", change(time="2025-03-03T08:00:00"), "schema", "/time"),
    Line("empty id", change(change_id=""), "schema", "/change_id"),
    Line("empty subject", change(subject=""), "schema", "/subject"),
    Line("truncated", change()[:-5], "decode", ""),
]


def malformed() -> Iterator[Line]:
    """Lines of each kind in turn. What cannot be one line of a file, or is blank, is left out."""
    kept = [
        line
        for line in [*LINES, *(line for line in OUTCOMES if line.name != "no id")]  # without its id it is none
        if line.refusal not in ("ok", "clock") and line.raw.strip() and b"\n" not in line.raw.strip()
    ]
    ahead = [
        Line("year 2090", dumps({"event_id": "x", "time": "2090-01-01T00:00:00Z", "model": {"name": MODEL},
                                 "prediction": "employed"}).strip(), "clock", "/time")
    ]  # fmt: skip
    return cycle([*kept, *ahead, *BAD_CHANGES])


@pytest.fixture(scope="module")
def bad() -> list[Line]:
    # Blanks around a line are no part of it: one that is too long by its blanks only is taken.
    fits = (line for line in malformed() if line.refusal != "oversize" or len(line.raw.strip()) == len(line.raw))
    return list(islice(fits, BAD))


@pytest.fixture(scope="module")
def story(
    bad: list[Line], census_contract: Contract, census_reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Parts, Embedded, Summary, int, int]]:
    """The bad lines spread over a stream with a failure; the chain, its summary, and the good lines by kind."""
    good = [*census_lines(1_500, Planted("schl_absent", 500, 600)), dumps(good_outcome()), dumps(good_outcome())]
    lines: list[bytes] = []
    waiting = iter(bad)
    for line in good:
        lines += [line, *(one.raw + b"\n" for one in islice(waiting, 1))]
    lines += [one.raw + b"\n" for one in waiting]
    with chain_parts(tmp_path_factory.mktemp("story"), census_contract, census_reference) as parts:
        embedded = chain(parts)
        summary = embedded.feed(batches(lines, 300))
        yield parts, embedded, summary, len(good), sum(line.startswith(b'{"change_id"') for line in good)


Story = tuple[Parts, Embedded, Summary, int, int]


def test_each_is_a_dead_letter_with_its_class_and_pointer(bad: list[Line], story: Story) -> None:
    summary = story[2]
    assert len(summary.dead) == BAD
    expected = Counter((line.refusal, line.path) for line in bad)
    assert Counter((letter.class_, letter.path) for letter in summary.dead) == expected
    assert set(summary.dead_by_class) == {"decode", "schema", "oversize", "clock"}


def test_each_payload_is_kept_to_the_letter(bad: list[Line], story: Story) -> None:
    parts = story[0]
    kept: Counter[bytes] = Counter()
    for stage in ("anomaly-detector", "enricher"):
        topic = f"errata.{stage}.dlq"
        for number in range(parts.transport.partitions(topic)):
            for record in parts.transport.read_from((topic, number)):
                payload = read_payload(record, parts.cipher)
                assert payload is not None
                kept[payload.kept] += 1
    assert kept == Counter(line.raw.strip()[: 64 * 1024] for line in bad)


def test_nothing_is_lost(story: Story) -> None:
    parts, embedded, summary, good, changes = story
    fixed = [embedded.detector.state.fixed[slot.index] for slot in embedded.detector.slots]
    predictions = sum(int(row[at.EVENTS]) for row in fixed)
    outcomes = 1  # the other of the two has the same id
    assert summary.lines == good + BAD
    assert predictions == 1_500
    assert summary.dropped == {"duplicate": 1}
    assert summary.lines == predictions + outcomes + changes + len(summary.dead) + sum(summary.dropped.values())
    dead_changes = sum(letter.topic == CHANGES for letter in summary.dead)
    assert len(values_of(parts, CHANGES)) == changes + dead_changes
    assert dead_changes > 0


def test_the_good_lines_among_them_are_judged(
    story: Story, census_contract: Contract, census_reference: Reference, tmp_path: Path
) -> None:
    with chain_parts(tmp_path, census_contract, census_reference) as parts:
        chain(parts).feed([census_lines(1_500, Planted("schl_absent", 500, 600))])
        [clean] = cases_of(parts)
    [case] = cases_of(story[0])
    assert (case.case_id, case.subject, case.onset, case.count) == (
        clean.case_id, clean.subject, clean.onset, clean.count,
    )  # fmt: skip


def test_a_malformed_change_is_a_dead_letter_though_no_anomaly_follows(tmp_path: Path) -> None:
    with chain_parts(tmp_path) as parts:
        summary = chain(parts).feed([[line.raw + b"\n" for line in BAD_CHANGES]])
        expected = Counter((line.refusal, line.path) for line in BAD_CHANGES)
        assert Counter((letter.class_, letter.path) for letter in summary.dead) == expected
        assert chain(parts).feed([]).dead == []  # a new chain does not refuse them once more


def test_a_line_of_many_megabytes_is_cut_and_refused(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_bytes(b'{"event_id": "' + b"x" * 3_000_000 + b'"}\n' + change() + b"\n")
    with chain_parts(tmp_path) as parts, file.open("rb") as stream:
        summary = chain(parts).run(stream, path=file)
        assert summary.dead_by_class == {"oversize": 1}
        assert summary.lines == 2
        assert len(values_of(parts, CHANGES)) == 1
    with chain_parts(tmp_path / "again") as parts:
        for _ in range(2):
            with file.open("rb") as stream:
                summary = chain(parts).run(stream, path=file)
        assert summary.lines == 0  # what was cut off is behind us too
