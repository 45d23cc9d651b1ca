"""``errata state``: what the stages know, as their changelogs hold it; and making it anew from the input."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from errata.contracts import canonical
from errata.contracts.strict import instant
from errata.contracts.topics import STAGES, state_topic
from errata.domain.catalogue.text import clean
from errata.errors import Misconfigured
from errata.runtime.rebuild import (
    HeldPartition,
    OnRecords,
    Rebuilt,
    held,
    newest_us,
    rebuild_partition,
    refuse_running,
)
from errata_services.anomaly_detector import CONFIG_HASH, AnomalyDetector
from errata_services.bootstrap import StateParts, state_parts

WITH_STATE = STAGES[:1]
GROUP = f"errata.{STAGES[0]}"
_UNITS_S = {"m": 60, "h": 3_600, "d": 86_400}

app = typer.Typer(no_args_is_help=True, help="What stages know: look at it, or make it anew from the input.")

Stage = Annotated[str, typer.Option("--stage", help="The stage; the anomaly-detector is the one that keeps state.")]
PartitionOption = Annotated[int | None, typer.Option("--partition", help="This partition alone.")]
Data = Annotated[Path | None, typer.Option("--data", help="A data folder instead of Kafka.")]
Json = Annotated[bool, typer.Option("--json", help="Canonical JSON instead of a table.")]


@app.command()
def show(
    stage: Stage = WITH_STATE[0],
    partition: PartitionOption = None,
    model: Annotated[str | None, typer.Option("--model", help="This model alone.")] = None,
    as_json: Json = False,
    data: Data = None,
) -> None:
    """Show what the changelog holds of each partition and model; the stage may run or not.

    Exit 1 when a partition could not be restored: its changelog is damaged, and the stage would stop with 70.
    """
    _check_stage(stage)
    with state_parts(data) as parts:
        found = list(_held(parts, stage, partition))
    if model is not None:
        found = [_only(one, model) for one in found]
    if as_json:
        typer.echo(canonical([asdict(one) for one in found]))
    else:
        _put(found)
    if any(one.fault for one in found):
        raise typer.Exit(1)


@app.command()
def rebuild(
    window: Annotated[str, typer.Option("--window", help="How much of the input to read again: 12h, 7d.")] = "7d",
    stage: Stage = WITH_STATE[0],
    partition: PartitionOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
    data: Data = None,
) -> None:
    """Make the state of a stopped stage anew from the input of the last days.

    For state that is damaged, behind, ahead, or of a configuration or release that this one cannot go on from. The
    window ends with the newest event that the stage has read; nothing that comes out is written, and what the stage
    reads next does not change. Contracts and references count as they are now. What lies before the window is
    forgotten: open episodes of then do not close, and duplicates of then are not known.

    Refused while the stage runs. If it is ended midway, run it again: until then the stage refuses the partition.
    """
    _check_stage(stage)
    window_us = _window_us(window)
    console = Console(stderr=True)
    with state_parts(data, judges=True) as parts:
        refuse_running(parts.transport, GROUP)
        numbers = _numbers(parts, stage, partition)
        if not yes:
            typer.confirm(f"Replace the state of {len(numbers)} partitions by that of the last {window}?", abort=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("reading the input", total=None)
            rebuilt = _rebuild(parts, numbers, window_us, lambda n: bar.update(task, advance=n))
    if as_json:
        typer.echo(
            canonical(
                [
                    {
                        "partition": one.partition,
                        "records": one.records,
                        "skipped": one.skipped,
                        "entries": len(one.entries),
                    }
                    for one in rebuilt
                ]
            )
        )
        return
    records, entries = sum(one.records for one in rebuilt), sum(len(one.entries) for one in rebuilt)
    typer.echo(f"{records:,} records read again; {entries:,} entries of state in {len(rebuilt)} partitions. Start it.")


def _rebuild(parts: StateParts, numbers: Sequence[int], window_us: int, on_records: OnRecords) -> list[Rebuilt]:
    def make() -> AnomalyDetector:
        return AnomalyDetector(
            parts.transport, parts.decoder, rekeys=parts.rekeys, plain=parts.plain, limits=parts.limits
        )

    topics = (AnomalyDetector.input, *AnomalyDetector.side_inputs)
    places = [(topic, number) for topic in topics for number in range(parts.transport.partitions(topic))]
    committed = parts.transport.group_offsets(GROUP, places)
    since_us = newest_us(parts.transport, topics, committed) - window_us
    rebuilt = []
    for number in numbers:
        refuse_running(parts.transport, GROUP)
        one = partial(rebuild_partition, make, parts.transport, number, committed, since_us)
        rebuilt.append(one(config_hash=CONFIG_HASH if parts.checks_config else "", on_records=on_records))
    return rebuilt


def _held(parts: StateParts, stage: str, partition: int | None) -> Iterator[HeldPartition]:
    for number in _numbers(parts, stage, partition):
        one = held(parts.transport, state_topic(stage), number)
        if one is not None:
            yield one


def _numbers(parts: StateParts, stage: str, partition: int | None) -> list[int]:
    count = parts.transport.partitions(state_topic(stage))
    if partition is None:
        return list(range(count))
    if not 0 <= partition < count:
        raise Misconfigured(f"--partition: from 0 to {count - 1}, not {partition}")
    return [partition]


def _only(one: HeldPartition, model: str) -> HeldPartition:
    return HeldPartition(
        one.partition, one.position, one.watermark_us, one.fault, one.records, one.bytes,
        [slot for slot in one.slots if slot.model == model],
    )  # fmt: skip


def _check_stage(stage: str) -> None:
    if stage in STAGES and stage not in WITH_STATE:
        raise Misconfigured(f"--stage: the {stage} keeps no state; the {WITH_STATE[0]} does")
    if stage not in STAGES:
        raise Misconfigured(f"--stage: there is no such stage; the {WITH_STATE[0]} is the one that keeps state")


def _window_us(text: str) -> int:
    """
    >>> _window_us("7d") == 7 * 86_400_000_000
    True
    """
    found = re.fullmatch(r"([1-9]\d{0,4})([mhd])", text)
    if found is None:
        raise Misconfigured("--window: a number of minutes, hours or days: 90m, 12h, 7d")
    return int(found[1]) * _UNITS_S[found[2]] * 1_000_000


def _put(found: Sequence[HeldPartition]) -> None:
    console = Console()
    if not found:
        console.print("No state: nothing has been processed yet.")
        return
    table = Table("partition", "whole", "records", "bytes", "models", "watermark", "read up to", box=None)
    for one in found:
        whole = Text("yes", "green") if one.fault is None else Text(one.fault, "bold red")
        places = ", ".join(f"{topic} {offset:,}" for topic, offset in sorted(one.position.items()))
        table.add_row(
            str(one.partition), whole, f"{one.records:,}", f"{one.bytes:,}", f"{len(one.slots):,}",
            _time(one.watermark_us), places,
        )  # fmt: skip
    console.print(table)
    slots = Table("partition", "model", "events", "outcomes", "last seen", "open episode", box=None)
    for one in found:
        for slot in one.slots:
            name = slot.model if slot.tenant == "default" else f"{slot.tenant}/{slot.model}"
            name = name if slot.purpose == "live" else f"{name} ({slot.purpose})"
            slots.add_row(
                str(one.partition), Text(clean(name)), f"{slot.events:,}", f"{slot.outcomes:,}",
                _time(slot.last_seen_us), slot.open_episode or "",
            )  # fmt: skip
    if slots.row_count:
        console.print()
        console.print(slots)


def _time(us: int | None) -> str:
    return "" if us is None else instant(us).isoformat(timespec="seconds")
