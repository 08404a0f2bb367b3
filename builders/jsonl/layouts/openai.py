"""Messages of OpenAI's API, as its SDK dumps them, fine-tuning files hold them and servers log them.

    {"messages": [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, ...
                  {"role": "assistant", "content": null, "refusal": null, "annotations": [], "function_call": null,
                   "tool_calls": [{"id": "call_1", "type": "function", "function": {...}}]}, ...],
     "tools": [...], "parallel_tool_calls": false}

    {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [...], ...}}

    {"request": {"messages": [...], ...}, "response": {"choices": [{"message": {"role": "assistant", ...}}]}}

A `developer` is the system; a `function_call` is a call whose result has the role `function`. The lines of a trace are
of this layout too, and pass through it unchanged.
"""

from collections import Counter
from typing import Any

from ...json_records import parse_json
from ...trace import to_json
from .common import (
    Unusable,
    call_of,
    cut_tags,
    dicts_in,
    is_trace,
    line_of,
    named_call,
    parse_value,
    system_beside,
    text_of,
    without_nulls,
)


_ROLES = {"developer": "system", "function": "tool"}
_FIELDS = ("role", "content", "tool_calls", "tool_call_id", "name")
_REASONING = ("reasoning", "reasoning_content", "reasoning_details", "thinking")
# Fields of an SDK's message that hold no text of the conversation: left out, and counted unless they are empty.
_EXTRAS = ("annotations", "audio", "provider_specific_fields", "refusal", "function_call", "weight", "stop_reason")
# Settings of a request, which go into metadata.
_REQUEST = (
    "parallel_tool_calls",
    "tool_choice",
    "function_call",
    "temperature",
    "top_p",
    "seed",
    "max_tokens",
    "stream",
)


def matches(record: dict) -> bool:
    """Whether a record is of this layout."""
    return isinstance(record.get("messages"), list) or request_of(record) is not None


def request_of(record: dict) -> dict | None:
    """The request in a record that logs one; `None` if there is none."""
    for name in ("body", "request", "kwargs"):
        request = record.get(name)
        if isinstance(request, dict) and isinstance(request.get("body"), dict):
            request = request["body"]
        if isinstance(request, dict) and isinstance(request.get("messages"), list):
            return request
    return None


def unpacked(record: dict) -> dict:
    """The fields of a record and of the request that it logs, with the answer as the last message."""
    request = None if isinstance(record.get("messages"), list) else request_of(record)
    if request is None:
        return record
    rest = without_nulls(record, "body", "request", "kwargs", "response", "method", "url", "custom_id")
    answer = answer_in(record.get("response"))
    id = rest.get("id", record.get("custom_id"))
    return {**rest, **request, "id": id, "messages": [*request["messages"], *([answer] if answer else [])]}


def answer_in(response: Any) -> dict | None:
    """The message of a response of OpenAI's or Anthropic's API."""
    response = response["body"] if isinstance(response, dict) and isinstance(response.get("body"), dict) else response
    if not isinstance(response, dict):
        return None
    choice = next(dicts_in(response.get("choices")), {})
    if isinstance(choice.get("message"), dict):
        return choice["message"]
    return {"role": "assistant", "content": response["content"]} if response.get("content") else None


def read(record: dict, left_out: Counter[str]) -> dict:
    """The line of a trace."""
    record = unpacked(record)
    if not isinstance(record.get("messages"), list):
        if is_trace(record):
            return record  # the schema of a trace names the fault
        missing = "messages is missing"
        if record.get("response") or record.get("choices"):
            missing += ": this is an answer without its request"
        raise ValueError(f"{missing}. Add it; docs/adding_a_source.md lists the formats of logs that can be read.")
    raws, logged = record["messages"], not is_trace(record)
    messages = system_beside(record, left_out)  # some write it as Anthropic's API does
    for index, raw in enumerate(raws):
        message = read_message(raw, f"messages[{index}]", left_out, logged)
        messages += [(index, each) for each in _split_results(message, raws[index - 1] if index else None)]
    request = {"generator": record.get("model"), **{name: record.get(name) for name in _REQUEST}}
    own = ("model", "system", "functions", *_REQUEST)
    tools = record.get("functions") if record.get("tools") is None else record["tools"]
    return line_of(record, messages, tools, own, request)


def _parts(raw: Any, kind: str) -> list[dict]:
    content = raw.get("content") if isinstance(raw, dict) else None
    return [part for part in dicts_in(content) if part.get("type") == kind]


def read_message(raw: Any, where: str, left_out: Counter[str], logged: bool = True) -> Any:
    """A message of a trace.

    Args:
        raw (`Any`): The message.
        where (`str`): Its path, for errors.
        left_out (`Counter[str]`): Counts what is left out.
        logged (`bool`, *optional*, defaults to `True`): Whether the record is a log, not the line of a trace: fields
            of others are left out, and calls that the answer writes in `<tool_call>` become calls.
    """
    if not isinstance(raw, dict):
        return raw
    raw = without_nulls(raw)
    if isinstance(raw.get("audio"), dict):
        raise Unusable("non_text_content")
    message = {name: value for name, value in raw.items() if name in _FIELDS}
    _count_left_out(raw, message, left_out, logged)
    message["role"] = _ROLES.get(raw["role"], raw["role"]) if isinstance(raw.get("role"), str) else raw.get("role")
    content = text_of(raw.get("content"), where, left_out, other=("tool_call",))
    message["content"] = raw["refusal"] if content in (None, "") and raw.get("refusal") else content
    calls = _calls_of(raw, where)
    if logged and not calls and message["role"] == "assistant" and isinstance(content, str):
        message["content"], calls = cut_calls(content, where)
    message["tool_calls"] = calls or raw.get("tool_calls")
    return without_nulls(message)


def _count_left_out(raw: dict, message: dict, left_out: Counter[str], logged: bool) -> None:
    for name, value in raw.items():
        if name in _REASONING:
            left_out["reasoning"] += bool(value)
        elif name not in _FIELDS and name not in _EXTRAS and not logged:
            message[name] = value  # the schema of a trace names it
        elif name not in _FIELDS and name not in ("refusal", "function_call"):
            left_out[name] += bool(value)


def _calls_of(raw: dict, where: str) -> list:
    calls = [call_of(call) for call in raw["tool_calls"]] if isinstance(raw.get("tool_calls"), list) else []
    if isinstance(raw.get("function_call"), dict):
        calls.append(call_of({"function": raw["function_call"]}))
    for part in _parts(raw, "tool_call"):  # LLaMA-Factory's: {"type": "tool_call", "value": "{...}"}
        calls += calls_in(part.get("value"), where)
    return calls


def calls_in(value: Any, where: str) -> list[dict]:
    """The calls of a JSON text or value: one `{"name", "arguments"}`, or a list of them.

    Raises:
        ValueError: If it holds anything else.
    """
    try:
        value = parse_value(value) if isinstance(value, str) else value
        return [named_call(call) for call in (value if isinstance(value, list) else [value])]
    except ValueError as error:
        raise ValueError(f"{where} is no call in JSON ({error}). Correct it.") from None


def cut_calls(text: str, where: str) -> tuple[str | None, list[dict]]:
    """A text without its `<tool_call>...</tool_call>`, and those calls."""
    rest, written = cut_tags(text, "tool_call")
    if not written:
        return text, []
    return rest.strip() or None, [call for each in written for call in calls_in(each, where)]


def _split_results(message: Any, before: Any) -> list:
    """The results of parallel calls, which LLaMA-Factory writes as one JSON list.

    [{"name": "circle_area", "content": "7.1"}, {"name": "circle_area", "content": "28.3"}]
    """
    calls = _parts(before, "tool_call")
    if len(calls) < 2 or not isinstance(message, dict) or message.get("role") != "tool":
        return [message]
    try:
        results = parse_json(message.get("content") or "")
    except ValueError:
        return [message]
    texts = [result.get("content") for result in dicts_in(results)]
    if len(texts) != len(calls) or None in texts:
        return [message]
    return [{"role": "tool", "content": text if isinstance(text, str) else to_json(text)} for text in texts]
