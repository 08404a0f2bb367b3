import copy

import pytest

from cb_datasets.formats import FORMATS, ToolCall, format_of
from cb_datasets.template_probe import check_template


DEEPSEEK, THINKING = FORMATS["deepseek"], FORMATS["deepseek_thinking"]
BEGIN, END, CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜end▁of▁sentence｜>"
CALL = '<｜tool▁call▁begin｜>search_web<｜tool▁sep｜>{"query": "tides"}<｜tool▁call▁end｜>'
OTHER = "<｜tool▁call▁begin｜>a<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
FENCED = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>search_web\n```json\n{"query": "tides"}\n```<｜tool▁call▁end｜>'


def with_arguments(text: str) -> str:
    return f"{BEGIN}<｜tool▁call▁begin｜>a<｜tool▁sep｜>{text}<｜tool▁call▁end｜>{END}{CLOSE}"


@pytest.mark.parametrize(
    ("completion", "diagnosis"),
    [
        (f"{BEGIN}{CALL}{END}{CLOSE}", "ok"),
        (f"I'll look.{BEGIN}{CALL}{END}{CLOSE}", "ok"),
        (f"{BEGIN}\n{CALL}\n{END}\n{CLOSE}", "ok"),
        (f"{BEGIN}{CALL}{OTHER}{END}{CLOSE}", "multi_call"),
        (f"{BEGIN}{CALL}{END}{BEGIN}{OTHER}{END}{CLOSE}", "multi_tag"),
        (f"{BEGIN}{FENCED}{END}{CLOSE}", "function_syntax"),
        (f"{BEGIN}search_web(query='x'){END}{CLOSE}", "function_syntax"),
        (f"{CALL}{CLOSE}", "no_tag_json"),
        (f"{CALL}{END}{CLOSE}", "no_tag_json"),
        (f'{{"name": "a", "arguments": {{}}}}{CLOSE}', "no_tag_json"),
        (f"{BEGIN}{CALL}{CLOSE}", "json_incomplete"),
        (f"{BEGIN}{CALL}{END}", "json_incomplete"),
        (f"{BEGIN}{CALL.removesuffix('<｜tool▁call▁end｜>')}{END}{CLOSE}", "json_incomplete"),
        (f"{BEGIN}<｜tool▁call▁begin｜>search_we{CLOSE}", "json_incomplete"),
        (f"{BEGIN}{CLOSE}", "json_incomplete"),
        (f"{BEGIN}{END}{CLOSE}", "bad_arguments"),
        (f"{BEGIN}<｜tool▁call▁begin｜><｜tool▁sep｜>{{}}<｜tool▁call▁end｜>{END}{CLOSE}", "bad_arguments"),
        (f"{BEGIN}<｜tool▁call▁begin｜> a<｜tool▁sep｜>{{}}<｜tool▁call▁end｜>{END}{CLOSE}", "bad_arguments"),
        (f'{BEGIN}{{"name": "a"}}{END}{CLOSE}', "bad_json"),
        (with_arguments('"{}"'), "bad_arguments"),
        (with_arguments("[]"), "bad_arguments"),
        (with_arguments("{} ok"), "trailing_text"),
        (with_arguments('{"q": 1, "q": 2}'), "bad_json"),
        (with_arguments('{"q": 1e999}'), "bad_json"),
        (with_arguments('{"q": "\\udc00"}'), "bad_json"),
        (with_arguments('{"q":' * 100_000), "bad_json"),
        (f"{BEGIN}{CALL}{END} Done.{CLOSE}", "trailing_text"),
        (f"{BEGIN}{CALL}{END}{CLOSE} Done.", "trailing_text"),
        (f"Hello.{CLOSE} Done.", "trailing_text"),
        (f"Hello.{CLOSE}", "text"),
        (CLOSE, "empty"),
        ("", "empty"),
    ],
)
def test_diagnosis(completion, diagnosis):
    assert DEEPSEEK.parse(completion).diagnosis == diagnosis
    assert THINKING.parse(f"Hm.</think>{completion}").diagnosis == diagnosis


def test_what_the_server_makes_of_calls():
    # No call goes over the end of a line, and arguments may be anything.
    assert DEEPSEEK.executed_calls(with_arguments('{"q":\n1}')) == ()
    assert DEEPSEEK.executed_calls(with_arguments('{"q": 1, "q": 2}')) == (ToolCall("a", {"q": 2}),)
    assert DEEPSEEK.executed_calls(with_arguments("all of it")) == ()
    # Without the outer tag there is none, and with it those before it are calls too.
    assert DEEPSEEK.executed_calls(f"{CALL}{CLOSE}") == ()
    assert DEEPSEEK.executed_calls(f"{OTHER}{BEGIN}{CLOSE}") == (ToolCall("a", {}),)


def test_thinking():
    completion = f"Or {BEGIN}{OTHER}{END}?</think>I'll look.{BEGIN}{CALL}{END}{CLOSE}"
    parsed = THINKING.parse(completion)
    assert parsed.is_call and [call.name for call in parsed.calls] == ["search_web"]
    assert (parsed.thinking, parsed.text) == (f"Or {BEGIN}{OTHER}{END}?", "I'll look.")
    assert completion[slice(*parsed.call_span)] == f"{BEGIN}{CALL}{END}{CLOSE}"
    assert completion[slice(*parsed.name_span)] == "search_web"
    assert completion[parsed.answer_start :].startswith("I'll look.")
    assert [call.name for call in THINKING.executed_calls(completion)] == ["search_web"]
    # What is rendered has no thinking, and nothing between its end and the answer.
    assert THINKING.render(parsed.calls[0], "") == f"</think>{BEGIN}{CALL}{END}{CLOSE}"
    assert THINKING.render_text("At 5.") == f"</think>At 5.{CLOSE}"

    cut = THINKING.parse(f"The user wants {BEGIN}{CALL}{END}{CLOSE}")
    assert (cut.diagnosis, cut.calls, cut.end) == ("thinking_cut_off", (), CLOSE)
    assert THINKING.executed_calls(f"The user wants {BEGIN}{CALL}{END}{CLOSE}") == ()
    # The server looks for the thinking's own tag first.
    assert THINKING.executed_calls(f"Hm.</think>{BEGIN}{CALL}{END}<think>{CLOSE}") == ()


def test_a_template_without_tools_is_refused(real_tokenizer):
    """DeepSeek's own are: they write calls of the history, in fences, and no tools."""
    tokenizer = copy.copy(real_tokenizer("deepseek-v3"))
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{% for call in message.tool_calls or [] %}"
        f"{BEGIN}<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{{{ call.function.name }}}}{END}{{% endfor %}}"
        "<｜User｜>{{ message.content }}{% endfor %}<｜Assistant｜>"
    )
    assert format_of(tokenizer) is DEEPSEEK
    with pytest.raises(ValueError, match=r"shows the model no tools.* --chat-template"):
        check_template(tokenizer)
