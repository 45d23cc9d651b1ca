"""A heartbeat: the same small message through every stage, so that the delay of the whole chain can be seen."""

from typing import Annotated

from pydantic import Field

from errata.contracts.base import Instant, Message
from errata.contracts.events import Id


class Heartbeat(Message):
    """Goes from stage to stage in the partition it came in, and ends in the catalogue, which keeps nothing of it.

    ``time``: when it was written to ``errata.predictions.v1``, as an event of purpose ``heartbeat``. On the topics
    behind the detector the header ``ce_type`` tells it from the messages about cases.
    """

    heartbeat_id: Id
    time: Instant
    partition: Annotated[int, Field(ge=0)]
