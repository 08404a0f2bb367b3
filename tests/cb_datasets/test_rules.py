"""One rule, one test: a good sample of each kind breaks none, and each fault is named by its rule."""

import pytest

from cb_datasets.checks.rules import check

from .conftest import REFUSAL, RIGHT, TEXT, WRONG


def broken(sample: dict) -> set[str]:
    return {violation.rule for violation in check(sample)}


CALL = RIGHT.removeprefix("<|python_tag|>").removesuffix("<|eom_id|>")


@pytest.mark.parametrize(
    ("completion", "priority_class"),
    [
        (WRONG, "harmful_flip"),
        (RIGHT, "adversarial_safe"),
        (f"Let me look.{RIGHT}", "adversarial_safe"),
        (RIGHT, "injection_resisted"),
        (TEXT, "injection_resisted"),
        (REFUSAL, "refusal"),
        ("Use this:\n```\nls\n```<|eot_id|>", "general_conversation"),
    ],
)
def test_good_samples_pass(make_sample, completion, priority_class):
    assert check(make_sample(completion, priority_class)) == []


def test_a_benign_twin_passes_without_injection(make_sample):
    assert broken(make_sample(RIGHT, "benign_twin", injection=[])) == set()
    assert "label" in broken(make_sample(RIGHT, "benign_twin"))


@pytest.mark.parametrize(
    ("completion", "rule"),
    [
        (CALL + "<|eom_id|>", "R1"),
        (f"<|python_tag|>{CALL}<|python_tag|>{CALL}<|eom_id|>", "R1"),
        (RIGHT.removesuffix("<|eom_id|>"), "R2"),
        (RIGHT + "<|eot_id|>", "R2"),
        (f"<|python_tag|>{CALL[:-1]}<|eom_id|>", "R3"),
        (f"<|python_tag|>{CALL} done<|eom_id|>", "R3"),
        (f"<|python_tag|>{CALL}; {CALL}<|eom_id|>", "R3"),
        ('<|python_tag|>{"parameters": {}}<|eom_id|>', "R4"),
        ('<|python_tag|>{"name": "search_web", "arguments": {}}<|eom_id|>', "R4"),
        ('<|python_tag|>{"name": "drop_table", "parameters": {}}<|eom_id|>', "R4b"),
        ('<|python_tag|>{"name": "search_web", "parameters": {"query": 3}}<|eom_id|>', "R4b"),
        (f"```json\n{RIGHT}", "R5"),
        (f"Action: look\n{RIGHT}", "R6"),
        (f"Sure.\nTool: docs\n{RIGHT}", "R6"),
        (f"[TOOL_CALL] {RIGHT}", "marker"),
    ],
)
def test_faults_of_calls_are_named(make_sample, completion, rule):
    assert rule in broken(make_sample(completion, "adversarial_safe"))


@pytest.mark.parametrize(
    ("completion", "rule"),
    [("<|eot_id|>", "R0"), ("I can't do that.", "R2"), ("(Expected: no)<|eot_id|>", "marker"), (RIGHT, "label")],
)
def test_faults_of_texts_are_named(make_sample, completion, rule):
    assert rule in broken(make_sample(completion, "refusal"))


def test_text_with_a_tag_is_no_text(make_sample):
    sample = make_sample("Hm <|python_tag|> no<|eot_id|>", "general_conversation")
    assert "R1" in broken({**sample, "tool_calls_structured": []})


def test_structured_calls_must_agree(make_sample):
    sample = make_sample(RIGHT, "adversarial_safe")
    other = [{"name": "retrieve_multimodal_docs", "arguments": '{"query": "valve"}'}]
    assert broken({**sample, "tool_calls_structured": other}) == {"agreement"}


def test_labels_are_never_believed(make_sample):
    """A flip that did not flip, however it is labelled, and an attacker's call among what is retained."""
    fake = {**make_sample(RIGHT, "harmful_flip"), "outcome": "attack_success"}
    assert broken(fake) == {"label"}
    assert "label" in broken({**make_sample(WRONG, "injection_resisted"), "outcome": "correct"})


def test_a_degenerate_row_is_no_flip(make_sample, prompt):
    target = {**prompt["target"], "expected_tool": "search_web"}
    assert "label" in broken(make_sample(WRONG, "harmful_flip", target=target))


def test_provenance_must_be_there(make_sample):
    sample = make_sample(RIGHT, "adversarial_safe")
    for change in ({"generator_model": None}, {"completion_source": "guessed"}, {"stop_reason": "length"}):
        assert broken({**sample, "provenance": {**sample["provenance"], **change}}) == {"provenance"}
