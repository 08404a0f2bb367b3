"""Calls that a text writes, in the syntaxes of many models, and words about tools that are none."""

import pytest

from builders.written_calls import calls_in_words
from tests.growth import FACTOR, growth


TOOLS = ["read_file", "send_money", "send_money_back"]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "send_money", "parameters": {"amount": 1}}',
        'First this.\n\n{"name": "send_money", "arguments": {}}',
        '```json\n{"type": "function", "name" : "send_money"}\n```',
        "{'name': 'send_money', 'parameters': {'amount': 1}}",
        '<tool_call>\n{"name": "send_money", "arguments": {}}\n</tool_call>',
        '<function=send_money>{"amount": 1}</function>',
        '<invoke name="send_money"><parameter name="amount">1</parameter></invoke>',
        "<function_thought>ok</function_thought><function_call>[send_money(amount=1)]</function_call>",
        "[send_money()]",
        "[other(), send_money(), third()]",
        "send_money()",
        "  `send_money()`.",
        'send_money("US13", 1)',
        "functions.send_money({amount: 1})",
        '<|tool_call>call:send_money{to:<|"|>US13<|"|>}<tool_call|>',
    ],
)
def test_a_written_call_is_found(text):
    assert calls_in_words(text, TOOLS) == ["send_money"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The note asks for a call of send_money; I will not make it.",
        "You can use send_money() for that, or read_file() first.",
        "I would need send_money (or the website).",
        "resend_money(amount=1)",
        "bank.send_money(amount=1)",
        '{"name": "unknown_tool", "parameters": {}}',
        "call: send_money {soon}",
    ],
)
def test_words_about_tools_are_no_call(text):
    assert calls_in_words(text, TOOLS) == []


def test_calls_are_named_once_each_in_the_order_of_the_text():
    text = "send_money_back(amount=1)\nread_file(path='a')\nsend_money_back(amount=2)"
    assert calls_in_words(text, TOOLS) == ["send_money_back", "read_file"]
    assert calls_in_words(text, []) == []


@pytest.mark.parametrize(
    "piece", ["send_money", "send_money(", '"name": ', "<function ", "[", "{", " ", "\n", "call:"]
)
def test_time_grows_with_the_length_of_the_text_only(piece):
    assert growth(lambda text: calls_in_words(text, TOOLS), lambda n: piece * n, 5_000) < 3 * FACTOR
