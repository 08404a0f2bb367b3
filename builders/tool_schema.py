"""The schema of a tool, which strangers wrote: evaluated in bounded time, and without leaving the machine.

    {"$ref": "https://example.org/query.json"}                  a fault: nothing is fetched
    {"properties": {"q": {"$ref": "#/properties/q"}}}           a fault: it never ends
    {"properties": {"q": {"pattern": "^(a+)+$"}}}               read by RE2, in time linear in the text
    {"properties": {"q": {"pattern": "^(?!drop)"}}}             not checked, and counted: RE2 has no look-around

A tree may refer to itself (`{"properties": {"next": {"$ref": "#"}}}`): it ends where the arguments end.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow
import pyarrow.compute
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012


# Objects and characters of a schema, and characters of a pattern in it: reading one takes time for each. The largest
# of all sources has a tenth of the objects and a fortieth of the characters.
MAX_OBJECTS, MAX_CHARACTERS, MAX_PATTERN = 1000, 200_000, 10_000

# Keywords of a schema that are evaluated for one call. A few nested alternatives that refer to each other double the
# work at every level; the tools of all sources together take less than a hundredth of this.
MAX_STEPS = 50_000

# Keywords whose value, or each of whose values, is a schema for the very value that the schema itself is for. A
# reference that leads back to itself through these never ends.
_SAME_VALUE = ("not", "if", "then", "else", "allOf", "anyOf", "oneOf", "dependentSchemas")
_REFERENCES = ("$ref", "$dynamicRef")
_UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


class ToolSchema:
    """The schema of one tool's parameters.

    Args:
        name (`str`): The tool.
        schema (`dict`): The JSON Schema, as its author wrote it.

    Raises:
        ValueError: If it is no schema, or its references leave it or never end.
    """

    def __init__(self, name: str, schema: Any) -> None:
        self._name = name
        try:
            text = json.dumps(schema)
            # A part with another "$schema" would be evaluated by a validator that is not ours.
            schema = json.loads(text, object_hook=_without_dialect)
            _check_size(schema, text)
            _check_schema(schema)
            _check_references(schema)
        except SchemaError as error:
            raise ValueError(f"the schema of tool {name!r} is none: {error.message[:120]}") from None
        except Unresolvable as error:
            raise ValueError(
                f"the schema of tool {name!r} refers to {error.ref[:120]!r}, which is not in it"
            ) from None
        except RecursionError:
            raise ValueError(f"the schema of tool {name!r} is nested too deeply") from None
        except _EndlessReference:
            raise ValueError(f"the schema of tool {name!r} refers to itself without end") from None
        except ValueError as error:  # an address that is none, an index that is no number
            raise ValueError(f"the schema of tool {name!r} cannot be read: {str(error)[:120]}") from None
        if {"patternProperties", "unevaluatedProperties"} <= set(_keys(schema)):
            # The library reads these patterns itself there, in time that has no bound.
            raise ValueError(f"the schema of tool {name!r} has patternProperties and unevaluatedProperties: use one")
        self._validator = _BoundedValidator(schema, registry=Registry())
        self.unread_patterns = tuple(sorted({pattern for pattern in _patterns(schema) if not _is_readable(pattern)}))
        for pattern in self.unread_patterns:
            if not _is_pattern(pattern):
                raise ValueError(f"the schema of tool {name!r} is none: {pattern[:60]!r} is no pattern")

    def fault(self, arguments: dict) -> str | None:
        """Why the arguments do not fit, `None` if they do.

        Raises:
            ValueError: If the schema takes too long to evaluate.
        """
        _budget.steps = MAX_STEPS
        try:
            error = next(self._validator.iter_errors(arguments), None)
        except (_TooManySteps, RecursionError, Unresolvable):
            raise ValueError(f"the schema of tool {self._name!r} takes too many steps to check a call") from None
        except OverflowError:
            return "a number is too large"
        return None if error is None else error.message[:120]


# ---------------------------------------------------------------------------------------------------------- references


class _EndlessReference(Exception):
    """Raised for a reference that leads back to itself."""


def _without_dialect(value: dict) -> dict:
    return {key: item for key, item in value.items() if not (key == "$schema" and isinstance(item, str))}


def _check_size(schema: Any, text: str) -> None:
    if len(text) > MAX_CHARACTERS or sum(1 for _ in _objects(schema)) > MAX_OBJECTS:
        raise ValueError(f"it has more than {MAX_OBJECTS} objects or {MAX_CHARACTERS} characters")
    if any(len(pattern) > MAX_PATTERN for pattern in _patterns(schema)):
        raise ValueError(f"a pattern has more than {MAX_PATTERN} characters")


def _check_schema(schema: Any) -> None:
    # Without formats: whether a pattern is one is for RE2 to say, which reads some that Python does not.
    Draft202012Validator.check_schema(schema, format_checker=None)


def _check_references(schema: Any) -> None:
    """Follow every reference once.

    Raises:
        Unresolvable: If one leaves the schema.
        _EndlessReference: If one leads back to itself.
    """
    root = DRAFT202012.create_resource(schema)
    visited, followed = set[int](), set[int]()
    pending = [(root, Registry().resolver_with_root(root))]
    while pending:
        part, resolver = pending.pop()
        if id(part.contents) not in visited and isinstance(part.contents, dict):
            visited.add(id(part.contents))
            pending += _follow(part, resolver, followed, ())
            pending += [(inside, resolver.in_subresource(inside)) for inside in part.subresources()]


def _follow(part: Resource, resolver: Any, followed: set[int], path: tuple[int, ...]) -> list[tuple[Resource, Any]]:
    """Follow a schema to all others that are for the same value; returns those that references led to."""
    schema, found = part.contents, []
    if not isinstance(schema, dict) or id(schema) in followed:
        return []
    if id(schema) in path:
        raise _EndlessReference
    path = (*path, id(schema))
    for keyword in _REFERENCES:
        if keyword in schema:
            looked_up = resolver.lookup(schema[keyword])
            # It may point to a place where no schema is expected, which the check of the whole has left out.
            _check_schema(looked_up.contents)
            found.append((DRAFT202012.create_resource(looked_up.contents), looked_up.resolver))
            found += _follow(*found[-1], followed, path)
    for each in _parts_for_same_value(schema):
        inside = DRAFT202012.create_resource(each)
        found += _follow(inside, resolver.in_subresource(inside), followed, path)
    followed.add(id(schema))
    return found


def _parts_for_same_value(schema: dict) -> Iterator[Any]:
    for keyword in _SAME_VALUE:
        value = schema.get(keyword)
        if keyword == "dependentSchemas" and isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list):
            yield from value
        elif keyword in schema:
            yield value


# ------------------------------------------------------------------------------------------------------------ patterns


def _matches(pattern: str, text: str) -> bool:
    """Whether a pattern occurs in a text, by RE2; a pattern that RE2 cannot read matches everything."""
    _spend(1)
    try:
        return pyarrow.compute.match_substring_regex(pyarrow.array([text]), _as_re2(pattern))[0].as_py()
    except (pyarrow.ArrowInvalid, UnicodeEncodeError):
        return True


def _as_re2(pattern: str) -> str:
    return _UNICODE_ESCAPE.sub(r"\\x{\1}", pattern)


def _is_readable(pattern: str) -> bool:
    try:
        pyarrow.compute.match_substring_regex(pyarrow.array([""]), _as_re2(pattern))
    except (pyarrow.ArrowInvalid, UnicodeEncodeError):
        return False
    return True


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _patterns(schema: Any) -> Iterator[str]:
    """All patterns in a schema; also those of values that only look like a schema, which does no harm."""
    for value in _objects(schema):
        if isinstance(value.get("pattern"), str):
            yield value["pattern"]
        if isinstance(value.get("patternProperties"), dict):
            yield from value["patternProperties"]


def _keys(schema: Any) -> Iterator[str]:
    for value in _objects(schema):
        yield from value


def _objects(value: Any) -> Iterator[dict]:
    """All objects in a JSON value, at any depth."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(item)


# ------------------------------------------------------------------------------------------------------------ keywords


class _TooManySteps(Exception):
    """Raised to give an evaluation up."""


class _Budget(threading.local):
    """Steps that are left for the call at hand."""

    steps = MAX_STEPS


_budget = _Budget()


def _spend(steps: int) -> None:
    _budget.steps -= steps
    if _budget.steps < 0:
        raise _TooManySteps


def _bounded(keyword: Callable) -> Callable:
    def evaluate(validator: Any, value: Any, instance: Any, schema: dict) -> Iterator[ValidationError]:
        _spend(1)
        yield from keyword(validator, value, instance, schema) or ()

    return evaluate


def _pattern(validator: Any, pattern: str, instance: Any, schema: dict) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield ValidationError(f"{instance[:40]!r} does not match {pattern[:60]!r}")


def _pattern_properties(validator: Any, parts: dict, instance: Any, schema: dict) -> Iterator[ValidationError]:
    for pattern, part in parts.items() if isinstance(instance, dict) else ():
        for key in instance:
            if _matches(pattern, key):
                yield from validator.descend(instance[key], part, path=key, schema_path=pattern)


def _additional_properties(validator: Any, part: Any, instance: Any, schema: dict) -> Iterator[ValidationError]:
    for key in instance if isinstance(instance, dict) else ():
        if key in schema.get("properties", {}) or any(_matches(p, key) for p in schema.get("patternProperties", {})):
            continue
        if part is False:
            yield ValidationError(f"Additional properties are not allowed ({key!r} was unexpected)")
        else:
            yield from validator.descend(instance[key], part, path=key)


def _unique_items(validator: Any, wanted: bool, instance: Any, schema: dict) -> Iterator[ValidationError]:
    # The library compares every two items where they cannot be sorted.
    _spend(len(instance) ** 2 // 64 if isinstance(instance, list) else 0)
    yield from Draft202012Validator.VALIDATORS["uniqueItems"](validator, wanted, instance, schema) or ()


_OURS = {
    "uniqueItems": _unique_items,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}
_BoundedValidator = extend(
    Draft202012Validator,
    {name: _bounded(keyword) for name, keyword in (dict(Draft202012Validator.VALIDATORS) | _OURS).items()},
)
