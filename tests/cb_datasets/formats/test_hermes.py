import pytest

from cb_datasets.formats import FORMATS, ToolCall


HERMES, THINKING = FORMATS["hermes"], FORMATS["hermes_thinking"]
CALL = '{"name": "search_web", "arguments": {"query": "tides"}}'
BLOCK = f"<tool_call>\n{CALL}\n</tool_call>"
TIDES = ToolCall("search_web", {"query": "tides"})


def test_calls_are_written_as_models_write_them():
    assert HERMES.render(TIDES, "") == f"{BLOCK}<|im_end|>"
    assert HERMES.render(TIDES, "I'll look.") == f"I'll look.\n{BLOCK}<|im_end|>"
    assert HERMES.render_text("High tide at 5.") == "High tide at 5.<|im_end|>"
    assert THINKING.render(TIDES, "I'll look.") == f"\n</think>\n\nI'll look.\n{BLOCK}<|im_end|>"
    assert THINKING.render_text("High tide at 5.") == "\n</think>\n\nHigh tide at 5.<|im_end|>"


@pytest.mark.parametrize(
    ("completion", "diagnosis"),
    [
        (f"{BLOCK}<|im_end|>", "ok"),
        (f"I'll look.\n{BLOCK}<|im_end|>", "ok"),
        (f"<tool_call>{CALL}</tool_call>\n<|im_end|>", "ok"),
        (f"<think>\nThe user wants tides.\n</think>\n\n{BLOCK}<|im_end|>", "ok"),
        (f"<think>\nI could write {BLOCK}.\n</think>\n\n{BLOCK}<|im_end|>", "ok"),
        (f"I'll look.\n{BLOCK}\n{BLOCK}<|im_end|>", "multi_call"),
        (f"<tool_call>\n{CALL}\n{CALL}\n</tool_call><|im_end|>", "multi_call"),
        (f"<tool_call>\n{CALL}\n<tool_call>\n{CALL}\n</tool_call><|im_end|>", "multi_call"),
        (f"<tool_call>\n{CALL}<|im_end|>", "json_incomplete"),
        (f"{BLOCK}\n<tool_call><|im_end|>", "json_incomplete"),
        (BLOCK, "json_incomplete"),
        ('<tool_call>\n{"name": "search_web", "argu', "json_incomplete"),
        ("<tool_call><|im_end|>", "json_incomplete"),
        ('<tool_call>\n{"name": "a", "parameters": {}}\n</tool_call><|im_end|>', "bad_arguments"),
        ('<tool_call>\n{"name": "a", "arguments": "{}"}\n</tool_call><|im_end|>', "bad_arguments"),
        ('<tool_call>\n{"name": "", "arguments": {}}\n</tool_call><|im_end|>', "bad_arguments"),
        ('<tool_call>\n{"name": "a", "arguments": {}, "name": "b"}\n</tool_call><|im_end|>', "bad_json"),
        ('<tool_call>\n{"name": "a", "arguments": {"n": 1e999}}\n</tool_call><|im_end|>', "bad_json"),
        ('<tool_call>\n{"name": "a", "arguments": {}\n</tool_call><|im_end|>', "bad_json"),
        ("<tool_call>\n" + '{"a":' * 100_000, "bad_json"),
        (f"<tool_call>\n{CALL}}}\n</tool_call><|im_end|>", "bad_json"),
        (f"{CALL}<|im_end|>", "no_tag_json"),
        (f"```json\n{CALL}\n```<|im_end|>", "no_tag_json"),
        (f"I'll look.\n```json\n{CALL}\n```<|im_end|>", "no_tag_json"),
        ('{"name": "search_web", "arguments": {"query', "json_incomplete"),
        ('{"high": 5}<|im_end|>', "text"),
        ('```json\n{"high": 5}\n```<|im_end|>', "text"),
        ('```json\n{"name": "search_web", "arguments": {"n": five}}\n```<|im_end|>', "bad_json"),
        ('```json\n{\n  "name": "app",  // of npm\n  "main": "a.js"\n}\n```<|im_end|>', "text"),
        ('Like this:\n```\n{"name": "Ann", ...}\n```<|im_end|>', "text"),
        ("<tool_call>\n<function=a>\n</function>\n</tool_call><|im_end|>", "function_syntax"),
        ("<function=a>{}</function><|im_end|>", "function_syntax"),
        ("<tool_call>\nsearch_web(query='tides')\n</tool_call><|im_end|>", "function_syntax"),
        (f"{BLOCK} It is done.<|im_end|>", "trailing_text"),
        (f"{BLOCK}<|im_end|>\nuser", "trailing_text"),
        (f"<think>\nI could write {BLOCK}.\n</think>\n\nHigh tide at 5.<|im_end|>", "text"),
        ("Let me do this step by step. First, I'll check the tides.<|im_end|>", "text"),
        ("<think>\n\n</think>\n\n<|im_end|>", "empty"),
        ("<|im_end|>", "empty"),
        (f"<think>\nI could write {BLOCK}", "thinking_cut_off"),
        ("<think>\nThe user<|im_end|>", "thinking_cut_off"),
    ],
)
def test_diagnosis(completion, diagnosis):
    parsed = HERMES.parse(completion)
    assert parsed.diagnosis == diagnosis
    assert (parsed.call_span is None) == (diagnosis != "ok")
    if "thinking" not in diagnosis:
        opened = completion.removeprefix("<think>\n") if "<think>" in completion else f"\n</think>\n\n{completion}"
        assert THINKING.parse(opened).diagnosis == diagnosis


def test_thinking_is_no_part_of_the_answer():
    completion = f'<think>\nI write {{"name": "a"}} or {BLOCK}.\n</think>\n\nOne moment.\n{BLOCK}<|im_end|>'
    parsed = HERMES.parse(completion)
    assert parsed.thinking == f'I write {{"name": "a"}} or {BLOCK}.' and parsed.text == "One moment."
    assert completion[parsed.answer_start :] == f"One moment.\n{BLOCK}<|im_end|>"
    assert completion[slice(*parsed.call_span)] == f"{BLOCK}<|im_end|>"
    assert completion[slice(*parsed.name_span)] == "search_web" and parsed.name_span[0] > parsed.answer_start
    assert parsed.call_starts == (parsed.call_span[0],)


def test_cut_off_thinking_has_its_text_and_no_answer():
    for tool_format, completion in (
        (HERMES, f"<think>\nI write {BLOCK}"),
        (THINKING, f"I write {BLOCK}"),
        (HERMES, f"<think>\nI write {BLOCK}<|im_end|>"),
    ):
        parsed = tool_format.parse(completion)
        assert parsed.thinking == f"I write {BLOCK}" and parsed.text == "" and parsed.calls == parsed.call_starts == ()
        assert parsed.answer_start == len(completion)
        assert parsed.end == ("<|im_end|>" if completion.endswith("<|im_end|>") else None)


def test_a_server_executes_blocks_wherever_they_are_and_all_or_none():
    other = BLOCK.replace("search_web", "other")
    for completion, names in (
        (f"I'll look. {BLOCK} and {other} so.<|im_end|>", ["search_web", "other"]),
        (f"<tool_call>\n{CALL}<|im_end|>", ["search_web"]),
        (f"<tool_call>\n{CALL}", ["search_web"]),
        (f"{BLOCK}<tool_call>no JSON</tool_call><|im_end|>", []),
        (f"{BLOCK}<tool_call>{{}}</tool_call><|im_end|>", []),
        (f"{BLOCK}<|im_end|>{other}", ["search_web"]),
        (f"<think>\nI could write {other}.\n</think>\n\n{BLOCK}<|im_end|>", ["other", "search_web"]),
        (f"<tool_call>{CALL.replace('arguments', 'parameters')}</tool_call><|im_end|>", []),
    ):
        assert [call.name for call in HERMES.executed_calls(completion)] == names
        if "<think>" in completion:
            assert [call.name for call in THINKING.executed_calls(completion.removeprefix("<think>"))] == names
    # A reasoning parser ends the thinking at a call, and removes what would have ended it.
    assert THINKING.executed_calls("I think.<|im_end|>") == ()
    closing = f"</think>{BLOCK.replace('tides', 'a</think>b')}<|im_end|>"
    assert THINKING.executed_calls(closing) == (ToolCall("search_web", {"query": "ab"}),)
