"""A faust-streaming agent that only reads: ``python faust_noop.py <bootstrap> <topic> <events>``.

Settings, each for speed: values stay bytes (no codec, no model); ``memory://`` store and no leader topic, so that it
writes nothing; no web server, no topic declaration, log from warnings on only; offsets are committed every 10,000
events or 2.8 s (its default time); a stream buffer of 16,384 events instead of 4,096 and fetches of 8 MiB a partition
instead of 1, so that neither side waits; ``stream_wait_empty`` off, its default. No cython build is left out: the
wheel holds it. CPU counts from the first event on: joining the group and what was fetched before are a gift.
"""

import json
import os
import sys
import time

import faust

address, topic_name, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.argv[1:] = []

app = faust.App(
    f"{topic_name}.faust",
    broker=f"kafka://{address}",
    store="memory://",
    topic_allow_declare=False,
    topic_disable_leader=True,
    web_enabled=False,
    value_serializer="raw",
    key_serializer="raw",
    consumer_auto_offset_reset="earliest",
    consumer_max_fetch_size=8 * 2**20,
    stream_buffer_maxsize=16_384,
    broker_commit_every=10_000,
)
topic = app.topic(topic_name, value_type=bytes, key_type=bytes)


@app.agent(topic)
async def read(stream: faust.StreamT[bytes]) -> None:
    taken, cpu_s, start_s = 0, 0.0, 0.0
    async for _ in stream:
        if not taken:
            cpu_s, start_s = time.process_time(), time.perf_counter()
        taken += 1
        if taken == events:
            cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - start_s
            print(json.dumps({"events": taken, "cpu_s": cpu_s, "wall_s": wall_s}), flush=True)
            os._exit(0)  # leaving the group in order takes seconds and is not measured


if __name__ == "__main__":
    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False).execute_from_commandline()
