"""Attacked prompts made harder, on the look-alikes and on recorded decisions of our own."""

import json

import pytest
from transformers import AutoTokenizer

from builders import load_source
from cb_datasets.chat import encode_completion, injection_tokens
from cb_datasets.formats import FORMATS
from cb_datasets.sets.eval_prompts import EVALUATION_TASKS, evaluation_prompts


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
