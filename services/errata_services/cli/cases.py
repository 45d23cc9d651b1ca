"""``errata cases``: look at the cases, and say what became of them."""

import getpass
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from errata.contracts import FailureCase, canonical
from errata.domain.catalogue.lifecycle import REJECTION_REASONS, Move
from errata.domain.catalogue.queries import (
    CaseQuery,
    root_class_filter,
    severity_filter,
    since_us,
    status_filter,
)
from errata.domain.catalogue.text import FindingLine, Page, clean, headline, page
from errata.errors import ErrataError
from errata.ports import Catalogue
from errata_services.bootstrap import catalogue_to_read

app = typer.Typer(no_args_is_help=True, help="The failure cases (elsewhere: issues): list, show, search, decide.")

Data = Annotated[Path | None, typer.Option("--data", help="Data folder; default: ERRATA_DATA, else the platform's.")]
Json = Annotated[bool, typer.Option("--json", help="Canonical JSON instead of text.")]
Status = Annotated[str | None, typer.Option("--status", help="new, triaged, resolved, rejected, …")]
Model = Annotated[str | None, typer.Option("--model", help="Name of the model.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Name of the tenant.")]
RootClassOption = Annotated[str | None, typer.Option("--root-class", help="data, model, deployment, …")]
Severity = Annotated[str | None, typer.Option("--severity", help="critical, high, medium, low or info.")]
Tag = Annotated[str | None, typer.Option("--tag", help="A tag or its first parts: data:population.")]
Since = Annotated[str | None, typer.Option("--since", help="Seen since: 24h, 7d, a date, a time.")]
Limit = Annotated[int, typer.Option("--limit", help="At most this many, newest first.")]
CaseId = Annotated[str, typer.Argument(metavar="CASE", help="Short id (CASE-1), case id, or its first 8 characters.")]
Note = Annotated[str, typer.Option("--note", help="Why, in your words; kept in the history.")]

_SEVERITY_STYLE = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan", "info": "dim"}
_ROOT_STYLE = {
    "data": "blue",
    "model": "magenta",
    "deployment": "yellow",
    "infrastructure": "cyan",
    "integration": "green",
    "unknown": "dim",
}
_GAP = 2  # blanks between two columns of the list
_SHORTEST_MODEL = 8  # characters of a model's name that a narrow list always keeps
_SHORTEST_ID = 10  # the same of a short id: with the widest of the other columns that makes 80


@app.command("list")
def list_(
    status: Status = None,
    model: Model = None,
    tenant: Tenant = None,
    root_class: RootClassOption = None,
    severity: Severity = None,
    tag: Tag = None,
    since: Since = None,
    limit: Limit = 50,
    json: Json = False,
    data: Data = None,
) -> None:
    """List cases, newest first."""
    with _catalogue(data) as catalogue:
        query = _query("", status, model, tenant, root_class, severity, tag, since, limit)
        _put_list(catalogue.cases(query), json, limit)


@app.command()
def search(
    text: Annotated[list[str], typer.Argument(help="Words that must all occur: model, tag, feature, reason, id.")],
    status: Status = None,
    model: Model = None,
    tenant: Tenant = None,
    root_class: RootClassOption = None,
    severity: Severity = None,
    tag: Tag = None,
    since: Since = None,
    limit: Limit = 50,
    json: Json = False,
    data: Data = None,
) -> None:
    """List the cases in which all words occur."""
    with _catalogue(data) as catalogue:
        query = _query(" ".join(text), status, model, tenant, root_class, severity, tag, since, limit)
        _put_list(catalogue.cases(query), json, limit)


@app.command()
def show(case: CaseId, json: Json = False, data: Data = None) -> None:
    """Show a case as a page: what, when, why, on what evidence, and what to do next."""
    with _catalogue(data) as catalogue:
        found = catalogue.case(case)
        if json:
            _put_json(found.model_dump(mode="json", by_alias=True, exclude_none=True))
        else:
            _put_page(found, page(found, catalogue.revisions(found.case_id)))


@app.command()
def ack(case: CaseId, note: Note = "", json: Json = False, data: Data = None) -> None:
    """Say that somebody looks at a case: new becomes triaged."""
    _move(case, "ack", None, note, json, data)


@app.command()
def resolve(case: CaseId, note: Note = "", json: Json = False, data: Data = None) -> None:
    """Say that the failure is dealt with; from any open status."""
    _move(case, "resolve", None, note, json, data)


@app.command()
def reject(
    case: CaseId,
    reason: Annotated[str, typer.Option("--reason", help=", ".join(REJECTION_REASONS))],
    note: Note = "",
    json: Json = False,
    data: Data = None,
) -> None:
    """Say that it is no case, and why; from any open status."""
    _move(case, "reject", reason, note, json, data)


def _move(case: str, move: Move, rejection: str | None, note: str, json: bool, data: Path | None) -> None:
    with _catalogue(data) as catalogue:
        after = catalogue.move(case, move, actor=_actor(), at=datetime.now(UTC), rejection=rejection, note=note)
        if json:
            _put_json(after.model_dump(mode="json", by_alias=True, exclude_none=True))
        else:
            typer.echo(f"{clean(after.short_id)} is {after.status} now: {headline(after)}")


@contextmanager
def _catalogue(data: Path | None) -> Iterator[Catalogue]:
    """The catalogue to look at; an error of errata becomes one line and its exit code."""
    try:
        catalogue = catalogue_to_read(data)
        try:
            yield catalogue
        finally:
            catalogue.close()
    except ErrataError as error:
        typer.echo(f"errata: {clean(str(error), 500)}", err=True)
        raise typer.Exit(error.exit_code) from None


def _query(
    text: str,
    status: str | None,
    model: str | None,
    tenant: str | None,
    root_class: str | None,
    severity: str | None,
    tag: str | None,
    since: str | None,
    limit: int,
) -> CaseQuery:
    return CaseQuery(
        status=status_filter(status),
        model=model,
        tenant=tenant,
        root_class=root_class_filter(root_class),
        severity=severity_filter(severity),
        tag=tag,
        since_us=None if since is None else since_us(since, datetime.now(UTC)),
        text=text,
        limit=limit,
    )


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without this user in its passwd
        return "unknown"


def _put_json(value: Any) -> None:
    typer.echo(canonical(value))


def _console() -> Console:
    """Colour on a terminal only, and not with NO_COLOR. Texts of cases are never read as markup."""
    return Console(file=sys.stdout, markup=False, emoji=False, highlight=False)


def _put_list(cases: Sequence[FailureCase], json: bool, limit: int) -> None:
    if json:
        _put_json([case.model_dump(mode="json", by_alias=True, exclude_none=True) for case in cases])
        return
    console = _console()
    if not cases:
        console.print("No cases match. `errata demo` makes some; `errata run` reads your events.")
        return
    for line in case_lines(cases, console.width):
        console.print(line, no_wrap=True, overflow="ellipsis")
    if len(cases) == limit:
        console.print(f"The newest {limit}; more with --limit.")


def case_lines(cases: Sequence[FailureCase], width: int) -> list[Text]:
    """Two lines a case, none wider than ``width`` columns: its fields, and below them what happened."""
    head = ("CASE", "OPENED (UTC)", "MODEL", "STATUS", "SEVERITY", "ROOT CLASS")
    rows = [
        (
            clean(case.short_id, 20),
            case.opened_at.strftime("%Y-%m-%d %H:%M"),
            clean(case.model.name, 40),
            case.status,
            case.severity.level,
            case.root_class,
        )
        for case in cases
    ]
    widths = _widths([head, *rows], width)
    lines = [Text("  ".join(_cell(name, size) for name, size in zip(head, widths, strict=True)).rstrip(), "bold")]
    for case, row in zip(cases, rows, strict=True):
        styles = ("bold", "", "", "", _SEVERITY_STYLE[case.severity.level], _ROOT_STYLE[case.root_class])
        cells = [Text(_cell(text, size), style) for text, size, style in zip(row, widths, styles, strict=True)]
        lines.append(Text("  ").join(cells))
        lines.append(Text(f"  {headline(case)}"))
    for line in lines:
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
    return lines


def _widths(rows: Sequence[tuple[str, ...]], width: int) -> list[int]:
    """The columns' widths; the model's name gives way when they do not fit, then a long tenant's id."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for column, shortest in ((2, _SHORTEST_MODEL), (0, _SHORTEST_ID)):
        over = sum(widths) + _GAP * (len(widths) - 1) - width
        if over > 0:
            widths[column] = min(widths[column], max(shortest, widths[column] - over))
    return widths


def _cell(text: str, size: int) -> str:
    return clean(text, size).ljust(size)


def _put_page(case: FailureCase, shown: Page) -> None:
    console = _console()
    console.print(Text(shown.title, "bold"))
    console.print(Text(shown.headline))
    _section(console, "When", shown.when)
    console.print()
    console.print(Text("Why", "bold"))
    for line in shown.why:
        console.print(_indented(_coloured(line, case)))
    console.print()
    console.print(Text("Findings", "bold"))
    console.print(_findings_table(shown.findings))
    _section(console, "Context", shown.context or ("nothing is known around the onset",))
    _section(console, "Exemplars and controls (redacted)", shown.rows or ("none kept",))
    if shown.history:
        _section(console, "History", shown.history)
    _section(console, "What to do next", shown.next)


def _section(console: Console, title: str, lines: Sequence[str]) -> None:
    console.print()
    console.print(Text(title, "bold"))
    for line in lines:
        console.print(_indented(Text(line)))


def _indented(line: Text) -> Table:
    grid = Table.grid(padding=0)
    grid.add_column(width=2)
    grid.add_column(overflow="fold")
    grid.add_row("", line)
    return grid


def _coloured(line: str, case: FailureCase) -> Text:
    text = Text(line)
    if line.startswith("root class "):
        text.highlight_words([case.root_class], _ROOT_STYLE[case.root_class])
    elif line.startswith("severity "):
        text.highlight_words([case.severity.level], _SEVERITY_STYLE[case.severity.level])
    return text


def _findings_table(findings: Sequence[FindingLine]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("  DETECTOR", overflow="fold")
    table.add_column("SUBJECT", overflow="fold")
    table.add_column("STATISTIC", overflow="fold")
    table.add_column("LIMIT", justify="right")
    table.add_column("N", justify="right")
    for finding in findings:
        cells = (f"  {finding.detector}", finding.subject, finding.measured, finding.threshold, finding.n)
        table.add_row(*(Text(cell) for cell in cells))
    return table
