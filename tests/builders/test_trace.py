"""Matching of calls with a wanted call."""

import pytest

from builders.trace import call_matches


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
        ({"items": [1, 2]}, {"items": [1, 2]}),
        ({"x": None}, {"x": None}),
        ({"anything": 1}, {}),
    ],
)
def test_matching_calls_are_recognised(arguments, wanted):
    assert call_matches("tool", arguments, {"name": "tool", "arguments": wanted})
    assert not call_matches("other", arguments, {"name": "tool", "arguments": wanted})


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
        ({"to": "eve@mail.test"}, {"to": "eve@mail.test", "amount": 5}),
    ],
)
def test_similar_calls_do_not_match(arguments, wanted):
    assert not call_matches("tool", arguments, {"name": "tool", "arguments": wanted})
