"""``errata topics``: the topics on the cluster against those that errata needs."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from errata.adapters.kafka import TopicChange, apply_topics, plan_topics
from errata.contracts import canonical
from errata.domain.catalogue.text import clean
from errata_services.bootstrap import kafka_connection

app = typer.Typer(no_args_is_help=True, help="The topics on Kafka: see what differs, and make them.")

Json = Annotated[bool, typer.Option("--json", help="A JSON list instead of a table.")]

_STYLE = {
    "create": "green",
    "grow": "green",
    "set": "yellow",
    "offsets": "cyan",
    "warn": "bold yellow",
    "refuse": "bold red",
}


@app.command()
def plan(as_json: Json = False) -> None:
    """Show what apply would do; exit 1 when it would refuse. Changes nothing."""
    properties, prefix = kafka_connection()
    changes = plan_topics(properties, prefix)
    _put(changes, as_json, "Nothing to do: the topics are as errata needs them.")
    if any(change.action == "refuse" for change in changes):
        raise typer.Exit(1)


@app.command()
def apply(as_json: Json = False) -> None:
    """Make topics that are missing, set what differs, and let groups without an offset begin at the earliest.

    Refuses what would break the order of keys or the place of state, and then does nothing at all.
    """
    properties, prefix = kafka_connection()
    changes = apply_topics(properties, prefix)
    _put(changes, as_json, "Nothing was to do: the topics are as errata needs them.")


def _put(changes: Sequence[TopicChange], as_json: bool, nothing: str) -> None:
    if as_json:
        typer.echo(
            canonical([{"action": change.action, "topic": change.topic, "what": change.what} for change in changes])
        )
        return
    if not changes:
        typer.echo(nothing)
        return
    table = Table("action", "topic", "what", box=None, pad_edge=False)
    for change in changes:
        action = Text(change.action, style=_STYLE[change.action])
        table.add_row(action, Text(clean(change.topic)), Text(clean(change.what, 300)))
    Console().print(table)
