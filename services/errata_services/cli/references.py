"""``errata reference build|show|apply``: a model's known-good profile, made of events people trust."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from errata.contracts import Contract, Reference
from errata.contracts.models import CategorySketch, NumberSketch, Sketch
from errata.contracts.reading import read_message
from errata.domain.inference import infer_contract
from errata.domain.profiles import build_reference, content_hash
from errata.errors import Misconfigured, NotFound, Refused
from errata_services.cli.contracts import predictions, sound_contract, warn_of_refused
from errata_services.cli.lines import STDIN, existing, printable

app = typer.Typer(no_args_is_help=True, help="A model's known-good profile.")


@app.command()
def build(
    file: Annotated[Path, typer.Argument(help="JSONL of predictions from when all was well; - reads standard input.")],
    contract: Annotated[Path | None, typer.Option(help="The model's contract; without it, --model infers one.")] = None,
    model: Annotated[str | None, typer.Option(help="The model, when there is no contract yet.")] = None,
    dataset: Annotated[str | None, typer.Option(help="What the events are; the file's name by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write here instead of to standard output.")] = None,
) -> None:
    """Build a reference from the events of a file: exact counts, feature by feature."""
    refused: list[str] = []
    try:
        reference = _built(file, contract, model, dataset or file.name, refused)
    except ValueError as error:
        raise NotFound(f"{file}: {error}") from error
    if out is None:
        typer.echo(reference.to_json())
    else:
        out.write_bytes(reference.to_json() + b"\n")
        typer.echo(f"{out}: {headline(reference)}")
    warn_of_refused(refused, file)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="REFERENCE.json", help="The reference.")],
    as_json: Annotated[bool, typer.Option("--json", help="The reference itself, as canonical JSON.")] = False,
) -> None:
    """Show a reference: what it was built of, and what it holds of each feature."""
    reference = read_reference(file)
    if as_json:
        typer.echo(reference.to_json())
        return
    console = Console()
    console.print(Text(printable(headline(reference))), soft_wrap=True)
    console.print(_table(reference))
    for name, reasons in reference.violations.items():
        said = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
        console.print(Text(printable(f"{name}: breaks the contract ({said})")), soft_wrap=True)


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(metavar="REFERENCE.json", help="The reference.")],
    data: Annotated[
        Path | None, typer.Option(help="Data folder; by default the Kafka of the environment, else the platform's.")
    ] = None,
) -> None:
    """Publish a reference: detection compares the events that come after it with it."""
    reference = read_reference(file)
    from errata_services.bootstrap import publish_table

    publish_table(data, reference)
    typer.echo(f"{reference.model}: reference {(reference.content_hash or '')[:12]} applied")


def read_reference(path: Path) -> Reference:
    """The reference in a file, or ``Misconfigured``: also when it was changed after it was built."""
    reference = read_message(Reference, existing(path).read_bytes())
    if isinstance(reference, Refused):
        raise Misconfigured(f"{path}: {reference}; build it anew with errata reference build")
    if reference.content_hash != content_hash(reference):
        raise Misconfigured(f"{path}: /content_hash: the content is not what was built; build it anew")
    return reference


def headline(reference: Reference) -> str:
    error = reference.error
    wrong = f", {error.wrong / error.outcomes:.1%} of {error.outcomes:,} outcomes wrong" if error.outcomes else ""
    latency = reference.latency_ms
    p95 = f", latency p95 {latency.p95_ms:.0f} ms" if latency is not None and latency.p95_ms is not None else ""
    broken = sum(sum(reasons.values()) for reasons in reference.violations.values())
    violations = f", {broken:,} breaks of the contract" if broken else ""
    return (
        f"{reference.model}: reference {(reference.content_hash or '')[:12]} of {reference.events:,} events "
        f"({reference.dataset or 'no data set named'}){wrong}{p95}{violations}"
    )


def _built(file: Path, contract_file: Path | None, model: str | None, dataset: str, refused: list[str]) -> Reference:
    if contract_file is not None:
        contract: Contract = sound_contract(contract_file)
        return build_reference(predictions(file, "building", refused), contract, dataset=dataset)
    if model is None:
        raise Misconfigured("--contract: needed, or --model to infer one; say --contract FILE.yaml")
    if file == STDIN:
        raise Misconfigured("--contract: needed for standard input, which is read once; say --contract FILE.yaml")
    inferred = infer_contract(predictions(file, "inferring", []), model)
    return build_reference(predictions(file, "building", refused), inferred, dataset=dataset)


def _table(reference: Reference) -> Table:
    table = Table("feature", "kind", "values", "missing", "content", box=None, pad_edge=False)
    sketches: list[tuple[str, Sketch | None]] = [
        *reference.sketches.items(),
        ("prediction", reference.output),
        ("confidence", reference.confidence),
        ("latency_ms", reference.latency_ms),
    ]
    for name, sketch in sketches:
        if sketch is not None:
            content = Text(printable(_content(sketch)))
            table.add_row(Text(printable(name)), sketch.kind, f"{sketch.n:,}", f"{sketch.missing:,}", content)
    return table


def _content(sketch: Sketch) -> str:
    if isinstance(sketch, NumberSketch):
        return ", ".join(f"{name} {value:g}" for name, value in sketch.quantiles.items())
    if isinstance(sketch, CategorySketch):
        common = sorted(sketch.counts, key=lambda name: (-sketch.counts[name], name))
        shares = ", ".join(f"{name} {sketch.counts[name] / sketch.n:.1%}" for name in common[:4])
        rest = len(common) - 4 + (sketch.other > 0)
        return f"{shares}, {rest} more" if rest > 0 else shares
    return ""
