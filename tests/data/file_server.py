"""An http server of a folder that answers range requests, counts what it sends, and misbehaves when asked to."""

import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FileServer:
    """Serves `folder` at `address` until closed.

    `misbehave(path, number)` is called for each GET of a shard, with its number; what it returns is done instead of
    serving: an int is sent as a status, a float is seconds to wait first, None is nothing unusual.
    """

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.folder = folder
        self.ranges = ranges
        self.misbehave: Callable[[str, int], int | float | None] = lambda path, number: None
        self.sent = 0  # bytes of bodies
        self.requests: list[tuple[str, str | None]] = []  # path and Range of each GET
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self, with_body=True)

            def do_HEAD(self) -> None:
                outer._answer(self, with_body=False)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """A client that goes away in the middle, as one with a time-out does, is no error here."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        wanted = request.headers.get("Range")
        with self._lock:
            number = sum(path.endswith(".tar") for path, _ in self.requests)
            if with_body:
                self.requests.append((request.path, wanted))
        if with_body and request.path.endswith(".tar"):
            order = self.misbehave(request.path, number)
            if isinstance(order, int):
                return self._reply(request, order, b"", {})
            if order is not None:
                time.sleep(order)
        file = self.folder / request.path.partition("?")[0].lstrip("/")
        if not file.is_file():
            return self._reply(request, 404, b"", {})
        size, status, headers = file.stat().st_size, 200, {"Accept-Ranges": "bytes" if self.ranges else "none"}
        first, last = 0, size - 1
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if self.ranges and match:
            first, last, status = int(match[1]), min(int(match[2] or size), size - 1), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        with open(file, "rb") as opened:
            opened.seek(first)
            body = opened.read(last + 1 - first)
        return self._reply(request, status, body, headers, with_body=with_body)

    def _reply(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str],
        *,
        with_body: bool = True,
    ) -> None:
        try:
            request.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                request.send_header(name, value)
            request.end_headers()
            if with_body:
                request.wfile.write(body)
                with self._lock:
                    self.sent += len(body)
        except (BrokenPipeError, ConnectionResetError):  # a hedged request that lost
            request.close_connection = True
