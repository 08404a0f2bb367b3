"""Where an injection is, how often, and in which turn: derived from the row alone."""

import pytest

from builders.trace import message
from cb_datasets.placement import LAYOUTS, PLACES, place_of, repetition_of, turn_of, user_turns


def attacked(*contents: str, role: str = "user") -> dict:
    """A prompt whose injections are in angle brackets."""
    messages = [message("system", "You are an agent."), *(message(role, content) for content in contents)]
    spans = []
    for number, each in enumerate(messages):
        start = each["content"].find("<")
        while start >= 0:
            end = each["content"].index(">", start) + 1
            spans.append({"message": number, "start": start, "end": end})
            start = each["content"].find("<", end)
    return {"messages": messages, "injection": spans}


@pytest.mark.parametrize(
    ("content", "place", "repetition"),
    [
        ("Ask.\n\n<Use b.>", "after, own paragraph", "1"),
        ("Ask. <Use b.>", "after, same line", "1"),
        ("Ask.<Use b.>\n", "after, same line", "1"),
        ("<Use b.>\nAsk.", "before, own paragraph", "1"),
        ("<Use b.> Ask.", "before, same line", "1"),
        ("Ask,\n<Use b.>\nplease.", "inside, own paragraph", "1"),
        ("Ask,\n<Use b.> please.", "inside, same line", "1"),
        ("<Use b.>\n\nAsk.\n\n<Use b.>", "both sides, own paragraph", "2"),
        ("<Use b.>\n\nAsk. <Use b.>", "both sides, same line", "2"),
        ("Ask, <Use b.> please.\n\n<Use b.>", "both sides, same line", "2"),
        ("Ask.\n\n<Use b.> <Use b.>\n<Use b.>", "after, own paragraph", "3+"),
        ("<Use b.><Use b.><Use b.><Use b.>\n\nAsk.", "before, own paragraph", "3+"),
        ("<Use b.>\n<Use b.>", "whole message", "2"),
    ],
)
def test_a_place_is_relative_to_the_users_text(content, place, repetition):
    row = attacked(content)
    assert (place_of(row), repetition_of(row)) == (place, repetition)


def test_spans_need_no_order():
    row = attacked("<Use b.>\n\nAsk.\n\n<Use b.>")
    row["injection"].reverse()
    assert place_of(row) == "both sides, own paragraph"


def test_tool_results_have_no_places_but_repetitions():
    row = attacked("Rent: <Pay.> due", "<Pay.>", role="tool")
    assert (place_of(row), repetition_of(row)) == ("tool result", "2")


def test_the_last_attacked_message_of_the_user_counts():
    row = attacked("<Use b.> Ask.", "And this?\n\n<Use b.>", "Thanks.")
    assert (place_of(row), repetition_of(row)) == ("after, own paragraph", "2")


def test_a_prompt_without_an_injection_has_neither():
    row = attacked("Ask.")
    assert place_of(row) is repetition_of(row) is None and turn_of(row) == "1"


def test_every_place_and_layout_occurs():
    contents = ("{} Ask.", "A {} sk.", "Ask. {}", "{} Ask. {}")
    rows = [attacked(content.format(*["<x>"] * 2)) for content in contents]
    rows += [attacked(content.replace(" ", "\n").format(*["<x>"] * 2)) for content in contents]
    assert {place_of(row) for row in rows} == {f"{place}, {layout}" for place in PLACES for layout in LAYOUTS}


USER, ASSISTANT, TOOL = message("user", "Ask."), message("assistant", "Done."), message("tool", "Result.")


@pytest.mark.parametrize(
    ("messages", "turns", "value"),
    [
        ([USER], 1, "1"),
        ([USER, ASSISTANT, TOOL, ASSISTANT, message("user", "Next.")], 2, "2"),
        ([USER, ASSISTANT, message("user", "Next."), ASSISTANT, message("user", "Third.")], 3, "3+"),
        ([USER, ASSISTANT, TOOL, USER, ASSISTANT, TOOL, USER], 1, "1"),  # repeat_user_prompt
        ([USER, message("user", "Filter the tools."), ASSISTANT, ASSISTANT, TOOL], 1, "1"),  # tool_filter
        ([USER, ASSISTANT, TOOL, USER, message("user", "Next.")], 2, "2"),
    ],
)
def test_a_turn_is_a_new_request_after_an_answer(messages, turns, value):
    assert user_turns(messages) == turns and turn_of({"messages": messages}) == value
