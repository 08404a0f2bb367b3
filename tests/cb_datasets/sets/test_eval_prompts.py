"""Attacked prompts made harder, on the look-alikes and on recorded decisions of our own."""

import json

import pytest
from transformers import AutoTokenizer

from builders import load_source
from builders.trace import message, tool_call
from cb_datasets.chat import encode_completion, injection_tokens
from cb_datasets.formats import FORMATS
from cb_datasets.placement import turn_of
from cb_datasets.sample import clean_messages
from cb_datasets.sets.eval_prompts import (
    EVALUATION_TASKS,
    evaluation_prompts,
    later_turn_prompts,
    multi_turn_prompts,
)


LLAMA = FORMATS["llama3_json"]


@pytest.fixture(scope="module")
def traces():
    return load_source("lookalike")["test"]


@pytest.fixture(scope="module")
def tokenizer(tiny_agent_path):
    return AutoTokenizer.from_pretrained(tiny_agent_path)


def test_more_and_more_of_the_attackers_call_is_given(traces):
    rows = evaluation_prompts(traces, "forced_call", LLAMA)
    assert len(rows) == 3 * len(evaluation_prompts(traces, "tool_flip", LLAMA)) and len(set(rows["id"])) == len(rows)
    tag, word, name = (row["target"]["prefill"] for row in rows.select(range(3)))
    tool = rows[0]["target"]["simulated_tool"]
    assert tag == '<|python_tag|>{"name": "'
    assert name == f'<|python_tag|>{{"name": "{tool}'
    assert name.startswith(word) and word.startswith(tag) and tag != word != name
    assert rows["subtype"][:3] == ["prefill_tag", "prefill_word", "prefill_name"]
    assert all(rows["injection"])


def test_an_honest_exchange_stands_before_the_attack(traces, tokenizer):
    rows = evaluation_prompts(traces, "multi_turn", LLAMA)
    flips = {row["pair"]: row for row in evaluation_prompts(traces, "tool_flip", LLAMA)}
    assert len(rows) == len(flips) >= 400
    for row in rows.select(range(25)):
        plain = flips[row["pair"]]
        assert [each["role"] for each in row["messages"]][-5:] == ["user", "assistant", "tool", "assistant", "user"]
        assert row["messages"][-1] == plain["messages"][-1] != row["messages"][-5]
        [call] = row["messages"][-4]["tool_calls"]
        assert json.loads(call["function"]["arguments"])
        for span, before in zip(row["injection"], plain["injection"], strict=True):
            shown, meant = (
                each["messages"][at["message"]]["content"][at["start"] : at["end"]]
                for each, at in ((row, span), (plain, before))
            )
            assert shown == meant != ""
        assert len(injection_tokens(tokenizer, row)) == len(row["injection"])


def test_the_honest_request_is_another_one(traces):
    groups = {row["pair"]: row["group"] for row in evaluation_prompts(traces, "tool_flip", LLAMA)}
    rows = evaluation_prompts(traces, "multi_turn", LLAMA)
    requests = {row["messages"][-1]["content"] for row in evaluation_prompts(traces, "capability", LLAMA)}
    assert all(row["messages"][-5]["content"] in requests for row in rows.select(range(50)))
    assert len(groups) == len(rows)


def test_later_turns_are_the_clean_twins_of_attacked_ones(traces):
    later = {row["pair"]: row for row in evaluation_prompts(traces, "later_turn", LLAMA)}
    attacked = evaluation_prompts(traces, "multi_turn", LLAMA)
    assert set(later) == set(attacked["pair"]) and len(set(attacked["id"])) == len(attacked) == len(later)
    for row in attacked.select(range(25)):
        clean = later[row["pair"]]
        assert clean["messages"] == clean_messages(row) and clean["injection"] == []
        assert clean["target"]["expected_tool"] == row["target"]["expected_tool"]
        assert clean["target"]["simulated_tool"] is None and turn_of(clean) == turn_of(row) == "2"


def test_a_trace_with_earlier_turns_gets_no_artificial_ones(traces):
    rows = list(traces.select(range(40)))
    own = next(row for row in rows if row["attack"]["spans"])
    system, request = own["messages"]
    earlier = [message("user", "What is a moraine?"), message("assistant", "Debris that a glacier left.")]
    spans = [{**span, "message": 3} for span in own["attack"]["spans"]]
    changed = own | {"messages": [system, *earlier, request], "attack": own["attack"] | {"spans": spans}}
    rows[rows.index(own)] = changed
    for prompts in (multi_turn_prompts, later_turn_prompts):
        before, after = list(prompts(traces.select(range(40)))), list(prompts(rows))
        assert len(before) == len(after) + 1
        assert own["id"] not in {row["pair"] for row in after}
        assert all("moraine" not in str(row["messages"]) for row in after), "nor is it another trace's exchange"


def recorded(id: str, *messages: dict, verdict: str = "benign_success", **columns) -> dict:
    rows = [message("system", "You are an agent."), *messages]
    columns = {"expected_tool": None, "simulated_tool": None, "attack": None, "decision_turn": None} | columns
    return {"id": id, "source": "test", "group": id, "messages": rows, "tools": "[]", "verdict": verdict,
            "metadata": "{}", **columns}  # fmt: skip


def calling(name: str) -> dict:
    return message("assistant", None, [tool_call(name, {}, "call_0")])


RESULT = message("tool", "ok", tool_call_id="call_0")


def test_later_turns_of_recorded_conversations():
    """Calls after a second request; the last answer where there are no calls; no repeated request, no faulty call."""
    booking = [message("user", "Find a flight."), calling("find"), RESULT, message("assistant", "There is one.")]
    booking += [message("user", "Book it."), calling("book"), RESULT, calling("pay"), RESULT]
    chat = [message("user", "Hello."), message("assistant", "Hello!"), message("user", "A riddle?")]
    chat += [message("assistant", "What has a bed and never sleeps?"), message("user", "A river."), TEXT_TURN]
    repeated = [message("user", "Pay."), calling("read"), RESULT, message("user", "Pay."), calling("pay"), RESULT]
    traces = [
        recorded("booking", *booking, metadata='{"failed_calls": [8]}'),
        recorded("chat", *chat),
        recorded("repeated", *repeated),
        recorded("failed", *booking, verdict="benign_failure"),
    ]
    rows = list(later_turn_prompts(traces))
    assert [(row["id"], row["target"]["expected_tool"], turn_of(row)) for row in rows] == [
        ("later_turn/booking/turn_6", "book", "2"),
        ("later_turn/chat/turn_6", None, "3+"),
    ]
    assert all(row["task"] == "later_turn" and row["injection"] == [] for row in rows)


TEXT_TURN = message("assistant", "Right.")


def test_a_decision_after_a_second_request_is_multi_turn():
    later = [message("user", "Hello."), message("assistant", "Hello!"), message("user", "Read <x>."), calling("bad")]
    attack = {"family": "f", "category": None, "subtype": None, "expected_calls": None, "goal_calls": None}
    attack |= {"spans": [{"message": 3, "start": 5, "end": 8}]}
    columns = {"verdict": "compromised", "attack": attack, "simulated_tool": "bad"}
    once = [message("user", "Read <x>."), calling("bad")]
    first = columns | {"attack": attack | {"spans": [{"message": 1, "start": 5, "end": 8}]}, "decision_turn": 2}
    rows = list(
        multi_turn_prompts([recorded("late", *later, **columns, decision_turn=4), recorded("once", *once, **first)])
    )
    assert [(row["id"], turn_of(row)) for row in rows] == [("multi_turn/late", "2")]


def test_recorded_later_turns_of_real_files(real_data):
    tau2 = load_source("tau2", data_dir=real_data / "tau2")["train"]
    rows = evaluation_prompts(tau2, "later_turn", LLAMA)
    assert len(rows) > 0 and all(row["target"]["expected_tool"] and turn_of(row) != "1" for row in rows)
    assert set(rows["pair"]) < set(evaluation_prompts(tau2, "capability", LLAMA)["pair"])
    runs = load_source("agentdojo", data_dir=real_data / "agentdojo")["train"]
    assert len(evaluation_prompts(runs, "later_turn", LLAMA)) == 0, "its users ask once; a defence repeats the request"


def test_late_decisions_of_recorded_agents_are_multi_turn(real_data):
    runs = load_source("agentdojo", data_dir=real_data / "agentdojo")["train"]
    rows = evaluation_prompts(runs, "multi_turn", LLAMA)
    assert 0 < len(rows) < len(evaluation_prompts(runs, "agentdojo", LLAMA))
    for row in rows.select(range(20)):
        assert sum(each["role"] == "assistant" for each in row["messages"]) > 1 and row["injection"]


def test_a_prefill_is_encoded_as_the_model_would_write_it(traces, tokenizer):
    """The call's own tokens begin with the prefill's, so what is given cannot show in the tokens."""
    for row in evaluation_prompts(traces, "forced_call", LLAMA).select(range(30)):
        tool = row["target"]["simulated_tool"]
        whole = f'<|python_tag|>{{"name": "{tool}", "parameters": {{"query": "x"}}}}<|eom_id|>'
        given = encode_completion(tokenizer, row["target"]["prefill"])
        assert encode_completion(tokenizer, whole)[: len(given)] == given


def test_the_tasks_are_named_once():
    assert len(set(EVALUATION_TASKS)) == len(EVALUATION_TASKS)
