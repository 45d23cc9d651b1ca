"""Batches as numpy columns: what a decoder makes of records and what detectors judge.

A *layout* is compiled from a model's contract (and its reference, for the categories it counts); rows of all models
of a batch stand in one set of columns, their features in flat arrays, so that the number of numpy calls does not
grow with the number of models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from errata.contracts import Contract, Reference
from errata.errors import Refused

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bytes8 = NDArray[np.int8]
Hashes = NDArray[np.uint64]

MISSING_CODE = -1.0  # a category that is absent or null
UNUSABLE_CODE = -2.0  # a category of the wrong type: present, leaves the statistics
UNUSABLE_NUMBER = np.inf  # a number of the wrong type; NaN is a missing one, and events hold finite numbers only

STATUS_CODES = ("ok", "error", "timeout", "fallback", "missing_response")
PURPOSES = ("live", "drill", "backfill")  # judged, each in a state of its own; heartbeats and ticks are not


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a model's features stand in the columns.

    ``numbers``: number and integer features; ``categories``: category and bool features (a bool counts as the text
    ``true`` or ``false``); ``others``: text and vector features, of which only presence is known. Feature j of the
    model is j of ``features`` = numbers + categories + others.

    ``codes[i]`` maps a value of categorical feature i to its cell: 0 … k-1 for the values the reference (else the
    contract) names, k for *other*, None to -1. A value that the contract forbids is not in it: its code is NaN.
    Where the contract names no categories the mapping answers *other* for any text.
    """

    tenant: str
    model: str
    contract: Contract | None
    reference: Reference | None
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    codes: tuple[Mapping[Any, float], ...] = ()
    open_categories: tuple[bool, ...] = ()  # per categorical feature: the contract names no categories
    classes: Mapping[Any, float] = field(default_factory=dict)  # as `codes`, of the predicted class
    open_classes: bool = True

    @property
    def features(self) -> tuple[str, ...]:
        return self.numbers + self.categories + self.others


class Violation(NamedTuple):
    """Row ``row`` of the columns breaks the contract: ``reason`` is ``type`` or ``extra`` for features,
    ``invalid_output`` for scores; what can be seen in columns (range, missing, unseen) is found there."""

    row: int
    feature: str
    reason: str


@dataclass(slots=True)
class Predictions:
    """n predictions of purposes live, drill and backfill, in receipt order.

    ``numbers`` and ``categories`` are ragged: row i has ``len(layouts[i].numbers)`` entries from
    ``number_start[i]`` on. ``predicted`` is the class code (``Layout.classes``; NaN: a class the contract forbids;
    -1: none) or the number; ``confidence`` the score of the predicted class, NaN when there is none; ``wrong``
    1 wrong, 0 right, -1 unknown (by an inline outcome of kind ground_truth, class outputs only).
    """

    record: Ints  # index of the record in the batch
    layout: Ints  # index into `layouts` of the batch
    purpose: Bytes8  # index into PURPOSES
    offset: Ints
    partition: Ints
    record_time_us: Ints
    time_us: Ints
    id_hash: Hashes  # keyed hash of the event key (tenant, source, type, id)
    prediction_ids: list[str]
    status: Bytes8  # index into STATUS_CODES
    latency_ms: Floats  # NaN when absent
    predicted: Floats
    confidence: Floats
    wrong: Bytes8
    number_start: Ints
    numbers: Floats
    category_start: Ints
    categories: Floats
    others_start: Ints
    others: Bytes8  # 1 present, 0 missing, 2 unusable
    violations: list[Violation]

    def __len__(self) -> int:
        return len(self.record)


@dataclass(slots=True)
class Outcomes:
    """Outcomes that carry their own prediction, in receipt order; ``wrong`` as in `Predictions`."""

    record: Ints
    layout: Ints
    purpose: Bytes8
    offset: Ints
    partition: Ints
    record_time_us: Ints
    time_us: Ints
    id_hash: Hashes
    prediction_ids: list[str]
    wrong: Bytes8

    def __len__(self) -> int:
        return len(self.record)


@dataclass(frozen=True, slots=True)
class Tick:
    """A tick: *now* of its partition is the record time."""

    record: int
    partition: int
    record_time_us: int


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat: nothing is judged by it, it is passed on. ``time_us``: when it was written."""

    record: int
    partition: int
    heartbeat_id: str
    time_us: int


class Refusal(NamedTuple):
    record: int
    refusal: Refused


@dataclass(slots=True)
class Batch:
    """A decoded batch. Every record is in exactly one of predictions, outcomes, ticks, beats, skipped or refused."""

    layouts: Sequence[Layout]
    predictions: Predictions
    outcomes: Outcomes
    ticks: list[Tick]
    refused: list[Refusal]
    skipped: dict[str, list[int]]  # reason (waiting: an outcome to be joined) -> records
    misplaced: list[int] = field(default_factory=list)  # records of rows whose key is not that of their model
    beats: list[Beat] = field(default_factory=list)
