"""What the runtime itself writes: dead letters, what became of them, and the receipts of the ledger."""

from typing import Annotated, Literal

from pydantic import Field

from errata.contracts.base import Instant, Message, Part, Text

Count = Annotated[int, Field(ge=0)]


class DeadLetter(Message):
    """An input no stage can take. On the wire its fields are headers and the value is the payload, encrypted."""

    dead_letter_id: Text
    stage: Text
    build: Text
    topic: Text
    partition: Count
    offset: Count
    ts: Instant
    class_: Literal["decode", "schema", "semantic", "oversize", "policy", "clock", "handler", "sink"] = Field(
        alias="class"
    )
    error: Text
    path: Text
    message: Annotated[Text, Field(max_length=512)]
    fingerprint: Text
    attempts: Count = 1
    first_failed: Instant
    replay_of: Text | None = None
    hops: Count = 0
    traceparent: Text | None = None
    payload: Text | None = None


class Resolution(Message):
    """What a person made of a dead letter.

    ``replays``: how often it was sent again up to now; ``patched``: whether the last time with a changed payload."""

    dead_letter_id: Text
    action: Literal["replayed", "discarded"]
    who: Text
    at: Instant
    why: Text
    replays: Count = 0
    patched: bool = False


class ReceiptInput(Part):
    topic: Text
    partition: Count
    from_: Count = Field(alias="from")
    to: Count
    delivered: Count


class Receipt(Message):
    """What one transaction took in and put out. ``inputs`` of a partition tile without gap or overlap."""

    stage: Text
    instance: Text
    build: Text
    inputs: list[ReceiptInput]
    out: Count
    dlq: Count
    dropped: dict[Text, Count] = {}
    max_event_time: Instant | None = None
