"""Reads JSONL files for commands: numbered lines, a progress bar on a terminal, each line parsed by the contract."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from errata.contracts import ChangeEvent, Outcome, PredictionEvent
from errata.contracts.refusals import parse_change, parse_outcome, parse_prediction
from errata.errors import Misconfigured, Refused

Event = PredictionEvent | Outcome | ChangeEvent

STDIN = Path("-")


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank; ``number`` counts from 1, ``event`` is what it holds or why it was refused."""

    number: int
    event: Event | Refused


def read_lines(path: Path, task: str) -> Iterator[Line]:
    """Every line of a JSONL file, ``-`` being standard input. A bar named ``task`` shows on a terminal."""
    for number, raw in _numbered(path, task):
        try:
            yield Line(number, parse_line(raw))
        except Refused as refusal:
            yield Line(number, refusal)


def parse_line(raw: bytes) -> Event:
    """What a line holds: a prediction, an outcome or a change, by the id it carries. Raises ``Refused``."""
    return _parser(raw)(raw, record_time_us=None)


def existing(path: Path) -> Path:
    """``path`` when it is a file one can read; else ``Misconfigured``."""
    if path == STDIN or path.is_file():
        return path
    raise Misconfigured(f"{path}: no such file; name a file that is there")


def printable(text: str) -> str:
    """Text from outside as it may stand on a terminal: what could move the cursor or colour it is written out.

    >>> printable("caf\\u00e9 \\x1b[31m")
    'café \\\\x1b[31m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _parser(raw: bytes) -> Callable[..., Event]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return parse_prediction  # which says what is wrong with it
    if isinstance(document, dict) and "event_id" not in document:
        if "outcome_id" in document:
            return parse_outcome
        if "change_id" in document:
            return parse_change
    return parse_prediction


def _numbered(path: Path, task: str) -> Iterator[tuple[int, bytes]]:
    if path == STDIN:
        yield from _not_blank(sys.stdin.buffer)
        return
    size = existing(path).stat().st_size
    console = Console(stderr=True)
    bars = Progress(console=console, transient=True, disable=not console.is_terminal)
    with path.open("rb") as file, bars as progress:
        bar = progress.add_task(task, total=size)
        for number, raw in _not_blank(file):
            yield number, raw
            if number % 500 == 0:
                progress.update(bar, completed=file.tell())


def _not_blank(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, raw in enumerate(lines, start=1):
        if stripped := raw.strip(b" \t\r\n"):
            yield number, stripped
