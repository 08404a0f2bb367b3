import copy
import itertools
import json
import re

import pytest

from cb_datasets.formats import FORMATS, ToolCall, format_of, get_format
from cb_datasets.formats.llama3_json import _NEXT_CALL
from tests.growth import FACTOR, growth


LLAMA = FORMATS["llama3_json"]
CALL = '{"name": "a", "parameters": {"q": "x"}}'


@pytest.mark.parametrize(
    ("completion", "diagnosis"),
    [
        (f"<|python_tag|>{CALL}<|eom_id|>", "ok"),
        (f"<|python_tag|>{CALL}<|eot_id|>", "ok"),
        (f"I will look. <|python_tag|>{CALL}<|eom_id|>", "ok"),
        ('<|python_tag|>{"type": "function", "name": "a", "parameters": {}}<|eom_id|>', "ok"),
        ('<|python_tag|>{\n  "name": "a",\n  "parameters": {}\n}\n<|eom_id|>', "ok"),
        ('<|python_tag|>{"name": "a", "parameters": {"q": "} ; {"}}<|eom_id|>', "ok"),
        (f"<|python_tag|>{CALL}; {CALL}<|eom_id|>", "multi_call"),
        (f"<|python_tag|>{CALL}\n{CALL}<|eom_id|>", "multi_call"),
        (f"<|python_tag|>{CALL}<|python_tag|>{CALL}<|eom_id|>", "multi_tag"),
        ('<|python_tag|>{"name": "a", "parameters": {"q": "x"', "json_incomplete"),
        (f"<|python_tag|>{CALL}", "json_incomplete"),
        ("<|python_tag|><|eom_id|>", "json_incomplete"),
        ("<|python_tag|>search_web(query='x')<|eom_id|>", "function_syntax"),
        ('<|python_tag|>{"name": "a", "arguments": {}}<|eom_id|>', "bad_arguments"),
        ('<|python_tag|>{"name": "a", "parameters": "{\\"q\\": 1}"}<|eom_id|>', "bad_arguments"),
        ('<|python_tag|>{"name": "", "parameters": {}}<|eom_id|>', "bad_arguments"),
        ('<|python_tag|>{"name": "a", "name": "b", "parameters": {}}<|eom_id|>', "bad_json"),
        ('<|python_tag|>{"name": "a", "parameters": {"x": NaN}}<|eom_id|>', "bad_json"),
        (f"{CALL}<|eot_id|>", "no_tag_json"),
        (f"<|python_tag|>{CALL}<|eom_id|>\n\nFormat Error: none", "trailing_text"),
        (f"<|python_tag|>{CALL} and more<|eom_id|>", "trailing_text"),
        (CALL.replace("parameters", "arguments"), "bad_arguments"),
        ('{"name": "a", "parameters": "all of it"}<|eot_id|>', "bad_arguments"),
        ('{"name": "a", "parameters": {"q": "x', "json_incomplete"),
        ('{"name": "a", "parameters": {"q": x}}<|eot_id|>', "bad_json"),
        (f"{CALL} and {{so}} on<|eot_id|>", "trailing_text"),
        ("Hello.<|eot_id|>", "text"),
        ("<|eot_id|>", "empty"),
        ("", "empty"),
    ],
)
def test_diagnosis(completion, diagnosis):
    assert LLAMA.parse(completion).diagnosis == diagnosis


@pytest.mark.parametrize(
    "text",
    [
        '{"temperature": 21, "unit": "C"}',
        '{\n  "name": "Bob",\n  "age": 5\n}',
        '{"name": "Bob", "tags": [1, 2,]}',
        '{"a": 1} is what the file holds.',
        '{"id": 1}\n{"id": 2}',
        "{}",
        "{name}, welcome!",
        "{1, 2} is a set.",
        "{% if x %}{{ x }}{% endif %}",
    ],
)
def test_a_text_that_begins_with_a_brace_is_words(text):
    parsed = LLAMA.parse(f"{text}<|eot_id|>")
    assert (parsed.diagnosis, parsed.text, parsed.end) == ("text", text, "<|eot_id|>")
    assert LLAMA.executed_calls(text) == () and LLAMA.parse(f"<|python_tag|>{text}<|eom_id|>").diagnosis != "text"
    assert LLAMA.parse(f"{text}<|eot_id|>\n\nuser").diagnosis == "trailing_text"


@pytest.mark.parametrize(
    ("behind", "names"),
    [
        (f" {CALL}", ["a", "a"]),
        (f"; {CALL}", ["a", "a"]),
        (f"{{{CALL}", ["a", "a"]),
        ("{}", ["a"]),
        (CALL.replace('{"q": "x"}', "null"), ["a"]),
        (CALL, []),  # of which it reads the arguments next, which are no call
    ],
)
def test_a_server_skips_a_brace_right_behind_an_object(behind, names):
    executed = LLAMA.executed_calls(f"<|python_tag|>{CALL}{behind}<|eom_id|>")
    assert [call.name for call in executed] == names


def test_a_rendered_call_parses_to_itself():
    call = ToolCall("send_money", {"recipient": "Zoë \u2011 <|x|>", "amount": 0.7, "n": 2**70, "note": "123"})
    parsed = LLAMA.parse(LLAMA.render(call, "One moment. "))
    assert parsed.is_call and parsed.calls == (call,)
    assert parsed.text == "One moment." and parsed.end == "<|eom_id|>"


@pytest.mark.parametrize(
    "call",
    [
        '{"name": "see_docs", "parameters": {}}',
        '{ "name" : "see_docs","parameters":{"name": "x"}}',
        '{"parameters": {"name": "see_docs", "q": "\\"name\\": \\"y\\""}, "name": "see_docs"}',
        '{"type": "function", "name": "see_docs", "parameters": {"a": [{"name": "z"}]}}',
        '\n{\n  "parameters": {"n": -1.5e3, "b": [true, null]},\n  "name": "see_docs"\n}\n',
    ],
)
@pytest.mark.parametrize("opening", ["", 'I will use "see_docs", {"name": "see_docs"}. '])
def test_spans_are_those_of_the_call_and_of_its_own_name(opening, call):
    completion = f"{opening}<|python_tag|>{call}<|eom_id|>"
    parsed = LLAMA.parse(completion)
    assert completion[slice(*parsed.call_span)] == f"<|python_tag|>{call}<|eom_id|>"
    start, end = parsed.name_span
    assert completion[start - 1 : end + 1] == '"see_docs"'
    before = completion[len(opening) : start]
    assert before.rstrip().endswith('"') and json.loads(f"{call.strip()}")["name"] == "see_docs"
    # The key right before it is the call's own: one brace is open there.
    assert before.count("{") - before.count("}") == 1


@pytest.mark.parametrize("completion", ["Hello.<|eot_id|>", CALL, f"<|python_tag|>{CALL}; {CALL}<|eom_id|>"])
def test_what_is_not_one_call_has_no_spans(completion):
    parsed = LLAMA.parse(completion)
    assert (parsed.call_span, parsed.name_span) == (None, None)


def test_multi_call_keeps_every_call():
    other = CALL.replace('"a"', '"b"')
    parsed = LLAMA.parse(f"<|python_tag|>{CALL}; {other}<|eom_id|>")
    assert len(parsed.calls) == 2 and not parsed.is_call


def test_real_recorded_responses(real_data):
    """Recorded Llama 3.1 responses: no end token, five with several calls, and a log line that is no part of them."""
    from builders.json_records import read_json_lines

    [path] = (real_data / "fujitsu").glob("b4_*.jsonl")
    responses = [record["_llama31_response"].split("\n\nFormat Error:")[0] for _, record in read_json_lines(path)]
    diagnoses = [LLAMA.parse(response + "<|eom_id|>").diagnosis for response in responses if "python_tag" in response]
    assert len(diagnoses) == 25 - sum("python_tag" not in response for response in responses)
    assert diagnoses.count("multi_call") == 5
    assert set(diagnoses) == {"ok", "multi_call"}


def test_formats_by_name_and_by_template(llama_tokenizer):
    assert format_of(llama_tokenizer) is get_format("llama3_json") is LLAMA
    with pytest.raises(ValueError, match="known: llama3_json"):
        get_format("lama")
    llama_tokenizer = copy.copy(llama_tokenizer)
    llama_tokenizer.chat_template = "<|im_start|>{{ messages }}"
    with pytest.raises(ValueError, match="tells none that is known"):
        format_of(llama_tokenizer)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: f"<|python_tag|>{CALL}{' ' * n}x<|eom_id|>",
        lambda n: f"<|python_tag|>{CALL}" + "\n" * n + "x<|eom_id|>",
        lambda n: f"<|python_tag|>{CALL};" + "\n \n" * n + f"{CALL}<|eom_id|>",
        lambda n: f"<|python_tag|>{'; '.join([CALL] * (n // 10))}<|eom_id|>",
        lambda n: f"{CALL}\n" * (n // 10),
        lambda n: "{" * n,
        lambda n: '{"a":' * n,
        lambda n: f"<|python_tag|>{'a.' * n}",
        lambda n: "<|python_tag|>" * n,
        lambda n: " " * n,
    ],
)
def test_reading_takes_linear_time(make):
    def read(text: str) -> None:
        LLAMA.parse(text)
        LLAMA.executed_calls(text)

    assert growth(read, make, 4000) < 3 * FACTOR


def test_separators_of_calls_are_those_of_the_grammar():
    """Blanks, at most one sign, at most one tag, and the next call: by all strings of four pieces."""
    grammar = re.compile(r"\s*(?:[;,]\s*|\n\s*)?(?:<\|python_tag\|>)?\s*\{")
    for pieces in itertools.product(("", " ", "\n", ";", ",", "<|python_tag|>", "x"), repeat=4):
        text = "".join(pieces)
        expected = "multi_call" if grammar.fullmatch(text + "{") else "trailing_text"
        if text.strip() and "<|python_tag|>" not in text:
            assert LLAMA.parse(f"<|python_tag|>{CALL}{text}{CALL}<|eom_id|>").diagnosis == expected, text
        assert (_NEXT_CALL.match(text + "{") is None) == (grammar.fullmatch(text + "{") is None), text
