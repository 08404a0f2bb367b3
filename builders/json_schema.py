"""JSON Schema (draft 2020-12) of rows, derived from their `datasets` features so that the two stay consistent.

>>> schema_of(List(Value("int32")))
{'type': 'array', 'items': {'type': ['integer', 'null']}}
"""

from typing import Any

from datasets import List


DRAFT = "https://json-schema.org/draft/2020-12/schema"

_TYPES = {"string": "string", "bool": "boolean", "int32": "integer", "int64": "integer", "float64": "number"}


def schema_of(feature: Any) -> dict:
    """Schema of a feature: objects have exactly the fields of the feature, and scalar values may be null."""
    if isinstance(feature, dict):
        return object_schema({name: schema_of(field) for name, field in feature.items()})
    if isinstance(feature, List):
        return {"type": "array", "items": schema_of(feature.feature)}
    return {"type": [_TYPES[feature.dtype], "null"]}


def object_schema(properties: dict, required: list[str] | None = None) -> dict:
    """Schema of an object with these fields and no others.

    Args:
        properties (`dict`): Schema of each field.
        required (`list[str]`, *optional*): Names of the required fields; by default all.
    """
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


# Names of types that are no JSON Schema's, as BFCL and functions of other languages have them; in lower case.
_FOREIGN_TYPES = {
    "object": ("dict", "map", "hashmap", "hashtable"),
    "array": ("list", "tuple", "set", "arraylist", "queue", "stack"),
    "number": ("float", "double"),
    "integer": ("int", "long", "short", "byte", "bigint"),
    "string": ("str", "char"),
    "boolean": ("bool",),
    "null": ("none", "nonetype"),
}
_STANDARD_TYPE = {name: name for name in _FOREIGN_TYPES} | {
    name: standard for standard, names in _FOREIGN_TYPES.items() for name in names
}
# Keywords whose values are schemas by name, one schema or a list of them; values of all others are data.
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_NESTED = ("items", "prefixItems", "contains", "additionalProperties", "unevaluatedProperties", "unevaluatedItems")
_COMBINED = ("propertyNames", "anyOf", "oneOf", "allOf", "not", "if", "then", "else")


def standard_types(schema: Any) -> Any:
    """A schema with JSON Schema's names of types for those of others; `any` is no restriction, so it is left out.

    >>> standard_types({"type": "dict", "properties": {"price": {"type": "float"}, "note": {"type": "any"}}})
    {'type': 'object', 'properties': {'price': {'type': 'number'}, 'note': {}}}

    Names that nobody knows stay, and so does everything that is no schema, such as the values of `enum`.
    """
    if isinstance(schema, list):
        return [standard_types(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out = {}
    for keyword, value in schema.items():
        if keyword == "type":
            value = _standard_type(value)
            if value is None:
                continue
        elif keyword in _BY_NAME and isinstance(value, dict):
            value = {name: standard_types(each) for name, each in value.items()}
        elif keyword in (*_NESTED, *_COMBINED):
            value = standard_types(value)
        out[keyword] = value
    return out


def _standard_type(value: Any) -> Any:
    """The name of a type, or a list of names; `None` if any value is allowed."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return value
    if any(name.casefold() == "any" for name in names):
        return None
    standard = list(dict.fromkeys(_STANDARD_TYPE.get(name.casefold(), name) for name in names))
    return standard[0] if isinstance(value, str) else standard
