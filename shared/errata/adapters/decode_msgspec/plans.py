"""Typed msgspec decoders of predictions: one for each layout with a contract, and one for all others.

Both make rows of the same fields in the same order, so that columns are cut from them alike. The types are stricter
than the contract where that is cheap (numbers within ±9.2e18, so that no integer over 64 bits passes; features of at
most 1,024 characters, so that none is over 4 KiB): a row they refuse is read again by the checks, which decide.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from math import nan
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import astuple

from errata.adapters.decode_msgspec.envelope import is_vector
from errata.contracts.events import OutcomeKind, StatusCode
from errata.contracts.models import FeatureContract
from errata.contracts.refusals import pointer
from errata.contracts.strict import MAX_FEATURE_BYTES, MAX_FEATURES, MAX_VECTOR
from errata.domain.columns import MISSING_CODE, UNUSABLE_CODE, UNUSABLE_NUMBER, Layout
from errata.domain.hashing import seed_of
from errata.domain.layouts import OpenCells

PREDICTION_TYPE = "errata.prediction.v1"
OUTCOME_TYPE = "errata.outcome.v1"

LIMIT = 9.2e18
Number = Annotated[float, Meta(ge=-LIMIT, le=LIMIT)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Share = Annotated[float, Meta(ge=0, le=1)]
AtLeast0 = Annotated[float, Meta(ge=0, le=LIMIT)]
Above0 = Annotated[float, Meta(gt=0, le=LIMIT)]
ShortText = Annotated[str, Meta(max_length=MAX_FEATURE_BYTES // 4)]
Vector = Annotated[list[Number], Meta(max_length=MAX_VECTOR)]
AnyFeature = bool | Int64 | Number | ShortText | Vector | None
Features = Annotated[dict[str, AnyFeature], Meta(max_length=MAX_FEATURES)]
AnySegment = bool | Number | str | None
Purpose = Literal["live", "drill", "backfill"]
MAX_SEGMENTS = 16  # names; events with more are read as mappings
MAX_VALUES = 1_024  # of a category, to be known to its decoder
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError)
_UNKNOWN = "Object contains unknown field `"
_NO_VALUE, _FEATURE = "Invalid enum value ", " - at `$.features."
# Large numbers are looked at in columns: a limit in the type is a twentieth of the time. So are texts that stand for
# numbers: to refuse a row and to read it again takes several times as long.
_NUMBER = float | ShortText
_NUMBERS = float, _NUMBER
_TYPES: dict[str, Any] = {
    "number": _NUMBER,
    "integer": Int64,
    "category": ShortText,
    "text": ShortText,
    "bool": bool,
    "vector": Vector,
}
# Types that a value of fits by its class alone; texts and vectors have a length too.
_EASY: dict[str, frozenset[type]] = {
    "number": frozenset({float, int}),
    "integer": frozenset({int}),
    "bool": frozenset({bool}),
}
_EASY_TYPED = _EASY | {"category": frozenset({str}), "text": frozenset({str})}  # a typed decoder saw to their length


class _Part(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A nested object of the envelope; one with a field we do not know is left to the checks."""


_ModelName = TypeVar("_ModelName")


class Model(_Part, Generic[_ModelName]):
    name: _ModelName
    version: str | None = None
    digest: str | None = None


class Status(_Part):
    code: StatusCode = None  # type: ignore[assignment]  # None: absent; null is refused
    error_type: str | None = None


class Deployment(_Part):
    endpoint: str | None = None
    variant: str | None = None
    region: str | None = None
    runtime: str | None = None


class Versions(_Part):
    preprocessing: str | None = None
    feature_view: str | None = None
    dataset: str | None = None
    code: str | None = None
    prompt: str | None = None


class Classification(_Part):
    level: str | None = None
    category: str | None = None
    regulation: list[str] = []


class Adapter(_Part):
    id: str | None = None
    version: str | None = None


class Producer(_Part):
    id: str | None = None
    seq: Int64 | None = None


class Source(_Part):
    kind: Literal["human", "system", "judge"] = "system"
    id: str | None = None


class InlineOutcome(_Part):
    value: bool | Number | str | None = None
    score: Number | None = None
    observed_time: str | None = None
    kind: OutcomeKind = "ground_truth"
    source: Source | None = None
    rationale: str | None = None
    recorded_time: str | None = None


class OpenOutcome(_Part):
    """An outcome of any model."""

    outcome_id: Name
    model: Model[Name]
    observed_time: str
    prediction_id: Name | None = None
    value: bool | Number | str | None = None
    score: Number | None = None
    predicted: bool | Number | str | Vector | None = None
    confidence: Number | None = None
    segments: dict[str, AnySegment] | None = None
    predicted_time: str | None = None
    tenant: Name = "default"
    purpose: Literal["live", "drill", "heartbeat", "backfill", "tick"] = "live"
    kind: OutcomeKind = "ground_truth"
    source: Source | None = None
    supersedes: Name | None = None
    rationale: str | None = None
    recorded_time: str | None = None


# The order of a row's fields, which is the schema's; `Row` below names the places that columns are cut from.
_ROW: tuple[tuple[str, Any, Any], ...] = (
    ("event_id", Name, None),  # None: absent; null is refused. To find this in columns is cheap, to refuse a row is not
    ("time", str, msgspec.NODEFAULT),
    ("model", Model[Name], msgspec.NODEFAULT),
    ("prediction", bool | Number | str | Vector | None, None),
    ("status", Status | None, None),
    ("tenant", Name, "default"),
    ("purpose", Purpose, "live"),
    ("prediction_id", Name | None, None),
    ("source", str | None, None),
    ("type", str, PREDICTION_TYPE),
    ("features", Features, None),
    ("scores", dict[str, Number], None),
    ("confidence", Number | None, None),
    ("attributions", dict[str, Number], None),
    ("latency_ms", AtLeast0 | None, None),
    ("segments", dict[str, AnySegment], None),
    ("outcome", InlineOutcome | None, None),
    ("deployment", Deployment | None, None),
    ("versions", Versions | None, None),
    ("sampled_rate", Above0, 1.0),
    ("classification", Classification | None, None),
    ("recorded_time", str | None, None),
    ("correlation_id", str | None, None),
    ("causation_id", str | None, None),
    ("traceparent", str | None, None),
    ("raw_ref", str | None, None),
    ("adapter", Adapter | None, None),
    ("producer", Producer | None, None),
    ("schema_version", str | None, None),
)
FIELDS = tuple(name for name, _, _ in _ROW)


def _row_type(name: str, order: Sequence[str], required: Sequence[str] = (), **types: Any) -> Any:
    """A row type of the fields in ``order``, some of types of their own; generic in those that are type variables."""
    rows = {field: (field, types.get(field, usual), default) for field, usual, default in _ROW}
    fields = [
        rows[field][:2] if rows[field][2] is msgspec.NODEFAULT or field in required else rows[field] for field in order
    ]
    # A class is generic here in as many variables as come, which mypy cannot follow: msgspec reads `__orig_bases__`.
    variables = tuple(one for one in types.values() if isinstance(one, TypeVar))
    return msgspec.defstruct(
        name,
        fields,
        bases=(msgspec.Struct, Generic) if variables else None,
        namespace={"__orig_bases__": (msgspec.Struct, Generic[variables])} if variables else None,  # type: ignore[index]
        kw_only=True,
        forbid_unknown_fields=True,
        gc=False,
    )


# What each plan has a type of its own for. All else of a row, and how it is laid out, is the same for all of a form.
_OF_A_PLAN: dict[str, Any] = {name: TypeVar(name) for name in ("features", "model", "prediction", "scores", "tenant")}


@lru_cache(maxsize=8)
def _rows_of_plans(order: tuple[str, ...], segments: tuple[str, ...] | None, required: tuple[str, ...]) -> Any:
    """One class of rows for all models: each class is memory to be read again for every few events of a model."""
    given = {} if segments is None else {"segments": _segments_type(segments)}
    return _row_type("Row", order, required, **_OF_A_PLAN, **given)


def _can_be_field(name: str) -> bool:
    """Whether a struct of msgspec can have a field of this name."""
    return name.isprintable() and '"' not in name and "\\" not in name


def _struct_of(name: str, types: Mapping[str, Any]) -> Any:
    """A struct whose fields stand for the keys of ``types``; a key that is absent is None, an absent number NaN."""
    places = {f"f{at}": key for at, key in enumerate(types)}
    fields = [(place, types[key] | None, nan if types[key] in _NUMBERS else None) for place, key in places.items()]
    return msgspec.defstruct(name, fields, rename=places, forbid_unknown_fields=True, gc=False)


def arranged(known: Sequence[str], seen: Iterable[str]) -> tuple[str, ...]:
    """The names of both, those seen first and in the order seen.

    msgspec looks for a field where the last one stood, one further: fields that come in the order of the type are
    found at once, which is a third of the time of decoding.

    >>> arranged(("a", "b", "c"), ["c", "x", "a"])
    ('c', 'x', 'a', 'b')
    """
    first = dict.fromkeys(seen)
    return (*first, *(name for name in known if name not in first))


@dataclass(frozen=True, slots=True)
class Form:
    """What events were seen to hold: fields of the envelope and names of segments, each in the order they came in.

    A type of fourteen fields is made, read and taken apart in half the time of one of all fields, and a struct of two
    segments in half the time of a mapping. An event with others comes by the open way, and the form grows.
    """

    order: tuple[str, ...] = ("event_id", "time", "tenant", "model", "prediction", "features")
    segments: tuple[str, ...] | None = ()  # None: too many, or of names that no type can have

    def grown(self, events: Iterable[Mapping[str, Any]]) -> "Form":
        order, segments = self.order, self.segments
        for event in events:
            order = arranged(order, [name for name in event if name in FIELDS])
            given = event.get("segments")
            if segments is not None and isinstance(given, dict):
                segments = arranged(segments, given)
        if segments is not None and (len(segments) > MAX_SEGMENTS or not all(map(_can_be_field, segments))):
            segments = None
        return Form(order, segments)

    def is_to_learn(self, fault: str) -> bool:
        """Whether a fault, as msgspec words it, is a field or segment of the contract that this form lacks."""
        if not fault.startswith(_UNKNOWN):
            return False
        if fault.endswith(" - at `$.segments`"):
            return self.segments is not None
        return fault[len(_UNKNOWN) : -1] in FIELDS


OpenRow: Any = _row_type("OpenRow", FIELDS, required=("event_id",))


def _known(feature: FeatureContract) -> tuple[str, ...]:
    """The values of a category that a decoder may know: none of one that is open, has too many or too long ones."""
    values = tuple(feature.categories or ()) if feature.type == "category" else ()
    longest = max(map(len, values), default=0)
    return values if len(values) <= MAX_VALUES and longest <= MAX_FEATURE_BYTES // 4 else ()


@lru_cache(maxsize=1_024)
def _one_of(values: tuple[str, ...]) -> Any:
    """The type of a category whose values are known: msgspec hands out the texts it has, of which no new ones are made
    and hashed. One table for all features that have the same."""
    return Literal[values]


@lru_cache(maxsize=8)
def _segments_type(names: tuple[str, ...]) -> Any:
    """One type for all models: each type is memory to be read again for every few events of a model."""
    return _struct_of("Segments", dict.fromkeys(names, AnySegment))


class Unusable:
    """Stands in a row for a value of the wrong type. One instance; no text or bool equals it."""

    __slots__ = ()


UNUSABLE = Unusable()

Found = list[tuple[str, str]]  # (feature or pointer, reason)


class Shape:
    """How many features of each kind (numbers, categories, others) typed rows hold, and in which order.

    Place j of a layout is place ``places[kind][j]`` of a row. One instance for all models that have it: their rows
    become columns together, which a fleet of hundreds of models, each with a few rows a batch, lives from.
    """

    __slots__ = ("categories", "numbers", "places", "widths")

    def __init__(self, *places: tuple[int, ...]) -> None:
        self.places = [np.array(kind, np.int64) for kind in places]
        self.widths = tuple(map(len, places))
        self.numbers, self.categories = self.widths[0], self.widths[0] + self.widths[1]  # where each kind ends


_shape = lru_cache(maxsize=1_024)(Shape)
_numbers = count()


@lru_cache(maxsize=1_024)
def _kin(*means: object) -> int:
    """One number for all plans with the same shape and tables: their rows are read one after another, so that they
    become columns together."""
    return next(_numbers)


class Plan:
    """How the events of one layout are decoded and what their values mean in columns."""

    def __init__(
        self,
        layout: Layout,
        key: str,
        form: Form,
        seen: Iterable[str] | None = None,
        loose: frozenset[str] = frozenset(),
    ) -> None:
        """``seen``: features in the order of an event, None before one came. ``loose``: those whose types are checked
        after decoding, because so many events break them that the open way for each would cost too much."""
        contract = layout.contract
        features = contract.features if contract else {}
        output = contract.output if contract else None
        kinds = [
            arranged(names, [name for name in seen or () if name in names])
            for names in (layout.numbers, layout.categories, layout.others)
        ]
        codes = dict(zip(layout.categories, layout.codes, strict=True))
        # What every batch asks comes first, side by side: for hundreds of models most of it is waiting for memory.
        self.given: Layout | None = layout  # None: nobody described the model
        self.settled = self.learnt = seen is not None  # settled: nothing is to be learnt or loosened
        self.decode: Callable[[bytes], Any] | None = None
        self.layout = layout
        self.slot = -1  # index in the layouts of the batch at hand
        self.rows = 0  # of the batch at hand
        self.shape = _shape(
            *(
                tuple(map(names.index, given))
                for names, given in zip(kinds, (layout.numbers, layout.categories, layout.others), strict=True)
            )
        )
        self.loose = loose
        self.output = output.type if output else None
        self.judges = self.output in (None, "class")  # an outcome of a class is right or wrong
        self.is_class = self.output == "class"
        self.predicted = self._predicted()
        self.cells_of = [_lookup((*codes[name].items(), (UNUSABLE, UNUSABLE_CODE))) for name in kinds[1]]
        self.kin = _kin(self.shape, self.predicted, *self.cells_of)
        self.seed = seed_of(key, layout.tenant, layout.model, PREDICTION_TYPE)

        self.broken: Counter[str] = Counter()  # rows of the batch at hand that break a feature's type or categories
        self.outcome_seed = seed_of(key, layout.tenant, "", OUTCOME_TYPE)
        self.names: tuple[str, ...] = tuple(name for names in kinds for name in names)
        self.known = frozenset(self.names)
        self.kinds = tuple(features[name].type for name in self.names)
        self.closed = {name: values for name in kinds[1] if (values := _known(features[name]))}
        self.easy, self.easy_typed = (
            tuple(easy.get(kind, frozenset()) for kind in self.kinds) for easy in (_EASY, _EASY_TYPED)
        )
        self.absent: tuple[Any, ...] = (None,) * len(self.names)
        self.other_cells = [cells.other if isinstance(cells, OpenCells) else float("nan") for cells in layout.codes]
        self.score_names = frozenset(output.classes) if output and output.type == "class" and output.classes else None
        self._decode_any: Callable[[bytes], Any] | None = None
        self._form = form
        if contract and len(self.names) <= MAX_FEATURES and all(map(_can_be_field, self.names)):
            self.decode = msgspec.json.Decoder(self._type(self.loose)).decode

    def _type(self, loose: frozenset[str]) -> Any:
        layout, form = self.layout, self._form
        # Where columns are checked for other types as well, texts for numbers are not left to what packs them: what is
        # wrong with a row is told in the order of its features.
        types_of = _TYPES | {"number": float} if loose else _TYPES
        features = {name: types_of[kind] for name, kind in zip(self.names, self.kinds, strict=True)}
        features |= {name: _one_of(values) for name, values in self.closed.items()}
        features |= dict.fromkeys(loose, AnyFeature)
        types = {field: usual for field, usual, _ in _ROW if field in _OF_A_PLAN}
        types["features"] = _struct_of("Features", features)
        # mypy wants the text of a literal to be known when it reads this.
        types["model"] = Model[Literal[layout.model]]  # type: ignore[name-defined]
        types["tenant"] = Literal[layout.tenant]
        # An event that names no tenant is of tenant "default".
        required = () if layout.tenant == "default" else ("tenant",)
        rows = _rows_of_plans(form.order, form.segments, required)
        return rows[tuple(self._output_types(types)[field] for field in _OF_A_PLAN)]

    def _output_types(self, types: dict[str, Any]) -> dict[str, Any]:
        if self.output == "class":
            types["prediction"] = bool | str | None
            types["scores"] = dict[str, Share]
            if self.score_names:
                types["scores"] = dict[Literal[tuple(sorted(self.score_names))], Share]  # type: ignore[misc]
        elif self.output == "number":
            types["prediction"] = Number | None
        elif self.output == "vector":
            types["prediction"] = Vector | None
        return types

    def _predicted(self) -> Callable[[Any], float | None]:
        classes: dict[Any, float] = dict(self.layout.classes)
        other = self.layout.classes.other if isinstance(self.layout.classes, OpenCells) else None
        by_text = {**classes, True: classes.get("true", other), False: classes.get("false", other)}
        if self.output == "number":
            return _number
        if self.output == "vector":
            return _vector
        if self.is_class and other is None:
            # A typed row holds text and bool only; `fill` puts UNUSABLE for the rest.
            return _lookup(tuple(by_text.items()))
        return _open_class(tuple(by_text.items()), other, self.is_class)

    def fill(self, row: Any, found: Found) -> None:
        """Make an open row one of this layout: its features in their places, what breaks the contract in ``found``."""
        given = row.features or {}
        get = given.get
        values = [get(name) for name in self.names]
        for at, (value, easy) in enumerate(zip(values, self.easy, strict=True)):
            if value is not None and value.__class__ not in easy and not fits(self.kinds[at], value):
                found.append((self.names[at], "type"))
                values[at] = self.unusable(at)
        row.features = tuple(values)
        if len(given) > len(self.names) or not given.keys() <= self.known:
            self._extra(given, found)
        if self.output is not None:
            self._outputs(row, found)

    def read_any_types(self, raw: bytes, found: Found) -> Any:
        """A typed row that breaks the types of features, which go to ``found``; None where it breaks more than that.

        None as well where columns are checked once more: what is wrong is told in the order of the features.
        """
        if self.loose:
            return None
        if self._decode_any is None:
            self._decode_any = msgspec.json.Decoder(self._type(self.known)).decode
        try:
            row = self._decode_any(raw)
        except UNREADABLE:
            return None
        features = row.features
        values = () if features is None else astuple(features)
        for at, (value, easy) in enumerate(zip(values, self.easy_typed, strict=False)):
            if value is None:
                if at < self.shape.numbers:
                    setattr(features, f"f{at}", nan)  # as in typed rows, which pack at once
            elif value.__class__ not in easy and not fits(self.kinds[at], value):
                found.append((self.names[at], "type"))
                setattr(features, f"f{at}", self.unusable(at))
        return row

    def unusable(self, at: int) -> Any:
        """What stands for a value of feature ``at`` whose type is wrong; such values are counted."""
        self._breaks(self.names[at])
        return UNUSABLE_NUMBER if at < self.shape.numbers else UNUSABLE

    def note_unknown(self, fault: str) -> None:
        """Count the category that the typed decoder refused, if that is its ``fault``. What it is shows in columns."""
        if fault.startswith(_NO_VALUE):
            name = fault.rpartition(_FEATURE)[2][:-1]
            if name in self.closed:
                self._breaks(name)

    def _breaks(self, name: str) -> None:
        self.broken[name] += 1
        self.settled = False

    def check_loose(self, columns: list[Sequence[Any]], indices: Sequence[int], found_in: dict[int, Found]) -> None:
        """What `fill` does, for the columns of typed rows that were read loosely."""
        for at, name in enumerate(self.names):
            if name not in self.loose:
                continue
            kind, easy = self.kinds[at], self.easy_typed[at]
            wrong = [
                row
                for row, value in enumerate(columns[at])
                if value.__class__ not in easy and value is not None and not fits(kind, value)
            ]
            if wrong:
                column = columns[at] = list(columns[at])
                for row in wrong:
                    column[row] = self.unusable(at)
                    found_in.setdefault(indices[row], []).append((name, "type"))

    def broken_often(self, least: int, one_in: int) -> frozenset[str]:
        """Features whose type many rows of the last batch broke; counting begins anew."""
        broken, self.broken = self.broken, Counter()
        self.settled = self.learnt
        return frozenset(name for name, n in broken.items() if n >= least and n * one_in >= self.rows)

    def _extra(self, given: Mapping[str, Any], found: Found) -> None:
        for name, value in given.items():
            if name in self.known:
                continue
            if self.layout.contract is not None:
                found.append((name, "extra"))
            elif not any(fits(kind, value) for kind in ("bool", "number", "text", "vector")) and value is not None:
                found.append((name, "type"))

    def _outputs(self, row: Any, found: Found) -> None:
        value = row.prediction
        if value is not None and not _fits_output(self.output, value):
            row.prediction = UNUSABLE
            if not self.is_class:  # a class that is none shows in the columns
                found.append(("/prediction", "invalid_output"))
        if self.is_class and row.scores:
            for name, score in row.scores.items():
                if not 0 <= score <= 1 or (self.score_names is not None and name not in self.score_names):
                    found.append((pointer("/scores", name), "invalid_output"))


@lru_cache(maxsize=1_024)
def _lookup(pairs: tuple[tuple[Any, float], ...]) -> Callable[[Any], float | None]:
    """The number that stands for a value, None for another value. One table for all that hold the same: where models
    have features or classes in common, their tables would not all stay in the processor's caches."""
    return dict(pairs).get


@lru_cache(maxsize=1_024)
def _open_class(
    pairs: tuple[tuple[Any, float | None], ...], other: float | None, is_class: bool
) -> Callable[[Any], float | None]:
    """As `_lookup`, of classes that are not all known."""
    by_text = dict(pairs)

    def open_class(value: Any) -> float | None:
        if value.__class__ is str or value.__class__ is bool or value is None:
            return by_text.get(value, other)
        if value.__class__ is list or value is UNUSABLE or is_class:
            return None
        return float(value)

    return open_class


def _number(value: Any) -> float | None:
    return value if value.__class__ in (float, int) else None


def _vector(value: Any) -> float | None:
    return MISSING_CODE if value is None else 0.0 if is_vector(value) else None


def fits(kind: str, value: Any) -> bool:
    """Whether a value, not null, is of a feature's type."""
    cls = value.__class__
    if kind == "number":
        return cls is float or cls is int
    if kind == "integer":
        return cls is int
    if kind == "bool":
        return cls is bool
    if kind == "vector":
        return is_vector(value)
    return cls is str and (len(value) * 4 <= MAX_FEATURE_BYTES or len(value.encode()) <= MAX_FEATURE_BYTES)


def _fits_output(output: str | None, value: Any) -> bool:
    cls = value.__class__
    if output == "class":
        return cls is str or cls is bool
    if output == "number":
        return cls is float or cls is int
    return output != "vector" or cls is list
