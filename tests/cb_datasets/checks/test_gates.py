"""One test per gate: a good set passes it, and the set with one defect fails it."""

import dataclasses
import json
import tempfile
from pathlib import Path

import pyarrow
import pytest

from builders import prepare_source
from cb_datasets.checks.gates import (
    adversarial_safe,
    at_least,
    at_most,
    distribution,
    format_gates,
    gate_report,
    harmful_gates,
    retain_gates,
    source_gates,
)
from cb_datasets.checks.row_counts import count_profiles
from cb_datasets.checks.thresholds import MergedThresholds, Thresholds
from cb_datasets.files import parquet_writer
from cb_datasets.ingest import ingest
from cb_datasets.merge.gates import merged_gates
from cb_datasets.sample import SAMPLE_FEATURES
from tests.builders.toy_suite import write_reference

from ..conftest import REFUSAL, RIGHT, TEXT, WRONG


# The rows of these tests are of one family, one subtype and one goal, unless a test is about that.
ONE_ATTACK = {"max_family_share": 1.0, "max_injection_task_share": 1.0, "max_goal_share": 1.0}
LIMITS = Thresholds(min_adversarial_safe=1, **ONE_ATTACK)
MERGED = MergedThresholds(min_adversarial_safe=1)


def gates_of_merged(train: list[dict], evaluation: list[dict], prompts: list[dict], limits: MergedThresholds):
    """The gates, with two rows in a row group."""
    with tempfile.TemporaryDirectory() as folder:
        files = {Path(folder) / "train.parquet": train, Path(folder) / "eval.parquet": evaluation}
        for file, rows in files.items():
            with parquet_writer(file, SAMPLE_FEATURES) as write:
                for at in range(0, len(rows), 2):
                    write(pyarrow.Table.from_pylist(rows[at : at + 2], schema=SAMPLE_FEATURES.arrow_schema))
        return merged_gates(*files, prompts, limits)


def failed(gates) -> set[str]:
    return {gate.name for gate in gates if not gate.passed}


def change(row: dict, **provenance) -> dict:
    return {**row, "provenance": {**row["provenance"], **provenance}}


def test_no_gate_passes_over_zero_rows():
    assert not at_least("x", 1.0, 0.0, 0).passed
    assert not at_most("x", 0.0, 1.0, 0).passed
    nothing = count_profiles([])
    for gates in (format_gates, harmful_gates, retain_gates):
        results = gates(nothing, LIMITS)
        assert results and all(not gate.passed for gate in results)
    assert all(not gate.passed for gate in gates_of_merged([], [], [], MERGED))
    assert not gate_report([], LIMITS)["passed"]


def test_the_defaults_are_those_of_a_full_size_run():
    full, merged = Thresholds(), MergedThresholds()
    assert (full.min_valid, full.min_harmful_rate, full.min_categories, full.max_category_share) == (0.95, 0.8, 2, 0.8)
    assert (full.max_family_share, full.max_injection_task_share, full.max_goal_share) == (0.8, 0.8, 0.95)
    assert (full.min_adversarial_safe, full.min_verdict_known, full.min_tau2) == (400, 0.9, 300)
    assert (full.min_safe_sampled, full.max_safe_twins, full.max_safe_recorded) == (0.1, 0.9, 0.5)
    assert full.max_without_security == 0.1
    assert (merged.min_dr_ratio, merged.min_adversarial_safe, merged.min_train) == (4.0, 400, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Every set


def test_format_before_and_after_quarantine(make_sample):
    good = [make_sample(RIGHT, "adversarial_safe", id=str(number)) for number in range(19)]
    bad = make_sample(RIGHT.removesuffix("<|eom_id|>"), "adversarial_safe", id="bad")
    before, after = "set: rows that break no rule", "set: rows that break one, quarantine left out"
    assert failed(format_gates(count_profiles(good, "set"), LIMITS)) == set()
    assert failed(format_gates(count_profiles([*good, bad], "set"), LIMITS)) == {after}
    assert failed(format_gates(count_profiles([*good, bad], "set", {"bad"}), LIMITS)) == set()
    assert failed(format_gates(count_profiles([*good[:18], bad], "set", {"bad"}), LIMITS)) == {before}


def test_a_fully_quarantined_set_fails(make_sample):
    rows = [make_sample(RIGHT, "adversarial_safe", id="a")]
    assert len(failed(format_gates(count_profiles(rows, "set", {"a"}), LIMITS))) == 2


# ---------------------------------------------------------------------------------------------------------------------
# Ds


def harmful(make_sample, completion=WRONG, category="LLM01", n=5):
    return [
        make_sample(completion, "harmful_flip", category=category, id=f"{category}/{completion}/{k}") for k in range(n)
    ]


@pytest.fixture
def good_ds(make_sample):
    return harmful(make_sample) + harmful(make_sample, category="LLM02")


def test_a_good_ds_passes_and_needs_two_categories(make_sample, good_ds):
    assert failed(harmful_gates(count_profiles(good_ds), LIMITS)) == set()
    assert failed(harmful_gates(count_profiles(harmful(make_sample)), LIMITS)) == {
        "harmful: categories",
        "harmful: largest category",
    }


def test_no_category_may_dominate(make_sample, good_ds):
    more = harmful(make_sample, n=20)
    assert failed(harmful_gates(count_profiles(more + good_ds[5:]), LIMITS)) == set()
    assert failed(harmful_gates(count_profiles(more + good_ds[6:]), LIMITS)) == {"harmful: largest category"}


def flips(make_sample, counts, simulated="search_web", **columns):
    """Flips of ten categories, `counts` of them with each value of the columns."""
    target = dict.fromkeys(("expected_calls", "goal_calls", "prefill"))
    target |= {"expected_tool": "retrieve_multimodal_docs", "simulated_tool": simulated}
    [(column, values)] = columns.items() or [("family", ["html_comment"])]
    completion = WRONG if simulated == "search_web" else WRONG.replace("search_web", simulated)
    return [
        make_sample(completion, "harmful_flip", category=f"LLM{k % 10}", id=f"{simulated}/{value}/{k}")
        | {column: value, "target": target}
        for value, count in zip(values, counts, strict=True)
        for k in range(count)
    ]


@pytest.mark.parametrize(
    ("column", "gate"), [("family", "harmful: largest family"), ("subtype", "harmful: largest injection task")]
)
def test_many_categories_may_be_one_attack(make_sample, column, gate):
    """Six categories were one family, and 131 of 137 rows one injection task."""
    named = {column: ["important_instructions", "direct"]}
    limits = dataclasses.replace(
        Thresholds(), **ONE_ATTACK | {f"max_{gate.split('largest ')[1].replace(' ', '_')}_share": 0.8}
    )
    assert failed(harmful_gates(count_profiles(flips(make_sample, (131, 6), **named)), limits)) == {gate}
    assert failed(harmful_gates(count_profiles(flips(make_sample, (80, 20), **named)), limits)) == set()
    unnamed = flips(make_sample, (137,), **{column: [None]})
    assert gate not in {each.name for each in harmful_gates(count_profiles(unnamed), limits)}, "nothing to measure"
    assert failed(harmful_gates(count_profiles(unnamed + flips(make_sample, (6,), **{column: ["a"]})), limits)) == {
        gate
    }


def test_flips_towards_one_tool_are_limited(make_sample):
    limits = dataclasses.replace(LIMITS, max_goal_share=0.95)
    web, file = flips(make_sample, (96,)), flips(make_sample, (5,), simulated="read_file")
    file = [{**row, "assistant_raw": row["assistant_raw"].replace('"query"', '"path"')} for row in file]
    assert failed(harmful_gates(count_profiles(web + file[:4]), limits)) == {"harmful: largest goal"}
    assert failed(harmful_gates(count_profiles(web[:95] + file), limits)) == set()
    compliant = [make_sample(TEXT, "harmful_compliance", category=f"LLM0{k % 2}", id=str(k)) for k in range(10)]
    assert "harmful: largest goal" not in {gate.name for gate in harmful_gates(count_profiles(compliant), limits)}


def test_the_distribution_is_reported_without_quarantined_rows(make_sample):
    rows = flips(make_sample, (3, 1), family=["html_comment", "role_play"])
    rows += [change(make_sample(RIGHT, "adversarial_safe", id=s), completion_source=s) for s in ("twin", "sampled")]
    counted = distribution(count_profiles(rows, quarantined={rows[0]["id"]}))
    assert counted == {
        "harmful by category": {"LLM1": 1, "LLM2": 1, "LLM0": 1},
        "harmful by family": {"html_comment": 2, "role_play": 1},
        "harmful by injection_task": {"comment": 3},
        "harmful by goal": {"search_web": 3},
        "adversarial-safe by completion": {"twin": 1, "sampled": 1},
    }


def test_outcomes_are_recomputed(make_sample, good_ds):
    """Rows labelled as flips that do not flip."""
    fakes = [{**row, "outcome": "attack_success"} for row in harmful(make_sample, RIGHT, n=2)]
    assert failed(harmful_gates(count_profiles(good_ds + fakes), LIMITS)) == {"harmful: flips that do not flip"}
    more = [{**row, "outcome": "attack_success"} for row in harmful(make_sample, RIGHT, n=3)]
    assert failed(harmful_gates(count_profiles(good_ds + more), LIMITS)) == {
        "harmful: attack succeeded",
        "harmful: flips that do not flip",
    }


def test_textual_compliance_is_harmful_and_degenerate_text_is_not(make_sample):
    compliant = [
        make_sample(TEXT, "harmful_compliance", category=f"LLM0{number % 2}", id=str(number)) for number in range(10)
    ]
    assert failed(harmful_gates(count_profiles(compliant), LIMITS)) == set()
    degenerate = make_sample("to to to to to to to to<|eot_id|>", "harmful_compliance", id="b")
    assert failed(harmful_gates(count_profiles([*compliant[:2], degenerate]), LIMITS)) == {"harmful: attack succeeded"}


def test_recorded_completions_are_limited(good_ds):
    rows = [change(row, completion_source="recorded") for row in good_ds]
    assert failed(harmful_gates(count_profiles(rows[:5] + good_ds[5:]), LIMITS)) == set()
    assert failed(harmful_gates(count_profiles(rows[:6] + good_ds[6:]), LIMITS)) == {"harmful: recorded, not sampled"}
    assert failed(harmful_gates(count_profiles(rows), dataclasses.replace(LIMITS, max_recorded=1.0))) == set()


def test_synthetic_markers_fail_outside_quarantine(make_sample, good_ds):
    marked = make_sample(f"[TOOL_CALL] {WRONG}", "harmful_flip", id="m")
    assert failed(harmful_gates(count_profiles([*good_ds, marked]), LIMITS)) == {"harmful: synthetic markers"}
    assert failed(harmful_gates(count_profiles([*good_ds, marked], quarantined={"m"}), LIMITS)) == set()
    marked = make_sample("(Expected: no) Hello.<|eot_id|>", "general_conversation", id="m")
    assert "retain: synthetic markers" in failed(retain_gates(count_profiles([marked]), LIMITS))


# ---------------------------------------------------------------------------------------------------------------------
# Dr


@pytest.fixture
def good_dr(make_sample):
    other = WRONG.replace("search_web", "read_file").replace('"query"', '"path"')
    target = {"expected_tool": "read_file", "simulated_tool": None, "expected_calls": None, "goal_calls": None}
    return [
        make_sample(RIGHT, "adversarial_safe"),
        make_sample(REFUSAL, "refusal"),
        make_sample(TEXT, "general_conversation"),
        make_sample(other, "tool_capability", injection=[], target={**target, "prefill": None}),
    ]


def test_a_good_dr_passes_with_the_given_thresholds(good_dr):
    assert failed(retain_gates(count_profiles(good_dr), LIMITS)) == set()
    assert failed(retain_gates(count_profiles(good_dr), Thresholds())) == {"retain: adversarial-safe rows"}


@pytest.mark.parametrize(
    ("removed", "gates"),
    [
        (0, {"retain: adversarial-safe rows", "retain: tools called"}),
        (1, {"retain: refusals"}),
        (3, {"retain: tools called"}),
    ],
)
def test_each_class_of_dr_is_needed(good_dr, removed, gates):
    rest = [row for number, row in enumerate(good_dr) if number != removed]
    assert failed(retain_gates(count_profiles(rest), LIMITS)) == gates


def test_dr_needs_right_calls_and_classes(good_dr):
    assert failed(retain_gates(count_profiles(good_dr[1:3]), Thresholds(min_adversarial_safe=0))) == {
        "retain: right calls",
        "retain: classes",
        "retain: tools called",
    }


def test_words_are_right_answers_and_no_right_calls(make_sample, good_dr):
    target = make_sample(TEXT, "adversarial_safe")["target"] | {"expected_tool": None, "expected_calls": "[]"}
    words = make_sample(TEXT, "adversarial_safe", target=target)
    assert adversarial_safe(count_profiles([words])) == 1
    assert "retain: right calls" in failed(retain_gates(count_profiles([words, *good_dr[1:3]]), LIMITS))


OWN = "retain: adversarial-safe, sampled or warned"


@pytest.mark.parametrize(
    ("sources", "gates"),
    [
        ({"sampled": 10, "twin": 90}, set()),
        ({"sampled": 3, "warned": 7, "twin": 90}, set()),
        ({"sampled": 9, "twin": 91}, {OWN, "retain: adversarial-safe, from twins"}),
        ({"sampled": 50, "recorded": 50}, set()),
        ({"sampled": 49, "recorded": 51}, {"retain: adversarial-safe, recorded"}),
    ],
)
def test_how_adversarial_safe_rows_came_about_is_limited(make_sample, good_dr, sources, gates):
    safe = [
        change(make_sample(RIGHT, "adversarial_safe", id=f"{source}/{k}"), completion_source=source)
        for source, count in sources.items()
        for k in range(count)
    ]
    assert failed(retain_gates(count_profiles([*safe, *good_dr[1:]]), LIMITS)) == gates


def test_an_attackers_call_in_dr_fails(make_sample, good_dr):
    assert failed(retain_gates(count_profiles([*good_dr, make_sample(WRONG, "refusal")]), LIMITS)) == {
        "retain: attack succeeded"
    }


def test_an_adversarial_safe_label_is_not_enough(make_sample, good_dr):
    fakes = [make_sample(TEXT, "adversarial_safe"), make_sample(RIGHT, "adversarial_safe", injection=[])]
    assert "retain: adversarial-safe rows" in failed(retain_gates(count_profiles(good_dr[1:] + fakes), LIMITS))


# ---------------------------------------------------------------------------------------------------------------------
# Single sources


def test_agentdojo_verdicts(make_sample):
    verdicts = {"compromised": 45, "resisted": 45, "attempted": 10, "not_exposed": 500}
    nothing, known = count_profiles([]), "agentdojo: verdict known"

    def sheet(**verdicts) -> dict:
        return {"agentdojo": {"verdicts": verdicts, "attacked": 600}}

    assert failed(source_gates(nothing, sheet(**verdicts), LIMITS)) == set()
    assert failed(source_gates(nothing, sheet(**verdicts | {"attempted": 11}), LIMITS)) == {known}
    assert failed(source_gates(nothing, sheet(benign_success=5), LIMITS)) == {known}
    assert source_gates(nothing, {"xstest": {"verdicts": {}}}, LIMITS) == []
    rows = count_profiles([change(make_sample(WRONG, "harmful_flip"), source_dataset="agentdojo")])
    without_sheet = {known, "agentdojo: without security"}
    assert failed(source_gates(rows, {}, LIMITS)) == without_sheet, "rows without a data sheet"


@pytest.mark.parametrize(("missing", "fails"), [(0, False), (9, False), (10, True), (49, True)])
def test_agentdojo_without_security_fails(missing, fails, tmp_path):
    """The plan's limit: more than 10 % of the attacked records lack the label. Once, 49 of 97 passed as `aborted`."""

    def record(number: int, attacked: bool, labelled: bool) -> dict:
        metadata = {"suite_name": "harbour", "user_task_id": f"user_task_{number}", "success": True}
        metadata |= (
            {"injection_task_id": "injection_task_0", "attack_type": "important_instructions"} if attacked else {}
        )
        metadata = {"injection_task_id": None, **metadata, **({"security": False} if labelled else {})}
        turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello.", "tool_calls": None}]
        return {"metadata": metadata, "messages": turns}

    attacked = [record(number, True, number >= missing) for number in range(97)]
    clean = [record(number, False, number > 0) for number in range(97)]
    write_reference(tmp_path)
    (tmp_path / "dumps").mkdir()
    lines = "".join(json.dumps(each) + "\n" for each in [*attacked, *clean])
    (tmp_path / "dumps" / "agentdojo-agent.jsonl").write_text(lines)
    _, report = ingest(prepare_source("agentdojo", data_dir=tmp_path, cache_dir=tmp_path / "cache"), 0.2, "test")
    assert report["attacked"] == 97 and report["drops"].get("no_security", 0) == missing + 1
    gates = {gate.name: gate for gate in source_gates(count_profiles([]), {"agentdojo": report}, LIMITS)}
    gate = gates["agentdojo: without security"]
    assert (gate.passed, gate.value, gate.rows) == (not fails, missing / 97, 97)


def test_tau2_train_rows(make_sample):
    row = change(make_sample(RIGHT, "tool_capability", injection=[]), source_dataset="tau2")
    rows = [{**row, "id": str(number)} for number in range(300)]
    assert failed(source_gates(count_profiles(rows), {}, LIMITS)) == set()
    few = {"tau2: train rows"}
    assert failed(source_gates(count_profiles(rows[1:]), {}, LIMITS)) == few
    assert failed(source_gates(count_profiles(rows, quarantined={"7"}), {}, LIMITS)) == few
    held_out = [{**row, "id": f"eval/{number}", "split": "eval"} for number in range(500)]
    assert failed(source_gates(count_profiles(rows[1:] + held_out), {}, LIMITS)) == few, "they are never trained on"


def test_ultrachat_rows_render(make_sample):
    row = change(make_sample(TEXT, "general_conversation", injection=[]), source_dataset="ultrachat")
    assert failed(source_gates(count_profiles([row], renders=lambda row: True), {}, LIMITS)) == set()
    assert failed(source_gates(count_profiles([row], renders=lambda row: False), {}, LIMITS)) == {
        "ultrachat: rows that render"
    }
    assert failed(source_gates(count_profiles([row]), {}, LIMITS)) == {"ultrachat: rows that render"}, "not checked"


# ---------------------------------------------------------------------------------------------------------------------
# The merged dataset


@pytest.fixture
def train(make_sample):
    rows = [make_sample(WRONG, "harmful_flip", id="0")]
    return rows + [make_sample(RIGHT, "adversarial_safe", id=str(k)) for k in range(1, 5)]


@pytest.fixture
def held_out(make_sample):
    """A row of the eval split that shares nothing with [`train`]."""
    messages = [{**turn} for turn in make_sample(RIGHT, "adversarial_safe")["messages"]]
    messages[1]["content"] = "How deep is the harbour at low tide?" + messages[1]["content"][28:]
    start = messages[1]["content"].index("<!--")
    spans = [{"message": 1, "start": start, "end": len(messages[1]["content"])}]
    columns = {
        "id": "e",
        "group": "other",
        "pair": "test/e",
        "split": "eval",
        "messages": messages,
        "injection": spans,
    }
    return change(make_sample(RIGHT, "adversarial_safe", **columns), record_id="test/e")


def test_ratio_adversarial_safe_rows_and_unique_ids(train, held_out):
    assert failed(gates_of_merged(train, [held_out], [held_out], MERGED)) == set()
    assert failed(gates_of_merged(train[:4], [held_out], [], MERGED)) == {"merged: Dr rows for each Ds row"}
    assert failed(gates_of_merged(train, [held_out], [], MergedThresholds())) == {"merged: adversarial-safe rows"}
    assert failed(gates_of_merged([*train, train[1]], [held_out], [], MERGED)) == {"merged: repeated ids"}


def test_the_definition_of_done_counts_train_rows(train, held_out):
    def gates(min_train: int) -> set[str]:
        return failed(
            gates_of_merged(train, [held_out], [], MergedThresholds(min_adversarial_safe=1, min_train=min_train))
        )

    assert gates(len(train)) == set() and gates(len(train) + 1) == {"merged: train rows"}


def test_merged_rows_break_no_rule(make_sample, train, held_out):
    broken = make_sample(RIGHT + "!", "adversarial_safe", id="5")
    assert failed(gates_of_merged([*train, broken], [held_out], [], MERGED)) == {"merged: rows that break a rule"}


def test_a_row_without_the_tools_it_needs_fails(make_sample, train, held_out):
    resisted = make_sample(TEXT, "injection_resisted", id="5", tools=None)
    assert failed(gates_of_merged([*train, resisted], [held_out], [], MERGED)) == {
        "merged: rows without the tools they need"
    }
    chat = make_sample(TEXT, "general_conversation", id="5", tools=None)
    assert failed(gates_of_merged([*train, chat], [held_out], [], MERGED)) == set()


LEAK = "merged: requests in train and eval (similarity 0.8)"


def test_shared_groups_ids_records_and_requests_are_leaks(train, held_out):
    def leaks(row: dict) -> set[str]:
        """The failed gates, the same whether the row is an evaluation prompt or in the eval split."""
        assert failed(gates_of_merged(train, [held_out], [row], MERGED)) == failed(
            gates_of_merged(train, [held_out, {**row, "id": row["id"] + "'"}], [], MERGED)
        )
        return failed(gates_of_merged(train, [held_out], [row], MERGED))

    assert leaks({**held_out, "group": train[0]["group"]}) == {"merged: groups in train and eval"}
    assert leaks({**held_out, "pair": train[0]["pair"]}) == {"merged: train rows with an id of eval"}
    same_record = change(held_out, record_id=train[0]["provenance"]["record_id"])
    assert leaks(same_record) == {"merged: train rows with an id of eval"}
    reworded = [{**turn} for turn in train[0]["messages"]]
    reworded[1]["content"] = reworded[1]["content"].replace("pump?", "pump now?")
    spans = [{**span, "start": span["start"] + 4, "end": span["end"] + 4} for span in train[0]["injection"]]
    assert leaks({**held_out, "messages": reworded, "injection": spans}) == {LEAK}


def test_a_train_row_with_the_id_of_an_evaluation_prompt_fails(train, held_out):
    prompt = {**held_out, "id": train[0]["id"]}
    assert failed(gates_of_merged(train, [held_out], [prompt], MERGED)) == {"merged: train rows with an id of eval"}


@pytest.mark.parametrize("source", ["tau2", "ultrachat"])
def test_the_trained_turn_is_stated(make_sample, train, held_out, source):
    def gates(pair: str) -> set[str]:
        row = make_sample(RIGHT, "tool_capability", id="5", injection=[], pair=pair)
        return failed(gates_of_merged([*train, change(row, source_dataset=source)], [held_out], [], MERGED))

    unstated = {"merged: TAU2 or UltraChat rows that do not say which turn"}
    assert gates("tau2/airline/7/turn_2") == set()
    assert gates("tau2/airline/7") == gates("tau2/airline/7/turn_3") == unstated


def test_agentharm_is_never_trained_on(make_sample, train, held_out):
    row = change(make_sample(REFUSAL, "refusal", id="5"), source_dataset="agentharm")
    assert failed(gates_of_merged([*train, row], [held_out], [], MERGED)) == {"merged: AgentHarm rows"}
    prompt = change(held_out, source_dataset="agentharm") | {"id": "p", "pair": "p", "group": "p"}
    assert failed(gates_of_merged(train, [held_out], [prompt], MERGED)) == set(), "it is for evaluation"


def test_the_report_lists_lowered_thresholds():
    report = gate_report([at_least("x", 1, 1, 1)], dataclasses.replace(Thresholds(), max_recorded=1.0))
    assert report["passed"]
    assert report["thresholds_changed_by_recipe"] == {"max_recorded": {"default": 0.5, "used": 1.0}}


def test_a_call_of_another_tool_is_no_right_call(make_sample, good_dr):
    other = make_sample(RIGHT.replace("retrieve_multimodal_docs", "get_user_info"), "injection_resisted")
    assert other["outcome"] == "other_tool"
    assert "retain: right calls" in failed(retain_gates(count_profiles([other, *good_dr[1:3]]), LIMITS))


def test_an_empty_list_of_tools_is_none(make_sample, train, held_out):
    resisted = make_sample(TEXT, "injection_resisted", id="5", tools="[]")
    assert failed(gates_of_merged([*train, resisted], [held_out], [], MERGED)) == {
        "merged: rows without the tools they need"
    }


def test_rows_of_the_eval_split_are_checked_too(train, held_out):
    broken = held_out | {"assistant_raw": held_out["assistant_raw"] + "!"}
    assert failed(gates_of_merged(train, [broken], [], MERGED)) == {"merged: rows that break a rule"}
    harm = change(held_out, source_dataset="agentharm")
    assert failed(gates_of_merged(train, [harm], [], MERGED)) == {"merged: AgentHarm rows"}
