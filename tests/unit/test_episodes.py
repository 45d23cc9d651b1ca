"""The machine of episodes: tables of marks and the moves they must make."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from errata.contracts import canonical
from errata.domain.detection.episodes import Family, Move, Signal, SlotEpisodes, WindowEnd

WINDOW = 500
Mark = Signal | WindowEnd


class Script:
    """Marks in order of receipt. A capital opens a signal: ``A`` and ``B`` on predictions, ``L`` on labels; a window
    of predictions ends with ``.`` (quiet) or ``a``, ``b``, ``ab`` (those fired); one of outcomes with ``:`` or ``l``;
    ``?`` is an unjudged window. One mark a record, window ends stand for 500 events."""

    NAMES = {"A": "missing_values|amount", "B": "latency_limit|latency_ms", "L": "error_rate|outcome"}

    def __init__(self) -> None:
        self.record = 0
        self.windows = {"predictions": 0, "outcomes": 0}

    def marks(self, text: str) -> list[Mark]:
        return [self._mark(word) for word in text.split()]

    def _mark(self, word: str) -> Mark:
        self.record += 1
        if word in self.NAMES:
            return signal(word, self.record)
        family: Family = "outcomes" if word in (":", "l") else "predictions"
        self.windows[family] += 1
        fired = {self.NAMES[letter.upper()]: 40 for letter in word if letter.isalpha()}
        return WindowEnd(
            self.record, 0, family, WINDOW, (self.record - 1) * 1_000, self.record * 1_000, self.record * 1_000,
            self.windows[family], fired, word != "?",
        )  # fmt: skip


def signal(letter: str, record: int, **changes: Any) -> Signal:
    detector, subject = Script.NAMES[letter].split("|")
    made = Signal(
        record=record,
        slot=0,
        detector=detector,
        subject=subject,
        family="outcomes" if letter == "L" else "predictions",
        level="window",
        reason="share",
        statistic="share",
        value=0.06,
        threshold=0.05,
        direction="up",
        onset_us=record * 1_000 - 500,
        time_us=record * 1_000,
        record_time_us=record * 1_000 + 7,
        count=10,
        exemplars=((record, "errata.predictions.v1", 0, record, f"p-{record}"),),
    )
    return replace(made, **changes)


def new_id(record: int, slot: int) -> str:
    return f"case-{record}"


def walk(*marks: Mark) -> list[Move]:
    return SlotEpisodes().walk(marks, new_id)


def moves_of(text: str) -> list[str]:
    return [f"{move.state}@{move.record}" for move in walk(*Script().marks(text))]


TABLE = {
    # opening and closing
    "A": "open@1",
    ". .": "",
    "A a": "open@1 update@2",
    "A a . .": "open@1 update@2 close@4",
    "A a . a . .": "open@1 update@2 update@4 close@6",  # one quiet window in between is no end
    "A . .": "open@1 close@3",
    "A a . A a . .": "open@1 update@2 update@5 close@7",  # heard in a quiet spell: no move of its own
    "A a . A . .": "open@1 update@2 close@6",  # … but the count of quiet windows starts over
    # every finding joins
    "A B": "open@1 update@2",
    "A A B B A": "open@1 update@3",  # a known signal moves nothing before its window ends
    "A B ab a . .": "open@1 update@2 update@3 update@4 close@6",
    "A B b b b . .": "open@1 update@2 update@3 update@4 update@5 close@7",
    # windows that fire nothing of this episode
    "A b . .": "open@1 close@3",
    # unjudged windows are neither quiet nor fired
    "A a ? ? ? . .": "open@1 update@2 close@7",
    # families: labels count windows of outcomes
    "L . . .": "open@1",
    "L : :": "open@1 close@3",
    "L l : . :": "open@1 update@2 close@5",
    "A L a l . . .": "open@1 update@2 update@3 update@4",
    "A L a l . . : :": "open@1 update@2 update@3 update@4 close@8",
    "A L a l : : : . .": "open@1 update@2 update@3 update@4 close@9",
    "A : : :": "open@1",
    # after closing
    "A . . A": "open@1 close@3 reopen@4",
    "A . . B": "open@1 close@3 open@4",
    "A B . . B": "open@1 update@2 close@4 reopen@5",
    "A . . B . . A": "open@1 close@3 open@4 close@6 reopen@7",
    "A . . B A": "open@1 close@3 open@4 update@5",  # one open episode a model: it joins
    "A . . " + ". " * 9 + "A": "open@1 close@3 reopen@13",
    "A . . " + ". " * 10 + "A": "open@1 close@3 open@14",
    "L : : " + ". " * 30 + "L": "open@1 close@3 reopen@34",  # windows of predictions do not age a signal on labels
    "L : : " + ": " * 9 + "L": "open@1 close@3 reopen@13",
    "L : : " + ": " * 10 + "L": "open@1 close@3 open@14",
    "A . . A a . . A": "open@1 close@3 reopen@4 update@5 close@7 reopen@8",
    "A . . . . . A . . " + ". " * 9 + "A": "open@1 close@3 reopen@7 close@9 reopen@19",  # ten from the last close
}


@pytest.mark.parametrize(("text", "expected"), TABLE.items())
def test_marks_make_these_moves(text: str, expected: str) -> None:
    assert " ".join(moves_of(text)) == expected


def ids_of(text: str) -> list[str]:
    return [move.spell["id"] for move in walk(*Script().marks(text)) if move.state in ("open", "reopen")]


def test_reopening_keeps_the_id_and_opening_makes_one() -> None:
    assert ids_of("A . . A") == ["case-1", "case-1"]
    assert ids_of("A . . B") == ["case-1", "case-4"]
    assert ids_of("A . . B . . A") == ["case-1", "case-4", "case-1"]
    assert ids_of("A . . " + ". " * 10 + "A") == ["case-1", "case-14"]


def test_seq_counts_the_moves_of_one_id_through_reopening() -> None:
    moves = walk(*Script().marks("A B a . . . A a . . B"))
    assert [(move.state, move.spell["seq"]) for move in moves] == [
        ("open", 0), ("update", 1), ("update", 2), ("close", 3), ("reopen", 4), ("update", 5), ("close", 6),
        ("reopen", 7),
    ]  # fmt: skip


def test_a_move_shows_the_episode_as_of_then() -> None:
    opened, updated, closed = walk(*Script().marks("A a . ."))
    assert (opened.spell["open"], closed.spell["open"]) == (True, False)
    assert [move.record_time_us for move in (opened, updated, closed)] == [1_007, 2_000, 4_000]
    assert closed.spell["closed_us"] == 4_000
    assert opened.spell["window"] == []
    assert updated.spell["window"] == [1_000, 2_000, WINDOW]


def test_counts_of_windows_are_those_of_the_window_end() -> None:
    """A finding says what it saw when it fired, the end of the window what there was in all."""
    moves = walk(*Script().marks("A a a . ."))
    counted = [
        (heard["closed_count"], heard["open_count"], heard["windows"])
        for move in moves
        for heard in move.spell["signals"].values()
    ]
    assert counted == [(0, 10, 0), (40, 0, 1), (80, 0, 2), (80, 0, 2)]
    assert moves[-1].spell["events"] == 4 * WINDOW


# -- onset ------------------------------------------------------------------------------------------------------------


def onset_us(*marks: Mark) -> int:
    return int(walk(*marks)[-1].spell["onset_us"])


def test_onset_is_the_earliest_among_the_findings() -> None:
    assert onset_us(signal("A", 5), signal("B", 6, onset_us=1_234)) == 1_234
    assert onset_us(signal("A", 5, onset_us=900), signal("B", 6, onset_us=1_234)) == 900


def test_onset_is_never_before_the_last_close() -> None:
    closed = Script().marks("A . .")
    assert onset_us(*closed, signal("B", 4, onset_us=50)) == 3_000
    assert onset_us(*closed, signal("B", 4, onset_us=3_600)) == 3_600
    assert onset_us(*closed, signal("B", 4), signal("A", 5, onset_us=50)) == 3_000


def test_without_a_close_before_it_an_onset_may_lie_anywhere() -> None:
    """The control of the test above."""
    assert onset_us(signal("B", 4, onset_us=50)) == 50


def test_a_reopened_episode_keeps_its_onset() -> None:
    assert onset_us(*Script().marks("A . . . A")) == 500


# -- what an episode shows --------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_strongest_firing() -> None:
    marks = [signal("A", 1, value=0.06), signal("A", 2, value=0.9), signal("A", 3, value=0.2), *Script().marks("a")]
    (heard,) = walk(*marks)[-1].spell["signals"].values()
    assert heard["finding"]["value"] == 0.9
    assert heard["finding"]["onset_us"] == 500


def test_exemplars_are_the_eight_of_the_smallest_hash() -> None:
    marks = [signal("A", record) for record in (9, 3, 11, 1, 7, 5, 13, 2, 8, 4)]
    rows = walk(*marks, replace_end(14))[-1].spell["exemplars"]
    assert [row[0] for row in rows] == [1, 2, 3, 4, 5, 7, 8, 9]


def replace_end(record: int) -> WindowEnd:
    return WindowEnd(record, 0, "predictions", WINDOW, 0, record, record, 0, {Script.NAMES["A"]: 10})


def test_controls_are_those_of_the_last_quiet_window_before_the_opening() -> None:
    old, new = (1, "t", 0, 1, "old"), (2, "t", 0, 2, "new")

    def shown(record: int) -> list[list[Any]]:
        moves = SlotEpisodes().walk([signal("A", record)], new_id, {-1: [old], 5: [new]})
        rows: list[list[Any]] = moves[0].spell["controls"]
        return rows

    assert shown(3) == shown(5) == [list(old)]
    assert shown(6) == [list(new)]


def test_the_opening_finding_says_what_admitted_it() -> None:
    spell = walk(signal("B", 1), signal("A", 2))[-1].spell
    assert (spell["admitted_by"], spell["mover"]) == ("latency_limit", Script.NAMES["A"])


def test_findings_of_one_record_go_before_its_window_end_and_by_name() -> None:
    end, first, second = replace_end(3), signal("B", 3), signal("A", 3)
    marks: list[Mark] = [end, second, first]
    ordered = sorted(marks, key=lambda mark: mark.order)
    assert ordered == [first, second, end]


# -- state ------------------------------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from(["A", "B", "L", ".", ":", "a", "b", "ab", "l", "?"]), max_size=40)


def shown(moves: Sequence[Move]) -> bytes:
    return canonical([[move.state, move.spell, move.record, move.record_time_us] for move in moves])


@settings(deadline=None)
@given(WORDS, st.integers(0, 40))
def test_a_round_trip_in_the_middle_changes_no_move(words: list[str], cut: int) -> None:
    marks = Script().marks(" ".join(words))
    whole = SlotEpisodes()
    expected = whole.walk(marks, new_id)
    first = SlotEpisodes()
    before = first.walk(marks[:cut], new_id)
    second = SlotEpisodes.from_plain(json.loads(canonical(first.to_plain())))
    assert shown([*before, *second.walk(marks[cut:], new_id)]) == shown(expected)
    assert canonical(second.to_plain()) == canonical(whole.to_plain())


@settings(deadline=None)
@given(WORDS)
def test_moves_obey_the_machine_whatever_comes(words: list[str]) -> None:
    open_id, seen = "", dict[str, int]()
    for move in walk(*Script().marks(" ".join(words))):
        name, seq = move.spell["id"], move.spell["seq"]
        assert seq == seen.get(name, -1) + 1
        seen[name] = seq
        if move.state in ("open", "reopen"):
            assert open_id == ""
            assert (move.state == "open") == (seq == 0)
            open_id = name
        else:
            assert name == open_id
            open_id = "" if move.state == "close" else open_id
        assert move.spell["open"] == (move.state != "close")


def test_a_machine_that_forgot_its_state_opens_anew() -> None:
    """The negative control of the round trip."""
    marks = Script().marks("A a . A")
    first = SlotEpisodes()
    before = first.walk(marks[:2], new_id)
    after = SlotEpisodes().walk(marks[2:], new_id)
    assert shown([*before, *after]) != shown(walk(*marks))
