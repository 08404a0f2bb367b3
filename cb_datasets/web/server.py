"""A server for pages and clients on this machine, which nothing that it is sent can stall or bring down.

    POST /api/mark HTTP/1.1                  a line of more than 8 KiB: 414; neither GET nor POST: 405
    Host: 127.0.0.1:8008                     another name, which a page of another site can point here: 403
    Origin: http://127.0.0.1:8008            a page of another site: 403
    Content-Length: 120                      over the server's limit: 413; not a number: 400; chunks instead: 411

    {"id": ...                               not here in time, head and body together: 408

Every refusal is one line of JSON, after which the connection is closed. It listens on loopback only.
"""

import io
import json
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


# Bytes of a request's first line, which holds the query.
MAX_LINE = 8192
METHODS = ("GET", "POST")


@dataclass(frozen=True)
class Answer:
    """What a request is answered with: JSON, or bytes of another type."""

    status: int
    content: dict | bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class LocalServer(ThreadingHTTPServer):
    """A server on 127.0.0.1 with a bounded number of threads, one for each connection.

    Further connections wait until one is closed, and all but those that wait for an answer are closed in time.

    Args:
        port (`int`): Port to listen on; 0 for any free one.
        handler (`type`): The subclass of [`LocalHandler`] that answers.
    """

    daemon_threads = True
    # Connections that may wait to be accepted; with the default, 5, a burst of them is reset.
    request_queue_size = 1024
    max_connections = 128
    # Bytes of a body.
    max_body = 100_000
    # Seconds for a whole request to arrive, for an answer to be taken, and between two requests.
    request_seconds = 30.0
    idle_seconds = 60.0
    # Seconds in which what a refused client still sends is read and thrown away: closing at once would reset the
    # connection, and the client would lose the answer.
    linger_seconds = 2.0

    def __init__(self, port: int, handler: type["LocalHandler"]) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.hosts = {f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"}
        self.origins = {f"http://{host}" for host in self.hosts}
        self._free = threading.Semaphore(self.max_connections)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._free.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:  # the thread was not started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def shutdown_request(self, request: Any) -> None:
        deadline = time.monotonic() + self.linger_seconds
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            request.settimeout(self.linger_seconds)
            while request.recv(1 << 16) and time.monotonic() < deadline:
                pass
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients may leave at any time.
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Reader(io.RawIOBase):
    """Reads a connection until a deadline, however slowly the bytes arrive."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class LocalHandler(BaseHTTPRequestHandler):
    """Reads requests, and sends what `answer` returns for them."""

    server: LocalServer
    protocol_version = "HTTP/1.1"  # keeps connections open
    default_request_version = "HTTP/1.0"  # what cannot be read is answered with headers, too
    disable_nagle_algorithm = True  # else a response waits 40 ms for the acknowledgement of its headers
    body: bytes

    def answer(self) -> Answer:
        """The answer to the request: its `command`, `path`, `headers` and `body` were read."""
        raise NotImplementedError

    def error_content(self, message: str) -> dict:
        """The JSON of a refusal."""
        return {"error": message}

    def setup(self) -> None:
        super().setup()
        self._reader = _Reader(self.connection)
        self.rfile = self._buffer = io.BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        self.command, self.requestline, self.request_version = "", "", ""
        self.close_connection = True  # unless the whole request is read
        self._reader.deadline = time.monotonic() + self.server.idle_seconds
        try:
            if not self._buffer.peek(1):
                return
        except TimeoutError:
            return
        self._reader.deadline = time.monotonic() + self.server.request_seconds
        try:
            is_whole = self._read_request()
        except TimeoutError:
            self.send_error(408, f"The request did not arrive within {self.server.request_seconds:g} s.")
        else:
            if is_whole:
                self._send(self._checked_answer())

    def _read_request(self) -> bool:
        """Read a request, and return whether it is whole; else it was refused, or the client left."""
        self.raw_requestline = self.rfile.readline(MAX_LINE + 1)
        if len(self.raw_requestline) > MAX_LINE:
            self.send_error(414, f"The address has more than {MAX_LINE} bytes.")
            return False
        if not self.parse_request() or not self._is_accepted():
            return False
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        self.close_connection |= len(self.body) < length
        return len(self.body) == length

    def _is_accepted(self) -> bool:
        """Whether a request is to be read; else it is refused."""
        refusal = self._refusal()
        if refusal is not None:
            self.send_error(*refusal)
        return refusal is None

    def _refusal(self) -> tuple[int, str] | None:
        lengths = self.headers.get_all("Content-Length", ["0"])
        if self.headers.get_all("Host") not in [[host] for host in self.server.hosts]:
            return 403, "unknown host name"
        if "Origin" in self.headers and self.headers.get_all("Origin") not in [[own] for own in self.server.origins]:
            return 403, "a page of another site"
        if self.command not in METHODS:
            return 405, f"There are {' and '.join(METHODS)}."
        if "Transfer-Encoding" in self.headers:
            return 411, "A body needs its Content-Length."
        if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdecimal()):
            return 400, "Content-Length is not one number."
        if len(lengths[0]) > 18 or int(lengths[0]) > self.server.max_body:
            return 413, f"The body has more than {self.server.max_body} bytes."
        return None

    def handle_expect_100(self) -> bool:
        # Before the client is told to send the body.
        return self._is_accepted() and super().handle_expect_100()

    def _checked_answer(self) -> Answer:
        try:
            return self.answer()
        except Exception as error:
            traceback.print_exc()
            return Answer(500, self.error_content(f"{type(error).__name__}: {error}"))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request. What is left of it may not be read as the next, so the connection is closed."""
        self.close_connection = True
        headers = {"Allow": ", ".join(METHODS)} if code == HTTPStatus.METHOD_NOT_ALLOWED else {}
        self._send(Answer(code, self.error_content(message or HTTPStatus(code).phrase), headers=headers))

    def _send(self, answer: Answer) -> None:
        content = answer.content
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.connection.settimeout(self.server.request_seconds)
        self.send_response(answer.status)
        common = {"Content-Type": answer.content_type, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        common |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        if self.close_connection:
            common["Connection"] = "close"
        for name, value in {**common, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""
