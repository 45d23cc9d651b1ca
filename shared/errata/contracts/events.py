"""What publishers send: predictions, outcomes, changes and business metrics."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from errata.contracts.base import FiniteNumber, Instant, Message, NonNegative, Part, Text
from errata.contracts.strict import MAX_VECTOR

Purpose = Literal["live", "drill", "heartbeat", "backfill", "tick"]
StatusCode = Literal["ok", "error", "timeout", "fallback", "missing_response"]
OutcomeKind = Literal["ground_truth", "feedback", "business"]
ChangeKind = Literal["deploy", "flag", "config", "data", "schema", "registry"]

Name = Annotated[Text, Field(min_length=1, max_length=200)]
Id = Annotated[Text, Field(min_length=1, max_length=200)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Vector = Annotated[list[Int64 | FiniteNumber], Field(max_length=MAX_VECTOR)]


def _one_fault(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """A union has one fault, at the field itself, whichever of its branches came nearest."""
    try:
        return handler(value)
    except ValidationError as error:
        raise ValueError("none of the types allowed here") from error


Value = Annotated[bool | Int64 | FiniteNumber | Text | None, WrapValidator(_one_fault)]
Prediction = Annotated[bool | Int64 | FiniteNumber | Text | Vector | None, WrapValidator(_one_fault)]
# A feature's type and shape are the contract's business: a wrong one is a finding and never refuses the event.
Features = dict[Text, Any]


class ModelRef(Part):
    name: Name
    version: Text | None = None
    digest: Text | None = None


class Status(Part):
    code: StatusCode = "ok"
    error_type: Text | None = None


class Deployment(Part):
    endpoint: Text | None = None
    variant: Text | None = None
    region: Text | None = None
    runtime: Text | None = None


class Versions(Part):
    preprocessing: Text | None = None
    feature_view: Text | None = None
    dataset: Text | None = None
    code: Text | None = None
    prompt: Text | None = None


class Classification(Part):
    level: Text | None = None
    category: Text | None = None
    regulation: list[Text] = []


class Adapter(Part):
    id: Text | None = None
    version: Text | None = None


class Producer(Part):
    id: Text | None = None
    seq: Int64 | None = None


class OutcomeSource(Part):
    kind: Literal["human", "system", "judge"] = "system"
    id: Text | None = None


class InlineOutcome(Part):
    """A label that came with its prediction: an outcome without ids, tenant and model."""

    value: Value = None
    score: FiniteNumber | None = None
    observed_time: Instant | None = None
    kind: OutcomeKind = "ground_truth"
    source: OutcomeSource | None = None
    rationale: Text | None = None
    recorded_time: Instant | None = None


class PredictionEvent(Message):
    """One served prediction. Four fields are required: ``event_id``, ``time``, ``model.name``, ``prediction``.

    ``prediction`` may be left out when ``status.code`` is there; a tick carries ``event_id``, ``time`` and
    ``purpose`` only.
    """

    event_id: Id
    time: Instant
    model: ModelRef | None = None
    prediction: Prediction = None
    status: Status | None = None
    tenant: Name = "default"
    purpose: Purpose = "live"
    prediction_id: Id | None = None
    source: Text | None = None
    type: Text = "errata.prediction.v1"
    features: Features = {}
    scores: dict[Text, FiniteNumber] = {}
    confidence: FiniteNumber | None = None
    attributions: dict[Text, FiniteNumber] = {}
    latency_ms: NonNegative | None = None
    segments: dict[Text, Value] = {}
    outcome: InlineOutcome | None = None
    deployment: Deployment | None = None
    versions: Versions | None = None
    sampled_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1
    classification: Classification | None = None
    recorded_time: Instant | None = None
    correlation_id: Text | None = None
    causation_id: Text | None = None
    traceparent: Text | None = None
    raw_ref: Text | None = None
    adapter: Adapter | None = None
    producer: Producer | None = None
    schema_version: Text | None = None

    @model_validator(mode="after")
    def _whole(self) -> "PredictionEvent":
        if self.purpose != "tick":
            if self.model is None:
                raise ValueError("model is required")
            if self.prediction is None and (self.status is None or "code" not in self.status.model_fields_set):
                raise ValueError("prediction is required unless status.code is there")
        return self


class Outcome(Message):
    """What a prediction should have been, or an opinion about it.

    With ``predicted`` it carries its own prediction and is judged at once; else it is joined by ``prediction_id``.
    """

    outcome_id: Id
    model: ModelRef
    observed_time: Instant
    prediction_id: Id | None = None
    value: Value = None
    score: FiniteNumber | None = None
    predicted: Prediction = None
    confidence: FiniteNumber | None = None
    segments: dict[Text, Value] = {}
    predicted_time: Instant | None = None
    tenant: Name = "default"
    purpose: Purpose = "live"
    kind: OutcomeKind = "ground_truth"
    source: OutcomeSource | None = None
    supersedes: Id | None = None
    rationale: Text | None = None
    recorded_time: Instant | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Outcome":
        if self.prediction_id is None and self.predicted is None:
            raise ValueError("prediction_id is required unless predicted is there")
        if self.value is None and self.score is None:
            raise ValueError("one of value and score is required")
        return self


class ChangeEvent(Message):
    """A deploy, flag, configuration, data, schema or registry change; ``subject`` names the model it concerns."""

    change_id: Id
    kind: ChangeKind
    subject: Name
    time: Instant
    tenant: Name = "default"
    from_: Text | None = Field(default=None, alias="from")
    to: Text | None = None
    actor: Text | None = None
    link: Text | None = None


class MetricPoint(Message):
    """One point of a business metric."""

    name: Name
    time: Instant
    value: FiniteNumber
    tenant: Name = "default"
    labels: dict[Text, Text] = {}
    unit: Text | None = None
    source: Text | None = None
