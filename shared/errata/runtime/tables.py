"""Contracts and references as broadcast tables: compacted topics that every member reads to their end."""

import time
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

import structlog
from pydantic import ValidationError

from errata.contracts import Contract, Reference
from errata.ports import Transport

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
        self.entries: dict[tuple[str, str], Entry] = {}

    def refresh(self) -> set[tuple[str, str]]:
        """Read what is new; which (tenant, model) changed."""
        changed: set[tuple[str, str]] = set()
        now_s = self._clock() if self._every_s else 0.0
        if now_s - self._looked_s < self._every_s:
            return changed
        self._looked_s = now_s
        for partition, offset in self._next.items():
            end = self._transport.end_offset((self._topic, partition))
            if end <= offset:
                continue
            self._next[partition] = end  # it may lie behind a mark of a transaction, which is no record
            for record in self._transport.read_from((self._topic, partition), offset):
                self._next[partition] = max(end, record.offset + 1)
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
        return changed

    def get(self, tenant: str, model: str) -> Entry | None:
        return self.entries.get((tenant, model))
