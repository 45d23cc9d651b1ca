"""Contracts and references as broadcast tables: compacted topics that every member reads to their end."""

import time
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

import structlog
from pydantic import ValidationError

from errata.contracts import Contract, Reference
from errata.errors import Unavailable
from errata.ports import Transport

LOOK_TIMEOUT_S = 2.0  # of a later look: a batch waits for it

Entry = TypeVar("Entry", Contract, Reference)


class Table(Generic[Entry]):
    """The newest entry of each (tenant, model). An entry that cannot be read is logged and passed over: adding one
    never stops a stage."""

    def __init__(
        self,
        transport: Transport,
        topic: str,
        kind: type[Entry],
        *,
        every_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``every_s``: seconds between two looks at the topic, which cost a round trip each; ``clock`` is monotonic."""
        self._transport, self._topic = transport, topic
        self._every_s, self._clock, self._looked_s = every_s, clock, -inf
        self._kind: type[Entry] = kind
        self._next = dict.fromkeys(range(transport.partitions(topic)), 0)
        self._begun = False
        self.entries: dict[tuple[str, str], Entry] = {}

    def refresh(self) -> set[tuple[str, str]]:
        """Read what is new; which (tenant, model) changed.

        Brokers that do not answer raise ``Unavailable`` at the first look, since nothing may be judged without what is
        there. Later they only delay the news to the next look.
        """
        changed: set[tuple[str, str]] = set()
        now_s = self._clock() if self._every_s else 0.0
        if now_s - self._looked_s < self._every_s:
            return changed
        self._looked_s = now_s
        try:
            for partition in self._next:
                self._read_on(partition, changed)
        except Unavailable as error:
            if not self._begun:
                raise
            structlog.get_logger().warning("table not looked at", topic=self._topic, error=str(error))
        else:
            self._begun = True
        return changed

    def _read_on(self, partition: int, changed: set[tuple[str, str]]) -> None:
        place, timeout_s = (self._topic, partition), LOOK_TIMEOUT_S if self._begun else None
        end = self._transport.end_offsets([place], timeout_s=timeout_s)[place]
        if end <= self._next[partition]:
            return
        for record in self._transport.read_from(place, self._next[partition], timeout_s=timeout_s):
            self._next[partition] = record.offset + 1
            if record.value is None:
                continue
            try:
                entry = self._kind.model_validate_json(record.value)
            except ValidationError as error:
                structlog.get_logger().warning(
                    "table entry passed over", topic=self._topic, offset=record.offset, faults=error.error_count()
                )
                continue
            self.entries[entry.tenant, entry.model] = entry
            changed.add((entry.tenant, entry.model))
        self._next[partition] = max(end, self._next[partition])  # behind a mark of a transaction, which is no record

    def get(self, tenant: str, model: str) -> Entry | None:
        return self.entries.get((tenant, model))
