"""``errata validate FILE``: which lines of a file errata would refuse, and at which field."""

from pathlib import Path
from typing import Annotated, Any

import typer

from errata.contracts import canonical
from errata.errors import Refused
from errata_services.cli.lines import printable, read_lines

app = typer.Typer()


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="JSONL of predictions, outcomes and changes; - reads standard input.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Check each line of FILE: print line, class, JSON pointer and reason of the bad ones; exit 1 if there are any."""
    bad: list[dict[str, Any]] = []
    lines = 0
    for line in read_lines(file, "validating"):
        lines += 1
        if isinstance(line.event, Refused):
            bad.append(_said(line.number, line.event))
            if not as_json:
                typer.echo(printable(f"{line.number}: {line.event.refusal_class}: {line.event}"))
    if as_json:
        typer.echo(canonical({"lines": lines, "good": lines - len(bad), "bad": bad}))
    else:
        typer.echo(f"{lines:,} lines: {lines - len(bad):,} good, {len(bad):,} bad")
    if bad:
        raise typer.Exit(1)


def _said(number: int, refusal: Refused) -> dict[str, Any]:
    return {
        "line": number,
        "class": refusal.refusal_class,
        "path": refusal.path,
        "message": refusal.message,
    }
