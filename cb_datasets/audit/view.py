"""The audit page: a local web page to look through rows one by one and mark them.

Rows are untrusted. They are sent as JSON, the page puts them into text nodes only, and its content security policy
forbids all scripts and addresses except its own. The server listens on loopback and rejects other host names.
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
from .token_lengths import TokenLengths


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAGE = Path(__file__).with_name("view.html")
PAGE_ROWS = 100
MAX_BODY = 100_000


class AuditServer(ThreadingHTTPServer):
    """Serves the audit page on 127.0.0.1.

    Args:
        store ([`RowStore`]): The rows.
        marks ([`Marks`]): The marks of the rows.
        port (`int`): Port to listen on; 0 for any free one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Tokenizer to count tokens with.
    """

    daemon_threads = True

    def __init__(
        self, store: RowStore, marks: Marks, port: int = 0, tokenizer: "PreTrainedTokenizerBase | None" = None
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.store = store
        self.marks = marks
        self.lengths = TokenLengths(store.files, tokenizer) if tokenizer else None
        self.lock = threading.Lock()  # an open Parquet file is not thread-safe
        self.hosts = {f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def rows(self, query: dict[str, str]) -> dict[str, Any]:
        """One page of the selected rows, as facets and marks, with their total number."""
        numbers = self.store.select(*_filters_and_text(query))
        offset = int(query.get("offset", 0))
        page = numbers[offset : offset + PAGE_ROWS]
        rows = self.store.facets.take(page).to_pylist()
        for number, row in zip(page.tolist(), rows, strict=True):
            row |= {"number": number, "mark": (self.marks.get(row["id"]) or {}).get("verdict")}
        return {"total": len(numbers), "offset": offset, "rows": rows}

    def counts(self, query: dict[str, str]) -> dict[str, Any]:
        """Number of selected rows per value of each facet."""
        numbers = self.store.select(*_filters_and_text(query))
        return {"counts": self.store.facet_counts(numbers), "all": len(self.store)}

    def row(self, query: dict[str, str]) -> dict[str, Any]:
        """One whole row, by number or id, with its mark and its token counts."""
        number = int(query["number"]) if "number" in query else self.store.row_number(query["id"])
        if number is None:
            raise IndexError(f"There is no row {query['id']}.")
        row = self.store.row(number)
        return {"number": number, "row": row, "mark": self.marks.get(row["id"]), "tokens": self._token_counts(row)}

    def statistics(self, query: dict[str, str]) -> dict[str, Any]:
        """Facet counts of the selected rows and, if there is a tokenizer, statistics of their token counts."""
        numbers = self.store.select(*_filters_and_text(query))
        lengths = self.lengths.statistics(numbers) if self.lengths else None
        return {"rows": len(numbers), "counts": self.store.facet_counts(numbers), "lengths": lengths}

    def _token_counts(self, row: dict) -> str | None:
        """The token counts of a row as text; `None` without a tokenizer."""
        if self.lengths is None:
            return None
        tokens = self.lengths.count_tokens(row)
        return ", ".join(f"{n} {part}" for part, n in tokens.items() if n) if tokens else "does not render"


def _filters_and_text(query: dict[str, str]) -> tuple[dict[str, str], str]:
    return {name: query[name] for name in FACETS if name in query}, query.get("q", "")


class _Handler(BaseHTTPRequestHandler):
    server: AuditServer

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        endpoints: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
            "/api/rows": self.server.rows,
            "/api/counts": self.server.counts,
            "/api/row": self.server.row,
            "/api/statistics": self.server.statistics,
        }
        # A page of another site can point its own host name at 127.0.0.1 (DNS rebinding); the name gives it away.
        if not self._has_own_host():
            self._send(403, "text/plain", b"unknown host name")
        elif address.path == "/":
            self._send_page()
        elif address.path in endpoints:
            self._answer(lambda: endpoints[address.path](query))
        else:
            self._send(404, "text/plain", b"no such page")

    def do_POST(self) -> None:
        """Mark a row. A page of another site can neither send JSON here nor claim our `Origin`."""
        origin = self.headers.get("Origin", "")
        has_own_origin = origin.removeprefix("http://") in self.server.hosts
        is_json = self.headers.get("Content-Type") == "application/json"
        length = int(self.headers.get("Content-Length", 0))
        is_allowed = self._has_own_host() and has_own_origin and is_json
        if not (is_allowed and self.path == "/api/mark" and length <= MAX_BODY):
            # The body is not read, so the connection cannot be used for another request.
            self.close_connection = True
            self._send(403, "text/plain", b"only the audit page may mark rows")
            return
        self._answer(lambda: self._mark(json.loads(self.rfile.read(length))))

    def _mark(self, mark: dict) -> dict[str, Any]:
        if self.server.store.row_number(mark["id"]) is None:
            raise IndexError(f"There is no row {mark['id']}.")
        self.server.marks.put(mark["id"], mark["verdict"], str(mark.get("note", "")))
        return {"mark": self.server.marks.get(mark["id"])}

    def _has_own_host(self) -> bool:
        return self.headers.get("Host") in self.server.hosts

    def _answer(self, respond: Callable[[], dict[str, Any]]) -> None:
        """Send the JSON of an endpoint, or its error."""
        try:
            with self.server.lock:
                status, value = 200, respond()
        except NotReady as error:
            status, value = 503, {"wait": str(error)}
        except (IndexError, KeyError, ValueError) as error:
            status, value = 400, {"error": str(error)}
        self._send(status, "application/json", json.dumps(value, ensure_ascii=False).encode())

    def _send_page(self) -> None:
        # A fresh nonce per request: only the scripts and styles of this very page may run.
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
        page = with_shared_parts(PAGE.read_text(encoding="utf-8")).replace("NONCE", nonce)
        headers = {"Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
        self._send(200, "text/html; charset=utf-8", page.encode(), headers)

    def _send(self, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        common = {"Content-Type": content_type, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        common |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, value in {**common, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
