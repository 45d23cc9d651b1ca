"""A small HTTP server for probes and scrapes: a few fixed pages, read only, bounded in time, size and connections."""

import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Self

import structlog

from errata.errors import Misconfigured

Page = Callable[[], tuple[bool, dict[str, Any]]]
Exposition = Callable[[str], tuple[str, bytes]]

METRICS_PATH = "/metrics"
REQUEST_LIMIT_S = 10.0  # for a whole request, however slowly its bytes come
MAX_CONNECTIONS = 16
STOP_POLL_S = 0.05


class HealthServer:
    """Serves ``pages`` as JSON (200 or 503) and ``/metrics``, from threads of its own until it is closed.

    ``port`` 0 takes a free one; ``address`` says which.
    """

    def __init__(
        self,
        pages: Mapping[str, Page],
        exposition: Exposition,
        *,
        port: int,
        host: str = "127.0.0.1",
        request_limit_s: float = REQUEST_LIMIT_S,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        try:
            self._server = _Server(host, port, pages, exposition, request_limit_s, max_connections)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it cannot be bound"
            raise Misconfigured(
                f"ERRATA_HTTP_PORT: cannot listen on port {port} of {host}: {reason}; choose another, or 0 for none"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(STOP_POLL_S,), name="errata-http", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_health_server(
    pages: Mapping[str, Page], exposition: Exposition, *, port: int, host: str = "127.0.0.1"
) -> HealthServer | None:
    """The server of a process by its settings: ``ERRATA_HTTP_PORT`` 0 means none."""
    return HealthServer(pages, exposition, port=port, host=host) if port else None


class _Server(ThreadingMixIn, TCPServer):
    """TCPServer and not HTTPServer, which asks the name service for its own name before it listens."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(
        self,
        host: str,
        port: int,
        pages: Mapping[str, Page],
        exposition: Exposition,
        request_limit_s: float,
        max_connections: int,
    ) -> None:
        self.pages, self.exposition = pages, exposition
        self.request_limit_s = request_limit_s
        self._slots = threading.BoundedSemaphore(max_connections)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)  # so many at once are no probes
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(self.request_limit_s, _cut, (request,))
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event; the base class prints a traceback."""


def _cut(request: socket.socket) -> None:
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        try:
            if path == METRICS_PATH:
                content_type, body = self.server.exposition(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, content_type, body)
            elif path in self.server.pages:
                well, content = self.server.pages[path]()
                self._json(HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, content)
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
        except OSError:  # the client went away
            return
        except Exception as error:
            structlog.get_logger().error("page failed", path=path, error=type(error).__name__)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _refuse(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """JSON in place of HTML, without a word of the request."""
        status = HTTPStatus(code)
        self._json(status, {"status": "error", "reasons": [status.phrase]})

    def _json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._answer(status, "application/json", json.dumps(content, separators=(",", ":")).encode() + b"\n")

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "errata"

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds: not worth a line each."""
