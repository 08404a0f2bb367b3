"""A small chat server over a backend, for machines without vLLM: the part of OpenAI's API that agents need.

    POST /v1/chat/completions   {"model": "breaker", "messages": [...], "tools": [...], "max_tokens": 256}
    GET  /v1/models

Prompts are rendered by `cb_datasets/chat.py` and completions parsed by `cb_datasets/formats/`, as in generation and
evaluation. Decoding is greedy. Requests that wait for the model are completed together, as one batch, see
`batching.py`; `chat_requests.py` checks them, and `web/server.py` refuses clients of other hosts and sites.
"""

import copy
import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..chat import encode_prompt
from ..formats import Diagnosis, ToolCallFormat, format_of
from ..formats.chat_template import RENDER_ERRORS
from ..generation import Backend, Sampling
from ..web.server import Answer, LocalHandler, LocalServer
from .batching import BatchedBackends
from .chat_requests import BadRequest, ChatRequest, parse_request


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


class _ChatServer(LocalServer):
    # As many as runs can be in flight.
    max_connections = 1024
    max_body = 4_000_000

    def __init__(self, batched: BatchedBackends, max_length: int) -> None:
        super().__init__(0, _Handler)
        self.batched = batched
        self.max_length = max_length
        # A copy for the requests' threads: a fast tokenizer fails if it encodes while another thread uses it.
        self.tokenizer = copy.deepcopy(next(iter(batched.backends.values())).tokenizer)
        self.tokenizer_lock = threading.Lock()


class _Handler(LocalHandler):
    server: _ChatServer

    def answer(self) -> Answer:
        if (self.command, self.path) == ("GET", "/v1/models"):
            models = [{"id": name, "object": "model"} for name in self.server.batched.backends]
            return Answer(200, {"object": "list", "data": models})
        if (self.command, self.path) != ("POST", "/v1/chat/completions"):
            return Answer(404, _error(f"There is no {self.command} {self.path}.", "not_found"))
        try:
            request = parse_request(self.body, self.server.batched.backends)
            return Answer(200, _complete_chat(self.server, request))
        except BadRequest as error:
            return Answer(400, _error(str(error), error.code))

    def error_content(self, message: str) -> dict:
        return _error(message, "error")


def _error(message: str, code: str) -> dict:
    return {"error": {"message": message, "type": "error", "code": code}}


def _complete_chat(server: _ChatServer, request: ChatRequest) -> dict:
    """Serve a chat completion request, and return the response body."""
    try:
        with server.tokenizer_lock:
            ids = encode_prompt(server.tokenizer, {"messages": request.messages, "tools": request.tools})
    except RENDER_ERRORS as error:
        raise BadRequest(f"The chat template does not render this request ({error}).") from error
    sampling = Sampling(max_new_tokens=request.max_tokens)
    if len(ids) + sampling.max_new_tokens > server.max_length:
        # The words "maximum context length" are vLLM's too; `ServedModel` looks for them.
        raise BadRequest(
            f"The model's maximum context length is {server.max_length} tokens, but the prompt has {len(ids)} and the "
            f"completion up to {sampling.max_new_tokens}.",
            "context_length_exceeded",
        )
    completion = server.batched.complete(request.model, ids, sampling)
    assistant_message, finish_reason = _assistant_message(completion.text, format_of(server.tokenizer), request.tools)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
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
            # As vLLM does, also with `NaN`, which is no JSON: what to do with it is the client's affair.
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in executed
    ]
    # Without a tag, the text holds the calls themselves.
    words = parsed.text if parsed.call_starts else None
    return {"role": "assistant", "content": words or None, "tool_calls": calls}, "tool_calls"
