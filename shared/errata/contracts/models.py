"""What is known about a model: its contract (what is allowed) and its reference (what is normal)."""

from typing import Annotated, Literal

from pydantic import Field

from errata.contracts.base import FiniteNumber, Instant, Message, NonNegative, Part, Text
from errata.contracts.events import Name

FeatureType = Literal["number", "integer", "category", "text", "bool", "vector"]
Policy = Literal["keep", "hash", "drop", "bucket"]
Evidence = Literal["none", "redacted", "replayable"]
Admit = Literal["open", "count", "if_reference_has_none"]
EventKind = Literal[
    "policy_violation", "personal_data", "invalid_output", "bad_status", "contract_violation", "latency_over_limit",
    "wrong_answer",
]  # fmt: skip
Count = Annotated[int, Field(ge=0)]


class Range(Part):
    min: FiniteNumber | None = None
    max: FiniteNumber | None = None


class Bucket(Part):
    """Edges of the buckets a value is coarsened to: below the first, between two, from the last on."""

    edges: Annotated[list[FiniteNumber], Field(min_length=1)]


class FeatureContract(Part):
    type: FeatureType
    required: bool = False
    range: Range | None = None
    categories: list[Text] | None = None
    unit: Text | None = None
    sensitivity: Text | None = None
    policy: Policy = "keep"
    bucket: Bucket | None = None


class OutputContract(Part):
    """``class``: a text or bool of ``classes``; ``number``: within ``range``; ``vector``: a list of numbers."""

    type: Literal["class", "number", "vector"] = "class"
    classes: list[Text] | None = None
    range: Range | None = None


class LatencySlo(Part):
    p95: NonNegative | None = None
    max: NonNegative | None = None


class Limit(Part):
    max: FiniteNumber | None = None


class Slos(Part):
    latency_ms: LatencySlo | None = None
    error_rate: Limit | None = None
    freshness_s: NonNegative | None = None


class OutputPolicy(Part):
    """A rule that an output must obey: ``forbidden`` outputs, whatever the features say."""

    id: Name
    version: Text = "1"
    forbidden: list[Text] = []


class Owner(Part):
    team: Text | None = None
    contact: Text | None = None


class OutcomesContract(Part):
    horizon_s: NonNegative = 86_400
    join: Literal["prediction_id"] = "prediction_id"


class Contract(Message):
    """What a model's events must look like, who answers for it, and what of them a case may keep.

    One per (tenant, model), versioned; findings name it by its content hash.
    """

    model: Name
    tenant: Name = "default"
    version: Annotated[int, Field(ge=1)] = 1
    content_hash: Text | None = None
    owner: Owner | None = None
    features: dict[Text, FeatureContract] = {}
    output: OutputContract | None = None
    segments: list[Text] = []
    protected: list[Text] = []
    slos: Slos | None = None
    policies: list[OutputPolicy] = []
    admission: dict[EventKind, Admit] = {}
    outcomes: OutcomesContract = OutcomesContract()
    evidence: Evidence = "redacted"


class NumberSketch(Part):
    """Exact counts of a number in at most 16 bins at the reference's quantiles; ``edges`` are the inner ones.

    Bin i holds the values v with ``edges[i-1] <= v < edges[i]``.
    """

    kind: Literal["number"] = "number"
    n: Count
    missing: Count = 0
    edges: list[FiniteNumber]
    counts: list[Count]
    quantiles: dict[Text, FiniteNumber] = {}


class CategorySketch(Part):
    """Exact counts of at most 64 values, the rest in ``other``."""

    kind: Literal["category"] = "category"
    n: Count
    missing: Count = 0
    counts: dict[Text, Count]
    other: Count = 0


class PresenceSketch(Part):
    """Of a text or vector only whether it was there is known."""

    kind: Literal["presence"] = "presence"
    n: Count
    missing: Count = 0


Sketch = Annotated[NumberSketch | CategorySketch | PresenceSketch, Field(discriminator="kind")]


class LatencySketch(NumberSketch):
    p95_ms: NonNegative | None = None
    over_p95: Count = 0
    over_limit: Count = 0


class ErrorSketch(Part):
    outcomes: Count = 0
    wrong: Count = 0


class Reference(Message):
    """A model's known-good profile, exact from the events it was built of. Shares and counts only, no raw value

    beyond bin edges and category names.
    """

    model: Name
    tenant: Name = "default"
    version: Annotated[int, Field(ge=1)] = 1
    reference_id: Text | None = None
    content_hash: Text | None = None
    dataset: Text | None = None
    learnt: bool = False
    created: Instant | None = None
    events: Count
    sketches: dict[Text, Sketch] = {}
    output: Sketch | None = None
    confidence: NumberSketch | None = None
    latency_ms: LatencySketch | None = None
    statuses: dict[Text, Count] = {}
    violations: dict[Text, dict[Text, Count]] = {}
    error: ErrorSketch = ErrorSketch()
