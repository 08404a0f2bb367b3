"""Requests as raw bytes, for what no HTTP client would send, and what a local server must answer."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


def request_bytes(port: int, line: str = "GET / HTTP/1.1", body: bytes = b"", **headers: str | None) -> bytes:
    """A request; a header that is `None` is left out, and `_` in its name stands for `-`."""
    all_headers = {"Host": f"127.0.0.1:{port}", "Content_Length": str(len(body)), **headers}
    lines = [line, *(f"{name.replace('_', '-')}: {text}" for name, text in all_headers.items() if text is not None)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def read_answer(connection: socket.socket) -> tuple[int, dict]:
    """Status and JSON of the next response."""
    file = connection.makefile("rb")
    status = int(file.readline().split()[1])
    headers = {}
    while line := file.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name] = value
    text = file.read(int(headers["Content-Length"])).decode()
    assert "\n" not in text, "one line"
    return status, json.loads(text)


def exchange(port: int, request: bytes) -> tuple[int, dict]:
    """Send bytes, and return status and JSON of the response."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        return read_answer(connection)


@contextmanager
def stalled(port: int, number: int, path: str) -> Iterator[list[socket.socket]]:
    """Connections that announced a body, or a header, and send no more of it."""
    half = request_bytes(port, f"POST {path} HTTP/1.1", b"{", Content_Length="100", Content_Type="application/json")
    connections = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(number)]
    for at, connection in enumerate(connections):
        connection.sendall(half if at % 2 else half[:30])
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


def at_once(number: int, call) -> list:
    """What a function returns for 0, 1, ..., all called at once."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(call, range(number)))


def check_refusals(port: int, path: str, max_body: int) -> None:
    """Malformed, oversized and foreign requests are refused in one line each, and the server goes on."""

    def made(line: str = f"POST {path} HTTP/1.1", body: bytes = b"", **headers: str | None) -> bytes:
        return request_bytes(port, line, body, **headers)

    requests = {
        "no host": (made(Host=None), 403),
        "another host": (made(Host="evil.example"), 403),
        "another port": (made(Host="127.0.0.1:1"), 403),
        "two hosts": (made(Host=f"127.0.0.1:{port}\r\nHost: evil.example"), 403),
        "another origin": (made(Origin="http://evil.example"), 403),
        "null origin": (made(Origin="null"), 403),
        "a rebound page reads": (made("GET / HTTP/1.1", Host=f"evil.example:{port}"), 403),
        **{f"method {name}": (made(f"{name} {path} HTTP/1.1"), 405) for name in ("PUT", "DELETE", "OPTIONS", "x")},
        "giant body": (made(Content_Length=str(max_body + 1)), 413),
        "giant body sent": (made(body=b" " * (max_body + 1)), 413),
        "absurd length": (made(Content_Length="9" * 6000), 413),
        "negative length": (made(Content_Length="-1"), 400),
        "length in words": (made(Content_Length="many"), 400),
        "length with an underscore": (made(Content_Length="1_0"), 400),
        "two lengths": (made(Content_Length="0\r\nContent-Length: 5"), 400),
        "chunks": (made(Content_Length=None, Transfer_Encoding="chunked"), 411),
        "giant body expected": (made(Content_Length=str(max_body + 1), Expect="100-continue"), 413),
        "giant query": (made(f"GET {path}?q={'a' * 10_000} HTTP/1.1"), 414),
        "giant line without end": (b"GET /" + b"a" * 200_000, 414),
        "giant header": (made(X="a" * 70_000), 431),
        "many headers": (made(**{f"X{at}": "a" for at in range(200)}), 431),
        "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        "no version": (b"POST\r\n\r\n", 400),
        "another version": (made(f"GET {path} HTTP/9.9"), 505),
        "half an address": (made("GET http://[ HTTP/1.1"), None),
        "no such page": (made("GET /etc/passwd HTTP/1.1"), 404),
    }
    for name, (request, expected) in requests.items():
        status, content = exchange(port, request)
        assert status == (expected or status) and 400 <= status < 510 and status != 500 and content["error"], name
