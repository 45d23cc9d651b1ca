"""``errata run --embedded``: the whole chain in one process, on a file or a pipe."""

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from errata.contracts import canonical
from errata.errors import Misconfigured
from errata.runtime.crash_points import CrashPoints
from errata.settings import read_settings
from errata_services.bootstrap import data_folder, embedded_parts
from errata_services.cli.lines import STDIN, existing
from errata_services.cli.reports import summary_lines, teller
from errata_services.embedded import Embedded, Summary

app = typer.Typer()


@app.command()
def run(
    file: Annotated[Path, typer.Option("--input", help="JSONL of events; - reads standard input.")],
    embedded: Annotated[bool, typer.Option("--embedded", help="All stages in this process, without Kafka.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Lines of one transaction, at most; 1 to 5,000.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
    data: Annotated[Path | None, typer.Option(help="Data folder; the platform's by default.")] = None,
) -> None:
    """Judge the events of FILE and write the cases into the catalogue.

    A line with event_id is a prediction, with outcome_id an outcome, with change_id a change. A run that was killed
    goes on where it stopped; the same file again changes nothing.
    """
    if not embedded:
        raise Misconfigured("run: say --embedded; the services on Kafka come with the next release")
    settings = read_settings()
    size = settings.batch_size if batch_size is None else batch_size
    if not 1 <= size <= 5_000:
        raise Misconfigured(f"--batch-size: from 1 to 5,000, not {size:,}")
    existing(file)
    console, progress_console = Console(quiet=as_json), Console(stderr=True)
    with ExitStack() as stack:
        parts = stack.enter_context(embedded_parts(data_folder(data)))
        chain = Embedded(
            parts,
            batch_size=size,
            now_us=time.time_ns() // 1000,
            crash=CrashPoints.from_environment(os.environ),
            instance=settings.instance,
        )
        stack.callback(chain.close)
        bar = Progress(
            TextColumn("judging"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
            console=progress_console, disable=not progress_console.is_terminal,
        )  # fmt: skip
        stack.enter_context(bar)
        path = None if file == STDIN else file
        task = bar.add_task("judging", total=None if path is None else path.stat().st_size)
        stream: BinaryIO = sys.stdin.buffer if path is None else stack.enter_context(path.open("rb"))
        summary = chain.run(stream, path=path, on_case=teller(console), on_bytes=lambda n: bar.update(task, advance=n))
    if as_json:
        typer.echo(canonical(plain(summary)))
    else:
        for line in summary_lines(summary):
            typer.echo(line)
        if summary.opened or summary.reopened:
            typer.echo("Look at them: errata cases list")


def plain(summary: Summary) -> dict[str, object]:
    return {
        "lines": summary.lines,
        "resumed_at_bytes": summary.resumed_at_bytes,
        "dead_letters": [
            {"class": letter.class_, "path": letter.path, "message": letter.message, "topic": letter.topic}
            for letter in summary.dead
        ],
        "dropped": summary.dropped,
        "late": summary.late,
        "clamped": summary.clamped,
        "opened": summary.opened,
        "reopened": summary.reopened,
        "closed": summary.closed,
        "open_windows": [
            {"model": window.model, "events": window.events, "outcomes": window.outcomes}
            for window in summary.open_windows
        ],
    }
