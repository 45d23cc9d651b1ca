"""``errata contract infer|check|apply``: what a model's events must look like, as a YAML file people edit."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from errata.contracts import Contract, PredictionEvent, canonical
from errata.contracts.reading import kind_of
from errata.domain.inference import infer_contract
from errata.domain.profiles import content_hash
from errata.domain.validation import Violation, check_contract, check_event, pointer
from errata.errors import Misconfigured, NotFound, Refused
from errata_services.cli.lines import existing, printable, read_lines

app = typer.Typer(no_args_is_help=True, help="What a model's events must look like.")

CLAIM = "Proposed by `errata contract infer`. Read it, mend it, then: errata contract apply FILE"


@dataclass(slots=True)
class Fault:
    """Lines of a file that share a pointer, a reason and a message."""

    path: str
    reason: str
    message: str
    first_line: int  # counted from 1
    count: int = 0

    def shown(self) -> str:
        return (
            f"{self.path or '/'}: {self.reason}: {self.message} ({self.count:,} lines, the first is {self.first_line})"
        )


@app.command()
def infer(
    file: Annotated[Path, typer.Argument(help="JSONL of predictions; - reads standard input.")],
    model: Annotated[str, typer.Option(help="The model to infer a contract for.")],
    tenant: Annotated[str, typer.Option(help="Its tenant.")] = "default",
    out: Annotated[Path | None, typer.Option(help="Write here instead of to standard output.")] = None,
) -> None:
    """Propose a contract from the events of a file: types, ranges with room, categories, a policy for each feature."""
    refused: list[str] = []
    try:
        inferred = infer_contract(predictions(file, "reading", refused), model, tenant)
    except ValueError as error:
        raise NotFound(f"{file}: {error}") from error
    text = to_yaml(inferred)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
        typer.echo(f"{out}: a contract of {len(inferred.features):,} features for {model}; read it before you apply it")
    warn_of_refused(refused, file)


@app.command()
def check(
    contract_file: Annotated[Path, typer.Argument(metavar="CONTRACT.yaml", help="The contract.")],
    file: Annotated[Path | None, typer.Argument(help="JSONL of events to hold against it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Check a contract, and with FILE the events of its model against it; exit 1 if anything is wrong."""
    contract = read_contract(contract_file)
    nonsense = check_contract(contract)
    faults, events = check_file(contract, file) if file is not None else ([], 0)
    if as_json:
        report = {
            "contract": [violation._asdict() for violation in nonsense],
            "events": events,
            "faults": [
                {"path": f.path, "reason": f.reason, "message": f.message, "first_line": f.first_line, "count": f.count}
                for f in faults
            ],
        }
        typer.echo(canonical(report))
    else:
        for violation in nonsense:
            typer.echo(printable(f"{contract_file}: {violation.pointer}: {violation.message}"))
        for fault in faults:
            typer.echo(printable(fault.shown()))
        typer.echo(_verdict(contract_file, file, events, wrong=bool(nonsense), broken=bool(faults)))
    if nonsense or faults:
        raise typer.Exit(1)


@app.command()
def apply(
    contract_file: Annotated[Path, typer.Argument(metavar="CONTRACT.yaml", help="The contract.")],
    data: Annotated[
        Path | None, typer.Option(help="Data folder; by default the Kafka of the environment, else the platform's.")
    ] = None,
) -> None:
    """Publish a contract: detection judges the events that come after it by it."""
    contract = sound_contract(contract_file)
    from errata_services.bootstrap import publish_table

    publish_table(data, contract)
    typer.echo(f"{contract.model}: contract {(contract.content_hash or '')[:12]} applied")


def read_contract(path: Path) -> Contract:
    """The contract in a YAML file with its content hash, or ``Misconfigured`` that names file and field."""
    try:
        document = yaml.safe_load(existing(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise Misconfigured(f"{path}: not UTF-8; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise Misconfigured(f"{path}: not YAML{_place(error)}") from None
    if not isinstance(document, dict):
        raise Misconfigured(f"{path}: a contract begins with model: NAME; this is {kind_of(document)}")
    try:
        contract = Contract.model_validate(document)
    except ValidationError as error:
        raise Misconfigured(f"{path}: {_first(error)}") from None
    return contract.model_copy(update={"content_hash": content_hash(contract)})


def sound_contract(path: Path) -> Contract:
    """As ``read_contract``, and of sense."""
    contract = read_contract(path)
    nonsense = check_contract(contract)
    if nonsense:
        raise Misconfigured(f"{path}: {nonsense[0].pointer}: {nonsense[0].message}")
    return contract


def to_yaml(contract: Contract) -> str:
    """The contract as people write it: without what is the default, and without the hash."""
    said = contract.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    said.pop("content_hash", None)
    text: str = yaml.safe_dump(_whole(said), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    return f"# {CLAIM}\n{text}"


def predictions(path: Path, task: str, refused: list[str]) -> Iterator[PredictionEvent]:
    """The predictions of a file; refused lines go to ``refused`` in words."""
    for line in read_lines(path, task):
        if isinstance(line.event, Refused):
            refused.append(f"line {line.number}: {line.event}")
        elif isinstance(line.event, PredictionEvent):
            yield line.event


def warn_of_refused(refused: list[str], file: Path) -> None:
    if refused:
        typer.echo(
            printable(
                f"{file}: {len(refused):,} lines left out that errata would refuse; the first: {refused[0]}. "
                f"See all: errata validate {file}"
            ),
            err=True,
        )


def check_file(contract: Contract, file: Path) -> tuple[list[Fault], int]:
    """The faults of a file's events, commonest first, and how many events of the contract's model were checked."""
    faults: dict[tuple[str, str, str], Fault] = {}
    events = 0
    for line in read_lines(file, "checking"):
        found: list[Violation] = []
        if isinstance(line.event, Refused):
            found = [Violation(line.event.path, line.event.refusal_class, line.event.message)]
        elif isinstance(line.event, PredictionEvent) and _is_of(line.event, contract):
            events += 1
            found = check_event(line.event, contract)
        for path, reason, message in found:
            fault = faults.setdefault((path, reason, message), Fault(path, reason, message, line.number))
            fault.count += 1
    return sorted(faults.values(), key=lambda fault: (-fault.count, fault.first_line, fault.path)), events


def _is_of(event: PredictionEvent, contract: Contract) -> bool:
    return event.model is not None and (event.tenant, event.model.name) == (contract.tenant, contract.model)


def _verdict(contract_file: Path, file: Path | None, events: int, *, wrong: bool, broken: bool) -> str:
    if wrong:
        return f"{contract_file}: not sound yet"
    if file is None:
        return f"{contract_file}: sound"
    if broken:
        return f"{contract_file}: sound, but {file} breaks it; {events:,} events of its model checked"
    return f"{contract_file}: sound, and all {events:,} events of its model in {file} keep to it"


def _first(error: ValidationError) -> str:
    """The first fault of a contract in a readable line: its pointer, what is wanted, and the kind that was given."""
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    place = pointer(*map(str, first["loc"]))
    if first["type"] == "missing":
        return f"{place}: required and missing{more}"
    hint = "; write it in quotes" if first["type"] == "string_type" else ""
    said = first["msg"][:1].lower() + first["msg"][1:]
    return f"{place}: {said}, this is {kind_of(first['input'])}{hint}{more}"


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return f"{where}: {problem}" if problem else where


def _whole(value: Any) -> Any:
    """Numbers without a fraction as integers, as people write them."""
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
