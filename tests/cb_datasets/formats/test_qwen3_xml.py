import json

import pytest

from cb_datasets.formats import FORMATS, ToolCall
from cb_datasets.formats.typed_text import argument_types, coerce_typed, read_typed


XML, THINKING = FORMATS["qwen3_xml"], FORMATS["qwen3_xml_thinking"]
FUNCTION = "<function=search_web>\n<parameter=query>\ntides\n</parameter>\n</function>"
BLOCK = f"<tool_call>\n{FUNCTION}\n</tool_call>"
TIDES = ToolCall("search_web", {"query": "tides"})


def tools(**properties: dict) -> str:
    parameters = {"type": "object", "properties": properties}
    return json.dumps([{"type": "function", "function": {"name": "a", "parameters": parameters}}])


def call(value: str, key: str = "n") -> str:
    return f"<tool_call>\n<function=a>\n<parameter={key}>\n{value}\n</parameter>\n</function>\n</tool_call><|im_end|>"


def test_calls_are_written_as_models_write_them():
    assert XML.render(TIDES, "") == f"{BLOCK}<|im_end|>"
    assert XML.render(TIDES, "I'll look.") == f"I'll look.\n\n{BLOCK}<|im_end|>"
    assert XML.render(ToolCall("a", {}), "") == "<tool_call>\n<function=a>\n</function>\n</tool_call><|im_end|>"
    assert XML.render(ToolCall("a", {"n": {"b": [True, "é"]}}), "") == call('{"b": [true, "é"]}')
    assert THINKING.render(TIDES, "") == f"\n</think>\n\n{BLOCK}<|im_end|>"
    assert THINKING.render_text("High tide at 5.") == "\n</think>\n\nHigh tide at 5.<|im_end|>"


@pytest.mark.parametrize(
    ("completion", "diagnosis"),
    [
        (f"{BLOCK}<|im_end|>", "ok"),
        (f"I'll look.\n\n{BLOCK}\n<|im_end|>", "ok"),
        ("<tool_call><function=a><parameter=q>tides</parameter></function></tool_call><|im_end|>", "ok"),
        (f"<think>\nI could write {BLOCK}.\n</think>\n\n{BLOCK}<|im_end|>", "ok"),
        (f"{BLOCK}\n{BLOCK}<|im_end|>", "multi_call"),
        (f"<tool_call>\n{FUNCTION}\n{FUNCTION}\n</tool_call><|im_end|>", "multi_call"),
        (f"<tool_call>\n{FUNCTION}\n<tool_call>\n{FUNCTION}\n</tool_call><|im_end|>", "multi_call"),
        (BLOCK.replace("</function>\n", "") + "<|im_end|>", "json_incomplete"),
        (f"<tool_call>\n{FUNCTION}<|im_end|>", "json_incomplete"),
        (f"<tool_call>\n{FUNCTION[:-30]}", "json_incomplete"),
        ("<tool_call>\n<function=sear", "json_incomplete"),
        ("<tool_call>\n<function=a>\n<parameter=que", "json_incomplete"),
        ("<tool_call><|im_end|>", "json_incomplete"),
        (BLOCK, "json_incomplete"),
        (BLOCK.replace("</parameter>\n", "") + "<|im_end|>", "bad_json"),
        (call("1\n</parameter>\n<parameter=n>\n2"), "bad_json"),
        (call("</parameter>"), "bad_json"),
        ("<tool_call>\nNothing.\n</tool_call><|im_end|>", "bad_json"),
        ("<tool_call>\n<function=>\n</function>\n</tool_call><|im_end|>", "bad_arguments"),
        ("<tool_call>\n<function= a>\n</function>\n</tool_call><|im_end|>", "bad_arguments"),
        (call("1", key=""), "bad_arguments"),
        ('<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call><|im_end|>', "function_syntax"),
        ('<tool_call>\n<function=a>{"q": 1}</function>\n</tool_call><|im_end|>', "function_syntax"),
        ('{"name": "a", "arguments": {}}<|im_end|>', "function_syntax"),
        (f"{FUNCTION}<|im_end|>", "no_tag_json"),
        (f"I'll look.\n{FUNCTION}\n</tool_call><|im_end|>", "no_tag_json"),
        (f"{BLOCK} Done.<|im_end|>", "trailing_text"),
        (f"{BLOCK}<|im_end|>\nuser", "trailing_text"),
        (f"<think>\nI could write {BLOCK}.\n</think>\n\nHigh tide at 5.<|im_end|>", "text"),
        ("High tide at 5.<|im_end|>", "text"),
        ("<|im_end|>", "empty"),
        (f"<think>\nI could write {BLOCK}", "thinking_cut_off"),
    ],
)
def test_diagnosis(completion, diagnosis):
    parsed = XML.parse(completion)
    assert parsed.diagnosis == diagnosis
    assert (parsed.call_span is None) == (diagnosis != "ok")
    if "thinking" not in diagnosis:
        opened = completion.removeprefix("<think>\n") if "<think>" in completion else f"\n</think>\n\n{completion}"
        assert THINKING.parse(opened).diagnosis == diagnosis


@pytest.mark.parametrize(
    ("schema", "text", "read", "executed"),
    [
        ({"type": "string"}, "5", "5", "5"),
        ({"type": "string"}, "null", "null", "null"),
        ({"type": "string"}, '"a"', '"a"', '"a"'),
        ({}, "5", "5", "5"),
        ({"$ref": "#/$defs/x"}, "5", "5", "5"),
        ({"type": "integer"}, "5", 5, 5),
        ({"type": "int"}, " 5 ", 5, 5),
        ({"type": "integer"}, "five", "five", "five"),
        ({"type": "integer"}, "1_000", "1_000", 1000),
        ({"type": "integer"}, "007", "bad_json", 7),
        ({"type": "integer"}, "5.5", 5.5, 5.5),
        ({"type": "number"}, "2.0", 2.0, 2),
        ({"type": "number"}, "1e999", "bad_json", "1e999"),
        ({"type": "boolean"}, "true", True, True),
        ({"type": "boolean"}, "True", True, True),
        ({"type": "boolean"}, "yes", "yes", "yes"),
        ({"type": "array"}, "a, b", "a, b", "a, b"),
        ({"type": "array"}, "[a, b", "bad_json", "[a, b"),
        ({"type": "object"}, '{"b": 1}}', "bad_json", '{"b": 1}}'),
        ({"type": "array"}, '["a"]', ["a"], ["a"]),
        ({"type": "array"}, "['a']", "bad_json", "['a']"),
        ({"type": "object"}, '{"b": 1, "b": 2}', "bad_json", {"b": 2}),
        ({"type": "object"}, '{"b": NaN}', "bad_json", '{"b": NaN}'),
        ({"type": ["string", "null"]}, "null", None, None),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "5", 5, 5),
        ({"anyOf": [{"type": "array"}, {"type": "string"}]}, "a, b", "a, b", "a, b"),
        ({"anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}]}, "x", "x", "x"),
        ({"enum": [1, 2]}, "1", 1, 1),
        ({"enum": ["a", 1]}, "1", 1, 1),
        ({"enum": ["a", 1]}, "1.5", "1.5", "1.5"),
        ({"enum": ["a", 1, 2.5]}, "1.5", 1.5, 1.5),
    ],
)
def test_values_have_the_types_of_the_schema(schema, text, read, executed):
    offered = tools(n=schema)
    parsed = XML.parse(call(text), offered)
    if read == "bad_json":
        assert parsed.diagnosis == "bad_json"
    else:
        assert repr(parsed.calls) == repr((ToolCall("a", {"n": read}),)) and parsed.is_call
    assert repr(XML.executed_calls(call(text), offered)) == repr((ToolCall("a", {"n": executed}),))


def test_what_no_schema_types_is_text():
    for offered in (None, "[]", "no JSON", tools(m={"type": "integer"}), '[{"function": {"name": "a"}}]'):
        assert XML.parse(call("5"), offered).calls == XML.executed_calls(call("5"), offered)
        assert XML.parse(call("5"), offered).calls == (ToolCall("a", {"n": "5"}),)


def test_deep_nesting_is_a_fault_and_no_error():
    deep = "[" * 100_000
    offered = tools(n={"type": "array"})
    assert XML.parse(call(deep), offered).diagnosis == "bad_json"
    assert XML.executed_calls(call(deep), offered) == ()
    assert argument_types(offered, "a", "n") == {"array"}
    with pytest.raises(ValueError):
        read_typed(deep, {"array"})
    with pytest.raises(RecursionError):
        coerce_typed(deep, {"array"})


def test_a_server_executes_what_opens_like_a_function():
    other = FUNCTION.replace("search_web", "other")
    for completion, names in (
        (f"I'll look. {FUNCTION} and {other} so.<|im_end|>", ["search_web", "other"]),
        (f"<tool_call>\n{FUNCTION[:-20]}", ["search_web"]),
        ("<tool_call>\n<function=search_web", ["search_web"]),
        (f"{BLOCK}<|im_end|>{other}", ["search_web"]),
        (f"<think>\nI could write <tool_call>{other}.\n</think>\n\n{BLOCK}<|im_end|>", ["other", "search_web"]),
        ('<function=>{"name": "other"}</function><|im_end|>', ["other"]),
        ('<function= >{"name": "other", "parameters": {}}</function><|im_end|>', ["other"]),
        ("<function= >{}</function><function=>5</function><|im_end|>", []),
    ):
        assert [call.name for call in XML.executed_calls(completion)] == names
        if "<think>" in completion:
            assert [call.name for call in THINKING.executed_calls(completion.removeprefix("<think>"))] == names
    # In thinking, only a tag opens a call.
    assert [call.name for call in THINKING.executed_calls(f"{other}</think>{BLOCK}")] == ["search_web"]
    assert THINKING.executed_calls(other) == ()


def test_a_forced_head_ends_before_the_sign_that_tokens_join_with_the_name():
    assert XML.name_head("search_web") == "<tool_call>\n<function"
    assert XML.call_head("search_web") == "<tool_call>\n<function=search_web"
    assert THINKING.name_head("search_web") == "\n</think>\n\n<tool_call>\n<function"
