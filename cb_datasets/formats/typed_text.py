"""Arguments that a model writes as bare text, in the types that the tool's schema gives them.

    n, an integer       5         5
    q, a string         5         "5"
    n, either           5         5
    not in the schema   5         "5"

Which types a schema allows is read as vLLM reads it, so that strict and lenient readers agree on what is typed right.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any

from ..arguments import parameter_schemas
from .json_text import LENIENT_JSON, JsonFault, read_json_value
from .tool_call import Diagnosis


# What no words begin with, and numbers that are none of JSON's.
_LIKE_JSON = re.compile(r"[\[{]|(?:-?[0-9.]++(?:[eE][-+]?[0-9]++)?|NaN|-?Infinity)$")


def argument_types(tools: str | None, tool: str, key: str) -> set[str]:
    """The types that the schema of a tool gives an argument: text, if it says nothing about it."""
    try:
        properties = parameter_schemas(tools).get(tool, {}).get("properties")
    except ValueError:  # which is a fault of the tools, and checked elsewhere
        properties = None
    return schema_types(properties.get(key)) if isinstance(properties, dict) else {"string"}


def schema_types(schema: Any) -> set[str]:
    """All types that a schema names. References are not looked up: vLLM does not."""
    before = schema if isinstance(schema, dict) else {}
    stated, values = before.get("type"), before.get("enum")
    names = {each for each in (stated if isinstance(stated, list) else [stated]) if isinstance(each, str)}
    names |= {json_types(value)[0] for value in (values if isinstance(values, list) else ())}
    for key in ("anyOf", "oneOf", "allOf"):
        choices = before.get(key)
        names |= {name for each in (choices if isinstance(choices, list) else ()) for name in schema_types(each)}
    return names or {"string"}


def json_types(value: Any) -> tuple[str, ...]:
    """Types of a JSON value, the narrowest first."""
    if value is None or isinstance(value, bool):
        return ("null",) if value is None else ("boolean",)
    return {int: ("integer", "number"), float: ("number",), str: ("string",), list: ("array",), dict: ("object",)}[
        type(value)
    ]


def read_typed(text: str, types: set[str]) -> Any:
    """The value that a text stands for. One of another type than text is JSON.

    Words where the schema wants none stay text: a fault of the arguments, not of their form.

    Raises:
        JsonFault: If it is JSON with an error.
    """
    wanted = types - {"string"}
    if not wanted:
        return text
    stripped = text.strip()
    if stripped in ("True", "False"):  # Python's, which the template of Qwen3-Coder writes
        stripped = stripped.lower()
    try:
        value, end = read_json_value(stripped, 0)
        if end < len(stripped):
            raise JsonFault(Diagnosis.BAD_JSON)
    except JsonFault:
        if "string" in types or not _LIKE_JSON.match(stripped):
            return text
        raise JsonFault(Diagnosis.BAD_JSON) from None
    return text if "string" in types and wanted.isdisjoint(json_types(value)) else value


def _finite_number(text: str) -> int | float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return int(value) if value == int(value) else value


def _boolean(text: str) -> bool:
    word = text.lower().strip()
    if word not in ("true", "1", "false", "0"):
        raise ValueError(f"{text} is neither true nor false")
    return word in ("true", "1")


def _finite_json(text: str) -> Any:
    value = LENIENT_JSON.decode(text)
    json.dumps(value, allow_nan=False)
    return value


_READERS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    ("integer", int),
    ("number", _finite_number),
    ("boolean", _boolean),
    ("object", _finite_json),
    ("array", _finite_json),
    ("string", str),
)


def coerce_typed(text: str, types: set[str]) -> Any:
    """The value that vLLM makes of a text: the first of its types that fits, else any JSON, else the text.

    Raises:
        RecursionError: If it is nested too deeply.
    """
    if "null" in types and text.lower() == "null":
        return None
    for name, read in (*_READERS, (None, _finite_json)):
        if name is None or name in types:
            try:
                return read(text)
            except ValueError:
                continue
    return text


def coerce_arguments(arguments: dict[str, Any], tools: str | None, tool: str) -> dict[str, Any]:
    """Arguments that a model wrote as JSON, as vLLM sends them: each value that is not what its schema says is read
    again from its text.

    Raises:
        RecursionError: If a text is nested too deeply.
    """
    try:
        schema = parameter_schemas(tools).get(tool, {})
    except ValueError:
        return arguments
    return _coerced(arguments, schema)


def _coerced(value: Any, schema: Any) -> Any:
    if not isinstance(schema, dict):
        return value
    if isinstance(value, dict):
        properties = schema.get("properties")
        return {
            key: _coerced(each, properties.get(key) if isinstance(properties, dict) else None)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_coerced(each, schema.get("items")) for each in value]
    return coerce_typed(value if isinstance(value, str) else json.dumps(value), schema_types(schema))
