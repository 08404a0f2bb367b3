"""Runs of LangSmith, and messages as LangChain writes them.

    {"id": "...", "run_type": "llm",
     "inputs": {"messages": [[{"lc": 1, "type": "constructor", "id": ["langchain", ..., "HumanMessage"],
                               "kwargs": {"content": "What does the notice say?", "type": "human"}}]]},
     "outputs": {"generations": [[{"message": {"lc": 1, "kwargs": {"content": "", "tool_calls": [
                     {"name": "read_file", "args": {"path": "notice.txt"}, "id": "c1"}]}}}]]},
     "extra": {"invocation_params": {"tools": [...]}, "metadata": {...}}}

    {"messages": [{"type": "human", "data": {"content": "What does the notice say?"}}, ...]}

A run of a whole chain, such as an agent of LangGraph, has all its messages in `outputs`; that of one node has only the
new ones there.
"""

import json
from collections import Counter
from typing import Any

from .common import Unusable, call_of, dicts_in, labels_in, line_of, object_in, text_of, without_nulls
from .openai import read_message


_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
# Fields of a run that say nothing about its messages.
_RUN = (
    *("inputs", "outputs", "run_type", "extra", "events", "serialized", "trace_id", "dotted_order", "parent_run_id"),
    *("parent_run_ids", "child_run_ids", "session_id", "app_path", "manifest_id", "in_dataset", "share_token"),
)


def matches(record: dict) -> bool:
    """Whether a record is of this layout."""
    return isinstance(record.get("inputs"), dict) or any(map(_is_langchain, dicts_in(record.get("messages"))))


def _is_langchain(message: dict) -> bool:
    return "role" not in message and bool({"lc", "type"} & set(message))


def read(record: dict, left_out: Counter[str]) -> dict:
    """The line of a trace.

    Raises:
        Unusable: If the run failed, or is of several conversations at once.
        ValueError: If it has no messages.
    """
    if record.get("error"):
        raise Unusable("aborted")
    inputs, is_run = object_in(record, "inputs"), isinstance(record.get("inputs"), dict)
    path = "inputs.messages" if is_run else "messages"
    raw = _run_messages(inputs, object_in(record, "outputs")) if is_run else record.get("messages")
    if not isinstance(raw, list) or not raw:
        raise ValueError(
            f"{path} is missing: only runs whose inputs are messages can be read. Export those of the model."
        )
    messages = [(index, _message(each, f"{path}[{index}]", left_out)) for index, each in enumerate(raw)]
    extra = object_in(record, "extra")
    parameters, metadata = object_in(extra, "invocation_params"), object_in(extra, "metadata")
    tools = record.get("tools") or parameters.get("tools") or inputs.get("tools")
    model = metadata.get("ls_model_name") or parameters.get("model") or parameters.get("model_name")
    line = line_of(record, messages, tools, _RUN, {"generator": model, **metadata})
    return {**labels_in(metadata), **line}


def _run_messages(inputs: dict, outputs: dict) -> Any:
    """The messages of a run: its inputs, and its answer."""
    messages = inputs.get("messages")
    if isinstance(messages, list) and all(map(_is_pair, messages)):
        messages = [{"role": each[0], "content": each[1]} for each in messages]
    if isinstance(messages, list) and messages and isinstance(messages[0], list):
        if len(messages) > 1:
            raise Unusable("several_conversations")
        [messages] = messages
    if isinstance(said := outputs.get("messages"), list):
        if not isinstance(messages, list) or _words_in(messages) <= _words_in(said):
            return said
        return messages + said
    answer = _answer(outputs)
    if not isinstance(messages, list) or not isinstance(answer, dict):
        return messages
    # What LangSmith keeps of an answer may not say whose it is.
    return [*messages, answer if "role" in answer else {**answer, "type": "ai", "id": None}]


def _is_pair(raw: Any) -> bool:
    """Whether this is a message as `["user", "Hello."]`."""
    return isinstance(raw, list) and len(raw) == 2 and all(isinstance(each, str) for each in raw)


def _words_in(messages: list) -> set[str]:
    return {json.dumps(_fields(raw).get("content")) for raw in messages if isinstance(raw, dict)}


def _fields(raw: dict) -> dict:
    """The fields of a message, which LangChain also writes in `kwargs` or `data`."""
    return object_in(raw, "kwargs") or object_in(raw, "data") or raw


def _answer(outputs: dict) -> Any:
    """The message that a model answered, as LangChain or OpenAI's API writes it; `None` if there is none."""
    generations = outputs.get("generations")
    if isinstance(generations, list) and generations:
        return next(dicts_in(generations[0] if isinstance(generations[0], list) else generations), {}).get("message")
    choice = next(dicts_in(outputs.get("choices")), None)
    if choice is not None:
        return choice.get("message")
    return outputs.get("message") or outputs.get("output") or (outputs if "role" in outputs else None)


def _message(raw: Any, where: str, left_out: Counter[str]) -> Any:
    if not isinstance(raw, dict) or ("role" in raw and "lc" not in raw):
        return read_message(raw, where, left_out)
    fields = _fields(raw)
    role = _role_name(raw, fields)
    if role not in _ROLES:
        raise ValueError(f"{where} is of type {role[:40]!r}; known are {', '.join(_ROLES)}. Correct it.")
    if fields.get("invalid_tool_calls"):
        raise Unusable("invalid_call")
    # LangChain lists the calls of an answer apart, also where the provider had them in its content.
    extra = object_in(fields, "additional_kwargs")
    calls = [_call(call) for call in dicts_in(fields.get("tool_calls") or extra.get("tool_calls"))]
    if not calls and isinstance(extra.get("function_call"), dict):
        calls = [call_of({"function": extra["function_call"]})]
    left_out["reasoning"] += bool(extra.get("reasoning_content"))
    content = text_of(fields.get("content"), where, left_out, other=("tool_use", "function_call"))
    message = {"role": _ROLES[role], "content": content, "tool_calls": calls or None}
    if _ROLES[role] == "tool":
        message |= {"tool_call_id": fields.get("tool_call_id"), "name": fields.get("name")}
    return without_nulls(message)


def _role_name(raw: dict, fields: dict) -> str:
    """`human` of `{"type": "human"}` and of `{"id": [..., "HumanMessage"]}`."""
    path = raw.get("id")
    name = path[-1] if isinstance(path, list) and path else raw.get("type")
    name = fields.get("type") if name in (None, "constructor") else name
    return str(name).removesuffix("Chunk").removesuffix("Message").lower()


def _call(raw: dict) -> Any:
    return call_of(raw if isinstance(raw.get("function"), dict) else without_nulls(raw, "type"))
