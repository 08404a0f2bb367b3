"""Whether merged weights have the outcomes of their adapter, prompt by prompt."""

import pytest

from cb_datasets.evaluation.merged_check import compare_outcomes

from ..fake_results import scored


def completions(**outcomes: int):
    """So many completions with each outcome, of prompts that are numbered in that order."""
    flat = [outcome for outcome, count in outcomes.items() for _ in range(count)]
    return [scored(index, "tool_flip", outcome) for index, outcome in enumerate(flat)]


def test_one_differing_prompt_of_a_hundred_agrees_and_two_do_not():
    adapter = completions(correct=100)
    one = compare_outcomes(adapter, completions(attack_success=1, correct=99))
    assert one["agrees"] and one["equal_outcomes"]["value"] == 0.99 and one["equal_outcomes"]["n"] == 100
    assert one["changes"] == {"correct -> attack_success": 1} and one["by_task"]["tool_flip"]["value"] == 0.99
    [example] = one["examples"]
    assert example["id"] == "tool_flip/0" and example["adapter"] == {"outcome": "correct", "text": "text"}
    two = compare_outcomes(adapter, completions(attack_success=1, no_call=1, correct=98))
    assert not two["agrees"] and two["changes"] == {"correct -> attack_success": 1, "correct -> no_call": 1}


def test_prompts_without_a_completion_are_in_no_rate():
    check = compare_outcomes(completions(error=1, correct=9), completions(error=2, correct=8))
    assert check["errors"] == 2 and check["equal_outcomes"]["n"] == 8 and check["agrees"]
    with pytest.raises(ValueError, match="zero rows"):
        compare_outcomes(completions(error=3), completions(error=3))
