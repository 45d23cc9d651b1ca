"""A quixstreams map: ``python quixstreams_map.py <bootstrap> <topic> <target> <events>``.

Reads, decodes JSON, adds a field, and sends one of a hundred. Settings, each for speed: at-least-once with its own
commit every 5 s, not after so many events; the consumer's queue is looked at every 20 ms instead of every second, as
ours is; sending waits 100 ms to fill batches; log from warnings on only; no state, so no changelog. CPU counts from
the first event on: joining the group and what was fetched before are a gift.
"""

import json
import os
import sys
import time
from typing import Any

from quixstreams import Application  # type: ignore[import-not-found]  # lives in its own environment

address, topic_name, target_name, events = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

app = Application(
    broker_address=address,
    consumer_group=f"{topic_name}.quixstreams",
    auto_offset_reset="earliest",
    auto_create_topics=False,
    commit_interval=5.0,
    commit_every=0,
    processing_guarantee="at-least-once",
    loglevel="WARNING",
    consumer_extra_config={"fetch.queue.backoff.ms": 20},
    producer_extra_config={"linger.ms": 100},
)
taken, cpu_s, start_s = 0, 0.0, 0.0


def mapped(event: dict[str, Any]) -> dict[str, Any]:
    global taken, cpu_s, start_s
    if not taken:
        cpu_s, start_s = time.process_time(), time.perf_counter()
    taken += 1
    event["seen"] = taken
    if taken == events:
        used_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - start_s
        print(json.dumps({"events": taken, "cpu_s": used_s, "wall_s": wall_s}), flush=True)
        os._exit(0)  # leaving the group in order is not measured
    return event


frame = app.dataframe(app.topic(topic_name, value_deserializer="json", key_deserializer="bytes"))
frame = frame.apply(mapped)
frame = frame.filter(lambda event: event["seen"] % 100 == 0)
frame.to_topic(app.topic(target_name, value_serializer="json", key_serializer="bytes"))

if __name__ == "__main__":
    app.run()
