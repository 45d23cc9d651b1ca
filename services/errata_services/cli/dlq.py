"""``errata dlq``: the records that no stage could take; look at them, send them again, or put them away."""

import heapq
import json
import os
import pwd
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TextIO, get_args

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from errata.contracts import canonical
from errata.contracts.topics import STAGES
from errata.domain.catalogue.queries import since_us
from errata.domain.dead_letters import MIN_ID_CHARACTERS, OBSTACLES, Selection
from errata.errors import Misconfigured, NotFound, RefusalClass
from errata.runtime.crash_points import CrashPoints
from errata.runtime.replay import MAX_SINK_LETTERS, Asked, Letter, Letters, Pace, Tally, plan, settle
from errata_services.bootstrap import dead_letters
from errata_services.cli.lines import printable

app = typer.Typer(
    no_args_is_help=True, help="Dead letters, records that no stage could take: list, show, replay, discard, export."
)

Stage = Annotated[list[str] | None, typer.Option("--stage", help="The stage that refused them; may be repeated.")]
Class = Annotated[list[str] | None, typer.Option("--class", help="decode, schema, handler, …; may be repeated.")]
FingerprintOption = Annotated[list[str] | None, typer.Option("--fingerprint", help="Of one cause; its beginning does.")]
Id = Annotated[list[str] | None, typer.Option("--id", help="A letter's id, or its first 8 characters.")]
Since = Annotated[str | None, typer.Option("--since", help="Records that came since: 24h, 7d, a date, a time.")]
All = Annotated[bool, typer.Option("--all", help="Also those that are settled: replayed or discarded.")]
Data = Annotated[Path | None, typer.Option("--data", help="A data folder instead of Kafka.")]
Json = Annotated[bool, typer.Option("--json", help="Canonical JSON instead of text.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most this many, newest first.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in your words; kept with your name and the time.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Rate = Annotated[str, typer.Option("--rate", help="Letters a second, at most: 50/s, or 600/m.")]

_RATE = re.compile(r"([1-9][0-9]{0,5})(?:/(s|m))?")
_MAX_PATCH_BYTES = 64 * 1024


@app.callback()
def dlq() -> None:
    """Dead letters: records that no stage could take, kept for 14 days with their reason.

    On Kafka they are found by ERRATA_KAFKA__BOOTSTRAP_SERVERS, those of the catalog-writer by ERRATA_DATABASE_URL, and
    opened with ERRATA_KEY. With --data they are those of an embedded run, which may not run meanwhile.
    """


@dataclass(slots=True)
class _Found:
    """What a list tells of the letters that fit."""

    open: int = 0
    settled: Counter[str] = field(default_factory=Counter)
    causes: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # stage, class, fingerprint
    newest: list[tuple[datetime, int, Letter]] = field(default_factory=list)


@app.command("list")
def list_(
    stage: Stage = None,
    class_: Class = None,
    fingerprint: FingerprintOption = None,
    id_: Id = None,
    since: Since = None,
    everything: All = False,
    limit: Limit = 50,
    as_json: Json = False,
    data: Data = None,
) -> None:
    """List open dead letters, newest first, and count them by cause. Needs no key."""
    wanted = _selection(stage, class_, fingerprint, id_, since)
    with dead_letters(data) as letters, _bar("reading dead letters") as moved:
        found = _Found()
        for number, letter in enumerate(letters.select(wanted, letters.resolutions(), moved)):
            _count(found, letter)
            if everything or letter.resolution is None:
                entry = (letter.said.ts, number, letter)
                (heapq.heappushpop if len(found.newest) >= limit else heapq.heappush)(found.newest, entry)
    shown = [letter for _, _, letter in sorted(found.newest, key=lambda one: one[:2], reverse=True)]
    if as_json:
        causes = [
            {"stage": cause[0], "class": cause[1], "fingerprint": cause[2], "open": n}
            for cause, n in found.causes.most_common()
        ]
        listed = [_plain(letter) for letter in shown]
        typer.echo(canonical({"open": found.open, "settled": found.settled, "causes": causes, "letters": listed}))
    else:
        _put_list(found, shown)
    _put_notes(letters)


@app.command()
def show(
    letter: Annotated[str | None, typer.Argument(metavar="LETTER", help="Its id, or the first 8 characters.")] = None,
    stage: Stage = None,
    class_: Class = None,
    fingerprint: FingerprintOption = None,
    id_: Id = None,
    since: Since = None,
    limit: Limit = 10,
    as_json: Json = False,
    data: Data = None,
) -> None:
    """Show letters whole, with the payload as it came: it may hold what no contract has redacted. Needs the key."""
    ids = [*(id_ or []), *([letter] if letter else [])]
    wanted = _selection(stage, class_, fingerprint, ids, since)
    if not wanted.narrows:
        raise Misconfigured("dlq show: name a letter, or say by --stage, --class, --fingerprint or --since which")
    with dead_letters(data) as letters:
        found = 0
        for one in letters.select(wanted, letters.resolutions()):
            found += 1
            if found > limit:
                typer.echo(f"There are more; --limit shows them, up to now {limit:,}.", err=True)
                break
            fields = _plain(one, letters)
            typer.echo(canonical(fields) if as_json else _page(fields))
    if not found:
        raise NotFound("no dead letter fits; errata dlq list --all shows all there are")


@app.command()
def export(
    output: Annotated[Path | None, typer.Option("--output", help="A file to make, which only you may read.")] = None,
    stage: Stage = None,
    class_: Class = None,
    fingerprint: FingerprintOption = None,
    id_: Id = None,
    since: Since = None,
    everything: All = False,
    data: Data = None,
) -> None:
    """Write open letters as JSON lines, with payload and resolution, to standard output or a file.

    Payloads stand there as they came: what no contract has redacted is in the file. Without ERRATA_KEY they are left
    out.
    """
    wanted = _selection(stage, class_, fingerprint, id_, since)
    with dead_letters(data) as letters, _output(output) as out, _bar("reading dead letters") as moved:
        sealed = written = 0
        for letter in letters.select(wanted, letters.resolutions(), moved):
            if letter.resolution is not None and not everything:
                continue
            opener = letters if letters.opens else None
            sealed += opener is None and letter.sealed is not None
            out.write(canonical(_plain(letter, opener)).decode() + "\n")
            written += 1
    typer.echo(_letters(written) + (f", {sealed:,} without payload: give ERRATA_KEY" if sealed else ""), err=True)
    _put_notes(letters)


@app.command()
def replay(
    stage: Stage = None,
    class_: Class = None,
    fingerprint: FingerprintOption = None,
    id_: Id = None,
    since: Since = None,
    patch: Annotated[
        Path | None, typer.Option("--patch", help="A JSON merge patch (RFC 7386) for the payloads: null takes away.")
    ] = None,
    rate: Rate = "50/s",
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Also letters that are settled already.")] = False,
    reason: Reason = "",
    as_json: Json = False,
    data: Data = None,
) -> None:
    """Send letters again to the place they came from: same topic, partition and key, with the headers they had.

    Each in one transaction with its resolution: when this is killed and run again, no letter goes twice. Of two
    replays at once the newer stops the older. What is refused again becomes a new letter, five times at most. Replayed
    events are late: they are catalogued and change no statistics of windows.
    """
    wanted = _narrow(_selection(stage, class_, fingerprint, id_, since), "replay")
    asked = Asked("replayed", _user(), _reason(reason, dry_run), force, None if patch is None else _patch(patch))
    _settle(wanted, asked, _per_s(rate), dry_run, as_json, data)


@app.command()
def discard(
    stage: Stage = None,
    class_: Class = None,
    fingerprint: FingerprintOption = None,
    id_: Id = None,
    since: Since = None,
    dry_run: DryRun = False,
    reason: Reason = "",
    as_json: Json = False,
    data: Data = None,
) -> None:
    """Put letters away: they count as settled and stay readable until they expire. Needs no key."""
    wanted = _narrow(_selection(stage, class_, fingerprint, id_, since), "discard")
    asked = Asked("discarded", _user(), _reason(reason, dry_run))
    _settle(wanted, asked, 10_000, dry_run, as_json, data)


def _settle(wanted: Selection, asked: Asked, per_s: float, dry_run: bool, as_json: bool, data: Path | None) -> None:
    with dead_letters(data) as letters:
        if dry_run:
            tally = plan(letters, wanted, asked)
        else:
            console = Console(stderr=True)
            with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
                task = bar.add_task(asked.action, total=None)
                tally = settle(
                    letters,
                    wanted,
                    asked,
                    Pace(per_s),
                    lambda: datetime.now(UTC),
                    crash=CrashPoints.from_environment(os.environ),
                    on_selected=lambda n: bar.update(task, total=n),
                    on_done=lambda n: bar.update(task, completed=n),
                )
    if as_json:
        told = {"action": asked.action, "letters": tally.done, "left": dict(tally.left), "unpatched": tally.unpatched}
        typer.echo(canonical({**told, "dry_run": dry_run}))
    else:
        _put_tally(tally, asked, dry_run)
    _put_notes(letters)
    if not tally.done and not tally.unpatched and not tally.left:
        raise NotFound("no dead letter fits; errata dlq list --all shows all there are")
    stuck = tally.unpatched + sum(n for why, n in tally.left.items() if why != "settled" or wanted.ids)
    if stuck:
        raise typer.Exit(1)


# What is asked.


def _selection(
    stages: list[str] | None,
    classes: list[str] | None,
    fingerprints: list[str] | None,
    ids: list[str] | None,
    since: str | None,
) -> Selection:
    for id_ in ids or ():
        if len(id_) < MIN_ID_CHARACTERS:
            raise Misconfigured(f"--id: give {MIN_ID_CHARACTERS} characters of the id or more")
    return Selection(
        _known("--stage", stages, STAGES),
        _known("--class", classes, get_args(RefusalClass)),
        tuple(fingerprints or ()),
        tuple(id_.lower() for id_ in ids or ()),
        None if since is None else since_us(since, datetime.now(UTC)),
    )


def _known(option: str, given: list[str] | None, known: tuple[str, ...]) -> frozenset[str]:
    for name in given or ():
        if name not in known:
            raise Misconfigured(f"{option}: must be one of {', '.join(known)}")
    return frozenset(given or ())


def _narrow(wanted: Selection, command: str) -> Selection:
    if not wanted.narrows:
        raise Misconfigured(f"dlq {command}: say which letters, by --stage, --class, --fingerprint, --id or --since")
    return wanted


def _reason(text: str, dry_run: bool) -> str:
    if not text.strip() and not dry_run:
        raise Misconfigured("--reason: is missing; say in a few words why, it is kept with your name and the time")
    return text.strip()


def _user() -> str:
    """The user of this process, as the system has it: not from a variable, which anybody may set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user id without a name, as in some containers
        return f"uid {os.getuid()}"


def _per_s(text: str) -> float:
    found = _RATE.fullmatch(text)
    if found is None:
        raise Misconfigured("--rate: write letters a second or a minute, such as 50/s or 600/m")
    return int(found[1]) / (60 if found[2] == "m" else 1)


def _patch(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except OSError:
        raise Misconfigured("--patch: the file cannot be read; name a JSON file") from None
    try:
        patch = json.loads(text) if len(text) <= _MAX_PATCH_BYTES else None
    except (ValueError, RecursionError):
        patch = None
    if not isinstance(patch, dict) or not patch:
        raise Misconfigured('--patch: must be a JSON object of at most 64 KiB, such as {"latency_ms": null}')
    return patch


# What is told.


def _count(found: _Found, letter: Letter) -> None:
    if letter.resolution is not None:
        found.settled[letter.resolution.action] += 1
        return
    found.open += 1
    found.causes[letter.said.stage, letter.said.class_, letter.said.fingerprint] += 1


def _plain(letter: Letter, opener: Letters | None = None) -> dict[str, Any]:
    """A letter as plain data; with its payload if ``opener`` is given."""
    said = letter.said if opener is None else opener.opened(letter)
    fields = said.model_dump(mode="json", by_alias=True, exclude_none=True)
    fields["kept"] = letter.kept
    if letter.resolution is not None:
        fields["resolution"] = letter.resolution.model_dump(mode="json", exclude={"dead_letter_id"})
    return fields


def _put_list(found: _Found, shown: list[Letter]) -> None:
    console = Console()
    if shown:
        table = Table("letter", "came (UTC)", "stage", "class", box=None, pad_edge=False, expand=True)
        for column in table.columns:
            column.no_wrap = True
        table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)
        for letter in shown:
            said, done = letter.said, letter.resolution
            row = (
                said.dead_letter_id[:MIN_ID_CHARACTERS],
                f"{said.ts:%Y-%m-%d %H:%M}",
                said.stage,
                said.class_,
                f"{said.path} {said.message}".strip() if done is None else f"{done.action} by {done.who}: {done.why}",
            )
            table.add_row(*(Text(printable(cell)) for cell in row), style="dim" if done else None)
        console.print(table)
    for (stage, class_, fingerprint), n in found.causes.most_common(10):
        console.print(f"{n:,} open: {stage}, {class_}, fingerprint {fingerprint}", highlight=False, markup=False)
    settled = ", ".join(f"{n:,} {action}" for action, n in sorted(found.settled.items()))
    if not found.open:
        console.print("No open dead letters.", style="green")
    if settled:
        console.print(f"Settled: {settled}.", style="dim", highlight=False)


def _page(fields: dict[str, Any]) -> str:
    payload = fields.pop("payload", None)
    resolution = fields.pop("resolution", None)
    lines = [f"{name:15} {printable(str(value))}" for name, value in fields.items()]
    if resolution:
        lines.append(f"{'settled':15} {printable(', '.join(f'{name} {value}' for name, value in resolution.items()))}")
    lines.append("payload" if payload is not None else "payload: none was kept")
    if payload is not None:
        lines += [f"  {printable(line)}" for line in payload.splitlines() or [""]]
    return "\n".join(lines) + "\n"


def _put_tally(tally: Tally, asked: Asked, dry_run: bool) -> None:
    verb = f"would be {asked.action}" if dry_run else asked.action
    typer.echo(f"{_letters(tally.done)} {verb}.")
    for why, n in sorted(tally.left.items()):
        words = OBSTACLES[why] if asked.action == "replayed" else "settled already"
        typer.echo(f"{n:,} left: {words}.", err=True)
    if tally.unpatched:
        typer.echo(f"{tally.unpatched:,} left: no JSON objects, or no valid ones with the patch.", err=True)


def _letters(n: int) -> str:
    return f"{n:,} letter{'' if n == 1 else 's'}"


def _put_notes(letters: Letters) -> None:
    if letters.unreadable:
        typer.echo(f"{letters.unreadable:,} records of dead-letter topics are no letters of errata.", err=True)
    if letters.sinks_cut:
        typer.echo(
            f"The catalog-writer has more than {MAX_SINK_LETTERS:,} letters; the first were looked at.", err=True
        )


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Misconfigured("--output: the file is there already; name a new one") from None
    except OSError:
        raise Misconfigured("--output: the file cannot be made; name one in a folder that is there") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        yield out
