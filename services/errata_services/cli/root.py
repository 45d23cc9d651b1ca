"""``errata``: the whole story in one command line."""

from typing import Annotated

import typer

from errata import __version__
from errata.settings import read_settings
from errata_services.cli import (
    cases,
    catalog,
    context,
    contracts,
    demo,
    dev,
    dlq,
    ledger,
    models,
    references,
    run,
    state,
    topics,
    trends,
    validate,
)

HELP = """Turn the prediction events of ML models into a catalogue of failure cases.

Start with [bold]errata demo[/bold]. For your own model: [bold]errata contract infer[/bold] and
[bold]errata reference build[/bold] from events of good days, [bold]apply[/bold] both, then
[bold]errata run --embedded --input FILE[/bold], and look with [bold]errata cases list[/bold].

On Kafka: [bold]errata dev up[/bold] starts servers on this machine, or name your own by
ERRATA_KAFKA__BOOTSTRAP_SERVERS. Then [bold]errata topics apply[/bold], [bold]errata catalog migrate[/bold], and
[bold]errata run SERVICE[/bold] for each of anomaly-detector, enricher, tagger, catalog-writer and keeper.

Exit codes: 0 done, 1 something was found wrong, 2 the command line is wrong, 70 an invariant is broken,
75 try again, 78 a setting or file is wrong. Read commands take --json. NO_COLOR is honoured.
"""

app = typer.Typer(no_args_is_help=True, help=HELP, rich_markup_mode="rich", pretty_exceptions_enable=False)
app.add_typer(demo.app)
app.add_typer(run.app)
app.add_typer(cases.app, name="cases")
app.add_typer(models.app)
app.add_typer(validate.app)
app.add_typer(contracts.app, name="contract")
app.add_typer(references.app, name="reference")
app.add_typer(catalog.app, name="catalog")
app.add_typer(context.app, name="context")
app.add_typer(dev.app, name="dev")
app.add_typer(ledger.app, name="ledger")
app.add_typer(dlq.app, name="dlq")
app.add_typer(state.app, name="state")
app.add_typer(topics.app, name="topics")
app.add_typer(trends.app, name="trends")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"errata {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    read_settings()  # a variable nobody knows is told before anything is done
