"""``errata catalog``: the database of the catalogue. The cases in it are looked at with ``errata cases``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.contracts import canonical
from errata.errors import Misconfigured
from errata.settings import read_service_settings
from errata_services.bootstrap import CATALOGUE_FILE, make_folder, service_catalogue

if TYPE_CHECKING:
    from errata.adapters.sql import SqlCatalogue

app = typer.Typer(no_args_is_help=True, help="The catalogue's database: migrate, check.")

Data = Annotated[
    Path | None, typer.Option("--data", help="The SQLite catalogue of this data folder; default: ERRATA_DATABASE_URL.")
]
Json = Annotated[bool, typer.Option("--json", help="Canonical JSON instead of text.")]
GrantTo = Annotated[
    str | None,
    typer.Option("--grant-to", metavar="ROLE", help="Give this role of PostgreSQL the rights of a writer, no more."),
]


@app.command()
def migrate(grant_to: GrantTo = None, json: Json = False, data: Data = None) -> None:
    """Make the tables, or bring them to this version's schema. Twice, or two at once, does no harm."""
    with _catalogue(data) as catalogue:
        before = catalogue.schema()
        catalogue.migrate(grant_to)
        after = catalogue.schema()
    if json:
        _put({"before": before, "after": after, "granted_to": grant_to})
        return
    moved = f"migrated from {before or 'empty'} to {after}" if before != after else f"at schema {after} already"
    typer.echo(f"The catalogue is {moved}." + (f" {grant_to} has the rights of a writer." if grant_to else ""))


@app.command()
def check(json: Json = False, data: Data = None) -> None:
    """Say whether this version can work on the database; exit code 78 if not."""
    if data is not None and not (data / CATALOGUE_FILE).is_file():
        raise Misconfigured("--data: the folder has no catalogue; run `errata catalog migrate` with the same --data")
    with _catalogue(data) as catalogue:
        catalogue.check()
        schema = catalogue.schema()
    if json:
        _put({"schema": schema})
    else:
        typer.echo(f"The catalogue is at schema {schema}, which this errata knows.")


@contextmanager
def _catalogue(data: Path | None) -> Iterator["SqlCatalogue"]:
    if data is None:
        catalogue = service_catalogue(read_service_settings(), "migrate")
    else:
        from errata.adapters.sql import SqlCatalogue

        make_folder(data)
        catalogue = SqlCatalogue.of_file(data / CATALOGUE_FILE)
    try:
        yield catalogue
    finally:
        catalogue.close()


def _put(value: Any) -> None:
    typer.echo(canonical(value))
