"""``errata dev up|down|status``: real servers on your own machine, without containers."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from errata.contracts import canonical
from errata_services.dev import workplace

app = typer.Typer(no_args_is_help=True, help="Kafka, Redis and PostgreSQL on this machine, from installed programs.")

Data = Annotated[Path | None, typer.Option("--data", help="Their data folder; dev in the platform's by default.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of lines; without passwords.")]


@app.command()
def up(
    data: Data = None,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background; down ends it.")] = False,
) -> None:
    """Start the servers and print their addresses for a shell: eval "$(errata dev up --detach)".

    Without --detach they run until Ctrl-C. Data and ports stay the same from one time to the next.
    """
    folder = data or workplace.default_folder()
    if detach:
        _put_exports(workplace.up_detached(folder).environment)
        return
    _say(f"starting Kafka, Redis and PostgreSQL in {folder}")
    workplace.up(folder, announce=_announce, say=_say)


@app.command()
def down(data: Data = None) -> None:
    """Stop the servers; their data stays."""
    folder = data or workplace.default_folder()
    workplace.down(folder)
    _say(f"stopped; the data stays in {folder}")


@app.command()
def status(data: Data = None, as_json: Json = False) -> None:
    """Say what is up; exit 1 if anything is not."""
    found = workplace.status(data or workplace.default_folder())
    answering = found.answering()
    if as_json:
        servers = {name: {"address": at, "answers": answering[name]} for name, at in found.addresses.items()}
        typer.echo(
            canonical({"running": found.running, "pid": found.pid, "folder": str(found.folder), "servers": servers})
        )
    elif not found.running:
        typer.echo(f"{found.folder}: nothing is up")
    elif not found.addresses:
        typer.echo(f"process {found.pid}: starting or stopping")
    else:
        for name, address in found.addresses.items():
            typer.echo(f"{name:9} {address:21} {'answers' if answering[name] else 'does not answer'}")
    if not answering or not all(answering.values()):
        raise typer.Exit(1)


def _announce(environment: Mapping[str, str]) -> None:
    _put_exports(environment)
    _say("ready; Ctrl-C ends them")


def _put_exports(environment: Mapping[str, str]) -> None:
    typer.echo("\n".join(workplace.exports(environment)))
    sys.stdout.flush()


def _say(line: str) -> None:
    typer.echo(line, err=True)
