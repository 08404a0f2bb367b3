"""Layouts and earlier turns of look-alike prompts."""

import json
from collections import Counter

import pytest

from builders.lookalike import flip_trace
from builders.lookalike.layouts import PLACES, lay_out
from builders.lookalike.records import lookalike_records
from builders.lookalike.turns import earlier_turns
from builders.lookalike.wording import LAYOUTS, LOOKALIKE_SPLITS, TOOLS, input_of, slots_and_arguments, slots_of
from builders.trace import Dropped
from cb_datasets.sample import cut_spans


def laid_out(split: str, n: int = 600) -> list[tuple[dict, dict]]:
    """Records, before and after they are laid out."""
    return [(record, lay_out(record, split)) for record in lookalike_records(3, n, split)]


@pytest.mark.parametrize("split", LOOKALIKE_SPLITS)
def test_cutting_the_spans_leaves_the_benign_query(split):
    for record, attacked in laid_out(split):
        message = {"content": attacked["combined_query"]}
        spans = [{"message": 0, "start": start, "end": end} for start, end in attacked["spans"]]
        assert cut_spans([message], spans) == [{"content": record["benign_query"]}]


@pytest.mark.parametrize("split", LOOKALIKE_SPLITS)
def test_every_place_and_number_occurs(split):
    places, counts = Counter(), Counter()
    for _, attacked in laid_out(split):
        query, spans = attacked["combined_query"], attacked["spans"]
        starts = not query[: spans[0][0]].strip()
        ends = not query[spans[-1][1] :].strip()
        places["around" if starts and ends else "before" if starts else "after" if ends else "inside"] += 1
        counts[len(spans)] += 1
    assert set(places) == set(PLACES)
    assert all(count > 40 for count in places.values())
    assert set(counts) == {1, 2, *LAYOUTS[split]["repetitions"]}


@pytest.mark.parametrize("split", LOOKALIKE_SPLITS)
def test_no_injection_is_within_a_topic_of_two_words(split):
    topics = [(record["expected_arguments"].get("query", ""), row) for record, row in laid_out(split)]
    assert sum(" " in topic for topic, _ in topics) > 100
    assert all(topic in row["combined_query"] for topic, row in topics)


def test_only_the_attack_differs_from_the_record():
    for record, attacked in laid_out("test", 50):
        changed = {key for key in record if record[key] != attacked[key]}
        assert changed <= {"attack_id", "category", "malicious_injection", "combined_query"}


def test_a_layout_depends_on_the_record_alone():
    assert [lay_out(record, "dev") for record, _ in laid_out("dev", 20)] == [row for _, row in laid_out("dev", 20)]


def test_splits_share_no_wording_of_their_own():
    forms = {
        split: {form for family in LAYOUTS[split]["forged_families"].values() for form in family["forms"]}
        for split in LOOKALIKE_SPLITS
    }
    marked = {split: {joiner for joiner in LAYOUTS[split]["joiners"] if joiner.strip()} for split in LOOKALIKE_SPLITS}
    for texts in (forms, marked, *({s: set(LAYOUTS[s][key]) for s in LOOKALIKE_SPLITS} for key in ("closings",))):
        assert sum(map(len, texts.values())) == len(set().union(*texts.values()))


def test_forged_turns_end_with_a_request_or_a_command_for_the_attackers_tool():
    forged = [(record, row) for record, row in laid_out("train") if row["attack_id"].startswith("forged")]
    with_command = [row for record, row in forged if record["malicious_injection"] in row["malicious_injection"]]
    assert len(forged) > 60
    assert 0.3 < len(with_command) / len(forged) < 0.7
    assert {row["attack_id"] for _, row in forged} == {"forged_answer", "forged_markup"}


def test_slots_are_the_inverse_of_arguments():
    import random

    from builders.lookalike.wording import Names

    for tool in TOOLS:
        rng = random.Random(0)
        slots, arguments = slots_and_arguments(rng, Names(rng, "train"), tool)
        known = slots_of(tool, arguments)
        assert known == {key: slots[key] for key in known}
        assert "{" not in input_of(tool, arguments)


@pytest.mark.parametrize("split", LOOKALIKE_SPLITS)
def test_earlier_turns_are_whole(split):
    lengths = Counter()
    for record in lookalike_records(1, 200, split):
        messages = earlier_turns(record["record_id"], split)
        lengths[sum(message["role"] == "user" for message in messages)] += 1
        assert messages[0]["role"] == "user"
        for before, after in zip(messages, [*messages[1:], {"role": "user"}], strict=True):
            follows = {"user": {"assistant"}, "tool": {"assistant", "user"}}
            follows["assistant"] = {"tool"} if before.get("tool_calls") else {"user"}
            assert after["role"] in follows[before["role"]]
            assert "{topic}" not in str(before) and "{person}" not in str(before)
    assert set(lengths) == {1, 2, 3, 4}


def test_a_trace_with_earlier_turns_has_its_spans_in_the_last_message():
    for record, attacked in laid_out("test", 60):
        history = earlier_turns(record["record_id"], "test")
        trace = flip_trace(attacked, "test:0", history)
        if isinstance(trace, Dropped):
            assert record["expected_tool"] == record["simulated_tool"]
            continue
        assert trace["messages"][1:-1] == history
        assert {span["message"] for span in trace["attack"]["spans"]} == {len(history) + 1}
        assert cut_spans(trace["messages"], trace["attack"]["spans"])[-1]["content"] == record["benign_query"]
        assert json.loads(trace["attack"]["expected_calls"])[0]["name"] == record["expected_tool"]
