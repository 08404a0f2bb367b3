"""The audit page under load and abuse: nothing that it is sent stalls it, brings it down or loses a mark."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from cb_datasets.audit.marks import Marks, marked_bad
from cb_datasets.audit.row_store import RowStore
from cb_datasets.audit.view import AuditServer

from ..crash_helpers import die_before_rename
from ..raw_http import at_once, check_refusals, exchange, read_answer, request_bytes, stalled


@pytest.fixture
def server(release_data: Path, tmp_path: Path) -> Iterator[AuditServer]:
    with AuditServer(
        RowStore(release_data / "stage2" / "train"), Marks(tmp_path / "audit" / "marks.parquet")
    ) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()


@pytest.fixture
def ids(server: AuditServer) -> list[str]:
    ids = server.store.facets["id"].to_pylist()
    assert len(ids) >= 50
    return ids


def mark_bytes(server: AuditServer, content: object) -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    port = server.server_port
    headers = {"Origin": f"http://127.0.0.1:{port}", "Content_Type": "application/json"}
    return request_bytes(port, "POST /api/mark HTTP/1.1", body, **headers)


def mark(server: AuditServer, content: object) -> tuple[int, dict]:
    return exchange(server.server_port, mark_bytes(server, content))


def get(server: AuditServer, path: str) -> tuple[int, dict]:
    return exchange(server.server_port, request_bytes(server.server_port, f"GET {path} HTTP/1.1"))


# ------------------------------------------------------------------------------------------------------------ requests


def test_malformed_oversized_and_foreign_requests_are_refused_in_one_line(server):
    check_refusals(server.server_port, "/api/mark", server.max_body)
    assert get(server, "/api/rows")[0] == 200 and not server.marks.path.exists()


def test_wrong_types_are_errors_and_the_connection_is_kept(server, ids):
    wrong = [
        *(b"", b"{", b"\xff", b"[" * 90_000, b'{"id": ' + b"9" * 5000 + b"}"),
        *([], "a", 1, None, {}, {"id": ids[0]}, {"id": 1, "verdict": "bad"}, {"id": None, "verdict": "bad"}),
        *({"id": ids[0], "verdict": verdict} for verdict in (1, ["bad"], {}, True, "", "\ud800")),
        *({"id": ids[0], "verdict": "bad", "note": note} for note in (1, None, ["a"], {})),
        *({"id": id, "verdict": "bad"} for id in ("", "\ud800", "\0", "none")),
    ]
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as connection:
        for content in wrong:
            connection.sendall(mark_bytes(server, content))
            status, answer = read_answer(connection)
            assert status == 400 and answer["error"], content
        connection.sendall(mark_bytes(server, {"id": ids[0], "verdict": "bad"}))
        assert read_answer(connection)[0] == 200
    assert marked_bad(server.marks.path) == {ids[0]}


def test_wrong_queries_are_errors(server):
    for query in ("offset=-1", "offset=1e3", f"offset={'9' * 5000}", "offset="):
        assert get(server, f"/api/rows?{query}")[0] == 400, query
    for query in ("number=-1", f"number={'9' * 30}", "number=a", "id=%00", "id=%ED%A0%80"):
        assert get(server, f"/api/row?{query}")[0] == 400, query


# ---------------------------------------------------------------------------------------------------------------- load


def test_fifty_marks_at_once_are_all_saved(server, ids):
    answers = at_once(50, lambda at: mark(server, {"id": ids[at], "verdict": "bad", "note": str(at)}))
    assert [status for status, _ in answers] == [200] * 50
    assert marked_bad(server.marks.path) == set(ids[:50])


def test_stalled_clients_block_no_others_and_are_dropped(server, ids):
    server.request_seconds = 2.0
    with stalled(server.server_port, 50, "/api/mark") as connections:
        answers = at_once(10, lambda at: mark(server, {"id": ids[at], "verdict": "good"}))
        answers += at_once(10, lambda at: get(server, "/api/rows"))
        assert [status for status, _ in answers] == [200] * 20
        assert {read_answer(connection)[0] for connection in connections} == {408}


def test_bytes_that_trickle_in_do_not_hold_a_connection(server):
    server.request_seconds = 0.5
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=0.05) as connection:
        sent = 0
        # A byte every twentieth of a second: no single one of them is late.
        while sent < 400:
            connection.sendall(b"POST /api/mark HTTP/1.1\r\nX: "[sent : sent + 1] or b"a")
            sent += 1
            try:
                answer = connection.recv(100)
            except TimeoutError:
                continue
            break
    assert sent < 400 and answer.startswith(b"HTTP/1.1 408")


def test_threads_are_bounded_and_further_clients_wait(server):
    server.request_seconds, server.linger_seconds = 0.3, 0.1
    for _ in range(server.max_connections - 2):
        server._free.acquire()
    before = threading.active_count()
    with stalled(server.server_port, 8, "/api/mark") as connections:
        assert get(server, "/api/rows")[0] == 200
        assert threading.active_count() <= before + 2
        assert {read_answer(connection)[0] for connection in connections} == {408}


def test_clients_that_leave_are_no_errors(server, ids, capfd):
    for request in (mark_bytes(server, {"id": ids[0], "verdict": "bad"}), b"GET /api/rows HT", b""):
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closed by a reset
            connection.sendall(request)
    assert get(server, "/api/rows")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


# --------------------------------------------------------------------------------------------------------------- marks


def test_a_lone_surrogate_in_a_note_is_replaced(server, ids):
    status, answer = mark(
        server, b'{"id": %s, "verdict": "bad", "note": "a\\ud800b \\ud83d\\ude00"}' % json.dumps(ids[0]).encode()
    )
    assert status == 200 and answer["mark"]["note"] == "a\ufffdb \U0001f600"
    assert mark(server, {"id": ids[1], "verdict": "bad"})[0] == 200
    assert marked_bad(server.marks.path) == set(ids[:2])


def test_what_a_full_disk_refuses_is_no_mark(server, ids):
    assert mark(server, {"id": ids[0], "verdict": "good"})[0] == 200
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        status, answer = mark(server, {"id": ids[1], "verdict": "bad"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 507 and "File too large" in answer["error"] and "Free space" in answer["error"]
    assert get(server, f"/api/row?number={1}")[1]["mark"] is None, "memory has what the disk has"
    assert mark(server, {"id": ids[2], "verdict": "bad"})[0] == 200
    assert marked_bad(server.marks.path) == {ids[2]}
    assert [path.name for path in server.marks.path.parent.iterdir()] == ["marks.parquet"]


def put_many(path: Path, prefix: str) -> None:
    marks = Marks(path)
    for at in range(15):
        marks.put(f"{prefix}{at}", "bad", "")


def test_two_processes_keep_all_marks_of_both(tmp_path):
    path = tmp_path / "audit" / "marks.parquet"
    here = Marks(path)
    processes = [multiprocessing.get_context("fork").Process(target=put_many, args=(path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    here.put("c", "bad", "")
    assert marked_bad(path) == {"c", *(f"{name}{at}" for name in "ab" for at in range(15))}
    assert here.get("a0")["verdict"] == "bad", "a page shows the marks of the other, too"
    assert [path.name for path in path.parent.iterdir()] == ["marks.parquet"]


def killed_put(path: Path) -> None:
    die_before_rename(0)
    Marks(path).put("b", "bad", "")


def test_a_killed_save_leaves_nothing_that_lasts(tmp_path):
    path = tmp_path / "marks.parquet"
    here = Marks(path)
    here.put("a", "bad", "")
    process = multiprocessing.get_context("fork").Process(target=killed_put, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 3
    here.put("c", "bad", "")
    assert marked_bad(path) == {"a", "c"} and list(tmp_path.iterdir()) == [path]


def test_marks_behind_a_link_stay_there(tmp_path):
    (tmp_path / "shared").mkdir()
    link, path = tmp_path / "marks.parquet", tmp_path / "shared" / "team.parquet"
    link.symlink_to(path)
    Marks(link).put("a", "bad", "")
    assert link.is_symlink() and marked_bad(path) == {"a"} and os.listdir(path.parent) == ["team.parquet"]


def test_a_file_that_holds_no_marks_is_named_and_kept(tmp_path):
    torn, other = tmp_path / "torn.parquet", tmp_path / "other.parquet"
    torn.write_bytes(b"PAR1")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), other)
    for path in (torn, other, tmp_path):
        with pytest.raises(ValueError, match=f"^{path} "):
            Marks(path)
    assert torn.read_bytes() == b"PAR1"
