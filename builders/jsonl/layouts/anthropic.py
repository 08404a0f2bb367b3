"""Messages of Anthropic's API.

    {"system": "Be brief.", "model": "...",
     "messages": [{"role": "user", "content": "What does the notice say?"},
                  {"role": "assistant", "content": [{"type": "text", "text": "I will look."},
                       {"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {"path": "notice.txt"}}]},
                  {"role": "user", "content": [
                       {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Closed."}]}],
     "tools": [{"name": "read_file", "description": "...", "input_schema": {...}}]}

The results in a user's message become messages of their own, before the user's words in it.
"""

from collections import Counter
from typing import Any

from .common import call_of, dicts_in, line_of, system_beside, text_of, without_nulls
from .openai import unpacked


_BLOCKS = ("tool_use", "tool_result", "thinking", "redacted_thinking")
_OPENAI_ROLES = ("tool", "function", "developer")
# Settings of a request, which go into metadata.
_REQUEST = ("max_tokens", "temperature", "top_k", "top_p", "stop_sequences", "stream", "tool_choice", "thinking")


def matches(record: dict) -> bool:
    """Whether a record is of this layout."""
    record = unpacked(record)
    if not isinstance(record.get("messages"), list) or any(map(_is_openai, dicts_in(record["messages"]))):
        return False
    has_schemas = any("input_schema" in tool for tool in dicts_in(record.get("tools")))
    blocks = (block for message in dicts_in(record["messages"]) for block in dicts_in(message.get("content")))
    return bool(record.get("system")) or has_schemas or any(block.get("type") in _BLOCKS for block in blocks)


def _is_openai(message: dict) -> bool:
    # Others write thinking as Anthropic does, and the system prompt beside the messages.
    return any(message.get(name) for name in ("tool_calls", "function_call")) or message.get("role") in _OPENAI_ROLES


def read(record: dict, left_out: Counter[str]) -> dict:
    """The line of a trace."""
    record = unpacked(record)
    if not isinstance(record.get("messages"), list):
        raise ValueError("messages is missing. Add it.")
    messages = system_beside(record, left_out)
    for index, raw in enumerate(record["messages"]):
        messages += [(index, message) for message in _messages(raw, f"messages[{index}]", left_out)]
    request = {"generator": record.get("model"), **{name: record.get(name) for name in _REQUEST}}
    return line_of(record, messages, record.get("tools"), ("system", "model", *_REQUEST), request)


def _messages(raw: Any, where: str, left_out: Counter[str]) -> list:
    if not isinstance(raw, dict):
        return [raw]
    blocks = list(dicts_in(raw.get("content")))
    results = [
        {
            "role": "tool",
            "tool_call_id": block.get("tool_use_id"),
            "content": text_of(block.get("content"), where, left_out),
        }
        for block in blocks
        if block.get("type") == "tool_result"
    ]
    calls = [call_of(block) for block in blocks if block.get("type") == "tool_use"]
    content = text_of(raw.get("content"), where, left_out, other=("tool_use", "tool_result"))
    if content or calls or not results:
        results.append({**raw, "content": content, "tool_calls": calls or raw.get("tool_calls")})
    return [without_nulls(message) for message in results]
