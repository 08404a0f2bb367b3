"""The metrics over the strength of an adapter, and the rule that recommends a scale."""

import pytest

from cb_datasets.checks.thresholds import EvaluationThresholds
from cb_datasets.evaluation.results import SCHEMA_FILE
from cb_datasets.evaluation.strength import check_halves, check_scales, choose_scale, strength_curve
from cb_datasets.files import read_json

from ..fake_results import scored


LIMITS = EvaluationThresholds()
BASE = {"hijacked": 200}


def completions(hijacked: int = 0, benign_lost: int = 0, garbled: int = 0, refusals_lost: int = 0, prompts: int = 200):
    """Completions of `prompts` prompts of each of four tasks, one group for each prompt number.

    The counts are evenly spread over the groups, as nearly as their number allows.
    """

    def is_hit(index: int, count: int) -> bool:
        return (index * count) % prompts < count

    rows = []
    for index in range(prompts):
        attacked = "attack_success" if is_hit(index, hijacked) else "correct"
        rows.append(scored(index, "tool_flip", attacked, gibberish=is_hit(index, garbled)))
        rows.append(scored(index, "capability", "no_call" if is_hit(index, benign_lost) else "correct"))
        rows.append(scored(index, "later_turn", "correct"))
        rows.append(scored(index, "refusal", "no_call" if is_hit(index, refusals_lost) else "refusal"))
    return rows


def chosen(**by_scale: dict) -> float | None:
    curve = {0.0: completions(**BASE)} | {float(name[1:]) / 100: completions(**c) for name, c in by_scale.items()}
    return choose_scale(curve, LIMITS)["scale"]


def test_the_smallest_scale_that_passes_every_gate_is_recommended():
    assert chosen(_50={"hijacked": 60}, _75={}, _100={}, _150={}) == 0.75


def test_an_asr_within_the_interval_of_the_lowest_counts_as_equal():
    """With every scale failing the same gate, of refusals, ASR decides, and differences of noise do not."""
    fails = {"refusals_lost": 60}
    assert chosen(_50={"hijacked": 2, **fails}, _100=fails) == 0.5
    assert chosen(_50={"hijacked": 40, **fails}, _100={"hijacked": 20, **fails}) == 1.0


def test_a_scale_that_fails_fewer_strict_gates_wins_over_a_lower_asr():
    assert chosen(_50={"hijacked": 20}, _100={"garbled": 50, "refusals_lost": 60}) == 0.5


@pytest.mark.parametrize("broken", [{"benign_lost": 100}, {"hijacked": 150}])
def test_no_scale_is_recommended_where_each_fails_a_gate_of_stage_1(broken):
    curve = {0.0: completions(**BASE), 0.5: completions(**broken), 1.0: completions(**broken)}
    choice = choose_scale(curve, LIMITS)
    assert choice["scale"] is None and set(choice["reported_on"]) == {"prompts"}
    assert all("stage 1: " in " ".join(each["failed_gates"]) for each in choice["chosen_on"]["scales"])


def test_the_base_model_is_never_recommended():
    """Its own gates fail: a base model that resists attacks shows nothing about a breaker."""
    assert choose_scale({0.0: completions(), 1.0: completions()}, LIMITS)["scale"] is None


def test_the_scale_is_reported_on_prompts_that_did_not_choose_it():
    """One half of the groups is hijacked at 0.5, the other at 1: whichever chose, the other half shows it."""
    odd = [scored(k, "tool_flip", "attack_success" if k % 2 else "correct") for k in range(200)]
    curve = {0.0: completions(**BASE), 1.0: odd + [one for one in completions() if one.prompt.task != "tool_flip"]}
    choice = choose_scale(curve, EvaluationThresholds(min_asr_reduction=0))
    report = choice["reported_on"]
    asr_all = strength_curve(curve, LIMITS)["scales"][1]["metrics"]["asr"]
    assert choice["scale"] == 1.0 and asr_all["n"] == 200 and report["breaker"]["asr"]["n"] == 100
    assert choice["chosen_on"]["prompts"] == report["prompts"] == 400
    # Siblings, prompts of one group, are in one half.
    assert {report["breaker"][name]["n"] for name in ("asr", "benign_call", "refusal_kept")} == {100}
    assert "strict: ASR" in report["failed_gates"]


def test_the_curve_has_every_scale_with_its_failed_gates():
    curve = strength_curve({0.0: completions(**BASE), 0.5: completions(hijacked=60), 1.0: completions()}, LIMITS)
    [base, half, full] = curve["scales"]
    assert [each["metrics"]["asr"]["value"] for each in (base, half, full)] == [1.0, 0.3, 0.0]
    assert (base["failed_gates"], half["failed_gates"], full["failed_gates"]) == (
        [],
        ["strict: ASR", "strict: correct under attack"],
        [],
    )
    keys = read_json(SCHEMA_FILE)["properties"]["strength"]["properties"]
    assert set(curve) == set(keys) and set(curve["choice"]) == set(keys["choice"]["properties"])


def test_scales_are_sorted_with_those_of_base_and_breaker():
    assert check_scales([1.5, 0.5, 0.5]) == [0.0, 0.5, 1.0, 1.5]
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a finite number"):
            check_scales([wrong])


def test_prompts_of_one_group_cannot_be_divided():
    check_halves(["a", "a", "b"])
    with pytest.raises(ValueError, match="all prompts are of one group"):
        check_halves(["a", "a"])
