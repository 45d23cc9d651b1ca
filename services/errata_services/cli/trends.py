"""``errata trends``: cases opened and findings in windows of time, and the count of them begun anew."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated
from uuid import uuid4

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from errata.contracts import canonical
from errata.contracts.strict import instant, rfc3339
from errata.contracts.topics import TAGGED, TRENDS
from errata.domain.catalogue.text import clean
from errata.domain.trends import SIZE_S, STEP_S, WINDOWS, Counts, Window
from errata.ports import Outgoing, Transport
from errata.settings import read_service_settings
from errata_services.bootstrap import kafka_transport, remake_state
from errata_services.trends import GROUP, STATE, read_trends

NEWEST = 6  # windows that are shown unless told: those that hold the newest moment

app = typer.Typer(no_args_is_help=True, help="Cases opened and findings in windows of time.")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which windows are asked for; None is any."""

    tenant: str | None
    model: str | None
    detector: str | None
    tag: str | None
    severity: str | None
    newest: int


@app.command()
def show(
    model: Annotated[str | None, typer.Option(help="Of this model only.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant only.")] = None,
    detector: Annotated[str | None, typer.Option(help="Of this detector only.")] = None,
    tag: Annotated[str | None, typer.Option(help="With this tag only.")] = None,
    severity: Annotated[str | None, typer.Option(help="critical, high, medium, low or info.")] = None,
    newest: Annotated[int, typer.Option(min=1, help="How many window starts, the newest first.")] = NEWEST,
    as_json: Annotated[bool, typer.Option("--json", help="Canonical JSON instead of a table.")] = False,
) -> None:
    """Show the newest windows as the service trends has counted them (errata run trends).

    Windows overlap: each moment lies in six of them, so their numbers must not be added up. A case counts once for each
    of its tags. Times are event times.
    """
    with closing(kafka_transport(read_service_settings())) as transport:
        counted = read_trends(transport)
    found = wanted(counted, Wanted(tenant, model, detector, tag, severity, newest))
    if as_json:
        typer.echo(canonical({"size_s": SIZE_S, "step_s": STEP_S, "windows": [plain(one) for one in found]}))
        return
    _put(found)


@app.command()
def rebuild(
    sure: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget all counts, so that the service counts the whole of errata.tagged.v1 again when it is started.

    Stop every errata run trends before. What the topic no longer holds is not counted again. Stopped halfway, run it
    again.
    """
    if not sure:
        typer.confirm(f"Forget the counts of all windows, and count {TAGGED} again from its beginning?", abort=True)
    settings = read_service_settings()
    console = Console(stderr=True)
    with ExitStack() as stack:
        transport = stack.enter_context(closing(kafka_transport(settings)))
        bar = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        task = bar.add_task("taking windows back", total=None)
        dropped: list[int] = []

        def between() -> None:
            dropped.append(take_back(transport, lambda done: bar.update(task, completed=done)))

        remake_state(settings, state=STATE, group=GROUP, inputs=(TAGGED,), between=between)
    typer.echo(f"{dropped[0]:,} windows of single partitions were taken back. Start errata run trends: it counts anew.")


def take_back(transport: Transport, on_progress: Callable[[int], None] = lambda done: None) -> int:
    """Delete every window from ``errata.trends.v1``; how many records of it there were."""
    done = 0
    producer = transport.producer(f"errata.trends-{uuid4().hex}")
    for number in range(transport.partitions(TRENDS)):
        held: dict[bytes, bool] = {}
        for record in transport.read_from((TRENDS, number)):
            held[record.key or b""] = record.value is not None
        keys = [key for key, there in held.items() if there]
        if not keys:
            continue
        producer.begin()
        for key in keys:
            producer.produce(Outgoing(TRENDS, key, None, partition=number))
        producer.commit()
        done += len(keys)
        on_progress(done)
    producer.close()
    return done


def wanted(counted: dict[Window, Counts], asked: Wanted) -> list[tuple[Window, Counts]]:
    """The newest windows that are asked for: the newest first, and in one the most findings first."""
    fields = {name: getattr(asked, name) for name in ("tenant", "model", "detector", "tag", "severity")}
    held = [
        (window, counts)
        for window, counts in counted.items()
        if all(value is None or getattr(window.group, name) == value for name, value in fields.items())
    ]
    starts = sorted({window.start_s for window, _ in held})[-asked.newest :]
    shown = [one for one in held if one[0].start_s in starts]
    return sorted(shown, key=lambda one: (-one[0].start_s, -one[1].findings, one[0].group))


def plain(one: tuple[Window, Counts]) -> dict[str, object]:
    window, counts = one
    start = instant(window.start_s * 1_000_000)
    return {
        "window_start": rfc3339(start),
        "window_end": rfc3339(start + timedelta(seconds=SIZE_S)),
        **window.group._asdict(),
        **counts._asdict(),
    }


def _put(found: list[tuple[Window, Counts]]) -> None:
    console = Console()
    if not found:
        console.print("No windows: nothing was counted yet. Is errata run trends running?")
        return
    table = Table(
        "window from",
        "to",
        "model",
        "detector",
        "tag",
        "severity",
        "cases opened",
        "findings",
        box=None,
        pad_edge=False,
    )
    for window, counts in found:
        start = instant(window.start_s * 1_000_000)
        group = window.group
        model = group.model if group.tenant == "default" else f"{group.tenant}/{group.model}"
        words = (model, group.detector, group.tag or "-", group.severity)
        table.add_row(
            f"{start:%Y-%m-%d %H:%M}",
            f"{start + timedelta(seconds=SIZE_S):%H:%M}",
            *(Text(clean(word)) for word in words),
            f"{counts.cases_opened:,}",
            f"{counts.findings:,}",
        )
    console.print(table)
    console.print(f"{WINDOWS}, by event time (UTC); they overlap, so do not add them up.", style="dim")
