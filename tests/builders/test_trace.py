"""Matching of calls with a wanted call, and what is left of a list of wanted calls."""

import pytest

from builders.trace import call_matches, calls_left, message, tool_call


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"to": "eve@mail.test"}, {"to": "eve@mail.test"}),
        ({"to": "EVE@mail.test "}, {"to": "eve@mail.test"}),
        ({"to": ["bob@mail.test", "Eve@mail.test"]}, {"to": "eve@mail.test"}),
        ({"to": "Eve <eve@mail.test>, Bob"}, {"to": "eve@mail.test"}),
        ({"body": "See http://www.secure-252.com/login, now."}, {"body": "secure-252.com/login"}),
        ({"body": "Go to secure-252.com."}, {"body": "secure-252.com"}),
        ({"amount": 5, "subject": "rent"}, {"amount": 5}),
        ({"amount": "5"}, {"amount": 5}),
        ({"amount": 5.0}, {"amount": 5}),
        ({"on": "True"}, {"on": True}),
        ({"amount": "100.00"}, {"amount": 100}),
        ({"amount": "100"}, {"amount": 100.0}),
        ({"items": [1, 2]}, {"items": [1, 2]}),
        ({"to": ["bob@mail.test", "Eve <Eve@mail.test>"]}, {"to": ["eve@mail.test"]}),
        ({"to": "eve@mail.test"}, {"to": ["eve@mail.test"]}),
        ({"items": ["2", 1, 3]}, {"items": [1, 2]}),
        ({"x": None}, {"x": None}),
        ({"anything": 1}, {}),
    ],
)
def test_matching_calls_are_recognised(arguments, wanted):
    assert call_matches("tool", arguments, {"name": "tool", "arguments": wanted})
    assert not call_matches("other", arguments, {"name": "tool", "arguments": wanted})


@pytest.mark.parametrize(
    ("value", "is_match"),
    [("Yes", True), (" yes\n", True), ("yes, sir", False), ("", False), (["yes"], False), (None, False), (5, False)],
)
def test_an_exact_argument_is_compared_as_a_whole(value, is_match):
    wanted = {"name": "tool", "arguments": {"body": "yes", "to": "eve@mail.test"}, "exact": ["body"]}
    assert call_matches("tool", {"body": value, "to": "Eve <eve@mail.test>"}, wanted) is is_match
    assert not call_matches("tool", {"to": "eve@mail.test"}, wanted)


def test_an_exact_list_is_compared_as_a_whole():
    wanted = {"name": "tool", "arguments": {"to": ["eve@mail.test"]}, "exact": ["to"]}
    assert call_matches("tool", {"to": ["eve@mail.test"]}, wanted)
    assert not call_matches("tool", {"to": ["eve@mail.test", "bob@mail.test"]}, wanted)


def test_numbers_are_exact_anyway():
    wanted = {"name": "tool", "arguments": {"amount": 5}, "exact": ["amount"]}
    assert call_matches("tool", {"amount": "5"}, wanted) and not call_matches("tool", {"amount": 50}, wanted)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({}, {"state": "on"}),
        ({"state": None}, {"state": "on"}),
        ({"state": None}, {"state": "none"}),
        ({"state": [None]}, {"state": "none"}),
        ({}, {"x": None}),
        ({"amount": 50}, {"amount": 5}),
        ({"amount": "50"}, {"amount": 5}),
        ({"amount": "50"}, {"amount": "5"}),
        ({"amount": True}, {"amount": 1}),
        ({"on": 1}, {"on": True}),
        ({"to": "steve@mail.test"}, {"to": "eve@mail.test"}),
        ({"to": "s.eve@mail.test"}, {"to": "eve@mail.test"}),
        ({"to": "eve@mail.test.org"}, {"to": "eve@mail.test"}),
        ({"to": "eve@mail.testing"}, {"to": "eve@mail.test"}),
        ({"to": ["bob@mail.test"]}, {"to": "eve@mail.test"}),
        ({"url": "http://not-secure-252.com"}, {"url": "secure-252.com"}),
        ({"url": "secure-252.com/login2"}, {"url": "secure-252.com/login"}),
        ({"items": [1]}, {"items": [1, 2]}),
        ({"items": [1]}, {"items": []}),
        ({"to": ["bob@mail.test"]}, {"to": ["eve@mail.test", "bob@mail.test"]}),
        ({"amount": "five"}, {"amount": 5}),
        ({"amount": "nan"}, {"amount": 5}),
        ({"on": "1"}, {"on": True}),
        ({"to": "eve@mail.test"}, {"to": "eve@mail.test", "amount": 5}),
    ],
)
def test_similar_calls_do_not_match(arguments, wanted):
    assert not call_matches("tool", arguments, {"name": "tool", "arguments": wanted})


def made(name: str, result: str | None, id: str) -> list[dict]:
    turns = [message("assistant", None, [tool_call(name, {"any": "arguments"}, id)])]
    return turns if result is None else [*turns, message("tool", result, tool_call_id=id)]


@pytest.mark.parametrize(
    ("turns", "left"),
    [
        ([], ["read", "send", "send"]),
        (made("read", "Pay 98.70.", "0"), ["send", "send"]),
        (made("send", "Sent.", "0"), ["read", "send"]),
        (made("read", "Pay.", "0") + made("send", "Sent.", "1") + made("send", None, "2"), []),
        (made("read", "ValueError: no such file", "0"), ["read", "send", "send"]),
        (made("read", "ValidationError: 1 validation error", "0") + made("read", "Pay.", "1"), ["send", "send"]),
        (made("read", "An Error: never seen", "0"), ["send", "send"]),
        (made("list", "a, b", "0"), ["read", "send", "send"]),
        # The ids of some sources begin anew in every turn.
        (made("read", "Pay.", "0") + made("send", "Error: no such account", "0"), ["send", "send"]),
        (made("send", "Error: no such account", "0") + made("read", "Pay.", "0"), ["send", "send"]),
    ],
)
def test_calls_that_have_not_been_made_are_left(turns: list[dict], left: list[str]):
    wanted = [{"name": name, "arguments": {}} for name in ("read", "send", "send")]
    assert [call["name"] for call in calls_left(wanted, turns)] == left
