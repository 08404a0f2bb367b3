import json
import random
from pathlib import Path

import pytest

from builders.trace import message, to_json, tool_call
from cb_datasets.chat import encode_prompt, render_prompt
from cb_datasets.formats import FORMATS, ToolCall, format_of
from cb_datasets.template_form import template_messages
from cb_datasets.template_probe import check_template
from tests.growth import FACTOR, growth


V3, V11, V13 = (FORMATS[f"mistral_{version}"] for version in ("v3", "v11", "v13"))
VERSIONS = ["v3", "v11", "v13"]
TOOLS = to_json(
    [
        {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
        for name in ("search_web", "read_file")
    ]
)
CONVERSATION = [
    message("system", "Be brief."),
    message("user", "When is high tide, and what is in a.txt?"),
    message(
        "assistant",
        "I'll look.",
        [tool_call("search_web", {"query": "tides"}, "c1"), tool_call("read_file", {"path": "a.txt"}, "c2")],
    ),
    message("tool", 'High tide at "5".', tool_call_id="c1", name="search_web"),
    message("tool", "Empty.", tool_call_id="c2", name="read_file"),
]
CALL = '{"name": "a", "arguments": {"q": "x"}}'


@pytest.mark.parametrize(
    ("completion", "diagnosis"),
    [
        ('[TOOL_CALLS][{"name": "search_web", "arguments": {"query": "tides"}}]</s>', "ok"),
        ('[TOOL_CALLS] [{"name": "a", "arguments": {}, "id": "abcdefghi"}]\n</s>', "ok"),
        ('[TOOL_CALLS][{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]</s>', "multi_call"),
        (f"[TOOL_CALLS]{CALL}</s>", "bad_json"),
        ("[TOOL_CALLS]a[ARGS]{}</s>", "bad_arguments"),
        ("[TOOL_CALLS]search_web(query='x')</s>", "function_syntax"),
        (f"[TOOL_CALLS][{CALL}][TOOL_CALLS][{CALL}]</s>", "multi_tag"),
        (f"[TOOL_CALLS][TOOL_CALLS][{CALL}]</s>", "multi_tag"),
        (f"I'll look.[TOOL_CALLS][{CALL}]</s>", "leading_text"),
        (f"[TOOL_CALLS][{CALL}] Done.</s>", "trailing_text"),
        (f"[TOOL_CALLS][{CALL}]</s> Done.", "trailing_text"),
        (f"[TOOL_CALLS][{CALL}]", "json_incomplete"),
        (f"[TOOL_CALLS][{CALL}</s>", "json_incomplete"),
        ("[TOOL_CALLS]</s>", "json_incomplete"),
        ("[TOOL_CALLS][]</s>", "bad_arguments"),
        ('[TOOL_CALLS][{"name": "a", "parameters": {}}]</s>', "bad_arguments"),
        ('[TOOL_CALLS][{"name": "a", "arguments": "{}"}]</s>', "bad_arguments"),
        ('[TOOL_CALLS][{"name": "a", "name": "b", "arguments": {}}]</s>', "bad_json"),
        ('[TOOL_CALLS][{"name": "a", "arguments": {"n": 1e999}}]</s>', "bad_json"),
        ('[TOOL_CALLS][{"name": "a", "arguments": {"t": "\\ud800"}}]</s>', "bad_json"),
        ("[TOOL_CALLS]" + "[" * 100_000, "bad_json"),
        (f"[{CALL}]</s>", "no_tag_json"),
        (f"{CALL}</s>", "no_tag_json"),
        ("[1] The tides.</s>", "text"),
        ("Hello.</s>", "text"),
        ("</s>", "empty"),
        ("", "empty"),
    ],
)
def test_diagnosis_of_v3(completion, diagnosis):
    assert V3.parse(completion).diagnosis == diagnosis


@pytest.mark.parametrize("tool_format", [V11, V13])
@pytest.mark.parametrize(
    ("completion", "diagnosis"),
    [
        ('[TOOL_CALLS]search_web[ARGS]{"query": "tides"}</s>', "ok"),
        ('I\'ll look.[TOOL_CALLS]search_web[ARGS]{"query": "tides"}</s>', "ok"),
        ("[TOOL_CALLS]search_web[CALL_ID]abcdefghi[ARGS]{}</s>", "ok"),
        ("[TOOL_CALLS]a[ARGS]\n{}\n</s>", "ok"),
        ("I'll look.[TOOL_CALLS]a[ARGS]{}[TOOL_CALLS]b[ARGS]{}</s>", "multi_call"),
        (f"[TOOL_CALLS][{CALL}]</s>", "bad_json"),
        (f"[TOOL_CALLS]{CALL}</s>", "bad_json"),
        ('[TOOL_CALLS]a{"q": 1}</s>', "function_syntax"),
        ("[TOOL_CALLS]search_web(query='x')</s>", "function_syntax"),
        ("[TOOL_CALLS]a[ARGS]{}[TOOL_CALLS]b</s>", "json_incomplete"),
        ("[TOOL_CALLS]a[ARGS]{} Done.</s>", "trailing_text"),
        ("[TOOL_CALLS]a[ARGS]{}</s> Done.", "trailing_text"),
        ("[TOOL_CALLS]a[ARGS]{}", "json_incomplete"),
        ('[TOOL_CALLS]a[ARGS]{"q": "x</s>', "json_incomplete"),
        ("[TOOL_CALLS]search_w</s>", "json_incomplete"),
        ("[TOOL_CALLS]</s>", "json_incomplete"),
        ("[TOOL_CALLS]a[CALL_ID]abc[ARGS]{}</s>", "bad_arguments"),
        ("[TOOL_CALLS][ARGS]{}</s>", "bad_arguments"),
        ("[TOOL_CALLS] a[ARGS]{}</s>", "bad_arguments"),
        ('[TOOL_CALLS]a[ARGS]"{}"</s>', "bad_arguments"),
        ("[TOOL_CALLS]a[ARGS][]</s>", "bad_arguments"),
        ('[TOOL_CALLS]a[ARGS]{"q": 1, "q": 2}</s>', "bad_json"),
        ('[TOOL_CALLS]a[ARGS]{"q": NaN}</s>', "bad_json"),
        ("[TOOL_CALLS]a[ARGS]" + '{"q":' * 100_000, "bad_json"),
        ("a[ARGS]{}</s>", "no_tag_json"),
        (f"{CALL}</s>", "no_tag_json"),
        ("Hello.</s>", "text"),
        ("</s>", "empty"),
        ("", "empty"),
    ],
)
def test_diagnosis_of_v11_and_v13(tool_format, completion, diagnosis):
    assert tool_format.parse(completion).diagnosis == diagnosis


def test_a_call_of_v11_is_executed_with_its_id_in_the_name():
    """A fault of the server: models see ids in their history, and the parser knows none."""
    completion = "[TOOL_CALLS]a[CALL_ID]abcdefghi[ARGS]{}</s>"
    assert V11.parse(completion).calls == (ToolCall("a", {}),)
    assert V11.executed_calls(completion) == (ToolCall("a[CALL_ID]abcdefghi", {}),)


def test_thinking_of_v13():
    completion = "[THINK]Or [TOOL_CALLS]b[ARGS]{}?[/THINK]\nI'll look.[TOOL_CALLS]a[ARGS]{}</s>"
    parsed = V13.parse(completion)
    assert parsed.is_call and parsed.calls == (ToolCall("a", {}),)
    assert (parsed.thinking, parsed.text) == ("Or [TOOL_CALLS]b[ARGS]{}?", "I'll look.")
    assert completion[parsed.answer_start :].startswith("I'll look.")
    assert completion[slice(*parsed.call_span)] == "[TOOL_CALLS]a[ARGS]{}</s>"
    assert completion[slice(*parsed.name_span)] == "a"
    assert parsed.call_starts == (parsed.call_span[0],)
    # The server's parser ends thinking at a call.
    assert [call.name for call in V13.executed_calls(completion)] == ["b", "a"]

    words = V13.parse("[THINK]Simple.[/THINK]High tide at 5.</s>")
    assert (words.diagnosis, words.text, words.thinking) == ("text", "High tide at 5.", "Simple.")
    cut = V13.parse("[THINK]The user wants")
    assert (cut.diagnosis, cut.thinking, cut.text) == ("thinking_cut_off", "The user wants", "")


def test_types_of_arguments_are_those_of_the_schema():
    tools = json.dumps([{"type": "function", "function": {"name": "a", "parameters": {"properties": {
        "n": {"type": "integer"}, "id": {"type": "string"}, "on": {"anyOf": [{"type": "bool"}, {"type": "null"}]},
        "at": {"items": {"type": "number"}}, "of": {"properties": {"x": {"enum": [1, 2]}}},
    }}}}])  # fmt: skip
    completion = V11.render(
        ToolCall("a", {"n": "5", "id": 7, "on": "null", "at": ["2.0"], "of": {"x": "1"}, "z": "1"})
    )
    [call] = V11.executed_calls(completion, tools)
    assert call.arguments == {"n": 5, "id": "7", "on": None, "at": [2], "of": {"x": 1}, "z": "1"}
    assert V11.parse(completion, tools).calls[0].arguments["n"] == "5"
    for broken in ("[", "5", '[{"function": 1}]', "[" * 100_000):
        assert V11.executed_calls(completion, broken) == V11.executed_calls(completion)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "make",
    [
        lambda n: f"[TOOL_CALLS][{', '.join([CALL] * (n // 10))}]</s>",
        lambda n: "[TOOL_CALLS]a[ARGS]{}" * (n // 10),
        lambda n: "[TOOL_CALLS]" * n,
        lambda n: "[TOOL_CALLS]a[ARGS]" + "{" * n,
        lambda n: "[TOOL_CALLS]" + "[{" * n,
        lambda n: "[TOOL_CALLS]" + "}]" * n,
        lambda n: "[TOOL_CALLS]" + "a " * n,
        lambda n: "[TOOL_CALLS]" + "a" * n + " " * n + "[ARGS]",
        lambda n: "[THINK]" * n,
        lambda n: "[THINK]" + "[/THINK]" * n,
        lambda n: "[ARGS]" * n,
        lambda n: f"[TOOL_CALLS]a[ARGS]{{}}{' ' * n}x</s>",
        lambda n: " " * n,
    ],
)
def test_reading_takes_linear_time(version, make):
    tool_format = FORMATS[f"mistral_{version}"]

    def read(text: str) -> None:
        tool_format.parse(text)
        tool_format.executed_calls(text)
        tool_format.begins_like_call.match(text.replace("[TOOL_CALLS]", " ").lstrip())

    assert growth(read, make, 4000) < 3 * FACTOR


@pytest.mark.parametrize(
    ("version", "calls"),
    [
        ("v3", '[TOOL_CALLS][{"name": "search_web", "arguments": {"query": "tides"}, "id": "call00000"}, '
         '{"name": "read_file", "arguments": {"path": "a.txt"}, "id": "call00001"}]</s>'
         '[TOOL_RESULTS]{"content": "High tide at \\"5\\".", "call_id": "call00000"}[/TOOL_RESULTS]'
         '[TOOL_RESULTS]{"content": "Empty.", "call_id": "call00001"}[/TOOL_RESULTS]'),
        ("v11", 'I\'ll look.[TOOL_CALLS]search_web[CALL_ID]call00000[ARGS]{"query": "tides"}'
         '[TOOL_CALLS]read_file[CALL_ID]call00001[ARGS]{"path": "a.txt"}</s>'
         '[TOOL_RESULTS]call00000[TOOL_CONTENT]High tide at "5".[/TOOL_RESULTS]'
         "[TOOL_RESULTS]call00001[TOOL_CONTENT]Empty.[/TOOL_RESULTS]"),
        ("v13", 'I\'ll look.[TOOL_CALLS]search_web[ARGS]{"query": "tides"}'
         '[TOOL_CALLS]read_file[ARGS]{"path": "a.txt"}</s>'
         '[TOOL_RESULTS]High tide at "5".[/TOOL_RESULTS][TOOL_RESULTS]Empty.[/TOOL_RESULTS]'),
    ],
)  # fmt: skip
def test_history_of_parallel_calls_with_text_beside_them(version, calls, real_tokenizer):
    tokenizer = real_tokenizer(f"mistral-{version}")
    assert render_prompt(tokenizer, {"messages": CONVERSATION, "tools": TOOLS}).endswith(f"[/INST]{calls}")


@pytest.mark.vllm
@pytest.mark.parametrize("version", VERSIONS)
def test_tokens_are_those_of_mistral_common(version, real_tokenizer, tmp_path):
    """Prompts with tools and history, against Mistral's own encoder."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    tokenizer = real_tokenizer(f"mistral-{version}")
    encoder = mistral_encoder(version, tokenizer, tmp_path / "tekken.json")
    user, result = message("user", "And now?"), message("tool", 'High "tide" at 5.', tool_call_id="x")
    call = message("assistant", None, [tool_call("search_web", {"query": "é <b>"}, "x")])
    # Mistral's encoder reads results of v3 as JSON where they are; the template does so with numbers only.
    numbers = [{**result, "content": content} for content in ("5", "-12.5")]
    conversations = [
        CONVERSATION[:2],
        CONVERSATION,
        [*CONVERSATION[:2], call, result],
        [*CONVERSATION[:2], call, result, message("assistant", "At 5."), user],
        [*CONVERSATION[:2], message("assistant", "Where?"), user, call, numbers[0], call, numbers[1]],
        [user, call, numbers[1]],
    ]
    for messages in conversations:
        turns = template_messages(messages, format_of(tokenizer))
        request = ChatCompletionRequest.from_openai(turns, json.loads(TOOLS))
        ids = encoder.encode_chat_completion(request).tokens
        assert encode_prompt(tokenizer, {"messages": messages, "tools": TOOLS}) == ids


def mistral_encoder(version, tokenizer, path):
    """Mistral's own tokenizer of a version, with the vocabulary that its package carries."""
    import mistral_common
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    data = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text("utf-8"))
    data["config"]["version"] = version
    del data["image"]
    data["special_tokens"] = [
        {"rank": id, "token_str": token.content, "is_control": True}
        for id, token in tokenizer.added_tokens_decoder.items()
    ]
    path.write_text(json.dumps(data), "utf-8")
    return MistralTokenizer.from_file(path)


def test_the_hub_template_of_nemo_is_refused(real_tokenizer):
    """It drops the system prompt where a tool's result comes last."""
    tokenizer = real_tokenizer("mistral-nemo")
    assert format_of(tokenizer).name == "mistral_v3"
    with pytest.raises(ValueError, match=r"leaves out the system prompt .* --chat-template"):
        check_template(tokenizer)


def test_prompts_encoded_in_parts_are_those_encoded_at_once(real_tokenizer):
    """The tools of v3 stand before the last turn of the user, so prompts of one conversation share hardly any text."""
    tokenizer, rng = real_tokenizer("mistral-v3"), random.Random(0)
    turns = [message("system", "Be brief.")]
    rows = []
    for number in range(12):
        turns = [*turns, message("user", f"Question {number} [INST")]
        rows.append({"messages": turns, "tools": TOOLS})
        call = message("assistant", None, [tool_call("search_web", {"query": f"{number}"}, "x")])
        turns = [*turns, call, message("tool", f"[TOOL_ {number}", tool_call_id="x")]
        rows.append({"messages": turns, "tools": TOOLS})
        turns = [*turns, message("assistant", "So.")]
    for row in rng.choices(rows, k=60):
        text = render_prompt(tokenizer, row)
        assert encode_prompt(tokenizer, row) == tokenizer(text, add_special_tokens=False)["input_ids"]
