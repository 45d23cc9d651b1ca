"""``errata context rebuild``: fills the enrichers' context store from the topic of changes."""

from contextlib import closing
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from errata.contracts import canonical
from errata.settings import read_service_settings
from errata_services.bootstrap import context_store, kafka_transport
from errata_services.enricher import rebuild_context

CALL_TIMEOUT_S = 5.0  # of a call to Redis: a person waits rather than begins anew

app = typer.Typer(no_args_is_help=True, help="What enrichers know of changes.")


@app.callback()
def context() -> None:
    """What enrichers know of changes."""


@app.command()
def rebuild(as_json: Annotated[bool, typer.Option("--json", help="Canonical JSON instead of text.")] = False) -> None:
    """Fill Redis from errata.changes.v1, while enrichers run or before they do. To do it again does no harm.

    Enrichers do it themselves when they find Redis empty; do it first and no case has to wait for it.
    """
    console = Console(stderr=True)
    settings = read_service_settings()
    store = context_store(settings, CALL_TIMEOUT_S)
    transport = kafka_transport(settings)
    with (
        closing(store),
        closing(transport),
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        store.check()
        bar = progress.add_task("reading changes", total=None)
        count = rebuild_context(transport, store, lambda done, total: progress.update(bar, completed=done, total=total))
    if as_json:
        typer.echo(canonical({"changes": count}))
    else:
        typer.echo(f"{count:,} {'change' if count == 1 else 'changes'} read; the context store has them all")
