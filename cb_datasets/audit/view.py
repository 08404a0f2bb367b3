"""The audit page: rows in a browser on this machine, one by one, with marks.

Whatever a row says is data: it goes out as JSON, the page puts it into text nodes, and its policy forbids every script
and every address but its own. The server listens on loopback and answers to no other name.
"""

import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from ..web import with_shared_parts
from .cached_table import NotReady
from .marks import Marks
from .row_store import FACETS, RowStore
from .token_lengths import Lengths


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAGE = Path(__file__).with_name("view.html")
PAGE_ROWS = 100
MAX_BODY = 100_000


class AuditServer(ThreadingHTTPServer):
    """Serves the audit page on 127.0.0.1.

    Args:
        store ([`RowStore`]): The rows.
        marks ([`Marks`]): Where marks are kept.
        port (`int`): 0 for any that is free.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Tells how many tokens a row has.
    """

    daemon_threads = True

    def __init__(
        self, store: RowStore, marks: Marks, port: int = 0, tokenizer: "PreTrainedTokenizerBase | None" = None
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.store = store
        self.marks = marks
        self.lengths = Lengths(store.files, tokenizer) if tokenizer else None
        self.lock = threading.Lock()  # an open Parquet file serves one reader at a time
        self.names = {f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def rows(self, query: dict[str, str]) -> dict[str, Any]:
        """One page of rows, how many there are, and their facets."""
        numbers = self.store.select(*_wanted(query))
        offset = int(query.get("offset", 0))
        some = numbers[offset : offset + PAGE_ROWS]
        told = self.store.facets.take(some).to_pylist()
        for number, row in zip(some.tolist(), told, strict=True):
            row |= {"number": number, "mark": (self.marks.get(row["id"]) or {}).get("verdict")}
        return {"total": len(numbers), "offset": offset, "rows": told}

    def counts(self, query: dict[str, str]) -> dict[str, Any]:
        """How many rows have which facet, among those wanted."""
        return {"counts": self.store.counts(self.store.select(*_wanted(query))), "all": len(self.store)}

    def row(self, query: dict[str, str]) -> dict[str, Any]:
        """One whole row, with its mark and its length."""
        number = int(query["number"]) if "number" in query else self.store.number_of(query["id"])
        if number is None:
            raise IndexError(f"There is no row {query['id']}.")
        row = self.store.row(number)
        return {"number": number, "row": row, "mark": self.marks.get(row["id"]), "tokens": self._tokens(row)}

    def statistics(self, query: dict[str, str]) -> dict[str, Any]:
        """How many rows have which facet, and how long they are in tokens, if a tokenizer is there to tell."""
        numbers = self.store.select(*_wanted(query))
        lengths = self.lengths.statistics(numbers) if self.lengths else None
        return {"rows": len(numbers), "counts": self.store.counts(numbers), "lengths": lengths}

    def _tokens(self, row: dict) -> str | None:
        """How long a row is, in words."""
        if self.lengths is None:
            return None
        tokens = self.lengths.of(row)
        return ", ".join(f"{n} {part}" for part, n in tokens.items() if n) if tokens else "does not render"


def _wanted(query: dict[str, str]) -> tuple[dict[str, str], str]:
    return {name: query[name] for name in FACETS if name in query}, query.get("q", "")


class _Handler(BaseHTTPRequestHandler):
    server: AuditServer

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        answers: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
            "/api/rows": self.server.rows,
            "/api/counts": self.server.counts,
            "/api/row": self.server.row,
            "/api/statistics": self.server.statistics,
        }
        if not self._is_for_us():
            self._send(403, "text/plain", b"not this name")
        elif address.path == "/":
            self._send_page()
        elif address.path in answers:
            self._answer(lambda: answers[address.path](query))
        else:
            self._send(404, "text/plain", b"no such page")

    def do_POST(self) -> None:
        """Mark a row. A page of another site cannot send JSON here, nor an `Origin` of ours."""
        origin = self.headers.get("Origin", "")
        from_here = origin.removeprefix("http://") in self.server.names
        is_json = self.headers.get("Content-Type") == "application/json"
        length = int(self.headers.get("Content-Length", 0))
        if not (self._is_for_us() and from_here and is_json and self.path == "/api/mark" and length <= MAX_BODY):
            self.close_connection = True
            self._send(403, "text/plain", b"not from here")
            return
        self._answer(lambda: self._mark(json.loads(self.rfile.read(length))))

    def _mark(self, told: dict) -> dict[str, Any]:
        if self.server.store.number_of(told["id"]) is None:
            raise IndexError(f"There is no row {told['id']}.")
        self.server.marks.put(told["id"], told["verdict"], str(told.get("note", "")))
        return {"mark": self.server.marks.get(told["id"])}

    def _is_for_us(self) -> bool:
        return self.headers.get("Host") in self.server.names

    def _answer(self, make: Callable[[], dict[str, Any]]) -> None:
        try:
            with self.server.lock:
                status, value = 200, make()
        except NotReady as error:
            status, value = 503, {"wait": str(error)}
        except (IndexError, KeyError, ValueError) as error:
            status, value = 400, {"error": str(error)}
        self._send(status, "application/json", json.dumps(value, ensure_ascii=False).encode())

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
        page = with_shared_parts(PAGE.read_text(encoding="utf-8")).replace("NONCE", nonce)
        headers = {"Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
        self._send(200, "text/html; charset=utf-8", page.encode(), headers)

    def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        common = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        common |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, value in {**common, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
