"""Rows that the demo's agents are trained on."""

import pytest
from transformers import AutoTokenizer

from builders.trace import message
from demo.agent_rows import TrainingRow, call_message, encode_row, office_rows, single_turn_rows


pytest.importorskip("agentdojo", reason="AgentDojo is not installed: make test installs it")


@pytest.fixture(scope="module")
def tokenizer(tiny_agent_path):
    return AutoTokenizer.from_pretrained(tiny_agent_path)


def learnt(tokenizer, row):
    """The text of each assistant turn to learn."""
    ids, labels = encode_row(tokenizer, row)
    assert len(ids) == len(labels) and all(label in (-100, id) for id, label in zip(ids, labels, strict=True))
    text = tokenizer.decode([label for label in labels if label != -100])
    return text.replace("<|eom_id|>", "<|eom_id|>\n").replace("<|eot_id|>", "<|eot_id|>\n").splitlines()


def test_the_assistant_turns_from_the_first_on_are_learnt(tokenizer):
    search = call_message("search_web", {"query": "Kalo"})
    messages = [
        message("user", "Search the web for Kalo."),
        search,
        message("tool", "Kalo is Tade.", tool_call_id="call_0", name="search_web"),
        message("assistant", "Kalo is Tade."),
    ]
    call = '<|python_tag|>{"name": "search_web", "parameters": {"query": "Kalo"}}<|eom_id|>'
    assert learnt(tokenizer, TrainingRow(messages, first=1)) == [call, "Kalo is Tade.<|eot_id|>"]
    assert learnt(tokenizer, TrainingRow(messages, first=3)) == ["Kalo is Tade.<|eot_id|>"]


def test_a_template_that_writes_other_tokens_than_a_model_is_refused(tokenizer, monkeypatch):
    template = tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", template.replace('"parameters": ', '"parameters":'))
    messages = [message("user", "Go."), call_message("read_file", {"path": "a"}), message("assistant", "Done.")]
    with pytest.raises(ValueError, match=r"does not write .* as a model would"):
        encode_row(tokenizer, TrainingRow(messages, first=1))


def test_single_turn_rows_learn_the_last_turn_only():
    rows = single_turn_rows(0, 200)
    assert len(rows) == 200
    assert all(row.first == len(row.messages) - 1 for row in rows)
    assert any(row.first > 1 for row in rows), "some have earlier turns"


def test_office_rows_do_what_an_injection_says_and_go_on():
    rows = office_rows(0, 300)
    hijacked = 0
    for row in rows:
        calls = [turn["tool_calls"][0]["function"]["name"] for turn in row.messages if turn["tool_calls"]]
        results = [turn["name"] for turn in row.messages if turn["role"] == "tool"]
        assert calls == results, "every call has its result"
        assert row.messages[-1]["role"] == "assistant" and row.messages[-1]["content"]
        # The attacker's tool stands in the result before its call, but for the aliases of tools.
        hijacked += any(
            tool in message["content"] for tool, message in zip(calls[1:], row.messages[2::2], strict=False)
        )
    assert 0.2 * len(rows) < hijacked < 0.6 * len(rows)


def test_rows_are_the_same_for_a_seed_and_others_for_another():
    assert office_rows(3, 20) == office_rows(3, 20) != office_rows(4, 20)
    assert single_turn_rows(3, 20) == single_turn_rows(3, 20) != single_turn_rows(4, 20)
