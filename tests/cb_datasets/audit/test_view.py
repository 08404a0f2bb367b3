"""The audit page: answers and refusals of its server, marks, and, in a real browser, that rows are shown as text."""

import http.client
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from transformers import AutoTokenizer

from builders.trace import tool_call
from cb_datasets.audit.cached_table import NotReady
from cb_datasets.audit.marks import Marks, marked_bad
from cb_datasets.audit.row_store import RowStore
from cb_datasets.audit.token_lengths import TokenLengths
from cb_datasets.audit.view import AuditServer
from cb_datasets.chat import encode_sample
from cb_datasets.files import load_rows, save_rows, to_dataset
from cb_datasets.publish.release import make_release
from cb_datasets.sample import SAMPLE_FEATURES

from ..browser import Browser
from ..release_data import run


PAYLOADS = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</pre><b>bold</b>",
)


@pytest.fixture
def data(release_data: Path, tmp_path: Path) -> Path:
    """A data folder whose first train row attacks the page, after a character that takes two UTF-16 units."""
    folder = Path(shutil.copytree(release_data, tmp_path / "data"))
    rows = list(load_rows(folder / "stage2" / "train"))
    [at, *_] = [number for number, row in enumerate(rows) if row["set"] == "circuit_breaker"]
    injected = " ".join(PAYLOADS)
    rows[at]["messages"][1]["content"] = f"\U0001f600 look: {injected}"
    rows[at]["injection"] = [{"message": 1, "start": 8, "end": 8 + len(injected)}]
    save_rows(to_dataset([rows[at], *rows[:at], *rows[at + 1 :]], SAMPLE_FEATURES), folder / "stage2" / "train", {})
    return folder


@pytest.fixture
def server(data: Path) -> Iterator[AuditServer]:
    with AuditServer(RowStore(data), Marks(data / "audit" / "marks.parquet")) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.store.search.rows_with("x", seconds=60)
        yield running
        running.shutdown()


def request(
    server: AuditServer, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def get(server: AuditServer, path: str) -> dict:
    status, _, body = request(server, "GET", path)
    assert status == 200, body
    return json.loads(body)


def mark(server: AuditServer, id: str, verdict: str | None, note: str = "", **headers: str) -> int:
    ours = {"Content-Type": "application/json", "Origin": server.url.rstrip("/")}
    body = {"id": id, "verdict": verdict, "note": note}
    return request(server, "POST", "/api/mark", body, **ours | headers)[0]


# ------------------------------------------------------------------------------------------------------------ the rows


def test_every_row_is_found_by_number_and_id(server: AuditServer, data: Path):
    rows = [row for split in ("eval", "train") for row in load_rows(data / "stage2" / split)]
    assert [server.store.row(number) for number in range(len(rows))] == rows
    shown = get(server, f"/api/row?id={quote(rows[-1]['id'], safe='')}")
    assert shown["row"] == rows[-1] and shown["number"] == len(rows) - 1 and shown["mark"] is None


def is_flip_of_train(row: dict) -> bool:
    return row["priority_class"] == "harmful_flip" and row["split"] == "train"


@pytest.mark.parametrize(
    ("query", "is_selected"),
    [
        ("config=stage2&split=train", lambda row: row["split"] == "train"),
        ("config=stage2&class=benign_twin", lambda row: row["priority_class"] == "benign_twin"),
        ("config=stage2&category=", lambda row: row["category"] is None),
        ("config=stage2&outcome=refusal&completion=sampled", lambda row: row["outcome"] == "refusal"),
        ("config=stage2&q=USE+search_WEB", lambda row: "use search_web" in row["messages"][1]["content"]),
        ("config=stage2&q=%3C%7Ceom_id", lambda row: row["assistant_raw"].endswith("<|eom_id|>")),
        ("config=stage2&q=.*", lambda row: False),
        ("config=stage2&q=search_web&class=harmful_flip&split=train", is_flip_of_train),
    ],
)
def test_rows_are_filtered_and_searched(server: AuditServer, data: Path, query: str, is_selected):
    rows = [row for split in ("eval", "train") for row in load_rows(data / "stage2" / split)]
    page = get(server, f"/api/rows?{query}")
    expected = [row["id"] for row in rows if is_selected(row)]
    assert page["total"] == len(expected) and [row["id"] for row in page["rows"]] == expected[:100]
    assert get(server, f"/api/counts?{query}")["counts"].get("config", {}).get("stage2", 0) == len(expected)


def test_pages_of_a_search_cover_all_results_in_order(server: AuditServer, monkeypatch):
    every = [row["number"] for row in get(server, "/api/rows?q=manuals&split=train")["rows"]]
    monkeypatch.setattr("cb_datasets.audit.view.PAGE_ROWS", 7)
    pages = [get(server, f"/api/rows?q=manuals&split=train&offset={at}") for at in range(0, len(every) + 7, 7)]
    assert [row["number"] for page in pages for row in page["rows"]] == every and len(every) > 14
    assert {page["total"] for page in pages} == {len(every)}


def test_a_search_before_the_index_is_ready_answers_wait(server: AuditServer, monkeypatch):
    def not_ready(text: str) -> None:
        raise NotReady("3 of 4 so far")

    monkeypatch.setattr(server.store.search, "rows_with", not_ready)
    status, _, body = request(server, "GET", "/api/rows?q=web")
    assert status == 503 and json.loads(body) == {"wait": "3 of 4 so far"}
    assert get(server, "/api/rows?class=refusal")["total"] > 0, "filters work without the index"


def test_a_release_a_set_and_a_file_can_be_opened(release_data: Path, tmp_path: Path):
    make_release(release_data, "someone/breakers", tmp_path / "release")
    release = RowStore(tmp_path / "release")
    assert set(release.facets["config"].to_pylist()) == {"harmful", "retain", "eval"}
    assert {"train", "test", "tool_flip"} <= set(release.facets["split"].to_pylist())
    chat = load_rows(release_data / "retain" / "chat")
    opened = RowStore(release_data / "retain" / "chat")
    assert opened.facets["split"].to_pylist() == chat["split"][:]
    assert len(RowStore(release_data / "retain" / "chat" / "train.parquet")) == chat["split"][:].count("train")
    merged = [row for split in ("train", "eval") for row in load_rows(release_data / "stage2" / split)]
    [first] = [row for row in merged if row["id"] == release.row(0)["id"]]
    assert release.row(0) == first, "a released row is shown as it was stored"
    assert release.search.rows_with(first["messages"][1]["content"], seconds=60)[0]
    with pytest.raises(FileNotFoundError, match="No Parquet files"):
        RowStore(tmp_path / "nothing")


def test_quarantine_is_filtered_by_the_rule_that_was_broken(release_data: Path, tmp_path: Path):
    folder = Path(shutil.copytree(release_data, tmp_path / "data"))
    some = load_rows(folder / "stage2" / "train").select(range(2))
    reasons = [["R4b: an argument too many: x"], ["R5: a Markdown fence", "R1: two calls"]]
    save_rows(some.add_column("reasons", reasons), folder / "quarantine" / "validate", {})
    store = RowStore(folder)
    [number] = store.select({"config": "quarantine", "reason": "R5"}).tolist()
    assert store.row(number)["id"] == some[1]["id"]
    assert store.facet_counts(store.select({"config": "quarantine"}))["reason"] == {"R4b": 1, "R5": 1}


def test_unknown_rows_and_pages_are_errors(server: AuditServer):
    for path in ("/api/row?number=100000", "/api/row?id=none", "/api/row", "/api/rows?offset=x"):
        status, _, body = request(server, "GET", path)
        assert status == 400 and json.loads(body)["error"]
    assert request(server, "GET", "/etc/passwd")[0] == 404


# ---------------------------------------------------------------------------------------------------------- statistics


@pytest.fixture
def measuring(data: Path, tiny_agent_path: Path) -> Iterator[AuditServer]:
    """A server with a tokenizer, on rows one of which does not render."""
    rows = list(load_rows(data / "stage2" / "eval"))
    rows[0]["messages"][1]["tool_calls"] = [tool_call("web", "no JSON", "c")]
    save_rows(to_dataset(rows, SAMPLE_FEATURES), data / "stage2" / "eval", {})
    tokenizer = AutoTokenizer.from_pretrained(tiny_agent_path)
    with AuditServer(RowStore(data), Marks(data / "marks.parquet"), tokenizer=tokenizer) as running:
        running.lengths.batches(seconds=60)
        yield running


def test_lengths_are_those_of_encode_sample(measuring: AuditServer, data: Path, tiny_agent_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_agent_path)
    rows = [row for row in load_rows(data / "stage2" / "train") if row["priority_class"] == "refusal"]
    statistics = measuring.statistics({"config": "stage2", "split": "train", "class": "refusal"})
    encoded = [encode_sample(tokenizer, row) for row in rows]
    for part in ("prompt", "completion"):
        lengths = sorted(len(getattr(each, part).ids) for each in encoded)
        assert statistics["lengths"][part]["max"] == lengths[-1] and statistics["lengths"][part]["rows"] == len(rows)
        assert statistics["lengths"][part]["p50"] == lengths[(len(lengths) - 1) // 2]
        assert sum(statistics["lengths"][part]["histogram"].values()) == statistics["rows"] == len(rows)
    assert statistics["counts"]["class"] == {"refusal": len(rows)}
    number = measuring.store.row_number(rows[0]["id"])
    text = f"{len(encoded[0].prompt.ids)} prompt, {len(encoded[0].completion.ids)} completion"
    assert measuring.row({"number": str(number)})["tokens"] == text


def test_a_row_that_does_not_render_is_counted_and_shown(measuring: AuditServer):
    statistics = measuring.statistics({"config": "stage2", "split": "eval"})
    assert statistics["lengths"]["prompt"]["not_measured"] == 1
    assert statistics["lengths"]["prompt"]["rows"] == statistics["rows"] - 1
    assert measuring.row({"number": "0"})["tokens"] == "does not render"
    prompts = measuring.statistics({"config": "prompts"})
    assert prompts["lengths"]["completion"]["rows"] == 0 and prompts["lengths"]["prompt"]["rows"] == prompts["rows"]


def test_lengths_are_counted_once_per_tokenizer(measuring: AuditServer, tiny_agent_path: Path, monkeypatch):
    def count_again(lengths: TokenLengths) -> None:
        raise RuntimeError("again")

    monkeypatch.setattr(TokenLengths, "_compute_batches", count_again)
    tokenizer, numbers = AutoTokenizer.from_pretrained(tiny_agent_path), measuring.store.select({})
    same = TokenLengths(measuring.store.files, tokenizer)
    assert same.batches(seconds=60) and same.statistics(numbers) == measuring.lengths.statistics(numbers)
    tokenizer.chat_template += " "
    with pytest.raises(ValueError, match="Counting tokens failed: again"):
        TokenLengths(measuring.store.files, tokenizer).batches(seconds=60)


def test_without_a_tokenizer_there_are_counts_but_no_lengths(server: AuditServer):
    statistics = get(server, "/api/statistics?class=refusal")
    assert statistics["lengths"] is None and statistics["rows"] == statistics["counts"]["class"]["refusal"]


# --------------------------------------------------------------------------------------------------------------- marks


def test_marks_are_saved_and_removed(server: AuditServer, data: Path):
    first, second = (row["id"] for row in get(server, "/api/rows")["rows"][:2])
    assert mark(server, first, "bad", "no attack") == mark(server, second, "good") == 200
    file = data / "audit" / "marks.parquet"
    assert marked_bad(file) == {first} and Marks(file).get(first)["note"] == "no attack"
    assert [row["mark"] for row in get(server, "/api/rows")["rows"][:2]] == ["bad", "good"]
    assert mark(server, first, None) == 200
    assert marked_bad(file) == set() and Marks(file).get(second)["verdict"] == "good"
    assert mark(server, second, "fine") == 400 and mark(server, "none", "bad") == 400


def test_merge_drops_rows_that_are_marked_bad(server: AuditServer, data: Path, tmp_path: Path):
    bad = load_rows(data / "stage2" / "train")[1]["id"]
    assert mark(server, bad, "bad") == 200
    sets = [folder for name in ("harmful", "retain") for folder in sorted((data / name).iterdir())]
    arguments = ("--prompts", data / "prompts", "--output", tmp_path / "stage2", "--min-adversarial-safe", 1)
    run("merge", *sets, *arguments, "--marks", data / "audit" / "marks.parquet", "--min-dr-ratio", 1)
    kept = {row["id"] for split in ("train", "eval") for row in load_rows(tmp_path / "stage2" / split)}
    assert kept and bad not in kept


# ------------------------------------------------------------------------------------------------------------ security


def test_it_listens_on_loopback_and_rejects_other_host_names(server: AuditServer):
    assert server.server_address[0] == "127.0.0.1"
    assert request(server, "GET", "/", Host="evil.example")[0] == 403
    assert request(server, "GET", "/api/rows", Host=f"evil.example:{server.server_port}")[0] == 403


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Content-Type": "text/plain"}, {"Host": "evil.example"}, {"Origin": ""}],
)
def test_another_site_cannot_mark_rows(server: AuditServer, data: Path, headers: dict):
    id = get(server, "/api/rows")["rows"][0]["id"]
    assert mark(server, id, "bad", **headers) == 403
    assert not (data / "audit").exists()


def test_the_page_allows_no_script_but_its_own_and_loads_nothing(server: AuditServer):
    _, headers, body = request(server, "GET", "/")
    policy, page = headers["Content-Security-Policy"], body.decode()
    [nonce] = re.findall(r"script-src 'nonce-([\w-]+)'", policy)
    assert "default-src 'none'" in policy and f'<script nonce="{nonce}">' in page
    assert "NONCE" not in page and not re.findall(
        r"https?://|innerHTML|insertAdjacentHTML|document\.write|eval\(", page
    )
    assert nonce not in request(server, "GET", "/")[2].decode(), "every response has its own nonce"


# ----------------------------------------------------------------------------------------------------------- a browser


SHOWN = "document.querySelector('#row a')?.textContent"


def filter_by(browser: Browser, value: str) -> None:
    """Click the button of a facet's value."""
    facets = "[...document.querySelectorAll('.facet')]"
    browser.value(f"{facets}.find(b => b.textContent.startsWith({json.dumps(value)})).click()")


def search_for(browser: Browser, text: str) -> None:
    """Type into the search field and leave it."""
    field = "document.querySelector('#search')"
    browser.value(f"{field}.value = {json.dumps(text)}; {field}.dispatchEvent(new Event('change'))")


@pytest.mark.browser
def test_payloads_are_shown_as_text(server: AuditServer, browser: Browser, data: Path):
    attacked = load_rows(data / "stage2" / "train")[0]
    browser.open(f"{server.url}#id={quote(attacked['id'], safe='')}")
    browser.until(f"{SHOWN} === {json.dumps(attacked['id'])}")
    assert browser.value("document.title") == "Audit", "no script from a row ran"
    assert browser.value("document.querySelector('#row mark').textContent") == " ".join(PAYLOADS), "the exact span"
    assert browser.value("document.querySelector('.turn.user pre').textContent") == attacked["messages"][1]["content"]
    assert browser.value("document.querySelector('#raw').textContent") == attacked["assistant_raw"]
    assert browser.value("document.querySelector('#raw .special').textContent") == "<|python_tag|>"
    assert browser.value("document.querySelector('#outcome').textContent") == "attack_success"
    assert browser.value("document.querySelectorAll('#row img, #row script, #row pre b').length") == 0


@pytest.mark.browser
def test_rows_are_browsed_and_marked_by_keyboard(server: AuditServer, browser: Browser, data: Path):
    ids = [row["id"] for row in get(server, "/api/rows")["rows"]]
    browser.open(server.url)
    browser.until(f"{SHOWN} === {json.dumps(ids[0])}")
    browser.press("j")
    browser.until(f"{SHOWN} === {json.dumps(ids[1])}")
    browser.press("b")
    browser.until("document.querySelector('#verdict')?.textContent === 'bad'")
    assert marked_bad(data / "audit" / "marks.parquet") == {ids[1]}
    browser.press("x")
    browser.until("!document.querySelector('#verdict')")
    assert marked_bad(data / "audit" / "marks.parquet") == set()
    browser.press("k")
    browser.until(f"{SHOWN} === {json.dumps(ids[0])}")
    assert browser.value("location.hash") == f"#id={quote(ids[0], safe='')}", "the URL links to this row"


@pytest.mark.browser
def test_rows_are_filtered_and_searched_on_the_page(server: AuditServer, browser: Browser):
    total = "document.querySelector('#total').textContent"
    browser.open(server.url)
    browser.until(f"{total} === '{len(server.store)} rows'")
    filter_by(browser, "harmful_flip")
    number = get(server, "/api/rows?class=harmful_flip")["total"]
    browser.until(f"{total} === '{number} rows'")
    browser.press("/")
    assert browser.value("document.activeElement.id") == "search"
    browser.press("j")
    assert browser.value("document.querySelector('#search').value") == "j", "shortcuts are off in text fields"
    search_for(browser, "onerror")
    browser.until(f"{total} === '1 rows'")


@pytest.mark.browser
def test_next_and_previous_stay_within_the_selection(server: AuditServer, browser: Browser):
    selected = [row["id"] for row in get(server, "/api/rows?class=harmful_flip&q=search_web")["rows"]]
    browser.open(server.url)
    browser.until(f"!!{SHOWN}")
    search_for(browser, "SEARCH_web")
    number = get(server, "/api/rows?q=search_web")["total"]
    browser.until(f"document.querySelector('#total').textContent === '{number} rows'")
    filter_by(browser, "harmful_flip")
    for id in selected[:3]:
        browser.until(f"{SHOWN} === {json.dumps(id)}")
        browser.press("j")
    browser.until(f"{SHOWN} === {json.dumps(selected[3])}")
    for id in selected[2::-1]:
        browser.press("k")
        browser.until(f"{SHOWN} === {json.dumps(id)}")


@pytest.mark.browser
def test_a_search_waits_until_the_index_is_ready(server: AuditServer, browser: Browser, monkeypatch):
    search, answers = server.store.search.rows_with, iter(["1 of 4 so far", "3 of 4 so far"])

    def not_ready_twice(text: str) -> np.ndarray:
        if progress := next(answers, None):
            raise NotReady(progress)
        return search(text)

    monkeypatch.setattr(server.store.search, "rows_with", not_ready_twice)
    browser.open(server.url)
    browser.until(f"!!{SHOWN}")
    search_for(browser, "onerror")
    browser.until("document.querySelector('#total').textContent === '1 rows'")


@pytest.mark.browser
def test_statistics_are_plotted_for_the_selection(measuring: AuditServer, browser: Browser):
    threading.Thread(target=measuring.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    rects = "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('rect').length)"
    browser.open(measuring.url)
    browser.until("!!document.querySelector('#row a')")
    browser.press("s")
    browser.until("document.querySelectorAll('.plot').length >= 5")
    assert browser.value("document.querySelector('.plot h2').textContent") == "Tokens of the prompt"
    assert all(number > 0 for number in browser.value(rects))
    classes = "document.querySelectorAll('.plot')[2].querySelectorAll('rect').length"
    assert browser.value(classes) == len(measuring.counts({})["counts"]["class"]) > 1
    browser.value("[...document.querySelectorAll('.facet')].find(b => b.textContent.startsWith('refusal')).click()")
    browser.until(f"{classes} === 1")
    browser.press("j")
    browser.until("document.querySelector('#row a') && !document.querySelector('.plot')")
    measuring.shutdown()
