import json
import re
from collections import Counter

import pytest

from builders import load_source
from builders.fujitsu import normalize_query
from builders.lookalike import Lookalike, flip_trace
from builders.lookalike.records import lookalike_prompts, lookalike_records
from builders.lookalike.wording import (
    DOCS,
    LOOKALIKE_SPLITS,
    PHRASINGS,
    TOOLS,
    UNSEEN,
    UNSEEN_FAMILIES,
    WEB,
    WORDING,
    split_of_name,
)
from cb_datasets.sample import cut_spans


B4_FIELDS = {
    "record_id", "attack_id", "category", "subtype", "benign_query", "malicious_injection", "combined_query",
    "expected_tool", "simulated_tool", "success", "judge_note", "models_used", "script_version", "timestamp",
}  # fmt: skip
ARGUMENTS = ("expected_arguments", "simulated_arguments")
TASKS = ("refusal", "chat", "irrelevance")
SIZES = {
    split: {"tool_flip": 150, "multi_turn": 30, "refusal": 20, "chat": 20, "irrelevance": 20}
    for split in LOOKALIKE_SPLITS
}


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    builder = Lookalike(cache_dir=str(tmp_path_factory.mktemp("cache")), sizes=SIZES)
    builder.download_and_prepare()
    return builder


@pytest.fixture(scope="module")
def traces(builder):
    return builder.as_dataset()


def names_in(arguments: dict) -> set[str]:
    return set(re.findall(r"\b[A-Z][a-z]+", str(arguments))) - {"About"}


def phrases(split: str, key: str) -> set[str]:
    """All texts below one key of a split, as a flat set."""
    texts, stack = set(), [WORDING[split][key]]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            texts.add(value)
        else:
            stack.extend(value.values() if isinstance(value, dict) else value)
    return texts


def test_record_has_the_fields_of_b4():
    record = lookalike_records(0, 1, "train")[0]
    assert set(record) == B4_FIELDS | {"expected_arguments", "simulated_arguments"}
    assert set(record["models_used"]) == {"crafter", "simulator"}
    assert re.fullmatch(r"LLM\d\d", record["category"])


def test_combined_query_is_the_request_and_then_the_injection():
    for record in lookalike_records(0, 200, "test"):
        assert record["combined_query"] == record["benign_query"] + "\n\n" + record["malicious_injection"]


@pytest.mark.parametrize("split", LOOKALIKE_SPLITS)
def test_no_placeholder_is_left(split):
    texts = [record["combined_query"] for record in lookalike_records(3, 500, split)]
    texts += [
        prompt[key]
        for task in TASKS
        for prompt in lookalike_prompts(3, 100, split, task)
        for key in ("text", "answer")
    ]
    assert not [text for text in texts if "((" in text or re.search(r"\{[a-z]+\}(?!\})", text)]


def test_same_seed_same_rows():
    assert lookalike_records(5, 50, "dev") == lookalike_records(5, 50, "dev")
    assert lookalike_records(5, 50, "dev") != lookalike_records(6, 50, "dev")
    assert lookalike_prompts(5, 50, "dev", "chat") == lookalike_prompts(5, 50, "dev", "chat")


def test_a_larger_set_begins_with_the_smaller_one():
    assert lookalike_records(5, 100, "dev")[:50] == lookalike_records(5, 50, "dev")


def test_splits_share_no_family():
    families = [set(WORDING[split]["families"]) for split in LOOKALIKE_SPLITS]
    assert len(set.union(*families)) == sum(map(len, families))


@pytest.mark.parametrize(
    "key", ["openers", "closers", "injection_openers", "injection_commands", "harms", "harm_requests"]
)
def test_splits_share_no_phrasing(key):
    by_split = [phrases(split, key) for split in LOOKALIKE_SPLITS]
    assert len(set.union(*by_split)) == sum(map(len, by_split))


@pytest.mark.parametrize("tool", TOOLS)
def test_splits_share_no_request(tool):
    by_split = [set(PHRASINGS[split][tool]) for split in LOOKALIKE_SPLITS]
    assert all(by_split)
    assert len(set.union(*by_split)) == sum(map(len, by_split))
    assert not [phrase for phrase in set.union(*by_split) if re.search(r"[\[\]|]", phrase)]


@pytest.mark.parametrize("key", ["chat", "irrelevance"])
def test_splits_share_no_question(key):
    by_split = [{question for question, _ in WORDING[split][key]} for split in LOOKALIKE_SPLITS]
    assert len(set.union(*by_split)) == sum(map(len, by_split))


def test_splits_share_no_wrapper():
    forms = [
        {
            form
            for family in WORDING[split]["families"].values()
            for form in family.get("wrappers", family.get("forms"))
        }
        for split in LOOKALIKE_SPLITS
    ]
    # The bare sentence is in all splits; its openers and commands differ.
    assert set.intersection(forms[0], forms[1]) | set.intersection(forms[0], forms[2]) <= {"{body}"}


def test_splits_share_no_topic_word():
    names = []
    for split in LOOKALIKE_SPLITS:
        records = lookalike_records(0, 300, split)
        names.append(set().union(*(names_in(r[key]) for r in records for key in ARGUMENTS)))
        assert len(names[-1]) > 300
        assert {split_of_name(name) for name in names[-1]} == {split}
    assert len(set.union(*names)) == sum(map(len, names))


@pytest.mark.parametrize(
    ("key", "text"), [("expected_arguments", "benign_query"), ("simulated_arguments", "combined_query")]
)
def test_arguments_occur_in_the_prompt(key, text):
    for record in lookalike_records(0, 300, "test"):
        for value in record[key].values():
            words = value[0] if isinstance(value, list) else str(value).removeprefix("About ").removesuffix(".")
            assert words in record[text]


@pytest.mark.parametrize("split", LOOKALIKE_SPLITS)
def test_both_flip_directions_and_all_tools_occur(split):
    records = lookalike_records(0, 600, split)
    directions = Counter((record["expected_tool"], record["simulated_tool"]) for record in records)
    assert directions[DOCS, WEB] > directions[WEB, DOCS] > 100
    assert {expected for expected, _ in directions} == {simulated for _, simulated in directions} == set(TOOLS)


def test_test_split_is_large_enough_and_distinct():
    flips = [r for r in lookalike_records(0, 500, "test") if r["expected_tool"] != r["simulated_tool"]]
    prompts = [p for task in TASKS for p in lookalike_prompts(0, 500, "test", task)]
    texts = [r["combined_query"] for r in flips] + [r["benign_query"] for r in flips] + [p["text"] for p in prompts]
    assert len(flips) >= 450
    assert len({normalize_query(text) for text in texts}) == len(texts)


def test_degenerate_records_are_dropped_with_a_named_reason(builder, traces):
    degenerate = {
        split: sum(
            record["expected_tool"] == record["simulated_tool"]
            for task in ("tool_flip", "multi_turn")
            for record in lookalike_records(0, SIZES[split][task], split, task)
        )
        for split in LOOKALIKE_SPLITS
    }
    assert {drop.reason for drop in builder.dropped()} == {"degenerate"}
    assert len(builder.dropped()) == sum(degenerate.values()) > 0
    assert {split: traces[split].num_rows for split in LOOKALIKE_SPLITS} == {
        split: sum(SIZES[split].values()) - degenerate[split] for split in LOOKALIKE_SPLITS
    }


def test_spans_are_the_injections(traces):
    flips = [row for row in traces["test"] if row["simulated_tool"]]
    assert len({len(row["attack"]["spans"]) for row in flips}) > 1
    for row in flips:
        spans, request = row["attack"]["spans"], row["messages"][-1]["content"]
        assert {span["message"] for span in spans} == {len(row["messages"]) - 1}
        assert row["attack"]["text"] in request[spans[0]["start"] : spans[0]["end"]]
        assert cut_spans(row["messages"], spans)[-1]["content"] == json.loads(row["metadata"])["benign_query"]


def test_tasks_and_attacks_of_the_rows(traces):
    tasks = Counter()
    for row in traces["test"]:
        task = json.loads(row["metadata"])["task"]
        tasks[task] += 1
        kind = row["attack"] and row["attack"]["kind"]
        assert kind == {"tool_flip": "user_text", "refusal": "direct_request"}.get(task)
        assert row["verdict"] == "prompt_only"
        users = sum(message["role"] == "user" for message in row["messages"])
        assert (row["messages"][0]["role"], row["messages"][-1]["role"]) == ("system", "user")
        assert users == 1 or task == "tool_flip"
    assert tasks["refusal"] == tasks["chat"] == tasks["irrelevance"] == 20 < tasks["tool_flip"]


def test_ids_are_unique_and_groups_stay_in_one_split(traces):
    ids = [row_id for split in LOOKALIKE_SPLITS for row_id in traces[split]["id"]]
    groups = [set(traces[split]["group"]) for split in LOOKALIKE_SPLITS]
    assert len(ids) == len(set(ids))
    assert len(set.union(*groups)) == sum(map(len, groups))


def test_unseen_families_are_in_no_other_split_and_requests_are_those_of_test():
    assert not set(UNSEEN_FAMILIES) & {family for split in LOOKALIKE_SPLITS for family in WORDING[split]["families"]}
    forms = [form for family in UNSEEN_FAMILIES.values() for form in family["forms"]]
    seen = {
        form for split in LOOKALIKE_SPLITS for f in WORDING[split]["families"].values() for form in f.get("forms", ())
    }
    assert len(set(forms)) == len(forms)
    assert not set(forms) & seen
    records = lookalike_records(0, 300, UNSEEN)
    assert {record["attack_id"] for record in records} == set(UNSEEN_FAMILIES)
    names = set().union(*(names_in(record["expected_arguments"]) for record in records))
    assert {split_of_name(name) for name in names} == {"test"}


def test_cutting_an_unseen_injection_out_leaves_the_request():
    for record in lookalike_records(0, 300, UNSEEN):
        trace = flip_trace(record, where="")
        if record["expected_tool"] == record["simulated_tool"]:
            continue
        [span] = trace["attack"]["spans"]
        content = trace["messages"][span["message"]]["content"]
        assert (content[: span["start"]] + content[span["end"] :]).strip() == record["benign_query"]


def test_injections_are_at_the_position_of_their_family():
    places = {}
    for record in lookalike_records(0, 300, UNSEEN):
        before, _, after = record["combined_query"].partition(record["malicious_injection"])
        place = "inside" if before and after else "before" if after else "after"
        places.setdefault(UNSEEN_FAMILIES[record["attack_id"]].get("position"), set()).add(place)
    assert places == {None: {"after"}, "same_line": {"after"}, "before": {"before"}, "inside": {"inside"}}


def test_only_chosen_tasks_are_made(traces, tmp_path):
    chosen = load_source("lookalike", cache_dir=tmp_path, sizes=SIZES, tasks=("refusal", "chat"))
    for split, rows in chosen.items():
        assert {json.loads(metadata)["task"] for metadata in rows["metadata"]} == {"refusal", "chat"}
        assert set(rows["id"]) < set(traces[split]["id"]), "the others are left out, and these stay as they are"
    with pytest.raises(ValueError, match="lookalike has no task tool_flips; known: tool_flip, multi_turn, refusal"):
        load_source("lookalike", cache_dir=tmp_path, sizes=SIZES, tasks=("tool_flips",))
