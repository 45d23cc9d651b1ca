"""A service that stands still once, under a supervisor: ``stalling_service.py supervise KIND FOLDER SERVICE``.

``paused``: the Kafka client is told to fetch none of its partitions any more, and nobody resumes them. ``commit``: the
end of a transaction never comes. ``database``: neither does the writer's. It stands still after its first records,
unless a file in the folder says that it did so before.
"""

import sys
import time
from pathlib import Path
from threading import Event
from typing import Any

from errata.runtime.service import Loop, serve, stop_on_signals
from errata.settings import read_service_settings
from errata_services import processes
from errata_services.anomaly_detector import CONFIG_HASH
from errata_services.bootstrap import service_parts
from errata_services.dev.supervisor import Supervisor

POLL_S = 0.1


class StandsStill:
    def __init__(self, inner: Any, kind: str, file: Path) -> None:
        self._inner, self._kind, self._file = inner, kind, file
        self._done = file.exists()
        self._taken = 0

    def run_once(self, timeout_s: float = 0.0) -> int:
        taken: int = self._inner.run_once(timeout_s)
        self._taken += taken
        if self._taken and not self._done:
            self._done = True
            self._stand_still()
        return taken

    def close(self) -> None:
        self._inner.close()

    def _stand_still(self) -> None:
        def never(*_: object, **__: object) -> Any:
            self._file.write_text(repr(time.time()))
            Event().wait()

        if self._kind == "paused":
            self._file.write_text(repr(time.time()))
            client = self._inner._consumer._client
            client.pause(client.assignment())
        elif self._kind == "commit":
            self._inner._producer.commit = never
        elif self._kind == "database":
            self._inner._catalogue.apply = never
        else:
            raise SystemExit(f"no such kind: {self._kind}")


def run(kind: str, folder: str, name: str) -> None:
    settings, stopping = read_service_settings(), Event()
    stop_on_signals(stopping)
    with service_parts(name, settings, CONFIG_HASH if name == processes.DETECTOR else "") as parts:
        loop, on_tick = processes.LOOPS[name](settings, parts)
        broken: Loop = StandsStill(loop, kind, Path(folder) / f"{name}.stalled")
        serve(broken, stopping, on_tick, processes.stall_watch(settings, parts))


def supervise(*arguments: str) -> None:
    stopping = Event()
    stop_on_signals(stopping)
    supervisor = Supervisor([[sys.executable, __file__, *arguments]], {}, None, lambda line: print(line, flush=True))
    while not stopping.wait(POLL_S):
        supervisor.tick(time.monotonic())
    supervisor.stop()


if __name__ == "__main__":
    supervise(*sys.argv[2:]) if sys.argv[1] == "supervise" else run(*sys.argv[1:])
