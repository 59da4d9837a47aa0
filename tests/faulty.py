"""An S3 endpoint (or any HTTP server) on loopback that fails as real ones do: a proxy before one that does not."""

import http.client
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Literal, cast
from urllib.parse import urlsplit

Fault = Literal["500", "503", "403", "hang", "drop", "cut"]
"""`hang` never answers; `drop` does what was asked and closes without an answer; `cut` breaks off within it."""

FAULTS: Final[tuple[Fault, ...]] = ("500", "503", "hang", "drop", "cut")
_ERRORS: Final = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}
_HOP_BY_HOP: Final = {"connection", "expect", "transfer-encoding", "content-length", "date", "server"}


_RUNNING: Final = 2
"""So often running a request may fail by chance: an answer that breaks off three times is given up."""


class FaultyEndpoint:
    """Which requests fail: first those of `script`, in order, then a `share` drawn by the seed."""

    def __init__(self, behind: str, seed: int = 0) -> None:
        self.share = 0.0
        self.kinds: Sequence[Fault] = FAULTS
        self.script: list[Fault | None] = []
        self.message = "planned trouble"
        """What its own errors say."""
        self.failed = 0
        """How many requests were failed."""
        self.seconds = 0.0
        """How long each request is on its way, as to a bucket far away."""
        self.requests = self.most_at_once = 0
        """How many came, and how many of them were on their way at one time."""
        self.behind = urlsplit(behind).netloc
        self.closed = threading.Event()
        self._at_once = 0
        self._running: Counter[str] = Counter()
        self._draw = random.Random(seed)
        self._lock = threading.Lock()

    @contextmanager
    def on_its_way(self) -> Iterator[None]:
        """Around each request."""
        with self._lock:
            self.requests += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self.closed.wait(self.seconds)
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def next_fault(self, request: str) -> Fault | None:
        with self._lock:
            if self.script:
                fault = self.script.pop(0)
            else:
                fails = self._draw.random() < self.share
                if self.share < 1 and self._running[request] >= _RUNNING:
                    fails = False
                fault = self._draw.choice(self.kinds) if fails else None
            self._running[request] = self._running[request] + 1 if fault else 0
            self.failed += fault is not None
            return fault


@contextmanager
def serve_faulty(behind: str, seed: int = 0) -> Iterator[tuple[str, FaultyEndpoint]]:
    """A proxy before the server at `behind`: its URL, and what steers it."""
    endpoint = FaultyEndpoint(behind, seed)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.endpoint = endpoint
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", endpoint
    finally:
        endpoint.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    endpoint: FaultyEndpoint


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        endpoint = cast(_Server, self.server).endpoint
        with endpoint.on_its_way():
            self._answer_of(endpoint)

    def _answer_of(self, endpoint: FaultyEndpoint) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = endpoint.next_fault(f"{self.command} {self.path}")
        if fault == "hang":
            endpoint.closed.wait(30)
            self.close_connection = True
        elif fault in _ERRORS:
            text = f"<Error><Code>{_ERRORS[fault]}</Code><Message>{endpoint.message}</Message></Error>"
            self._send(int(fault), {"Content-Type": "application/xml"}, text.encode())
        else:
            status, headers, answer = self._forward(endpoint.behind, body)
            if fault == "drop":
                self.close_connection = True
            else:
                self._send(status, headers, answer, cut=fault == "cut")

    do_DELETE = do_GET = do_HEAD = do_PATCH = do_POST = do_PUT = _answer  # noqa: N815

    def _forward(self, behind: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(behind, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
            if self.command == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length", "0")
            return answer.status, kept, data
        finally:
            connection.close()

    def _send(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if cut and body:
            body = body[: len(body) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""
