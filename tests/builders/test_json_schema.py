"""Names of types that are no JSON Schema's are read as its own, in schemas and nowhere else."""

import jsonschema
import pytest

from builders.json_schema import standard_types


@pytest.mark.parametrize(
    ("name", "standard"),
    [
        ("dict", "object"),
        ("float", "number"),
        ("str", "string"),
        ("int", "integer"),
        ("list", "array"),
        ("tuple", "array"),
        ("bool", "boolean"),
        ("HashMap", "object"),
        ("ArrayList", "array"),
        ("STRING", "string"),
        ("integer", "integer"),
        ("colour", "colour"),
    ],
)
def test_names_of_types(name: str, standard: str):
    assert standard_types({"type": name}) == {"type": standard}
    assert standard_types({"type": [name, "None"]}) == {"type": [standard, "null"]}


def test_any_is_no_restriction():
    assert standard_types({"type": "any", "description": "A value."}) == {"description": "A value."}
    assert standard_types({"type": ["str", "any"]}) == {}


def test_types_are_read_wherever_a_schema_may_have_one():
    foreign = {
        "type": "dict",
        "properties": {
            "prices": {"type": "list", "items": {"type": "float"}},
            "point": {"type": "tuple", "prefixItems": [{"type": "int"}, {"type": "int"}]},
            "note": {"anyOf": [{"type": "str"}, {"type": "null"}]},
        },
        "additionalProperties": {"type": "bool"},
        "$defs": {"Bag": {"type": "dict", "properties": {}}},
    }
    schema = standard_types(foreign)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"prices": [1.5], "point": [1, 2], "note": None, "more": True})
    wrong = ({"prices": ["a"]}, {"point": [1.5, 2]}, {"note": 3}, {"more": "x"}, [])
    assert not any(validator.is_valid(value) for value in wrong)
    assert foreign["properties"]["prices"]["type"] == "list", "the given schema is not changed"


def test_data_in_a_schema_and_properties_named_type_stay():
    data = {"type": "dict"}
    schema = {
        "type": "object",
        "properties": {"type": {"type": "string", "enum": ["dict", "float"], "default": "dict"}, "items": {}},
        "required": ["type"],
        "default": data,
        "enum": [data],
        "const": data,
        "examples": [data],
    }
    assert standard_types(schema) == schema
    assert standard_types({"properties": {"type": data}}) == {"properties": {"type": {"type": "object"}}}


@pytest.mark.parametrize("odd", [True, None, 7, {"type": 7}, {"type": [7]}, {"properties": None, "items": True}])
def test_what_is_no_schema_is_left_to_the_checks(odd):
    assert standard_types(odd) == odd
