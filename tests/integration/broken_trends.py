"""The service trends with a guarantee broken on purpose, as a process: ``broken_trends.py KIND[,KIND…]``.

``additive``: a record that comes again is counted again. ``silent``: nothing is published or committed.
``uncommitted``: Faust's own driver, which reads records of open and aborted transactions. ``bug``: counting fails once
with an error of its own; ``machine``: once with one of the machine, at the first case of the model ``poison``, unless
the file ``TRENDS_FAILED`` is there, which tells that it has failed.
``faust``: the body of a record raises as before, and Faust is left to itself: it acknowledges and goes on.
"""

import os
import sys
from pathlib import Path
from threading import Event
from typing import Any

from faust.transport.drivers import aiokafka as driver

from errata.adapters import faust_trends
from errata.contracts import TaggedCase
from errata.contracts.topics import PARTITIONS, TAGGED
from errata.domain.trends import PartitionTrends, Taken
from errata.errors import ErrataError
from errata.ports import Record
from errata.runtime.service import serve, stop_on_signals
from errata.settings import read_service_settings
from errata_services import trends
from errata_services.bootstrap import service_parts


class AdditivePartition(PartitionTrends):
    def take(self, case: TaggedCase, offset: int) -> Taken:
        if self.next_offset is not None and offset < self.next_offset:
            self.next_offset = offset
            self.cases.pop(case.episode.id, None)
            for groups in self.panes.values():
                for pane in groups.values():
                    pane.upto = 0
        return super().take(case, offset)


class StockConsumer(faust_trends._Consumer):
    def _new_consumer_thread(self) -> Any:
        return driver.AIOKafkaConsumerThread(self, loop=self.loop, beacon=self.beacon)


class Silent(faust_trends.FaustWorker):
    async def _publish(self) -> None:
        await self._table.written()


class FailingTrends(trends.Trends):
    error: type[Exception] = RuntimeError

    def _count(self, mine: PartitionTrends, content: Any, record: Record) -> Taken:
        failed = Path(os.environ["TRENDS_FAILED"])
        if isinstance(content, TaggedCase) and content.model.name == "poison" and not failed.exists():
            failed.touch()
            raise self.error("counting failed")
        return super()._count(mine, content, record)


class MachineFails(FailingTrends):
    error = OSError


class Forgiving(faust_trends.FaustWorker):
    """Faust's own way: an error in the body ends the body, not the process, and the record counts as done."""

    async def _body(self, stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            if not self._app.takes(message):
                continue
            self._uncommitted[message.partition] = message.offset + 1
            for change in self._stage.take(faust_trends.record_of(message, self._topic)):
                if change.value is not None:
                    self._table[change.key] = change.value


def main(kinds: list[str]) -> None:
    settings, stopping = read_service_settings(), Event()
    stop_on_signals(stopping)
    worker: type[faust_trends.FaustWorker] = faust_trends.FaustWorker
    stage: type[trends.Trends] = trends.Trends
    if "additive" in kinds:
        vars(trends)["PartitionTrends"] = AdditivePartition
    if "uncommitted" in kinds:
        faust_trends._Transport.Consumer = StockConsumer
    if "silent" in kinds:
        worker = Silent
    if "faust" in kinds:
        worker = Forgiving
    if "bug" in kinds:
        stage = FailingTrends
    if "machine" in kinds:
        stage = MachineFails
    with service_parts(trends.NAME, settings) as parts:
        member = worker(
            stage(parts.cipher, parts.telemetry, parts.health),
            settings.kafka,
            topic_prefix=settings.topic_prefix,
            group=trends.GROUP,
            topic=TAGGED,
            state=trends.STATE,
            partitions=PARTITIONS,
        )
        try:
            serve(member, stopping)
        except ErrataError as error:
            sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1].split(","))
