"""JSON Schema of a line, and error messages that name the field and the remedy."""

import json
from functools import cache, lru_cache
from typing import Any

from ..json_records import parse_json
from ..json_schema import DRAFT, object_schema, schema_of, standard_types
from ..trace import TRACE_FEATURES, VERDICTS, to_json


ROLES = ("system", "user", "assistant", "tool")

# Kind of attack -> role of the messages that such an attacker can write.
ATTACKED_ROLE = {"user_text": "user", "tool_result": "tool", "direct_request": None}

_NAME = {"type": "string", "pattern": r"\S"}
_OPTIONAL_NAME = {"type": ["string", "null"], "pattern": r"\S"}
_TEXT = {"contentMediaType": "application/json"}  # for fields that may be given as JSON text
OBJECT = {"type": ["object", "string"], **_TEXT}
_CALL = {"name": _NAME, "arguments": {"type": "object"}}
# Where a source accepts several values of an argument, `alternatives` and `optional` decide what is right. Calls
# that are all wanted in one turn are `parallel`.
_ACCEPTED = {
    "parallel": {"type": "boolean"},
    "alternatives": {"type": "object", "additionalProperties": {"type": "array"}},
    "optional": {"type": "array", "items": _NAME},
}
EXPECTED_CALLS = {
    **_TEXT,
    "type": ["array", "string", "null"],
    "items": object_schema(_CALL | _ACCEPTED, required=list(_CALL)),  # none: the right answer is words
}
GOAL_CALLS = {
    **EXPECTED_CALLS,
    "minItems": 1,
    # Names of arguments that are compared as a whole, see `call_matches`.
    "items": object_schema(_CALL | {"exact": {"type": ["array", "null"], "items": _NAME}}, required=list(_CALL)),
}
TOOLS = {
    **_TEXT,
    "type": ["array", "string", "null"],
    "items": {
        "type": "object",
        "properties": {
            "type": {"const": "function"},
            "function": {"type": "object", "properties": {"name": _NAME}, "required": ["name"]},
        },
        "required": ["type", "function"],
    },
}


@cache
def trace_json_schema() -> dict:
    """JSON Schema of one line: the columns of a trace, of which only `id`, `messages` and `verdict` are required."""
    properties = schema_of(TRACE_FEATURES)["properties"]
    properties |= {
        "id": _NAME,
        "source": _OPTIONAL_NAME,
        "group": _OPTIONAL_NAME,
        "messages": {"type": "array", "minItems": 1, "items": _message_schema(properties["messages"]["items"])},
        "tools": TOOLS,
        "expected_tool": _OPTIONAL_NAME,
        "simulated_tool": _OPTIONAL_NAME,
        "attack": _attack_schema(properties["attack"]),
        "verdict": {"enum": list(VERDICTS)},
        "decision_turn": {"type": ["integer", "null"], "minimum": 0},
        "metadata": {**_TEXT, "type": ["object", "string", "null"]},
    }
    return {
        "$schema": DRAFT,
        "title": "Trace",
        **object_schema(properties, required=["id", "messages", "verdict"]),
    }


def _message_schema(schema: dict) -> dict:
    call = object_schema(
        {
            "id": _NAME,
            "type": {"const": "function"},
            "function": object_schema({"name": _NAME, "arguments": OBJECT}),
        },
        required=["id", "function"],
    )
    overrides = {"role": {"enum": list(ROLES)}, "tool_calls": {"type": ["array", "null"], "items": call}}
    return object_schema(schema["properties"] | overrides, required=["role"])


def _attack_schema(schema: dict) -> dict:
    offset = {"type": "integer", "minimum": 0}
    overrides = {
        "kind": {"enum": list(ATTACKED_ROLE)},
        "text": _OPTIONAL_NAME,
        "spans": {
            "type": ["array", "null"],
            "items": object_schema(dict.fromkeys(schema["properties"]["spans"]["items"]["properties"], offset)),
        },
        "expected_calls": EXPECTED_CALLS,
        "goal_calls": GOAL_CALLS,
    }
    return object_schema(schema["properties"] | overrides, required=["kind"]) | {"type": ["object", "null"]}


def check_schema(value: Any, schema: dict, path: str = "") -> None:
    """Validate a value against a JSON Schema.

    Args:
        value (`Any`): A line, or a part of one.
        schema (`dict`): The schema of the value.
        path (`str`, *optional*): Path of the value in the line, for the error message.

    Raises:
        ValueError: If the value does not match; the message names the field by its path.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(schema).iter_errors(value))
    if error is None:
        return
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    raise ValueError(_explain(error, (path + steps).removeprefix(".")))


def _explain(error: Any, path: str) -> str:
    """Message for a `jsonschema.ValidationError`: what is wrong with the field at `path`, and what to do."""
    expected, value = error.validator_value, error.instance
    match error.validator:
        case "required":
            name = next(name for name in expected if name not in value)
            return f"{path}.{name} is missing. Add it.".removeprefix(".")
        case "additionalProperties":
            name = next(name for name in value if name not in error.schema["properties"])
            return f"{path or 'a trace'} has no field {_shorten(name)}. Correct its name, or move it into metadata."
        case "type":
            rule = (
                f"must be {' or '.join([expected] if isinstance(expected, str) else expected)}; got {_shorten(value)}"
            )
        case "enum":
            rule = f"must be one of {', '.join(expected)}; got {_shorten(value)}"
        case "const":
            rule = f"must be {expected!r}; got {_shorten(value)}"
        case "minimum":
            rule = f"must not be below {expected}; got {_shorten(value)}"
        case _:  # the schema's other rules are `pattern` and `minItems`
            rule = "must not be empty"
    return f"{path} {rule}. Correct it."


def _shorten(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else to_json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def json_text(raw: Any, schema: dict, path: str) -> str:
    """JSON text of a field that is given as a value or as JSON text."""
    if not isinstance(raw, str):
        return to_json(raw)
    try:
        value = parse_json(raw)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON text ({error}). Correct it.") from None
    expected = schema["type"][0]
    if not isinstance(value, {"object": dict, "array": list}[expected]):
        raise ValueError(f"{path} must be the JSON text of an {expected}; got {_shorten(raw)}. Correct it.")
    check_schema(value, schema, path)
    return raw


def json_text_or_none(raw: Any, schema: dict, path: str) -> str | None:
    return None if raw is None else json_text(raw, schema, path)


@lru_cache(maxsize=4096)
def tools_fault(tools: str | None) -> str | None:
    """Why calls cannot be checked against these tools, `None` if they can. Cached: many lines have the same tools.

    Later steps check every call against the tools' schemas, and would drop all rows of such tools.
    """
    from ..tool_schema import ToolSchema

    try:
        for function in (tool["function"] for tool in json.loads(tools or "[]")):
            ToolSchema(function["name"], standard_types(function.get("parameters") or {}))
    except ValueError as error:
        return f"tools: {error}. Correct it; a schema may refer to parts of itself only"
    return None
