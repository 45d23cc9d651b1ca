"""``errata ledger audit``: the receipts of the chain against each other."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from errata.contracts import Receipt, canonical
from errata.contracts.topics import LEDGER
from errata.domain.ledger import FLOWS, Audit, Head, audit, judged_from_us, reached
from errata.ports import Transport
from errata.settings import read_service_settings
from errata_services.bootstrap import embedded_parts, kafka_transport

app = typer.Typer(no_args_is_help=True, help="Receipts of all transactions: was anything lost or doubled?")


@app.callback()
def ledger() -> None:
    """Receipts of all transactions: was anything lost or doubled?"""


@app.command("audit")
def audit_command(
    as_json: Annotated[bool, typer.Option("--json", help="Canonical JSON instead of a table.")] = False,
    data: Annotated[Path | None, typer.Option(help="A data folder instead of Kafka.")] = None,
) -> None:
    """Check every receipt that is kept; exit 1 when something was lost, doubled or is unaccounted for.

    A gap is a loss, an overlap a duplicate; what a stage put out its successor read, or it waits there. The chain may
    run meanwhile.
    """
    console = Console(stderr=True)
    with ExitStack() as stack:
        if data is None:
            transport: Transport = stack.enter_context(closing(kafka_transport(read_service_settings())))
        else:
            transport = stack.enter_context(embedded_parts(data)).transport
        bar = stack.enter_context(Progress(console=console, transient=True, disable=not console.is_terminal))
        task = bar.add_task("reading receipts", total=None)
        found, whole = read_audit(transport, lambda done: bar.update(task, completed=done))
    if as_json:
        plain = asdict(found)
        for fault in plain["faults"]:
            del fault["time_us"]  # which is for those who take receipts as they come
        typer.echo(canonical({"balanced": whole, **plain}))
    else:
        _put(found, whole)
    if found.faults:
        raise typer.Exit(1)


def read_audit(transport: Transport, on_progress: Callable[[int], None] = lambda done: None) -> tuple[Audit, bool]:
    """The audit of a chain's ledger, and whether flows between stages were judged: not when receipts have expired."""
    receipts: list[Receipt] = []
    times_us: list[int] = []
    positions, heads = {}, []
    places = [(LEDGER, number) for number in range(transport.partitions(LEDGER))]
    begins = transport.begin_offsets(places)
    for place in places:
        end, first = transport.end_offset(place), None
        for record in transport.read_from(place):
            first = record.timestamp_us if first is None else first
            end = max(end, record.offset + 1)
            receipts.append(Receipt.model_validate_json(record.value or b""))
            times_us.append(record.timestamp_us)
            on_progress(len(receipts))
        positions[place] = end
        heads.append(Head(begins[place], first))
    if not all(head.whole for head in heads):
        from_us = judged_from_us(heads, time.time_ns() // 1_000)
        return audit([one for one, at_us in zip(receipts, times_us, strict=True) if at_us >= from_us]), False
    ends = reached(receipts)
    waiting = {
        flow.topic: sum(
            1
            for number in range(transport.partitions(flow.topic))
            for _ in transport.read_from((flow.topic, number), ends.get((flow.reader, flow.topic, number), 0))
        )
        for flow in FLOWS
    }
    later = [
        Receipt.model_validate_json(record.value or b"")
        for place, end in positions.items()
        for record in transport.read_from(place, end)
    ]
    return audit(receipts, FLOWS, waiting, later), True


def _put(found: Audit, whole: bool) -> None:
    console = Console()
    if not found.accounts:
        console.print("No receipts: nothing has been processed yet.")
        return
    table = Table("stage", "transactions", "delivered", "out", "dead letters", "dropped", box=None, pad_edge=False)
    for one in found.accounts:
        table.add_row(one.stage, *(f"{n:,}" for n in (one.receipts, one.delivered, one.out, one.dlq, one.dropped)))
    console.print(table)
    for fault in found.faults:
        where = f"{fault.topic} partition {fault.partition} at {fault.at:,}" if fault.partition >= 0 else fault.topic
        console.print(f"{fault.kind}: {fault.stage}, {where}: {abs(fault.records):,} records", style="bold red")
    if not whole:
        console.print("The first receipts have expired, so what passed between stages is not judged.", style="yellow")
    if not found.faults:
        console.print("Nothing lost, nothing doubled.", style="green")
