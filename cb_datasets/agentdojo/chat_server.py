"""A small chat server over a backend, for machines without vLLM: the part of OpenAI's API that agents need.

    POST /v1/chat/completions   {"model": "breaker", "messages": [...], "tools": [...], "max_tokens": 256}
    GET  /v1/models

Prompts are rendered by `cb_datasets/chat.py` and completions parsed by `cb_datasets/formats/`, as in generation and
evaluation. Decoding is greedy. Requests that wait for the model are completed together, as one batch, see
`batching.py`.
"""

import copy
import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from builders.trace import message, to_json, tool_call

from ..chat import encode_prompt
from ..formats import Diagnosis, ToolCallFormat, format_of
from ..generation import Backend, Sampling
from .batching import BatchedBackends


@contextmanager
def chat_server(backends: Mapping[str, Backend], max_length: int) -> Iterator[str]:
    """Serve models, and yield the base URL of the API, `http://127.0.0.1:<port>/v1`.

    The server listens on loopback only, at a free port, and stops when the block exits.

    Args:
        backends (`Mapping[str, Backend]`): Backends by served model name, all with one tokenizer.
        max_length (`int`): Maximum number of tokens of a prompt and its completion.
    """
    with BatchedBackends(backends) as batched:
        server = _ChatServer(batched, max_length)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _ChatServer(ThreadingHTTPServer):
    daemon_threads = True
    # Connections that may wait to be accepted: as many as runs can be in flight.
    request_queue_size = 1024

    def __init__(self, batched: BatchedBackends, max_length: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.batched = batched
        self.max_length = max_length
        # A copy for the requests' threads: a fast tokenizer fails if it encodes while another thread uses it.
        self.tokenizer = copy.deepcopy(next(iter(batched.backends.values())).tokenizer)
        self.tokenizer_lock = threading.Lock()


class _BadRequest(Exception):
    """An error of the request; the response has status 400."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    server: _ChatServer
    protocol_version = "HTTP/1.1"  # keeps connections open from turn to turn
    disable_nagle_algorithm = True  # else a response waits 40 ms for the acknowledgement of its headers

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            models = [{"id": name, "object": "model"} for name in self.server.batched.backends]
            self._send(200, {"object": "list", "data": models})
        else:
            self._send_not_found()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path != "/v1/chat/completions":
            self._send_not_found()
            return
        try:
            response = _complete_chat(self.server, json.loads(body))
        except _BadRequest as error:
            self._send(400, _error(str(error), error.code))
        except Exception as error:
            self._send(500, _error(f"{type(error).__name__}: {error}", "internal_error"))
        else:
            self._send(200, response)

    def _send_not_found(self) -> None:
        self._send(404, _error(f"There is no {self.path}.", "not_found"))

    def _send(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not logged."""


def _error(message: str, code: str) -> dict:
    return {"error": {"message": message, "type": "error", "code": code}}


def _complete_chat(server: _ChatServer, request: dict) -> dict:
    """Serve a chat completion request, and return the response body."""
    backends = server.batched.backends
    if request["model"] not in backends:
        raise _BadRequest(f"No model {request['model']!r}; there are {', '.join(backends)}.", "model_not_found")
    messages = [_parse_message(wire) for wire in request["messages"]]
    tools = to_json(request["tools"]) if request.get("tools") else None
    with server.tokenizer_lock:
        ids = encode_prompt(server.tokenizer, {"messages": messages, "tools": tools})
    sampling = Sampling(max_new_tokens=request.get("max_tokens") or 256)
    if len(ids) + sampling.max_new_tokens > server.max_length:
        # The words "maximum context length" are vLLM's too; `ServedModel` looks for them.
        raise _BadRequest(
            f"The model's maximum context length is {server.max_length} tokens, but the prompt has {len(ids)} and the "
            f"completion up to {sampling.max_new_tokens}.",
            "context_length_exceeded",
        )
    completion = server.batched.complete(request["model"], ids, sampling)
    assistant_message, finish_reason = _assistant_message(completion.text, format_of(server.tokenizer), tools)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "message": assistant_message,
                "finish_reason": "length" if completion.stop_reason == "length" else finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": len(ids),
            "completion_tokens": len(completion.token_ids),
            "total_tokens": len(ids) + len(completion.token_ids),
        },
    }


def _parse_message(wire: dict) -> dict:
    """Convert a message of a request to a row's message; its content may be a list of text blocks."""
    content = wire.get("content")
    if isinstance(content, list):
        content = "\n".join(block.get("text", "") for block in content)
    calls = [
        tool_call(call["function"]["name"], json.loads(call["function"]["arguments"]), id=call["id"])
        for call in wire.get("tool_calls") or []
    ]
    return message(wire["role"], content, calls, wire.get("tool_call_id"), wire.get("name"))


def _assistant_message(text: str, tool_format: ToolCallFormat, tools: str | None = None) -> tuple[dict, str]:
    """A completion as an assistant message with the calls that it executes, and its finish reason."""
    parsed, executed = tool_format.parse(text, tools), tool_format.executed_calls(text, tools)
    if not executed:
        # Words without what some formats write around them; what is malformed stays as it is.
        is_words = parsed.diagnosis in (Diagnosis.TEXT, Diagnosis.EMPTY)
        answer = parsed.text if is_words else text[parsed.answer_start :].removesuffix(parsed.end or "")
        return {"role": "assistant", "content": answer, "tool_calls": None}, "stop"
    calls = [
        {
            "id": f"call_{uuid.uuid4().hex[:12]}",
            "type": "function",
            "function": {"name": call.name, "arguments": to_json(call.arguments)},
        }
        for call in executed
    ]
    # Without a tag, the text holds the calls themselves.
    words = parsed.text if parsed.call_starts else None
    return {"role": "assistant", "content": words or None, "tool_calls": calls}, "tool_calls"
