"""What the layouts share: text in parts, calls, tools, and the fields beside the messages."""

import ast
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ...json_records import parse_json
from ...trace import TRACE_FEATURES, to_json


# Fields that only a line written as a trace has: nobody's log says what an attack did.
_TRACE_MARKS = ("verdict", "attack", "decision_turn")
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_content")
# No call that is written as text is longer; the parser of Python's literals takes seconds for megabytes.
_LONGEST_LITERAL = 100_000


class Unusable(Exception):
    """A record that is well-formed but cannot become a trace; the message is the name of the drop reason."""


def is_trace(record: dict) -> bool:
    """Whether a line was written as a trace, not as a log: a field that traces do not have is then a mistake."""
    return any(record.get(name) is not None for name in _TRACE_MARKS)


def without_nulls(fields: dict, *left_out: str) -> dict:
    """The fields that are not null, which is the same as absent."""
    return {name: value for name, value in fields.items() if value is not None and name not in left_out}


def text_of(content: Any, where: str, left_out: Counter[str], other: tuple[str, ...] = ()) -> Any:
    """The text of a message's content; text parts are joined by newlines, as vLLM does. `None` if there is none.

    Args:
        content (`Any`): A text, `None`, or a list of parts such as `{"type": "text", "text": "Hello."}`.
        where (`str`): Path of the message, for errors.
        left_out (`Counter[str]`): Counts what is left out.
        other (`tuple[str, ...]`, *optional*): Types of parts that the caller reads itself.

    Raises:
        Unusable: If a part is an image, a sound or a file.
        ValueError: If a part cannot be read.
    """
    if not isinstance(content, list):
        return content  # the schema of a trace names the fault of anything but text
    texts: list[Any] = []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise ValueError(f"{where}.content has a part without a type. Add it, or give the content as text.")
        if part["type"] in _TEXT_PARTS:
            texts.append(next((part[key] for key in ("text", "value", "content") if part.get(key) is not None), None))
        elif part["type"] == "refusal":
            texts.append(part.get("refusal"))
        elif part["type"] in _REASONING_PARTS:
            left_out["reasoning"] += 1
        elif part["type"] not in other:
            raise Unusable("non_text_content")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}.content has a text part without text. Add it, or delete the part.")
    return "\n".join(texts) if texts else None


def system_beside(record: dict, left_out: Counter[str]) -> list[tuple[int | None, Any]]:
    """The system prompt that a record has beside its messages, as a message of no index; empty if there is none."""
    if not record.get("system"):
        return []
    return [(None, {"role": "system", "content": text_of(record["system"], "system", left_out)})]


def call_of(raw: Any) -> Any:
    """A call in the form of a trace. Where it has no id, [`~builders.jsonl.repair.repair_line`] adds one.

        {"id": "c1", "function": {"name": "read_file", "arguments": ...}}       OpenAI
        {"id": "c1", "function": "read_file", "arguments": ...}                 Inspect
        {"id": "c1", "name": "read_file", "input": ...}                         Anthropic; LangChain says `args`

    Servers write the arguments of a call without any as null or as an empty text.
    """
    if not isinstance(raw, dict):
        return raw  # the schema of a trace names the fault
    function = raw.get("function")
    if isinstance(function, dict):
        arguments = {} if function.get("arguments", "") in (None, "") else function["arguments"]
        # A missing `arguments` stays missing: unlike an empty one, no server writes it.
        function = {**function, "arguments": arguments} if "arguments" in function else function
        return without_nulls({**raw, "function": function}, "index")
    given: Any = next((raw[key] for key in ("arguments", "args", "input", "parameters") if raw.get(key)), {})
    name = function if isinstance(function, str) else raw.get("name")
    return without_nulls({"id": raw.get("id"), "function": {"name": name, "arguments": given}})


def parse_value(text: str) -> Any:
    """A value that is written as JSON, or as a Python literal, as some data sets have it.

    Raises:
        ValueError: If it is neither.
    """
    try:
        return parse_json(text.strip())
    except ValueError:
        value = _python_literal(text.strip())
        if value is None:
            raise
        return value


def _python_literal(text: str) -> Any:
    """The JSON value that a Python literal is; `None` if it is none."""
    if len(text) > _LONGEST_LITERAL:
        return None
    try:
        return parse_json(to_json(ast.literal_eval(text)))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def named_call(raw: Any) -> dict:
    """The call of `{"name": "read_file", "arguments": {...}}`, whose arguments may be text.

    Raises:
        ValueError: If it has no name.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise ValueError("it has no name")
    return call_of(without_nulls(raw, "id"))


def function_schemas(raw: Any) -> Any:
    """Tools in OpenAI's form, from them or from bare functions, as Anthropic's, or the JSON text of either."""
    tools = raw
    if isinstance(raw, str):
        try:
            tools = parse_json(raw)
        except ValueError:
            return raw  # the schema of a trace names the fault
    if not isinstance(tools, list) or not any(map(_is_bare, tools)):
        return raw
    return [{"type": "function", "function": _function(tool)} if _is_bare(tool) else tool for tool in tools]


def _is_bare(tool: Any) -> bool:
    return isinstance(tool, dict) and "name" in tool and "function" not in tool


def _function(tool: dict) -> dict:
    parameters = next((tool[key] for key in ("parameters", "input_schema", "inputSchema") if tool.get(key)), None)
    fields = {"name": tool["name"], "description": tool.get("description"), "parameters": parameters}
    return without_nulls({**fields, "strict": tool.get("strict")})


def line_of(
    record: dict,
    messages: Sequence[tuple[int | None, Any]],
    tools: Any,
    own: tuple[str, ...] = (),
    metadata: dict | None = None,
) -> dict:
    """The line of a trace.

    Args:
        record (`dict`): The record. If it was written as a trace, its fields are taken over; the fields of a log go
            into `metadata`, except `id` and `group`.
        messages (`Sequence[tuple[int | None, Any]]`): The messages, each with its index in the record's own.
        tools (`Any`): The tools, in any form that [`function_schemas`] reads.
        own (`tuple[str, ...]`, *optional*): Fields that the layout has read.
        metadata (`dict`, *optional*): Further metadata; the record's own is preferred.
    """
    content = {"messages": [each for _, each in messages], "tools": function_schemas(tools)}
    rest = without_nulls(record, "messages", "tools", *own)
    if is_trace(record):
        _renumber(rest, [index for index, _ in messages])
        return without_nulls({**with_metadata(rest, metadata or {}), **content})
    line = {"group": rest.pop("group")} if isinstance(rest.get("group"), str) else {}
    id = rest.pop("id", None)
    given = rest.pop("metadata", {})
    kept = without_nulls(metadata or {}) | rest | (given if isinstance(given, dict) else {"metadata": given})
    return without_nulls({"id": None if id is None else _id_text(id), **line, "metadata": kept or None, **content})


def _id_text(id: Any) -> str:
    # Public data sets number their rows.
    return id if isinstance(id, str) else json.dumps(id)


def with_metadata(line: dict, metadata: dict) -> dict:
    """A line with further metadata; its own is preferred."""
    metadata, own = without_nulls(metadata), line.get("metadata") or {}
    own = parse_json(own) if isinstance(own, str) and metadata else own
    return {**line, "metadata": {**metadata, **own}} if metadata and isinstance(own, dict) else line


def _renumber(line: dict, order: list[int | None]) -> None:
    """Let the line of a trace count the messages as they are now; the layout may have split or added some."""
    if order == list(range(len(order))):
        return
    if isinstance(line.get("attack"), dict) and line["attack"].get("spans"):
        raise ValueError(
            "attack.spans counts in messages that this layout writes otherwise. Give attack.text instead."
        )
    turn = line.get("decision_turn")
    if turn is not None and turn in order:
        line["decision_turn"] = len(order) - 1 - order[::-1].index(turn)


def labels_in(metadata: Any) -> dict:
    """The fields of a trace that a log states in its metadata; none unless a verdict is among them."""
    if not isinstance(metadata, dict) or not isinstance(metadata.get("verdict"), str):
        return {}
    names = [name for name in TRACE_FEATURES if name not in ("id", "messages", "tools", "metadata")]
    return without_nulls({name: metadata.get(name) for name in names})


def cut_tags(text: str, tag: str) -> tuple[str, list[str]]:
    """A text without its `<tag>...</tag>`, and what they hold. Linear in the length of the text."""
    rest, bodies, start = [], [], 0
    while (opened := text.find(f"<{tag}>", start)) >= 0:
        closed = text.find(f"</{tag}>", opened)
        if closed < 0:
            break
        rest.append(text[start:opened])
        bodies.append(text[opened + len(tag) + 2 : closed])
        start = closed + len(tag) + 3
    return "".join([*rest, text[start:]]), bodies


def object_in(record: dict, name: str) -> dict:
    """The object in a field; an empty one if there is none."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def dicts_in(value: Any) -> Iterator[dict]:
    """The objects of a list; nothing of any other value."""
    yield from (each for each in (value if isinstance(value, list) else []) if isinstance(each, dict))
