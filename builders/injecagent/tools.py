"""The benchmark's tools, `tools.json`: toolkits of tools, whose full name begins with that of their toolkit.

    [{"name_for_model": "Lamp", "tools": [
        {"name": "Switch", "summary": "Switches a lamp.",
         "parameters": [{"name": "lamp_id", "type": "string", "description": "The lamp.", "required": true}],
         "returns": [{"name": "is_on", "type": "boolean", "description": "Whether it is on now."}]}, ...]}, ...]

Here the tool is `LampSwitch`. Types are names of JSON Schema already; the file says no more of an array or an object
than that it is one, so their schemas do not either.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..json_records import optional, read_json, required
from ..json_schema import standard_types


_TYPES = ("string", "integer", "number", "boolean", "array", "object")
# What the APIs of models allow as the name of a function.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A tool of the benchmark.

    Args:
        name (`str`): Its full name.
        schema (`dict`): Its function schema, as in an OpenAI request.
        returns (`tuple[dict, ...]`): `{name, type, description}` of each field of its result.
    """

    name: str
    schema: dict
    returns: tuple[dict, ...]


def read_tools(path: Path) -> dict[str, Tool]:
    """The tools of `tools.json` by their full names.

    Raises:
        ValueError: If the file is not a list of toolkits, or two tools have one name.
    """
    tools: dict[str, Tool] = {}
    for where, toolkit in _objects(read_json(path), path.name):
        prefix = required(toolkit, "name_for_model", str, where)
        for place, record in _objects(required(toolkit, "tools", list, where), f"{where}, tool"):
            tool = _tool(prefix, record, place)
            if tool.name in tools:
                raise ValueError(f"{place}: another tool is named {tool.name!r} too. Fetch the file again.")
            tools[tool.name] = tool
    return tools


def _objects(items: object, where: str) -> Iterator[tuple[str, dict]]:
    """Yield `("tools.json 3", item)` for the objects of a list."""
    if not isinstance(items, list):
        raise ValueError(f"{where}: expected a list, got {type(items).__name__}. Fetch the file again.")
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f"{where} {number}: expected an object, got {type(item).__name__}. Fetch the file again.")
        yield f"{where} {number}", item


def _tool(prefix: str, record: dict, where: str) -> Tool:
    name = prefix + required(record, "name", str, where)
    if not _NAME.fullmatch(name):
        raise ValueError(f"{where}: {name[:80]!r} cannot be the name of a function. Fetch the file again.")
    fields = [_field(field, place) for place, field in _fields_of(record, "parameters", where)]
    properties = {field["name"]: {key: field[key] for key in ("type", "description")} for field in fields}
    needed = [
        field["name"]
        for place, field in _fields_of(record, "parameters", where)
        if optional(field, "required", bool, place)
    ]
    function = {
        "name": name,
        "description": required(record, "summary", str, where),
        "parameters": {"type": "object", "properties": properties, "required": needed},
    }
    returns = tuple(_field(field, place) for place, field in _fields_of(record, "returns", where))
    return Tool(name, {"type": "function", "function": function}, returns)


def _fields_of(record: dict, key: str, where: str) -> Iterator[tuple[str, dict]]:
    return _objects(required(record, key, list, where), f"{where}, {key}")


def _field(field: dict, where: str) -> dict:
    """`{name, type, description}`, the type by JSON Schema's name."""
    values = {key: required(field, key, str, where) for key in ("name", "type", "description")}
    type_name = standard_types({"type": values["type"]}).get("type")
    if type_name not in _TYPES:
        raise ValueError(f"{where}: the type {values['type'][:40]!r} is unknown. Fetch the file again.")
    return values | {"type": type_name}
