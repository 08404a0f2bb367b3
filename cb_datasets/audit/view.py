"""The audit page: a local web page to look through rows one by one and mark them.

Rows are untrusted. They are sent as JSON, the page puts them into text nodes only, and its content security policy
forbids all scripts and addresses except its own. `web/server.py` has what the server refuses.
"""

import json
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from ..disk_faults import error_line
from ..web import with_shared_parts
from ..web.server import Answer, LocalHandler, LocalServer
from .cached_table import NotReady
from .marks import Marks
from .row_store import FACETS, RowStore
from .token_lengths import TokenLengths


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAGE = Path(__file__).with_name("view.html")
PAGE_ROWS = 100


class AuditServer(LocalServer):
    """Serves the audit page on 127.0.0.1.

    Args:
        store ([`RowStore`]): The rows.
        marks ([`Marks`]): The marks of the rows.
        port (`int`): Port to listen on; 0 for any free one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Tokenizer to count tokens with.
    """

    def __init__(
        self, store: RowStore, marks: Marks, port: int = 0, tokenizer: "PreTrainedTokenizerBase | None" = None
    ) -> None:
        super().__init__(port, _Handler)
        self.store = store
        self.marks = marks
        self.lengths = TokenLengths(store.files, tokenizer) if tokenizer else None
        self.lock = threading.Lock()  # an open Parquet file is not thread-safe

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def server_close(self) -> None:
        super().server_close()
        self.lock.acquire()  # for good: the mark that is being saved is the last

    def rows(self, query: dict[str, str]) -> dict[str, Any]:
        """One page of the selected rows, as facets and marks, with their total number."""
        numbers = self.store.select(*_filters_and_text(query))
        offset = int(query.get("offset", 0))
        if offset < 0:
            raise ValueError(f"The offset {offset} is negative.")
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


class _Handler(LocalHandler):
    server: AuditServer

    def answer(self) -> Answer:
        try:
            address = urlsplit(self.path)
        except ValueError as error:
            return Answer(400, {"error": str(error)})
        if self.command == "POST" and address.path == "/api/mark":
            return self._mark()
        if self.command == "GET" and address.path == "/":
            return _page()
        endpoints: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
            "/api/rows": self.server.rows,
            "/api/counts": self.server.counts,
            "/api/row": self.server.row,
            "/api/statistics": self.server.statistics,
        }
        if self.command == "GET" and address.path in endpoints:
            query = dict(parse_qsl(address.query, keep_blank_values=True))
            return self._locked(lambda: endpoints[address.path](query))
        return Answer(404, {"error": "There is no such page."})

    def _mark(self) -> Answer:
        """Mark a row. A page of another site can neither send JSON here nor claim our `Origin`."""
        if "Origin" not in self.headers or self.headers.get_content_type() != "application/json":
            return Answer(403, {"error": "Only the audit page may mark rows."})
        try:
            id, verdict, note = _parse_mark(self.body)
        except (ValueError, RecursionError) as error:
            return Answer(400, {"error": str(error)})
        return self._locked(lambda: self._save_mark(id, verdict, note))

    def _save_mark(self, id: str, verdict: str | None, note: str) -> dict[str, Any]:
        if self.server.store.row_number(id) is None:
            raise IndexError(f"There is no row {id}.")
        self.server.marks.put(id, verdict, note)
        return {"mark": self.server.marks.get(id)}

    def _locked(self, respond: Callable[[], dict[str, Any]]) -> Answer:
        """The JSON of an endpoint, or its error; one at a time, so nothing here may wait for the client."""
        try:
            with self.server.lock:
                return Answer(200, respond())
        except NotReady as error:
            return Answer(503, {"wait": str(error)})
        except (IndexError, KeyError, ValueError) as error:
            return Answer(400, {"error": str(error)})
        except OSError as error:  # a full disk, a folder that is gone
            return Answer(507, {"error": error_line(error)})


def _parse_mark(body: bytes) -> tuple[str, str | None, str]:
    """The row id, the verdict and the note of a request.

    Raises:
        ValueError: If it is not JSON, or not of the right types.
    """
    mark = json.loads(body)
    if not isinstance(mark, dict):
        raise ValueError("A mark is an object with id, verdict and note.")
    id, verdict, note = mark.get("id"), mark.get("verdict", 0), mark.get("note", "")
    if not isinstance(id, str) or not isinstance(verdict, str | None) or not isinstance(note, str):
        raise ValueError("The id and the note of a mark are strings; its verdict is one, or null to remove it.")
    return id, verdict, note


def _page() -> Answer:
    # A fresh nonce per request: only the scripts and styles of this very page may run.
    nonce = secrets.token_urlsafe(16)
    policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
    page = with_shared_parts(PAGE.read_text(encoding="utf-8")).replace("NONCE", nonce)
    headers = {"Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
    return Answer(200, page.encode(), "text/html; charset=utf-8", headers)
