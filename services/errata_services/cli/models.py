"""``errata models``: which models events came from, and what they are judged by."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from errata.contracts import canonical
from errata.domain.catalogue.text import clean
from errata.domain.detection import state as at
from errata_services.bootstrap import data_folder, embedded_parts
from errata_services.embedded import Embedded

app = typer.Typer()


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list.")] = False,
    data: Annotated[Path | None, typer.Option(help="Data folder; the platform's by default.")] = None,
) -> None:
    """List the models seen so far, how they are judged and where their windows stand."""
    with embedded_parts(data_folder(data)) as parts:
        found = _models(Embedded(parts, batch_size=1, now_us=0))
    if as_json:
        typer.echo(canonical(found))
        return
    if not found:
        typer.echo("No model yet. Try: errata demo")
        return
    table = Table("model", "events", "late", "windows", "open window", "judged by", box=None, pad_edge=False)
    for model in found:
        table.add_row(
            Text(clean(model["model"])),  # a name is no markup
            f"{model['events']:,}",
            f"{model['late']:,}",
            f"{model['windows']:,}",
            f"{model['open_window']} of 500",
            model["judged_by"],
        )
    Console().print(table)


def _models(chain: Embedded) -> list[dict[str, Any]]:
    chain.drain()
    found = []
    for slot in sorted(chain.detector.slots, key=lambda slot: slot.key):
        fixed = chain.detector.state.fixed[slot.index]
        layout = slot.profile.layout
        found.append(
            {
                "tenant": slot.tenant,
                "model": slot.model,
                "purpose": slot.purpose,
                "events": int(fixed[at.EVENTS]),
                "late": int(fixed[at.LATE]),
                "windows": int(fixed[at.WINDOWS]),
                "open_window": int(fixed[at.FILL]),
                "outcomes": int(fixed[at.OUTCOMES]),
                "contract": slot.profile.contract_hash,
                "reference": slot.profile.reference_hash,
                "judged_by": _judged_by(layout.contract is not None, layout.reference is not None),
            }
        )
    chain.close()
    return found


def _judged_by(contract: bool, reference: bool) -> str:
    if contract and reference:
        return "contract and reference"
    if contract:
        return "contract only: no reference, so event findings only"
    if reference:
        return "reference only: no contract, so no features"
    return "neither: event findings only (errata contract infer, errata reference build)"
