r"""Requests with their calls, as xLAM's function-calling set has them: without results and words.

    {"id": 7, "query": "How high is the tide in Brest?",
     "answers": "[{\"name\": \"tide\", \"arguments\": {\"port\": \"Brest\"}}]",
     "tools": "[{\"name\": \"tide\", \"description\": \"...\", \"parameters\": {
         \"port\": {\"type\": \"str\", ...}, \"hour\": {\"type\": \"int, optional\", ...}}}]"}

Parameters are no JSON Schema: arguments by name, whose types are Python's, and `optional` where they may be left out.
"""

import re
from collections import Counter
from typing import Any

from ...json_schema import standard_types
from .common import Unusable, line_of, named_call, parse_value


# A type of Python's without what it holds: `List[int]`, `Optional[str]`.
_GENERIC = re.compile(r"(\w+)\[(.*)\]")
# What follows a type: `int, optional`, `str, default='en'`.
_OPTION = re.compile(r",\s*+(?:optional\Z|default\b.*+)", re.IGNORECASE | re.DOTALL)
# Types of which any value is one, as far as JSON can tell.
_ANY = ("any", "union", "callable", "optional")


def matches(record: dict) -> bool:
    """Whether a record is of this layout."""
    return isinstance(record.get("query"), str) and "answers" in record and "messages" not in record


def read(record: dict, left_out: Counter[str]) -> dict:
    """The line of a trace: the request, and its calls in one turn.

    Raises:
        Unusable: If no call is made: what is right is unknown then.
        ValueError: If something is missing or cannot be read.
    """
    if not isinstance(record.get("query"), str):
        raise ValueError("query is missing. Add it.")
    calls = _list_in(record.get("answers"), "answers")
    try:
        made = [named_call(call) for call in calls]
    except ValueError as error:
        raise ValueError(f"answers has a call that cannot be read: {error}. Correct it.") from None
    if not made:
        raise Unusable("no_call")
    turns = [{"role": "user", "content": record["query"]}, {"role": "assistant", "tool_calls": made}]
    tools = [_with_schema(tool) for tool in _list_in(record.get("tools"), "tools")]
    return line_of(record, [(None, turn) for turn in turns], tools, ("query", "answers"))


def _list_in(value: Any, name: str) -> list:
    """A list that may be written as JSON."""
    try:
        value = parse_value(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{name} is no list in JSON ({error}). Correct it.") from None
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, or its JSON text. Correct it.")
    return value


def _with_schema(tool: Any) -> Any:
    """A tool with the JSON Schema of its parameters; one that has a schema stays as it is."""
    parameters = tool.get("parameters") if isinstance(tool, dict) else None
    if not isinstance(parameters, dict) or isinstance(parameters.get("properties"), dict):
        return tool
    described = {name: each for name, each in parameters.items() if isinstance(each, dict)}
    if len(described) < len(parameters):
        return tool  # the schema of a trace names the fault
    properties = {name: _property(each) for name, each in described.items()}
    required = [name for name, each in described.items() if not _is_optional(each)]
    return {**tool, "parameters": {"type": "object", "properties": properties, "required": required}}


def _is_optional(described: dict) -> bool:
    stated = described.get("type")
    words = [word.strip() for word in stated.split(",")] if isinstance(stated, str) else [""]
    has_default = "default" in described or any(word.startswith("default") for word in words[1:])
    return has_default or "optional" in words[1:] or words[0].startswith("Optional[")


def _property(described: dict) -> dict:
    schema = {key: value for key, value in described.items() if key not in ("type", "required")}
    return {**_type_schema(described.get("type")), **schema}


def _type_schema(stated: Any) -> dict:
    """`List[int], optional` -> `{"type": "array", "items": {"type": "integer"}}`; one that JSON lacks is left out."""
    if not isinstance(stated, str):
        return {}
    name = _OPTION.sub("", stated.strip())
    generic = _GENERIC.fullmatch(name)
    base, held = (generic[1], generic[2]) if generic else (name, None)
    if base.casefold() in _ANY:
        return _type_schema(held) if base.casefold() == "optional" and held else {}
    schema = standard_types({"type": base.casefold()})
    if schema.get("type") == "array" and held and base.casefold() in ("list", "set"):
        return {**schema, "items": _type_schema(held)}
    return schema
