"""What the services expose, served over HTTP, and a Prometheus that reads it by the configuration we ship."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from errata.adapters.prometheus import PrometheusMeter
from errata.contracts.topics import STAGES, TRENDS_SERVICE
from errata.runtime.telemetry import KEEPER, KeeperTelemetry, StageTelemetry
from errata_services.dev.processes import LOOPBACK

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
ANSWER_TIMEOUT_S = 10.0


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of an HTTP server on loopback."""
    server = ThreadingHTTPServer((LOOPBACK, 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(ANSWER_TIMEOUT_S)
        server.server_close()


@dataclass(slots=True)
class Chain:
    """Telemetry of each stage, on the meters that its process would have. ``before_scrape`` may report something."""

    meters: dict[str, PrometheusMeter] = field(default_factory=dict)
    telemetry: dict[str, StageTelemetry] = field(default_factory=dict)
    before_scrape: Callable[[str], object] = lambda stage: None
    address: str = ""
    keeper: KeeperTelemetry = field(init=False)

    def __post_init__(self) -> None:
        self.meters[KEEPER] = PrometheusMeter()
        self.keeper = KeeperTelemetry(self.meters[KEEPER], version="1.2.3")
        for stage in (*STAGES, TRENDS_SERVICE):
            self.meters[stage] = PrometheusMeter()
            self.telemetry[stage] = StageTelemetry(
                self.meters[stage], stage, version="1.2.3", revision="abc", config_hash="0f"
            )

    @contextmanager
    def exposed(self) -> Iterator[str]:
        """At ``http://address/<stage>/metrics``."""
        chain = self

        class Metrics(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stage = self.path.split("/")[1]
                chain.before_scrape(stage)
                content_type, body = chain.meters[stage].exposition(self.headers.get("Accept", ""))
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        with served(Metrics) as self.address:
            yield self.address


def shipped_config(folder: Path, exporter: str, alertmanager: str | None = None) -> Path:
    """``deploy/prometheus/prometheus.yml``, with other addresses and a second where it says 15."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / pattern) for pattern in config["rule_files"]]
    job = next(job for job in config["scrape_configs"] if job["job_name"] == "errata")
    for target in job["static_configs"]:
        stage = target["labels"]["stage"]
        target["labels"] |= {"__metrics_path__": f"/{stage}/metrics", "instance": target["targets"][0]}
        target["targets"] = [exporter]
    config["scrape_configs"] = [job]
    if alertmanager is None:
        del config["alerting"]["alertmanagers"]
    else:
        config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def ask(url: str, expr: str) -> list[dict[str, Any]]:
    """What an expression gives now; ``AssertionError`` with the server's words when it cannot be read."""
    with urlopen(f"{url}/api/v1/query?{urlencode({'query': expr})}", timeout=ANSWER_TIMEOUT_S) as reply:
        answer = json.load(reply)
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found
