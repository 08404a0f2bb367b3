import dataclasses

from cb_datasets.checks.gates import (
    Thresholds,
    at_least,
    at_most,
    gate_report,
    harmful_gates,
    merged_gates,
    retain_gates,
    source_gates,
)

from .conftest import REFUSAL, RIGHT, TEXT, WRONG


LIMITS = Thresholds(min_adversarial_safe=1)


def failed(gates) -> set[str]:
    return {gate.name for gate in gates if not gate.passed}


def test_no_gate_passes_over_zero_rows():
    assert not at_least("x", 1.0, 0.0, 0).passed
    assert not at_most("x", 0.0, 1.0, 0).passed
    assert all(not gate.passed for gate in harmful_gates([], LIMITS) + retain_gates([], LIMITS))
    assert all(not gate.passed for gate in merged_gates([], [], set(), LIMITS))
    assert not gate_report([], LIMITS)["passed"]


def harmful(make_sample, completion=WRONG, category="LLM01", n=5):
    return [
        make_sample(completion, "harmful_flip", category=category, id=f"{category}/{completion}/{k}") for k in range(n)
    ]


def test_harmful_set(make_sample):
    good = harmful(make_sample) + harmful(make_sample, category="LLM02")
    assert failed(harmful_gates(good, LIMITS)) == set()
    assert failed(harmful_gates(harmful(make_sample), LIMITS)) == {"harmful: categories", "harmful: largest category"}


def test_outcomes_are_recomputed(make_sample):
    """Rows that claim to be flips and are not."""
    fakes = [
        {**row, "outcome": "attack_success"}
        for row in harmful(make_sample, RIGHT) + harmful(make_sample, RIGHT, "LLM02")
    ]
    assert "harmful: attack succeeded" in failed(harmful_gates(fakes, LIMITS))


def test_recorded_share(make_sample):
    rows = harmful(make_sample) + harmful(make_sample, category="LLM02")
    for row in rows:
        row["provenance"] = {**row["provenance"], "completion_source": "recorded"}
    assert failed(harmful_gates(rows, LIMITS)) == {"harmful: recorded, not sampled"}
    assert failed(harmful_gates(rows, dataclasses.replace(LIMITS, max_recorded=1.0))) == set()


def test_retain_set(make_sample):
    good = [
        make_sample(RIGHT, "adversarial_safe"),
        make_sample(REFUSAL, "refusal"),
        make_sample(TEXT, "general_conversation"),
    ]
    assert failed(retain_gates(good, LIMITS)) == set()
    assert failed(retain_gates(good, Thresholds())) == {"retain: adversarial-safe rows"}
    assert failed(retain_gates(good[:1], LIMITS)) == {"retain: refusals", "retain: classes"}
    assert "retain: attack succeeded" in failed(retain_gates([*good, make_sample(WRONG, "refusal")], LIMITS))


def test_sources():
    verdicts = {"compromised": 45, "resisted": 45, "attempted": 10, "not_exposed": 500}
    assert failed(source_gates({"agentdojo": {"verdicts": verdicts}}, LIMITS)) == set()
    assert failed(source_gates({"agentdojo": {"verdicts": {**verdicts, "attempted": 11}}}, LIMITS))
    assert failed(source_gates({"agentdojo": {"verdicts": {"benign_success": 5}}}, LIMITS))
    assert source_gates({"xstest": {"verdicts": {}}}, LIMITS) == []


def test_merged(make_sample):
    train = [make_sample(WRONG, "harmful_flip", id="0")]
    train += [make_sample(RIGHT, "adversarial_safe", id=str(k)) for k in range(1, 5)]
    evaluation = [make_sample(RIGHT, "adversarial_safe", id="e", group="other", split="eval")]
    assert failed(merged_gates(train, evaluation, {"third"}, LIMITS)) == set()
    assert failed(merged_gates(train[:4], evaluation, set(), LIMITS)) == {"merged: Dr rows for each Ds row"}
    assert failed(merged_gates(train, evaluation + train[-1:], set(), LIMITS)) == {
        "merged: repeated ids",
        "merged: groups in train and eval",
    }
    assert failed(merged_gates(train, evaluation, {train[0]["group"]}, LIMITS)) == {"merged: groups in train and eval"}


def test_agentharm_is_never_trained_on(make_sample):
    row = make_sample(REFUSAL, "refusal")
    row["provenance"] = {**row["provenance"], "source_dataset": "agentharm"}
    assert "merged: AgentHarm rows" in failed(merged_gates([row], [], set(), LIMITS))


def test_report_lists_lowered_thresholds():
    report = gate_report([at_least("x", 1, 1, 1)], dataclasses.replace(Thresholds(), max_recorded=1.0))
    assert report["passed"]
    assert report["thresholds_changed_by_recipe"] == {"max_recorded": {"default": 0.5, "used": 1.0}}
