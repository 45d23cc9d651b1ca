"""What ``run`` and ``demo`` tell while they work and when they are done."""

from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from errata.contracts import TaggedCase
from errata.domain.catalogue.text import clean
from errata_services.embedded import Summary

MOVES = {"open": "opened", "reopen": "reopened", "close": "closed"}
SHOWN_LETTERS = 5


def teller(console: Console) -> Callable[[TaggedCase], None]:
    """Prints one line for each case that opens, reopens or closes."""

    def tell(case: TaggedCase) -> None:
        tag = case.tags[0].tag if case.tags else "no tag"
        what = f"{case.detector.id} of {case.subject}"
        line = f"{case.time:%Y-%m-%d %H:%M:%S}  {MOVES[case.episode.state]:9} {case.episode.id[:8]}  "
        console.print(Text(line + clean(f"{case.model.name}: {what} ({tag}, {case.severity.level})")), soft_wrap=True)

    return tell


def summary_lines(summary: Summary) -> list[str]:
    """The run in a few sentences; nothing is left out that did not become an event."""
    lines = [f"{summary.lines:,} lines read: {_cases(summary)}"]
    if summary.resumed_at_bytes:
        lines[0] = (
            f"{summary.lines:,} new lines ({summary.resumed_at_bytes:,} bytes were read before): {_cases(summary)}"
        )
    if summary.dead:
        by_class = ", ".join(f"{name} {n:,}" for name, n in sorted(summary.dead_by_class.items()))
        lines.append(f"{len(summary.dead):,} dead letters: {by_class}")
        lines += [
            f"  {letter.class_} at {letter.path or '/'}: {clean(letter.message)}"
            for letter in summary.dead[:SHOWN_LETTERS]
        ]
        if len(summary.dead) > SHOWN_LETTERS:
            lines.append("  … errata validate FILE names every one")
    for reason, n in sorted(summary.dropped.items()):
        lines.append(f"{n:,} {_DROPPED.get(reason, reason)}")
    if summary.late:
        lines.append(f"{summary.late:,} late events: counted and checked, kept out of the windows")
    if summary.clamped:
        lines.append(f"{summary.clamped:,} events ahead of their record time: taken at the record time")
    for window in summary.open_windows:
        labels = f", {window.outcomes:,} outcomes" if window.outcomes else ""
        lines.append(f"{clean(window.model)}: {window.events:,} events{labels} wait in an open window, not yet judged")
    return lines


_DROPPED = {
    "duplicate": "duplicates: their ids were seen before, they change nothing",
    "heartbeat": "outcomes of purpose heartbeat: they are no labels",
    "tick": "outcomes of purpose tick: they are no labels",
    "waiting": "outcomes without their own prediction: joining them comes with a later release",
    "feedback": "outcomes of kind feedback or business: they are no labels",
}


def _cases(summary: Summary) -> str:
    counts = [
        f"{len(ids):,} {name}"
        for ids, name in ((summary.opened, "opened"), (summary.reopened, "reopened"), (summary.closed, "closed"))
        if ids
    ]
    return "cases " + ", ".join(counts) if counts else "no case moved"
