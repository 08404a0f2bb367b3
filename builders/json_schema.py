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
