"""The arguments of calls by the tool's schema: two calls compared, and numbers read that a call has as text.

given                                       wanted                                 same
{"amount": "50", "currency": "usd"}         {"amount": 50, "currency": "USD"}      yes: integer, and an enum
{"query": " Tides ", "limit": 10}           {"query": "tides"}                     yes, if 10 is the default
{"to": ["b@x.org", "a@x.org"]}              {"to": ["a@x.org", "b@x.org"]}         yes: lists of strings have no order
{"point": [2, 1]}                           {"point": [1, 2]}                      no: lists of numbers have

Where a source lists all values that it accepts of an argument, those decide: see [`are_accepted`].
"""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from builders.json_records import parse_json
from builders.json_schema import standard_types


# Schemas looked up in one comparison. Schemas come from strangers, and a few nested alternatives that refer to each
# other double the comparisons at every level.
MAX_LOOKUPS = 10_000


@lru_cache(maxsize=4096)
def parameter_schemas(tools: str | None) -> dict[str, dict]:
    """The schema of each tool's parameters, by name. Cached: many rows share one text.

    Types are those of JSON Schema, also where the tools have other names for them, such as `dict` and `float`.

    Raises:
        ValueError: If the text is not a JSON list of function schemas.
    """
    try:
        functions = [tool["function"] for tool in json.loads(tools or "[]")]
        if not all(isinstance(function["name"], str) for function in functions):
            raise ValueError
        return {function["name"]: standard_types(function.get("parameters") or {}) for function in functions}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("tools is not a JSON list of function schemas") from None


def same_arguments(given: dict[str, Any], wanted: dict[str, Any], schema: dict | None = None) -> bool:
    """Whether two sets of arguments are equivalent.

    Values are compared as the type that the schema gives them: `"3"` equals 3 where an integer is required. A missing
    argument equals its default, or null. Strings are compared up to case, whitespace and Unicode normalization. Lists
    of strings are compared without order; several lists of one length may belong together item by item, so they are
    reordered together, and not at all if one of them holds anything but strings.

    Nothing outside the schema is read: what a remote or missing reference stands for is unknown, so such values are
    compared as they are. Arguments that take more than [`MAX_LOOKUPS`] to compare count as different.

    Args:
        given, wanted (`dict[str, Any]`): Decoded arguments.
        schema (`dict`, *optional*): JSON Schema of the tool's parameters; without it, values are compared as they are.
    """
    try:
        return _same_objects(given, wanted, _mapping(schema), _Root(schema))
    except (_TooManyLookups, RecursionError):
        return False


def are_accepted(given: dict[str, Any], expected: dict, schema: dict | None = None) -> bool:
    """Whether the arguments of a call are right: the same as the expected ones, or among the accepted ones.

        alternatives {"port": ["Brest", "Brest, France"], "unit": ["m"]}, optional ["unit"]

        {"port": "brest"}                     yes: an optional argument may be left out, or be empty
        {"port": "Brest France"}              yes: strings are compared without punctuation, too
        {"port": "Brest", "unit": "km"}       no: another value
        {"port": "Brest", "hour": 7}          no: an argument without accepted values

    Args:
        given (`dict[str, Any]`): Decoded arguments.
        expected (`dict`): An expected call: `arguments`, and with `alternatives` (argument -> accepted values) and
            `optional` (names of arguments) all forms that a source accepts, which then decide alone. They are compared
            as BFCL does (Patil et al. 2025, `ast_checker`), except that numbers and booleans may be written as text.
        schema (`dict`, *optional*): As for [`same_arguments`].
    """
    alternatives = expected.get("alternatives")
    if alternatives is None:
        return same_arguments(given, expected["arguments"], schema)
    optional = expected.get("optional") or ()
    root = _Root(schema, text=_bare_text)
    given = {key: value for key, value in given.items() if not (value == "" and key in optional)}
    if not given.keys() <= alternatives.keys() or not alternatives.keys() - given.keys() <= set(optional):
        return False
    try:
        parts = {key: _part(_mapping(schema), key, root) for key in given}
        return all(
            any(_same(value, accepted, parts[key], root) for accepted in alternatives[key])
            for key, value in given.items()
        )
    except (_TooManyLookups, RecursionError):
        return False


def are_all_accepted(given: Sequence[dict[str, Any]], expected: Sequence[dict], schema: dict | None = None) -> bool:
    """Whether the arguments of several calls of one tool are right: each set by another of the expected calls.

        expected    port [Brest, Ostend]; port [Brest]
        given       Brest, Ostend           yes, in any order: Ostend by the first, so Brest by the second
        given       Ostend, Ostend          no: only one accepts it
        given       Brest                   no: the second is missing

    Args:
        given (`Sequence[dict[str, Any]]`): Decoded arguments of each call.
        expected (`Sequence[dict]`): The expected calls, as for [`are_accepted`].
        schema (`dict`, *optional*): As for [`same_arguments`].
    """
    if len(given) != len(expected):
        return False
    accepted = [
        [number for number, arguments in enumerate(given) if are_accepted(arguments, call, schema)]
        for call in expected
    ]
    taken: dict[int, int] = {}  # which expected call accepts which of the given

    # An augmenting path (Kuhn 1955): taking the first accepted one could leave none for a call that accepts no other.
    def takes_one(call: int, tried: set[int]) -> bool:
        for number in accepted[call]:
            if number not in tried:
                tried.add(number)
                if number not in taken or takes_one(taken[number], tried):
                    taken[number] = call
                    return True
        return False

    return all(takes_one(call, set()) for call in range(len(expected)))


class _TooManyLookups(Exception):
    """Raised to give a comparison up."""


class _Root:
    """The whole schema, in which references are looked up, and how strings are normalized."""

    def __init__(self, schema: Any, text: Callable[[str], str] | None = None) -> None:
        self.text = text or _text
        self._schema = schema
        self._lookups = 0

    def resolve(self, schema: Any) -> dict:
        """A schema with its references followed; keywords beside a reference, such as a default, are kept."""
        self._lookups += 1
        if self._lookups > MAX_LOOKUPS:
            raise _TooManyLookups
        schema, followed = _mapping(schema), set()
        while "$ref" in schema or len(_sequence(schema.get("allOf"))) == 1:
            beside = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
            if "$ref" not in schema:
                schema = {**_mapping(schema["allOf"][0]), **beside}
                continue
            reference = schema["$ref"]
            # A reference that leads back to itself says nothing about the value.
            if not isinstance(reference, str) or reference in followed:
                return beside
            followed.add(reference)
            schema = {**_mapping(self._at(reference)), **beside}
        return schema

    def _at(self, reference: str) -> Any:
        """The part of the schema that a reference points to, `None` if it is not in there."""
        path, found = reference.removeprefix("#"), self._schema
        if path and not path.startswith("/"):
            return None
        for step in path.split("/")[1:]:
            found = _mapping(found).get(unquote(step).replace("~1", "/").replace("~0", "~"))
        return found


def _mapping(value: Any) -> dict:
    """A value that should be an object: strangers also write lists, or the schema `true`."""
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> list:
    return value if isinstance(value, list) else []


def _same_objects(given: dict, wanted: dict, schema: dict, root: _Root) -> bool:
    parts = {key: _part(schema, key, root) for key in {**wanted, **given}}
    defaults = {key: part.get("default") for key, part in parts.items()}
    pairs = {key: (given.get(key, default), wanted.get(key, default)) for key, default in defaults.items()}
    reordered = _reordered(pairs, parts, root)
    single = [key for key in parts if not any(key in keys for keys in reordered)]
    return all(_same(*pairs[key], parts[key], root) for key in single) and all(
        _same_rows([pairs[key] for key in keys]) for keys in reordered
    )


def _reordered(pairs: dict[str, tuple[Any, Any]], parts: dict[str, dict], root: _Root) -> list[list[str]]:
    """Groups of lists to compare without order: those of one length, unless one of them is ordered."""
    by_length: dict[int, list[str]] = {}
    for key, (_, wanted) in pairs.items():
        if isinstance(wanted, list):
            by_length.setdefault(len(wanted), []).append(key)
    return [keys for keys in by_length.values() if all(_has_no_order(pairs[key], parts[key], root) for key in keys)]


def _part(schema: dict, key: str, root: _Root) -> dict:
    """The schema of one property."""
    return root.resolve(_mapping(schema.get("properties")).get(key, schema.get("additionalProperties")))


def _has_no_order(pair: tuple[Any, Any], part: dict, root: _Root) -> bool:
    """Whether two values are lists of strings (names, addresses) and not tuples by the schema."""
    if not all(isinstance(value, list) and all(isinstance(item, str) for item in value) for value in pair):
        return False
    return not any("prefixItems" in option for option in _options(part, root))


def _same_rows(pairs: Sequence[tuple[Any, Any]]) -> bool:
    """Whether lists hold the same items in any order; several lists are compared row by row."""
    given, wanted = zip(*pairs, strict=True)
    if any(len(ours) != len(theirs) for ours, theirs in pairs):
        return False
    rows = (sorted(zip(*(map(_text, column) for column in columns), strict=True)) for columns in (given, wanted))
    return next(rows) == next(rows)


def _same(given: Any, wanted: Any, schema: dict, root: _Root) -> bool:
    return any(_same_as(given, wanted, option, root) for option in _options(schema, root))


def _options(schema: dict, root: _Root) -> list[dict]:
    """The alternatives of `anyOf` or `oneOf`, else the schema itself."""
    schema = root.resolve(schema)
    alternatives = _sequence(schema.get("anyOf")) or _sequence(schema.get("oneOf"))
    return [root.resolve(option) for option in alternatives] if alternatives else [schema]


def _same_as(given: Any, wanted: Any, schema: dict, root: _Root) -> bool:
    if isinstance(given, dict) and isinstance(wanted, dict):
        return _same_objects(given, wanted, schema, root)
    if isinstance(given, list) and isinstance(wanted, list):
        items = _mapping(schema.get("items"))
        return len(given) == len(wanted) and all(map(lambda a, b: _same(a, b, items, root), given, wanted))
    stated = schema.get("type")
    types = [name for name in ([stated] if isinstance(stated, str) else _sequence(stated)) if isinstance(name, str)]
    return _scalar(given, types, root.text) == _scalar(wanted, types, root.text)


def _scalar(value: Any, types: list[str], text: Callable[[str], str]) -> Any:
    """A value in its schema's type, normalized so that equivalent values compare equal."""
    if value is None:
        return None
    number = _number(value, from_text=not {"integer", "number"}.isdisjoint(types))
    if number is not None and types != ["string"]:
        return number
    if isinstance(value, bool) or ("boolean" in types and value in ("true", "false", "True", "False")):
        # Kept apart from numbers, because Python says that True == 1.
        return "boolean", str(value).casefold() == "true"
    return text(str(value)) if isinstance(value, str | int | float) else value


def _number(value: Any, from_text: bool) -> Decimal | None:
    """A value as a number, parsed from text if `from_text`; `None` if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | (str if from_text else int)):
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _text(value: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", value).casefold().split())


def _bare_text(value: str) -> str:
    """A text without the punctuation that `April 1, 2024` and `April 1 2024` differ in."""
    return re.sub(r"[\s,./_*^-]", "", _text(value)).replace("'", '"')


# A number as JSON writes it.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,99})(?:\.[0-9]{1,99})?(?:[eE][-+]?[0-9]{1,3})?")
_BOOLEANS = {"true": True, "True": True, "false": False, "False": False}


def read_by_schema(arguments: dict[str, Any], schema: dict) -> tuple[dict[str, Any], list[str]]:
    """Arguments in which text is read as the number or boolean that the schema wants.

        {"amount": "20"}, amount an integer              {"amount": 20}     "amount '20' -> 20"
        {"amount": "20"}, amount an integer or text      as it is
        {"amount": "twenty"}, amount an integer          as it is, and a fault of the call

    Args:
        arguments (`dict[str, Any]`): Decoded arguments of a call.
        schema (`dict`): JSON Schema of the tool's parameters, from [`parameter_schemas`].

    Returns:
        `tuple[dict[str, Any], list[str]]`: The arguments, and what was changed in words.
    """
    changes: list[str] = []
    try:
        return _read(arguments, schema, _Root(schema), "", changes), changes
    except (_TooManyLookups, RecursionError):
        return arguments, []


def _read(value: Any, schema: dict, root: _Root, path: str, changes: list[str]) -> Any:
    options = _options(schema, root)
    if isinstance(value, str):
        read = _scalar_by_schema(value, options)
        if read is not value:
            changes.append(f"{path} {value!r} -> {json.dumps(read)}")
        return read
    if isinstance(value, dict):
        part = next((option for option in options if "properties" in option), options[0])
        return {
            key: _read(item, _part(part, key, root), root, f"{path}.{key}" if path else key, changes)
            for key, item in value.items()
        }
    if isinstance(value, list):
        items: dict = next((option["items"] for option in options if isinstance(option.get("items"), dict)), {})
        return [_read(item, items, root, f"{path}[{number}]", changes) for number, item in enumerate(value)]
    return value


def _scalar_by_schema(text: str, options: list[dict]) -> Any:
    """The number or boolean that a text stands for, or the text where the schema allows text or wants neither."""
    types = [option.get("type") for option in options]
    names = {name for each in types for name in (each if isinstance(each, list) else [each]) if isinstance(name, str)}
    if None in types or "string" in names:
        return text
    if "boolean" in names and text.strip() in _BOOLEANS:
        return _BOOLEANS[text.strip()]
    if names.isdisjoint({"integer", "number"}) or not _NUMBER.fullmatch(text.strip()):
        return text
    try:
        number = parse_json(text)
    except ValueError:  # too large
        return text
    fits = "number" in names or number == int(number)
    return number if fits else text
