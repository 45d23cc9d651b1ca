"""A model's layout, compiled from its contract and its reference."""

from collections.abc import Iterable, Mapping
from typing import Any

from errata.contracts import Contract, Reference
from errata.contracts.models import CategorySketch, FeatureContract, Sketch
from errata.domain.columns import MISSING_CODE, Layout

MAX_CELLS = 64
_BOOLS = ("false", "true")


class OpenCells(dict[Any, float]):
    """Cells of a category without a closed set of values: what it does not name is *other*."""

    def __init__(self, cells: Mapping[Any, float], other: float) -> None:
        super().__init__(cells)
        self.other = other

    def __missing__(self, key: Any) -> float:
        return self.other

    def get(self, key: Any, default: Any = None) -> float:
        return self[key]


_ANY_CLASS = OpenCells({None: MISSING_CODE}, 0.0)


def compile_layout(tenant: str, model: str, contract: Contract | None, reference: Reference | None) -> Layout:
    """The layout of ``model``; without a contract no feature is counted. Names are in sorted order within a kind.

    >>> compile_layout("default", "fraud", None, None).features
    ()
    """
    if contract is None and reference is None:  # tens of thousands may be restored at once
        return Layout(tenant, model, None, None, classes=_ANY_CLASS)
    features = dict(sorted(contract.features.items())) if contract else {}
    sketches = reference.sketches if reference else {}
    categories = _named(features, "category", "bool")
    classes = contract.output.classes if contract and contract.output else None
    return Layout(
        tenant=tenant,
        model=model,
        contract=contract,
        reference=reference,
        numbers=_named(features, "number", "integer"),
        categories=categories,
        others=_named(features, "text", "vector"),
        codes=tuple(_feature_cells(features[name], sketches.get(name)) for name in categories),
        open_categories=tuple(_allowed(features[name]) is None for name in categories),
        classes=_cells(classes, reference.output if reference else None),
        open_classes=classes is None,
    )


def _named(features: Mapping[str, FeatureContract], *types: str) -> tuple[str, ...]:
    return tuple(name for name, feature in features.items() if feature.type in types)


def _allowed(feature: FeatureContract) -> Iterable[str] | None:
    return _BOOLS if feature.type == "bool" else feature.categories


def _feature_cells(feature: FeatureContract, sketch: Sketch | None) -> Mapping[Any, float]:
    cells = _cells(_allowed(feature), sketch)
    if feature.type != "bool":
        return cells
    return {**cells, False: cells["false"], True: cells["true"]}


def _cells(allowed: Iterable[str] | None, sketch: Sketch | None) -> Mapping[Any, float]:
    """Cells 0 … k-1 for the values the reference names, else the contract, and k for the rest that is allowed."""
    known = sketch.counts if isinstance(sketch, CategorySketch) else allowed or ()
    named = {value: float(cell) for cell, value in enumerate(sorted(known)[:MAX_CELLS])}
    other = float(len(named))
    missing: dict[Any, float] = {None: MISSING_CODE}
    if allowed is None:
        return OpenCells(missing | named, other)
    return missing | {value: named.get(value, other) for value in allowed}
