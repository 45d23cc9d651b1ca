"""``errata run``: one service of the chain on Kafka, or with ``--embedded`` the whole chain in one process."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from threading import Event
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from errata.contracts import canonical
from errata.contracts.topics import STAGES, TRENDS_SERVICE
from errata.errors import Misconfigured
from errata.runtime.crash_points import CrashPoints
from errata.runtime.service import calm_collector, read_again_on_signal, stop_on_signals
from errata.runtime.telemetry import KEEPER as KEEPER_SERVICE
from errata.settings import read_service_settings, read_settings
from errata_services.bootstrap import data_folder, embedded_parts, state_limits
from errata_services.cli.lines import STDIN, existing
from errata_services.cli.reports import summary_lines, teller
from errata_services.dev.supervisor import Supervisor
from errata_services.embedded import Embedded, Summary
from errata_services.processes import run_service

TICK_S = 0.2

app = typer.Typer()


class OnRewind(StrEnum):
    STOP, REBUILD = "stop", "rebuild"


class Service(StrEnum):
    DETECTOR, ENRICHER, TAGGER, WRITER = STAGES
    TRENDS = TRENDS_SERVICE
    KEEPER = KEEPER_SERVICE


@app.command()
def run(
    service: Annotated[Service | None, typer.Argument(help="The service to run, on Kafka.", show_default=False)] = None,
    supervise: Annotated[bool, typer.Option("--supervise", help="Start the service again when it may go on.")] = False,
    leave: Annotated[
        bool,
        typer.Option("--leave", help="Tell the group at the end: others take over at once. For scaling in."),
    ] = False,
    on_rewind: Annotated[
        OnRewind | None,
        typer.Option(help="When the anomaly-detector's group was set back: stop with 70, or make its state anew."),
    ] = None,
    embedded: Annotated[bool, typer.Option("--embedded", help="All stages in this process, without Kafka.")] = False,
    file: Annotated[Path | None, typer.Option("--input", help="JSONL of events; - reads standard input.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Lines of one transaction, at most; 1 to 5,000.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON object.")] = False,
    data: Annotated[Path | None, typer.Option(help="Data folder; the platform's by default.")] = None,
) -> None:
    """Run a service of the chain until SIGTERM, or with --embedded judge the events of a file.

    A service is set up by variables: ERRATA_KAFKA__BOOTSTRAP_SERVERS, ERRATA_KEY, ERRATA_REDIS_URL for the enricher,
    ERRATA_DATABASE_URL for the catalog-writer and the keeper. Run as many of each as there are partitions,
    ERRATA_INSTANCE telling them apart. One that is stopped keeps its partitions for the session time-out, so that a
    restart moves none; with --leave (or ERRATA_LEAVE=true) the others get them at once. trends needs errata[trends],
    and always tells its group.

    The keeper writes ticks and heartbeats and audits the ledger. Of several one leads, the others wait to take over; it
    needs no key.

    Embedded, a line with event_id is a prediction, with outcome_id an outcome, with change_id a change. A run that was
    killed goes on where it stopped; the same file again changes nothing.
    """
    if embedded == (service is not None):
        raise Misconfigured("run: name one service, or say --embedded --input FILE")
    if service is not None:
        if supervise:
            options = [*(["--leave"] if leave else []), *(["--on-rewind", on_rewind] if on_rewind else [])]
            _supervised(service.value, options)
        else:
            settings = read_service_settings()
            given = {"leave": leave or settings.leave, "on_rewind": on_rewind or settings.on_rewind}
            run_service(service.value, settings.model_copy(update=given))
        return
    if on_rewind:
        raise Misconfigured("--on-rewind: is for a service on Kafka; leave it out with --embedded")
    if leave:
        raise Misconfigured("--leave: is for a service on Kafka; leave it out with --embedded")
    if file is None:
        raise Misconfigured("--input: is missing; name a JSONL file, or - for standard input")
    _embedded(file, batch_size, as_json, data)


def _supervised(service: str, options: Sequence[str]) -> None:
    """Keep a service running. Ends when it is asked to, or with the service's exit code when that is final."""
    read_service_settings()  # faults are told at once, not by a child
    stopping = Event()
    stop_on_signals(stopping)
    command = [sys.executable, "-m", "errata_services.cli", "run", *options, service]
    supervisor = Supervisor([command], {}, None, lambda line: typer.echo(line, err=True))
    read_again_on_signal(supervisor.read_again)
    try:
        while not stopping.is_set():
            supervisor.tick(time.monotonic())
            if supervisor.given_up:
                raise typer.Exit(supervisor.given_up[0].exit_code or 1)
            stopping.wait(TICK_S)
    finally:
        supervisor.stop()


def _embedded(file: Path, batch_size: int | None, as_json: bool, data: Path | None) -> None:
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
            limits=state_limits(settings.state_mib),
        )
        stack.callback(chain.close)
        calm_collector()
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
