"""Requests to the chat server, checked: whatever a client sends is a request for a completion, or one line of error.

{"model": "breaker", "messages": [{"role": "user", "content": "Pay."}], "tools": [...], "max_tokens": 256}
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from builders.trace import message, to_json, tool_call


DEFAULT_MAX_TOKENS = 256


class BadRequest(ValueError):
    """An error of the request; the response has status 400."""

    def __init__(self, message: str, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class ChatRequest:
    """A request for one completion.

    Args:
        model (`str`): Served model name.
        messages (`list[dict]`): The messages of a row.
        tools (`str`, *optional*): JSON text of the tools.
        max_tokens (`int`): Maximum number of tokens of the completion.
    """

    model: str
    messages: list[dict]
    tools: str | None
    max_tokens: int


def parse_request(body: bytes, models: Collection[str]) -> ChatRequest:
    """Read a request.

    Args:
        body (`bytes`): The JSON.
        models (`Collection[str]`): Served model names.

    Raises:
        BadRequest: If it is not JSON, lacks a field, or has one of a wrong type; if there is no such model.
    """
    try:
        request = json.loads(body)
        to_json(request).encode()
    except (ValueError, RecursionError) as error:  # an unpaired surrogate, too
        raise BadRequest(f"The body is not JSON that UTF-8 can hold ({error}).") from None
    request = _typed(request, dict, "the request")
    model = _typed(request.get("model"), str, "model")
    if model not in models:
        raise BadRequest(f"No model {model!r}; there are {', '.join(models)}.", "model_not_found")
    messages = _typed(request.get("messages"), list, "messages")
    tools = _typed(_given(request, "tools", []), list, "tools")
    for at, tool in enumerate(tools):
        function = _typed(_typed(tool, dict, f"tools[{at}]").get("function"), dict, f"tools[{at}].function")
        _typed(function.get("name"), str, f"tools[{at}].function.name")
    max_tokens = _typed(_given(request, "max_tokens", DEFAULT_MAX_TOKENS), int, "max_tokens")
    if not messages or max_tokens < 1:
        raise BadRequest("messages is empty." if not messages else f"max_tokens is {max_tokens}, below 1.")
    rows = [_parse_message(wire, f"messages[{at}]") for at, wire in enumerate(messages)]
    return ChatRequest(model, rows, to_json(tools) if tools else None, max_tokens)


def _parse_message(wire: Any, where: str) -> dict:
    """Convert a message of a request to a row's message; its content may be a list of text blocks."""
    wire = _typed(wire, dict, where)
    content = wire.get("content")
    if isinstance(content, list):
        blocks = [_typed(block, dict, f"{where}.content[{at}]") for at, block in enumerate(content)]
        texts = [_typed(block.get("text"), str, f"{where}.content[{at}].text") for at, block in enumerate(blocks)]
        content = "\n".join(texts)
    calls = _typed(_given(wire, "tool_calls", []), list, f"{where}.tool_calls")
    return message(
        _typed(wire.get("role"), str, f"{where}.role"),
        _typed(content, str | None, f"{where}.content"),
        [_parse_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(calls)],
        _typed(wire.get("tool_call_id"), str | None, f"{where}.tool_call_id"),
        _typed(wire.get("name"), str | None, f"{where}.name"),
    )


def _parse_call(call: Any, where: str) -> dict:
    call = _typed(call, dict, where)
    function = _typed(call.get("function"), dict, f"{where}.function")
    text = _typed(function.get("arguments"), str, f"{where}.function.arguments")
    try:
        arguments = json.loads(text)
        to_json(arguments).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{where}.function.arguments is not JSON ({error}).") from None
    return tool_call(
        _typed(function.get("name"), str, f"{where}.function.name"),
        _typed(arguments, dict, f"{where}.function.arguments"),
        id=_typed(call.get("id"), str, f"{where}.id"),
    )


def _given(fields: dict, name: str, default: Any) -> Any:
    """A field that may be missing or null."""
    value = fields.get(name)
    return default if value is None else value


def _typed(value: Any, wanted: Any, where: str) -> Any:
    """The value, if it is of the wanted type; `True` and `False` are no numbers."""
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise BadRequest(f"{where} is {'missing' if value is None else f'a {type(value).__name__}'}.")
    return value
