"""``errata demo``: real census predictions with their real failure and four planted ones, through the whole chain."""

import shlex
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from errata.contracts import FailureCase, PredictionEvent, canonical
from errata.contracts.topics import CONTRACTS, REFERENCES
from errata.domain.catalogue.queries import CaseQuery
from errata.domain.profiles import build_reference
from errata.errors import Misconfigured
from errata.settings import read_settings
from errata_services.bootstrap import Parts, data_folder, embedded_parts, publish_tables
from errata_services.cli.cases import case_lines
from errata_services.cli.reports import summary_lines, teller
from errata_services.demo import stream
from errata_services.embedded import Embedded, Summary

app = typer.Typer()

Item = TypeVar("Item")

MARKER = "this-is-an-errata-demo"  # only a folder with this file in it is ever emptied
STORY = (
    "Census employment predictions (US Census ACS PUMS): {clean:,} rows of 2016, then {vanished:,} of 2017 and 2018. "
    "Rows, scores and outcomes are real, and so is the failure at the end. Times and latencies are simulated. {planted}"
)
PLANTED = "The four failures before it and the deploys are planted by seed {seed}."
NOT_PLANTED = "Nothing is planted but a few deploys."


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Where the planted failures lie, and in which order.")] = 1,
    plant: Annotated[bool, typer.Option(help="Plant failures into the clean part.")] = True,
    real_block: Annotated[bool, typer.Option(help="Keep the block of group quarters in the real part.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="The cases as a JSON list.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of the demo; made anew each time.")] = None,
) -> None:
    """Run the whole chain on real census predictions: see failures become cases. Needs nothing but this package."""
    folder = fresh_folder(data)
    plan = stream.plan(seed, plant=plant, real_block=real_block)
    console = Console(quiet=as_json)
    if not as_json:
        planted = PLANTED.format(seed=seed) if plant else NOT_PLANTED
        vanished = stream.VANISHED_ROWS if real_block else stream.VANISHED_ROWS - len(stream.BLOCK)
        console.print(STORY.format(clean=stream.CLEAN_ROWS, vanished=vanished, planted=planted), highlight=False)
        console.print()
    with embedded_parts(folder) as parts:
        summary = play(parts, plan, console, read_settings().batch_size)
        found = parts.catalogue.cases(CaseQuery(limit=1_000))
    if as_json:
        typer.echo(canonical([case.model_dump(mode="json", by_alias=True, exclude_none=True) for case in found]))
        return
    console.print()
    for case_line in case_lines(found, console.width):
        console.print(case_line, no_wrap=True, overflow="ellipsis")
    console.print()
    for line in summary_lines(summary):
        console.print(line, highlight=False, soft_wrap=True)
    for line in next_steps(found, folder):
        console.print(line, highlight=False, soft_wrap=True)


def fresh_folder(option: Path | None) -> Path:
    """An empty folder for the demo. Only one that a demo made before is emptied."""
    folder = option or data_folder(None) / "demo"
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise Misconfigured(f"--data: {folder} holds something that is no demo; name an empty folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / MARKER).touch()
    return folder


def play(parts: Parts, plan: stream.DemoPlan, console: Console, batch_size: int) -> Summary:
    """Apply contract and reference, then send the stream through the chain, telling of cases as they open."""
    contract = stream.contract()
    reference_rows = (PredictionEvent.model_validate_json(line) for line in stream.reference_events())
    with ExitStack() as stack:
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        stack.enter_context(bar)
        learning = bar.add_task("learning what is normal", total=stream.REFERENCE_ROWS)
        reference = build_reference(_ticking(reference_rows, bar, learning), contract, dataset="census 2015")
        publish_tables(parts.transport, {CONTRACTS: contract, REFERENCES: reference})
        judging = bar.add_task("judging", total=stream.count(plan))
        chain = Embedded(parts, batch_size=batch_size, now_us=time.time_ns() // 1000)
        stack.callback(chain.close)
        lines = _ticking((line + b"\n" for line in stream.events(plan)), bar, judging)
        return chain.feed(_batches(lines, batch_size), teller(bar.console))


def _ticking(items: Iterable[Item], bar: Progress, task: TaskID) -> Iterator[Item]:
    done = 0
    for item in items:
        yield item
        done += 1
        if done % 200 == 0:
            bar.update(task, completed=done)
    bar.update(task, completed=done)


def _batches(lines: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while batch := list(islice(lines, size)):
        yield batch


def next_steps(cases: list[FailureCase], folder: Path) -> list[str]:
    where = f" --data {shlex.quote(str(folder))}"
    first = cases[0].short_id if cases else "CASE-1"
    return [
        "",
        "What to type next:",
        f"  errata cases show {first}{where}",
        f"  errata cases search latency{where}",
        f"  errata cases ack {first}{where}",
        f"  errata models{where}",
    ]
