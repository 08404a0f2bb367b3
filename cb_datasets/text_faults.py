"""Faults of a sample that need no tokenizer to find, with the names that reports count them by.

Preflight, training and diagnostics check the same; a row that passes can be read by the renderer and by every loss.
"""

import json
from collections.abc import Iterable, Iterator

from .arguments import parameter_schemas
from .sample import CIRCUIT_BREAKER, HARMFUL_CLASSES, PRIORITY_WEIGHTS, RETAIN


ROLES = ("system", "user", "assistant", "tool")


def check_rows(rows: Iterable[dict], place: object) -> None:
    """Raise an error for the first row with a fault.

    Args:
        rows (`Iterable[dict]`): Samples.
        place (`object`): Where they are from, for the message.

    Raises:
        ValueError: If there is one; its number counts from 1.
    """
    for number, row in enumerate(rows, start=1):
        for _, fault in text_faults(row):
            raise ValueError(
                f"{place}: row {number} ({row['id']}): {fault}. Drop or mend the row; `cb-datasets preflight` lists "
                "all such rows."
            )


def text_faults(row: dict) -> Iterator[tuple[str, str]]:
    """Name and description of each fault."""
    for column in ("id", "provenance", "target"):
        if not row[column]:
            yield f"no_{column}", f"`{column}` is empty"
    messages = row["messages"]
    if not messages:
        yield "no_messages", "`messages` is empty"
    for index, message in enumerate(messages or ()):
        if fault := _message_fault(message):
            yield "bad_message", f"message {index} {fault}"
    if row["injection"] is None:
        yield "injection_outside_message", "`injection` is null; a row without one has an empty list"
    for span in row["injection"] or ():
        if not is_inside(span, messages or []):
            yield "injection_outside_message", f"the injection {span} is not inside its message"
    try:
        parameter_schemas(row["tools"])
    except ValueError:
        yield "tools_not_json", "`tools` is not a JSON list of function schemas"
    if not row["assistant_raw"]:
        yield "no_completion", "`assistant_raw` is empty"
    if row["priority_class"] not in PRIORITY_WEIGHTS:
        yield "unknown_class", f"`priority_class` is {row['priority_class']!r}, not of {', '.join(PRIORITY_WEIGHTS)}"
    elif row["set"] != (own := CIRCUIT_BREAKER if row["priority_class"] in HARMFUL_CLASSES else RETAIN):
        yield "set_is_not_its_class", f"`set` is {row['set']!r}, and {row['priority_class']} is of {own!r}"


def is_inside(span: dict | None, messages: list[dict]) -> bool:
    """Whether an injection's span holds at least one character of its message."""
    if span is None or any(span[key] is None for key in ("message", "start", "end")):
        return False
    if not 0 <= span["message"] < len(messages):
        return False
    content = (messages[span["message"]] or {}).get("content") or ""
    return 0 <= span["start"] < span["end"] <= len(content)


def _message_fault(message: dict | None) -> str | None:
    if message is None or message["role"] is None:
        return "has no role"
    if message["role"] not in ROLES:
        return f"has the role {message['role']!r}"
    for call in message["tool_calls"] or ():
        function = (call or {}).get("function") or {}
        if not function.get("name") or not _is_object(function.get("arguments")):
            return "has a call without a name or without a JSON object of arguments"
    # A tool may return nothing, and a turn that makes a call may have no words.
    if message["content"] is None and message["role"] != "tool" and not message["tool_calls"]:
        return f"({message['role']}) has no content"
    return None


def _is_object(text: str | None) -> bool:
    try:
        return isinstance(json.loads(text or ""), dict)
    except (ValueError, RecursionError):
        return False
