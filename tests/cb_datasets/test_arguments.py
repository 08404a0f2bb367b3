"""Two calls say the same or they do not, by the tool's schema; each rule both ways."""

import pytest

from builders.trace import to_json
from cb_datasets.arguments import parameter_schemas, read_by_schema, same_arguments
from cb_datasets.formats import ToolCall
from cb_datasets.outcomes import have_expected_arguments


SCHEMA = {
    "type": "object",
    "$defs": {
        "Cabin": {"enum": ["economy", "Business"], "type": "string"},
        "Bag": {"type": "object", "properties": {"kilos": {"type": "number"}, "label": {"type": "string"}}},
    },
    "properties": {
        "amount": {"type": "integer"},
        "price": {"type": "number"},
        "code": {"type": "string"},
        "fast": {"type": "boolean"},
        "limit": {"type": "integer", "default": 10},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "size": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "cabin": {"$ref": "#/$defs/Cabin", "default": "economy"},
        "to": {"type": "array", "items": {"type": "string"}},
        "cc": {"type": "array", "items": {"type": "string"}},
        "route": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "string"}]},
        "point": {"type": "array", "items": {"type": "number"}},
        "bags": {"type": "array", "items": {"$ref": "#/$defs/Bag"}},
        "bag": {"$ref": "#/$defs/Bag"},
        "old": {"allOf": [{"$ref": "#/$defs/Cabin"}], "default": "Business"},
        "lost": {"$ref": "#/$defs/Nowhere"},
        "extra": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
}

SAME = [
    ({"amount": "3"}, {"amount": 3}),
    ({"amount": 3.0}, {"amount": 3}),
    ({"price": "50.00"}, {"price": 50}),
    ({"fast": "true"}, {"fast": True}),
    ({"fast": "False"}, {"fast": False}),
    ({"code": 7}, {"code": "7"}),
    ({"code": "  The Tides\n today"}, {"code": "the tides today"}),
    ({"code": "ﬁne Café"}, {"code": "fine Cafe\u0301"}),
    ({"limit": 10}, {}),
    ({}, {"limit": "10"}),
    ({"note": None}, {}),
    ({"size": "4"}, {"size": 4}),
    ({"cabin": "ECONOMY"}, {}),
    ({"cabin": "business"}, {"cabin": "Business"}),
    ({"to": ["b", "A"]}, {"to": ["a", "b"]}),
    ({"to": ["b", "a"], "cc": ["2", "1"]}, {"to": ["a", "b"], "cc": ["1", "2"]}),
    ({"to": ["b", "a"], "cc": ["1"]}, {"to": ["a", "b"], "cc": ["1"]}),
    ({"point": ["1", 2]}, {"point": [1, 2.0]}),
    ({"bags": [{"kilos": "20"}]}, {"bags": [{"kilos": 20, "label": None}]}),
    ({"bag": {"kilos": 20, "label": "A"}}, {"bag": {"label": "a", "kilos": 20.0}}),
    ({"extra": {"a": "1"}}, {"extra": {"a": 1}}),
    ({"to": ["b", "a"], "point": [1]}, {"to": ["a", "b"], "point": [1]}),
    ({"old": "BUSINESS"}, {}),
    ({"lost": "X"}, {"lost": "x"}),
]

DIFFERENT = [
    ({"amount": "3"}, {"amount": 4}),
    ({"amount": True}, {"amount": 1}),
    ({"amount": "three"}, {"amount": 3}),
    ({"price": "nan"}, {"price": 5}),
    ({"fast": "yes"}, {"fast": True}),
    ({"fast": 1}, {"fast": True}),
    ({"code": "07"}, {"code": "7"}),
    ({"code": "12"}, {"code": "123"}),
    ({"limit": 5}, {}),
    ({"code": "x"}, {}),
    ({}, {"code": "x"}),
    ({"note": "null"}, {}),
    ({"cabin": "Business"}, {}),
    ({"to": ["a", "a"]}, {"to": ["a", "b"]}),
    ({"to": ["a"]}, {"to": ["a", "b"]}),
    ({"to": "a"}, {"to": ["a"]}),
    ({"to": ["b", "a"], "cc": ["1", "2"]}, {"to": ["a", "b"], "cc": ["1", "2"]}),
    ({"to": ["b", "a"], "point": [1, 2]}, {"to": ["a", "b"], "point": [1, 2]}),
    ({"route": ["b", "a"]}, {"route": ["a", "b"]}),
    ({"point": [2, 1]}, {"point": [1, 2]}),
    ({"bags": [{"kilos": 2}, {"kilos": 1}]}, {"bags": [{"kilos": 1}, {"kilos": 2}]}),
    ({"bag": {"kilos": 20, "label": "B"}}, {"bag": {"label": "a", "kilos": 20}}),
    ({"unknown": 1}, {}),
]


@pytest.mark.parametrize(("given", "wanted"), SAME)
def test_the_same_by_the_schema(given, wanted):
    assert same_arguments(given, wanted, SCHEMA) and same_arguments(wanted, given, SCHEMA)


@pytest.mark.parametrize(("given", "wanted"), DIFFERENT)
def test_not_the_same_by_the_schema(given, wanted):
    assert not same_arguments(given, wanted, SCHEMA) and not same_arguments(wanted, given, SCHEMA)


def test_without_a_schema_values_speak_for_themselves():
    assert same_arguments({"a": 3, "b": "X "}, {"a": 3.0, "b": "x"})
    assert not same_arguments({"a": "3"}, {"a": 3})
    assert not same_arguments({"a": True}, {"a": 1})


def test_a_right_call_is_any_of_the_expected_ones():
    tools = to_json([{"type": "function", "function": {"name": "book", "parameters": SCHEMA}}])
    expected = [{"name": "book", "arguments": {"amount": 1}}, {"name": "book", "arguments": {"amount": 2}}]
    target = {"expected_calls": to_json(expected)}
    assert have_expected_arguments([ToolCall("book", {"amount": "2"})], target, tools) is True
    assert have_expected_arguments([ToolCall("book", {"amount": "2"})], target, None) is False, "no schema, no integer"
    assert have_expected_arguments([ToolCall("pay", {"amount": 2})], target, tools) is False
    assert have_expected_arguments([ToolCall("book", {})], {"expected_calls": None}, tools) is None


def test_tools_that_are_none_are_refused():
    assert parameter_schemas(None) == {} and parameter_schemas("[]") == {}
    with pytest.raises(ValueError, match="not a JSON list of function schemas"):
        parameter_schemas('[{"name": "x"}]')


def test_types_under_other_names_are_read_as_those_of_json_schema():
    parameters = {"type": "dict", "properties": {"price": {"type": "float"}, "fast": {"type": "bool"}}}
    schema = parameter_schemas(to_json([{"type": "function", "function": {"name": "book", "parameters": parameters}}]))
    assert same_arguments({"price": "2.50", "fast": "True"}, {"price": 2.5, "fast": True}, schema["book"])
    assert not same_arguments({"price": "2.50"}, {"price": 2.5}, {"properties": {"price": {"type": "any"}}})


@pytest.mark.parametrize(
    ("given", "read", "changes"),
    [
        ({"amount": "20"}, {"amount": 20}, ["amount '20' -> 20"]),
        ({"amount": " -3 "}, {"amount": -3}, ["amount ' -3 ' -> -3"]),
        ({"price": "0.7"}, {"price": 0.7}, ["price '0.7' -> 0.7"]),
        ({"price": "1e3"}, {"price": 1000.0}, ["price '1e3' -> 1000.0"]),
        ({"fast": "True"}, {"fast": True}, ["fast 'True' -> true"]),
        ({"size": "4"}, {"size": 4}, ["size '4' -> 4"]),
        ({"point": ["1", 2]}, {"point": [1, 2]}, ["point[0] '1' -> 1"]),
        (
            {"bags": [{"kilos": "20", "label": "7"}]},
            {"bags": [{"kilos": 20, "label": "7"}]},
            ["bags[0].kilos '20' -> 20"],
        ),
        ({"extra": {"a": "1"}}, {"extra": {"a": 1}}, ["extra.a '1' -> 1"]),
    ],
)
def test_numbers_and_booleans_written_as_text_are_read_by_the_schema(given, read, changes):
    assert read_by_schema(given, SCHEMA) == (read, changes)
    assert type(read_by_schema(given, SCHEMA)[0].get("fast")) is type(read.get("fast"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"amount": "twenty"},
        {"amount": "20 USD"},
        {"amount": "1,000"},
        {"amount": "007"},
        {"amount": "2.5"},
        {"amount": "true"},
        {"amount": ""},
        {"amount": "9" * 5000},
        {"price": "NaN"},
        {"price": "1e999"},
        {"fast": "yes"},
        {"fast": "1"},
        {"code": "20"},
        {"note": "20"},
        {"cabin": "20"},
        {"to": ["1"]},
        {"unknown": "20"},
        {"lost": "20"},
        {"amount": 20, "price": 0.7, "fast": False},
    ],
)
def test_all_other_values_stay(arguments):
    assert read_by_schema(arguments, SCHEMA) == (arguments, [])


@pytest.mark.parametrize("schema", [{}, {"properties": {}}, {"properties": None}, {"properties": {"a": True}}])
def test_a_schema_that_asks_for_nothing_changes_nothing(schema):
    assert read_by_schema({"a": "1"}, schema) == ({"a": "1"}, [])
    assert same_arguments({"a": "1"}, {"a": "1"}, schema)


@pytest.mark.parametrize(
    "part",
    [
        {"$ref": "#/properties/q"},
        {"allOf": [{"$ref": "#/properties/q"}]},
        {"anyOf": [{"$ref": "#/properties/q"}, {"$ref": "#/properties/q"}]},
        {"$ref": "https://example.org/q.json"},
        {"$ref": 5},
        {"$ref": "#/properties/q/anyOf/0"},
        {"allOf": [True]},
        {"anyOf": "no list"},
        {"type": [{"no": "name"}]},
        {"items": False, "properties": []},
        True,
        "no schema",
    ],
)
def test_schemas_of_strangers_end_and_change_nothing(part):
    """Loops, references elsewhere, and what is no schema: values are compared as they are."""
    schema = {"type": "object", "properties": {"q": part}}
    for value, another in (("tides", "moon"), (["a"], ["b"]), ({"a": {"b": 1}}, {"a": {"b": 2}}), (1, 2)):
        assert same_arguments({"q": value}, {"q": value}, schema)
        assert not same_arguments({"q": value}, {"q": another}, schema)


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"properties": "none"}, [], "no schema"])
def test_so_do_whole_schemas(schema):
    assert same_arguments({"q": "Tides"}, {"q": "tides"}, schema) and not same_arguments(
        {"q": "a"}, {"q": "b"}, schema
    )


def test_alternatives_that_double_at_every_level_are_given_up():
    node = {"properties": {"next": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}}
    schema = {"$defs": {"a": node}, "$ref": "#/$defs/a"}

    def nested(depth: int, leaf: str) -> dict:
        return {"next": nested(depth - 1, leaf)} if depth else {"leaf": leaf}

    assert same_arguments(nested(60, "x"), nested(60, "x"), schema)
    assert not same_arguments(nested(60, "x"), nested(60, "y"), schema), "2 to the power of 60 comparisons"
    assert not same_arguments(nested(900, "x"), nested(900, "y")), "deeper than the interpreter allows"


def test_escaped_references_are_followed():
    schema = {"$defs": {"a/b": {"type": "integer"}}, "properties": {"q": {"$ref": "#/$defs/a~1b"}}}
    assert same_arguments({"q": "3"}, {"q": 3}, schema)


def test_tools_nested_beyond_all_measure_are_no_schemas():
    with pytest.raises(ValueError, match="not a JSON list of function schemas"):
        parameter_schemas("[" * 100_000 + "]" * 100_000)
