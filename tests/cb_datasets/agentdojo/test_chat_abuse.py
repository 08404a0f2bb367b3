"""The chat server under load and abuse: every request gets a completion or one line of error."""

import json
import socket
from urllib.parse import urlsplit

import pytest

from cb_datasets.agentdojo.chat_server import _ChatServer, chat_server
from cb_datasets.generation.transformers_backend import TransformersBackend

from ..raw_http import at_once, check_refusals, exchange, read_answer, request_bytes, stalled


PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "Hello."}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def agent(tiny_agent_path):
    return TransformersBackend(str(tiny_agent_path))


@pytest.fixture
def port(agent, monkeypatch):
    monkeypatch.setattr(_ChatServer, "request_seconds", 3.0)
    with chat_server({"base": agent}, max_length=1024) as url:
        yield urlsplit(url).port


def chat_bytes(port: int, content: object) -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return request_bytes(port, f"POST {PATH} HTTP/1.1", body, Content_Type="application/json")


def chat(**fields: object) -> dict:
    return {"model": "base", "messages": [USER], "max_tokens": 4} | fields


def with_call(**changes: object) -> dict:
    function = {"name": "f", "arguments": "{}"} | changes
    return chat(messages=[USER, {"role": "assistant", "tool_calls": [{"id": "c", "function": function}]}])


WRONG = [
    *(b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"model": ' + b"9" * 5000 + b"}", [], "a", 1, None, {}),
    *(chat(model=model) for model in (None, 1, ["base"], {}, "\0")),
    *(chat(messages=messages) for messages in (None, [], {}, "a", [1], ["a"], [None], [[]], [{}])),
    *(chat(messages=[USER | {"role": role}]) for role in (None, 1, [])),
    *(chat(messages=[USER | {"content": content}]) for content in (1, {}, True, [1], [{}], [{"text": 1}], "\ud800")),
    *(chat(messages=[USER | field]) for field in ({"name": 1}, {"tool_call_id": []}, {"tool_calls": 1})),
    *(chat(messages=[USER | {"tool_calls": calls}]) for calls in ([1], [{}], [{"function": 1}], {"a": 1})),
    *(with_call(arguments=text) for text in (None, {}, "", "[]", "1", "[" * 100_000, '{"a": "\\ud800"}')),
    *(with_call(name=name) for name in (None, 1, [])),
    *(chat(tools=tools) for tools in (1, "a", {"a": 1}, [1], [{}], [{"function": {}}], [{"function": {"name": 1}}])),
    *(chat(max_tokens=number) for number in (0, -1, "4", 1.5, [], True, 10**6, 10**400)),
]


def test_malformed_oversized_and_foreign_requests_are_refused_in_one_line(port):
    check_refusals(port, PATH, _ChatServer.max_body)
    assert exchange(port, chat_bytes(port, chat()))[0] == 200


def test_wrong_types_are_errors_and_the_connection_is_kept(port):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for content in WRONG:
            connection.sendall(chat_bytes(port, content))
            status, answer = read_answer(connection)
            assert status == 400 and answer["error"]["message"] and answer["error"]["code"], content
        connection.sendall(chat_bytes(port, chat(tools=[TOOL])))
        assert read_answer(connection)[0] == 200


def test_what_the_template_does_not_render_is_an_error_of_the_request(port, agent, monkeypatch):
    broken = "{{ raise_exception('roles must alternate') }}"
    monkeypatch.setattr("cb_datasets.agentdojo.chat_server.encode_prompt", lambda tokenizer, row: raises(broken))
    status, answer = exchange(port, chat_bytes(port, chat()))
    assert status == 400 and "roles must alternate" in answer["error"]["message"]


def raises(text: str) -> None:
    raise ValueError(text)


def test_a_failing_model_is_an_error_of_the_server(port, agent, monkeypatch, capfd):
    monkeypatch.setattr(TransformersBackend, "generate", lambda *arguments, **options: raises("no memory"))
    status, answer = exchange(port, chat_bytes(port, chat()))
    assert status == 500 and answer["error"]["message"] == "ValueError: no memory"
    monkeypatch.undo()
    assert exchange(port, chat_bytes(port, chat()))[0] == 200
    assert "no memory" in capfd.readouterr().err


def test_fifty_clients_are_served_while_fifty_stall(port):
    with stalled(port, 50, PATH) as connections:
        answers = at_once(
            50, lambda at: exchange(port, chat_bytes(port, chat(messages=[USER | {"content": str(at)}])))
        )
        assert [status for status, _ in answers] == [200] * 50
        assert {read_answer(connection)[0] for connection in connections} == {408}
