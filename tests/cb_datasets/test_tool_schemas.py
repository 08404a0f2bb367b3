"""Tool schemas that strangers wrote to hurt: nothing is fetched, and every check ends with a verdict."""

import json
import socket

import pytest
from jsonschema import Draft202012Validator

from builders.tool_schema import MAX_CHARACTERS, MAX_OBJECTS, MAX_PATTERN, MAX_STEPS, ToolSchema
from builders.trace import to_json
from cb_datasets.checks.rules import check
from cb_datasets.formats import ToolCall
from cb_datasets.tool_schemas import schema_fault, schemas_of
from tests.growth import FACTOR, growth

from .conftest import RIGHT


NODE = {"type": "object", "properties": {"next": {"$ref": "#"}, "size": {"type": "integer"}}}


def tools_with(schema: object) -> str:
    return to_json([{"type": "function", "function": {"name": "retrieve_multimodal_docs", "parameters": schema}}])


def rules_broken(make_sample, schema: object, completion: str = RIGHT) -> set[str]:
    sample = {**make_sample(completion, "adversarial_safe"), "tools": tools_with(schema)}
    return {violation.rule for violation in check(sample) if violation.is_error}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list:
    """Addresses that somebody tried to reach."""
    reached: list = []

    def refuse(*arguments, **options):
        reached.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return reached


@pytest.mark.parametrize(
    "part",
    [
        {"$ref": "https://example.org/query.json"},
        {"$ref": "http://127.0.0.1:9/query.json#/a"},
        {"$ref": "file:///etc/hostname"},
        {"$ref": "other.json"},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "#no-anchor"},
        {"$dynamicRef": "https://example.org/query.json"},
        {"$id": "https://example.org/", "$ref": "more.json"},
        {"anyOf": [{"type": "string"}, {"$ref": "https://example.org/query.json"}]},
        {"properties": {"deep": {"items": {"$ref": "https://example.org/query.json"}}}},
    ],
)
@pytest.mark.parametrize("place", ["query", "another"])
def test_references_are_looked_up_in_the_schema_alone(make_sample, no_network, tmp_path, part, place):
    """Whether or not the call has the argument: a row must not depend on what somebody may put there later."""
    assert rules_broken(make_sample, {"type": "object", "properties": {place: part}}) == {"tools"}
    assert no_network == []


def test_a_file_that_exists_is_not_read(make_sample, tmp_path):
    (tmp_path / "query.json").write_text('{"type": "integer"}')
    part = {"$ref": (tmp_path / "query.json").as_uri()}
    assert rules_broken(make_sample, {"properties": {"query": part}}) == {"tools"}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"properties": {"query": {"$ref": "#/properties/query"}}},
        {"properties": {"query": {"allOf": [{"type": "string"}, {"$ref": "#/properties/query"}]}}},
        {"properties": {"query": {"not": {"$ref": "#/properties/query"}}}},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
        {"$defs": {"a": {"$anchor": "here", "if": {"$ref": "#here"}}}},
        {"dependentSchemas": {"query": {"$ref": "#"}}},
        {"properties": {"query": {"$ref": "#/x-hidden"}}, "x-hidden": {"$ref": "#/properties/query"}},
    ],
)
def test_references_that_never_end_are_a_fault(make_sample, schema):
    assert rules_broken(make_sample, schema) == {"tools"}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"query": {"$ref": "#/x-hidden"}}, "x-hidden": 5},
        {"properties": {"query": {"$ref": "#/x-hidden"}}, "x-hidden": {"type": "no such type"}},
        {"properties": {"query": {"$ref": "#/x-hidden/query"}}, "x-hidden": {"query": {"properties": []}}},
        {"patternProperties": {"a": True}, "unevaluatedProperties": False},
        ["no", "schema"],
        {"properties": {"query": {"pattern": "["}}},
        json.loads('{"items":' * 400 + "{}" + "}" * 400),
        {"properties": {"query": {"$id": "http://[::1", "$ref": "a"}}},
        {"allOf": [{}], "properties": {"query": {"$ref": "#/allOf/x"}}},
    ],
)
def test_what_is_no_schema_is_a_fault(make_sample, schema):
    assert rules_broken(make_sample, schema) == {"tools"}


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "string"}] * MAX_OBJECTS},
        {"$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(MAX_OBJECTS)}},
        {"properties": {"query": {"enum": ["x" * 10] * (MAX_CHARACTERS // 10)}}},
        {"properties": {"query": {"pattern": "x" * (MAX_PATTERN + 1)}}},
        {"patternProperties": {"x" * (MAX_PATTERN + 1): {}}},
    ],
)
def test_what_would_take_long_to_read_is_a_fault(make_sample, schema, monkeypatch):
    monkeypatch.setattr(
        Draft202012Validator, "check_schema", lambda *_, **__: pytest.fail("read in spite of its size")
    )
    with pytest.raises(ValueError, match=r"'retrieve_multimodal_docs' cannot be read: .* more than"):
        schemas_of(tools_with(schema))


def test_a_tool_has_a_name():
    with pytest.raises(ValueError, match="list of function schemas"):
        schemas_of('[{"type": "function", "function": {"name": 5, "parameters": {}}}]')


def test_a_tree_may_refer_to_itself():
    schema = ToolSchema("tree", NODE)
    assert schema.fault({"next": {"next": {"size": 1}}}) is None
    assert "integer" in schema.fault({"next": {"next": {"size": "1"}}})


def test_references_into_the_schema_are_followed(make_sample):
    def with_type(name: str) -> dict:
        return {"$id": "https://example.org/a", "$defs": {"Q": {"$anchor": "q", "type": name}},
                "properties": {"query": {"$ref": "https://example.org/a#q"}}}  # fmt: skip

    assert rules_broken(make_sample, with_type("string")) == set()
    assert rules_broken(make_sample, with_type("integer")) == {"R4b"}


def test_alternatives_that_double_at_every_level_are_given_up(make_sample):
    """A few hundred characters of schema that would take 2 to the power of 60 steps."""
    doubled = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)}
    schema = {"$defs": doubled | {"d60": {"type": "object"}}, "$ref": "#/$defs/d0"}
    assert rules_broken(make_sample, schema) == {"tools"}
    [tool] = schemas_of(tools_with(schema)).values()
    with pytest.raises(ValueError, match="too many steps"):
        tool.fault({})


def test_ordinary_arguments_are_far_from_the_limit():
    rows = {"type": "array", "uniqueItems": True, "items": NODE}
    assert (
        ToolSchema("rows", {"properties": {"rows": rows}}).fault({"rows": [{"size": n} for n in range(1000)]}) is None
    )
    assert MAX_STEPS > 10_000


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"query": {"pattern": "^(a+)+$"}}},
        {"properties": {"query": {"pattern": "^(a|a)*$"}}},
        {"properties": {"query": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(a+)+$"}}},
        {"properties": {"query": {"pattern": "a*a*a*a*b"}}},
    ],
)
def test_a_pattern_takes_linear_time(schema):
    tool = ToolSchema("search", schema)
    assert "does not match" in tool.fault({"query": "a" * 30_000 + "!"})
    assert growth(lambda text: tool.fault({"query": text}), lambda n: "a" * n + "!", 20_000) < 3 * FACTOR


@pytest.mark.parametrize(
    "schema",
    [
        {"patternProperties": {"^(a+)+$": {"type": "integer"}}},
        {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": {"type": "integer"}},
        {"patternProperties": {"^(a+)+$": {}}, "additionalProperties": False},
        {"propertyNames": {"pattern": "^(a+)+$"}},
    ],
)
def test_so_does_a_pattern_of_names(schema):
    tool = ToolSchema("search", schema)
    assert growth(lambda text: tool.fault({text: 1}), lambda n: "a" * n + "!", 20_000) < 3 * FACTOR


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        (r"^\d{4}-\d\d$", "2024-05", "2024-5"),
        (r"^[\w.+-]+@[\w-]+\.\w+$", "a@b.org", "a b.org"),
        ("^caf\\u00e9$", "café", "cafe"),
        (r"^\p{Lu}", "Ärger", "ärger"),
        ("tide", "the tides", "the times"),
    ],
)
def test_patterns_mean_what_they_say(pattern, fits, fits_not):
    tool = ToolSchema("search", {"properties": {"query": {"type": "string", "pattern": pattern}}})
    assert tool.unread_patterns == ()
    assert tool.fault({"query": fits}) is None and tool.fault({"query": fits_not})


@pytest.mark.parametrize("pattern", ["^(?!drop)", r"(a)\1", "(?<=a)b"])
def test_a_pattern_that_cannot_be_read_is_counted_and_drops_nothing(make_sample, pattern):
    schema = {"properties": {"query": {"pattern": pattern}}}
    [violation] = check({**make_sample(RIGHT, "adversarial_safe"), "tools": tools_with(schema)})
    assert violation.rule == "tools" and not violation.is_error and "not checked" in violation.message


def test_the_keywords_that_are_ours_judge_as_before():
    schema = {
        "properties": {"a": {"type": "integer"}},
        "patternProperties": {"^x-": {"type": "string"}, "^y": {"type": "integer"}},
        "additionalProperties": {"type": "boolean"},
    }
    tools = {"t": ToolSchema("t", schema), "closed": ToolSchema("closed", schema | {"additionalProperties": False})}
    good, bad = {"a": 1, "x-b": "c", "y": 2, "other": True}, ({"x-b": 1}, {"y": "1"}, {"other": 1}, {"a": "1"})
    assert schema_fault(ToolCall("t", good), tools) is None
    assert all(schema_fault(ToolCall("t", arguments), tools) for arguments in bad)
    assert "'other' was unexpected" in schema_fault(ToolCall("closed", good), tools)
    unique = {"u": ToolSchema("u", {"properties": {"l": {"uniqueItems": True}}})}
    assert schema_fault(ToolCall("u", {"l": [{"a": 1}, {"a": 2}]}), unique) is None
    assert schema_fault(ToolCall("u", {"l": [{"a": 1}, {"a": 1}]}), unique)


def test_a_number_that_no_float_holds_is_a_fault_of_the_call():
    assert ToolSchema("n", {"properties": {"n": {"multipleOf": 0.5}}}).fault({"n": 10**400})
