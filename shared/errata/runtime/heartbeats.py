"""Heartbeats on their way through the stages behind the detector, and records of versions that nobody here reads."""

from typing import TypeVar

from errata.contracts import Heartbeat
from errata.contracts.base import Message
from errata.contracts.cloudevents import IS_HEARTBEAT, heartbeat_event
from errata.contracts.reading import read_message
from errata.contracts.strict import to_us
from errata.contracts.versions import refused_version
from errata.errors import Refused
from errata.ports import Outgoing, Record, StepResult

M = TypeVar("M", bound=Message)


def read_record(model: type[M], record: Record) -> M | Heartbeat | Refused:
    """What a record of one of our topics holds: its message, a heartbeat, or the reason why it is neither."""
    refusal = refused_version(record.topic, record.headers)
    if refusal is not None:
        return refusal
    if IS_HEARTBEAT in record.headers:
        return read_message(Heartbeat, record.value)
    return read_message(model, record.value)


def heartbeat_record(message: Heartbeat, topic: str, stage: str, partition: int) -> Outgoing:
    """A heartbeat to a partition of a topic; without a key, since it is nobody's."""
    return Outgoing(topic, None, message.to_json(), heartbeat_event(message, stage), partition)


def pass_on(result: StepResult, message: Heartbeat, topic: str, stage: str, partition: int) -> None:
    """Make a heartbeat the next output of a step."""
    result.outputs.append(heartbeat_record(message, topic, stage, partition))
    note_heartbeat(result, to_us(message.time))


def note_heartbeat(result: StepResult, time_us: int) -> None:
    newest = result.newest_heartbeat_us
    result.newest_heartbeat_us = time_us if newest is None else max(newest, time_us)
