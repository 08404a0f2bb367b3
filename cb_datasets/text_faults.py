"""Faults of a row that need no tokenizer to find, with the names that reports count them by.

Preflight, training and diagnostics check the same; a sample that passes can be read by the renderer and by every loss.
Prompts and traces are checked for those that they can have, before a model is loaded.
"""

import json
from collections.abc import Callable, Iterable, Iterator

from .arguments import parameter_schemas
from .sample import CIRCUIT_BREAKER, HARMFUL_CLASSES, PRIORITY_WEIGHTS, RETAIN


ROLES = ("system", "user", "assistant", "tool")


def check_rows(rows: Iterable[dict], place: object) -> None:
    """Raise an error for the first sample with a fault.

    Args:
        rows (`Iterable[dict]`): Samples.
        place (`object`): Where they are from, for the message.

    Raises:
        ValueError: If there is one; its number counts from 1.
    """
    for _ in checked(rows, place, text_faults, "`cb-datasets preflight` lists all such rows."):
        pass


def checked(
    rows: Iterable[dict],
    place: object,
    faults: Callable[[dict], Iterator[tuple[str, str]]],
    remedy: str = "Run the step that makes it again.",
) -> Iterator[dict]:
    """Rows, up to the first one with a fault.

    Args:
        rows (`Iterable[dict]`): Samples, prompts or traces.
        place (`object`): Where they are from, for the message.
        faults (`Callable`): [`text_faults`], [`evaluation_faults`] or [`trace_faults`].
        remedy (`str`, *optional*): What else can be done than to drop or mend the row.

    Raises:
        ValueError: If there is one; its number counts from 1.
    """
    for number, row in enumerate(rows, start=1):
        for _, fault in faults(row):
            raise ValueError(f"{place}: row {number} ({row['id']}): {fault}. Drop or mend the row. {remedy}")
        yield row


def text_faults(row: dict) -> Iterator[tuple[str, str]]:
    """Name and description of each fault of a sample."""
    yield from prompt_faults(row)
    for column in ("labels", "tool_calls_structured"):
        if row[column] is None:
            yield f"no_{column}", f"`{column}` is null"
    if row["split"] not in ("train", "eval"):
        yield "unknown_split", f"`split` is {row['split']!r}, neither train nor eval"
    if not row["assistant_raw"]:
        yield "no_completion", "`assistant_raw` is empty"
    if row["priority_class"] not in PRIORITY_WEIGHTS:
        yield "unknown_class", f"`priority_class` is {row['priority_class']!r}, not of {', '.join(PRIORITY_WEIGHTS)}"
    elif row["set"] != (own := CIRCUIT_BREAKER if row["priority_class"] in HARMFUL_CLASSES else RETAIN):
        yield "set_is_not_its_class", f"`set` is {row['set']!r}, and {row['priority_class']} is of {own!r}"


def prompt_faults(row: dict) -> Iterator[tuple[str, str]]:
    """Name and description of each fault of a prompt, or of a sample's."""
    for column in ("id", "group", "provenance", "target"):
        if not row[column]:
            yield f"no_{column}", f"`{column}` is empty"
    yield from _context_faults(row)
    if row["injection"] is None:
        yield "injection_outside_message", "`injection` is null; a row without one has an empty list"
    for span in row["injection"] or ():
        if not is_inside(span, row["messages"] or []):
            yield "injection_outside_message", f"the injection {span} is not inside its message"


def evaluation_faults(row: dict) -> Iterator[tuple[str, str]]:
    """Name and description of each fault of an evaluation prompt."""
    yield from prompt_faults(row)
    if not row["task"]:
        yield "no_task", "`task` is empty"


def trace_faults(trace: dict) -> Iterator[tuple[str, str]]:
    """Name and description of each fault of a trace."""
    for column in ("id", "group", "verdict", "metadata"):
        if not trace[column]:
            yield f"no_{column}", f"`{column}` is empty"
    # Recorded agents sometimes end with a turn of nothing.
    yield from _context_faults(trace, may_be_empty=("assistant", "tool"))


def _context_faults(row: dict, may_be_empty: tuple[str, ...] = ("tool",)) -> Iterator[tuple[str, str]]:
    """Faults of what a model is shown; messages of some roles may have no content."""
    if not row["messages"]:
        yield "no_messages", "`messages` is empty"
    for index, message in enumerate(row["messages"] or ()):
        if fault := _message_fault(message, may_be_empty):
            yield "bad_message", f"message {index} {fault}"
    try:
        parameter_schemas(row["tools"])
    except ValueError:
        yield "tools_not_json", "`tools` is not a JSON list of function schemas"


def is_inside(span: dict | None, messages: list[dict]) -> bool:
    """Whether an injection's span holds at least one character of its message."""
    if span is None or any(span[key] is None for key in ("message", "start", "end")):
        return False
    if not 0 <= span["message"] < len(messages):
        return False
    content = (messages[span["message"]] or {}).get("content") or ""
    return 0 <= span["start"] < span["end"] <= len(content)


def _message_fault(message: dict | None, may_be_empty: tuple[str, ...]) -> str | None:
    if message is None or message["role"] is None:
        return "has no role"
    if message["role"] not in ROLES:
        return f"has the role {message['role']!r}"
    for call in message["tool_calls"] or ():
        function = (call or {}).get("function") or {}
        if not function.get("name") or not _is_object(function.get("arguments")):
            return "has a call without a name or without a JSON object of arguments"
    # A turn that makes a call may have no words.
    if message["content"] is None and message["role"] not in may_be_empty and not message["tool_calls"]:
        return f"({message['role']}) has no content"
    return None


def _is_object(text: str | None) -> bool:
    try:
        return isinstance(json.loads(text or ""), dict)
    except (ValueError, RecursionError):
        return False
