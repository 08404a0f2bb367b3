"""Whether two calls of a tool say the same thing, by the tool's schema.

given                                       wanted                                 same
{"amount": "50", "currency": "usd"}         {"amount": 50, "currency": "USD"}      yes: integer, and an enum
{"query": " Tides ", "limit": 10}           {"query": "tides"}                     yes, if 10 is the default
{"to": ["b@x.org", "a@x.org"]}              {"to": ["a@x.org", "b@x.org"]}         yes: names have no order
{"point": [2, 1]}                           {"point": [1, 2]}                      no: numbers have
"""

import json
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=4096)
def parameter_schemas(tools: str | None) -> dict[str, dict]:
    """The schema of each tool's parameters by name. Few texts stand in many rows, so each is read once.

    Raises:
        ValueError: If the text is not a JSON list of function schemas.
    """
    try:
        functions = [tool["function"] for tool in json.loads(tools or "[]")]
        return {function["name"]: function.get("parameters") or {} for function in functions}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError("tools is not a JSON list of function schemas") from None


def same_arguments(given: dict[str, Any], wanted: dict[str, Any], schema: dict | None = None) -> bool:
    """Whether two sets of arguments say the same.

    Values are compared as the type that the schema gives them: `"3"` is 3 where an integer is asked for. An argument
    that is left out is its default, or null. Strings are the same up to case, blanks and Unicode's forms. Lists of
    strings are compared without their order; where a call has several lists of one length, which may belong together
    item by item, all are put into another order together, and none where one of them holds anything but strings.

    Args:
        given, wanted (`dict[str, Any]`): Decoded arguments.
        schema (`dict`, *optional*): JSON Schema of the tool's parameters; without it, values speak for themselves.
    """
    return _same_objects(given, wanted, schema or {}, schema or {})


def _same_objects(given: dict, wanted: dict, schema: dict, root: dict) -> bool:
    parts = {key: _part(schema, key, root) for key in {**wanted, **given}}
    # What is left out is its default.
    defaults = {key: part.get("default") for key, part in parts.items()}
    pairs = {key: (given.get(key, default), wanted.get(key, default)) for key, default in defaults.items()}
    reordered = _reordered(pairs, parts, root)
    single = [key for key in parts if not any(key in keys for keys in reordered)]
    return all(_same(*pairs[key], parts[key], root) for key in single) and all(
        _same_rows([pairs[key] for key in keys]) for keys in reordered
    )


def _reordered(pairs: dict[str, tuple[Any, Any]], parts: dict[str, dict], root: dict) -> list[list[str]]:
    """The lists that are compared without their order: together those of one length, none where one of them has an
    order."""
    by_length: dict[int, list[str]] = {}
    for key, (_, wanted) in pairs.items():
        if isinstance(wanted, list):
            by_length.setdefault(len(wanted), []).append(key)
    return [keys for keys in by_length.values() if all(_has_no_order(pairs[key], parts[key], root) for key in keys)]


def _part(schema: dict, key: str, root: dict) -> dict:
    """The schema of one property."""
    further = schema.get("additionalProperties")
    part = schema.get("properties", {}).get(key, further if isinstance(further, dict) else {})
    return _resolved(part, root)


def _resolved(schema: dict, root: dict) -> dict:
    """A schema with its reference followed; keywords beside a reference, a default for one, hold too."""
    while "$ref" in schema or len(schema.get("allOf", ())) == 1:
        beside = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        if "$ref" not in schema:
            schema = {**schema["allOf"][0], **beside}
            continue
        found: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found.get(step, {})
        schema = {**found, **beside}
    return schema


def _has_no_order(pair: tuple[Any, Any], part: dict, root: dict) -> bool:
    """Whether two values are lists of names, addresses and the like: strings, and no tuple by the schema."""
    if not all(isinstance(side, list) and all(isinstance(item, str) for item in side) for side in pair):
        return False
    return not any("prefixItems" in option for option in _options(part, root))


def _same_rows(pairs: Sequence[tuple[Any, Any]]) -> bool:
    """Whether lists hold the same items, whatever their order; several lists item by item."""
    given, wanted = zip(*pairs, strict=True)
    if any(len(ours) != len(theirs) for ours, theirs in pairs):
        return False
    rows = (sorted(zip(*(map(_text, column) for column in side), strict=True)) for side in (given, wanted))
    return next(rows) == next(rows)


def _same(given: Any, wanted: Any, schema: dict, root: dict) -> bool:
    return any(_same_as(given, wanted, option, root) for option in _options(schema, root))


def _options(schema: dict, root: dict) -> list[dict]:
    """The schemas of which a value may take one: the alternatives of `anyOf`, else the schema itself."""
    schema = _resolved(schema, root)
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    return [_resolved(option, root) for option in alternatives] if alternatives else [schema]


def _same_as(given: Any, wanted: Any, schema: dict, root: dict) -> bool:
    if isinstance(given, dict) and isinstance(wanted, dict):
        return _same_objects(given, wanted, schema, root)
    if isinstance(given, list) and isinstance(wanted, list):
        of_all = schema.get("items")
        items = of_all if isinstance(of_all, dict) else {}
        return len(given) == len(wanted) and all(map(lambda a, b: _same(a, b, items, root), given, wanted))
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return _scalar(given, kinds) == _scalar(wanted, kinds)


def _scalar(value: Any, kinds: list[str]) -> Any:
    """A value as the schema's type has it, in a form in which equal values are equal."""
    if value is None:
        return None
    number = _number(value, from_text=not {"integer", "number"}.isdisjoint(kinds))
    if number is not None and (kinds != ["string"]):
        return number
    if isinstance(value, bool) or ("boolean" in kinds and value in ("true", "false", "True", "False")):
        # Apart from numbers: Python holds True for 1.
        return "boolean", str(value).casefold() == "true"
    return _text(str(value)) if isinstance(value, str | int | float) else value


def _number(value: Any, from_text: bool) -> Decimal | None:
    """The number that a value is, or that its text says."""
    if isinstance(value, bool) or not isinstance(value, int | float | (str if from_text else int)):
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _text(value: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
