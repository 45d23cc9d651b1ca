"""``errata dev up|down|status``: the chain and its servers on your own machine, without containers."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from errata.adapters.kafka import apply_topics
from errata.contracts import canonical
from errata.contracts.topics import STAGES
from errata.runtime.telemetry import KEEPER
from errata.settings import read_service_settings
from errata_services.bootstrap import service_catalogue
from errata_services.dev import workplace
from errata_services.dev.processes import free_port

app = typer.Typer(no_args_is_help=True, help="The chain with its servers on this machine, from installed programs.")

Data = Annotated[Path | None, typer.Option("--data", help="Their data folder; dev in the platform's by default.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of lines; without passwords.")]


@app.command()
def up(
    data: Data = None,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background; down ends it.")] = False,
    servers_only: Annotated[bool, typer.Option("--servers-only", help="Kafka, Redis and PostgreSQL alone.")] = False,
) -> None:
    """Start Kafka, Redis, PostgreSQL, the four services and the keeper, and print their addresses for a shell.

    In a shell: eval "$(errata dev up --detach)". Without --detach they run until Ctrl-C. Topics and tables are made.
    Data and ports of the servers stay the same from one time to the next.
    """
    folder = data or workplace.default_folder()
    if detach:
        command = [sys.executable, "-m", "errata_services.cli", "dev", "up", "--data", str(folder)]
        _put_exports(workplace.up_detached(folder, command + ["--servers-only"] * servers_only).environment)
        return
    _say(f"starting Kafka, Redis and PostgreSQL in {folder}")
    if servers_only:
        workplace.up(folder, announce=_announce, say=_say)
    else:
        commands = [_command(name) for name in (*STAGES, KEEPER)]
        workplace.up(folder, commands=commands, prepare=_prepare, announce=_announce, say=_say)


def _command(service: str) -> list[str]:
    """A service with a port of its own for health and metrics."""
    port = free_port()
    _say(f"{service}: health and metrics on http://127.0.0.1:{port}")
    return ["env", f"ERRATA_HTTP_PORT={port}", sys.executable, "-m", "errata_services.cli", "run", service]


def _prepare(environment: Mapping[str, str]) -> None:
    """Topics and tables for the services, which start when this is done."""
    settings = read_service_settings(environment)
    apply_topics(settings.kafka, settings.topic_prefix)
    catalogue = service_catalogue(settings, "migrate")
    catalogue.migrate()
    catalogue.close()


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
