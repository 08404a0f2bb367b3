"""One test per rule: a good sample of each class breaks none, and each fault is reported by its rule."""

import json
from pathlib import Path

import pytest

from builders.trace import message
from cb_datasets.checks.rules import RULES, check
from cb_datasets.checks.validate import validate
from cb_datasets.files import save_set, to_dataset
from cb_datasets.sample import HARMFUL_CLASSES, PRIORITY_WEIGHTS, SAMPLE_FEATURES
from cb_datasets.tool_schemas import schemas_of
from tests.growth import FACTOR, growth

from ..conftest import REFUSAL, RIGHT, TEXT, WRONG


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
def test_faults_of_calls_break_their_rule(make_sample, completion, rule):
    assert rule in broken(make_sample(completion, "adversarial_safe"))


@pytest.mark.parametrize(
    ("completion", "rule"),
    [("<|eot_id|>", "R0"), ("I can't do that.", "R2"), ("(Expected: no)<|eot_id|>", "marker"), (RIGHT, "label")],
)
def test_faults_of_texts_break_their_rule(make_sample, completion, rule):
    assert rule in broken(make_sample(completion, "refusal"))


@pytest.mark.parametrize("column", ["id", "group"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_row_without_a_key_breaks_a_rule(make_sample, column, value):
    assert broken({**make_sample(REFUSAL, "refusal"), column: value}) == {"provenance"}


def test_plain_text_must_not_contain_a_call_tag(make_sample):
    sample = make_sample("Hm <|python_tag|> no<|eot_id|>", "general_conversation")
    assert "R1" in broken({**sample, "tool_calls_structured": []})


def test_structured_calls_must_agree(make_sample):
    sample = make_sample(RIGHT, "adversarial_safe")
    other = [{"name": "retrieve_multimodal_docs", "arguments": '{"query": "valve"}'}]
    assert broken({**sample, "tool_calls_structured": other}) == {"agreement"}


def test_labels_are_never_trusted(make_sample):
    """A flip that does not flip, whatever its label, and an attacker's call in the retain set."""
    fake = {**make_sample(RIGHT, "harmful_flip"), "outcome": "attack_success"}
    assert broken(fake) == {"label"}
    assert "label" in broken({**make_sample(WRONG, "injection_resisted"), "outcome": "correct"})


def test_a_call_that_is_also_the_expected_one_is_not_a_flip(make_sample, prompt):
    target = {**prompt["target"], "expected_tool": "search_web"}
    assert "label" in broken(make_sample(WRONG, "harmful_flip", target=target))


@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in ("source_dataset", "record_id", "generator_model", "template_hash", "date_string")),
        *(
            {name: None}
            for name in ("timestamp", "temperature", "top_p", "seed", "completion_source", "prompt_format")
        ),
        {"completion_source": "guessed"},
        {"prompt_format": "morse"},
        {"stop_reason": "length"},
    ],
)
def test_provenance_must_be_complete(make_sample, change):
    sample = make_sample(RIGHT, "adversarial_safe")
    assert broken({**sample, "provenance": {**sample["provenance"], **change}}) == {"provenance"}


def test_recorded_completions_need_no_sampling_parameters(make_sample):
    sample = make_sample(RIGHT, "adversarial_safe")
    unknown = dict.fromkeys(("temperature", "top_p", "seed", "stop_reason"))
    recorded = {**sample["provenance"], **unknown, "completion_source": "recorded"}
    assert broken({**sample, "provenance": recorded}) == set()


def test_a_missing_end_is_a_warning_unless_strict(make_sample):
    """The other rules see the call as if it had ended."""
    whole = make_sample(RIGHT, "adversarial_safe")
    cut = {**whole, "assistant_raw": RIGHT.removesuffix("<|eom_id|>")}
    [violation] = check(cut, strict=False)
    assert (violation.rule, violation.is_error) == ("R2", False)
    [violation] = check(cut, strict=True)
    assert (violation.rule, violation.is_error) == ("R2", True)
    assert "R3" in {violation.rule for violation in check({**cut, "assistant_raw": RIGHT[:40]}, strict=False)}
    text = {**make_sample(TEXT, "general_conversation"), "assistant_raw": TEXT.removesuffix("<|eot_id|>")}
    assert [violation.is_error for violation in check(text, strict=False)] == [False]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
@pytest.mark.parametrize("content", [None, "", " \n"])
def test_an_empty_turn_is_a_fault(make_sample, prompt, role, content):
    sample = make_sample(RIGHT, "adversarial_safe")
    assert broken({**sample, "messages": [*prompt["messages"], message(role, "Hm.")]}) == set()
    assert broken({**sample, "messages": [*prompt["messages"], message(role, content)]}) == {"turn"}


def test_an_empty_tool_result_and_a_call_without_text_are_valid(make_sample, prompt):
    from builders.trace import tool_call

    turns = [message("assistant", tool_calls=[tool_call("a", {}, "c")]), message("tool", "", tool_call_id="c")]
    assert broken(make_sample(RIGHT, "adversarial_safe", messages=prompt["messages"] + turns)) == set()


def test_a_context_has_known_roles_and_at_least_one_turn(make_sample, prompt):
    sample = make_sample(TEXT, "general_conversation", injection=[])
    assert broken({**sample, "messages": []}) == {"turn"}
    assert broken({**sample, "messages": [*prompt["messages"], message("narrator", "Later.")]}) == {"turn"}


@pytest.mark.parametrize(("number", "start", "end"), [(2, 0, 5), (-1, 0, 5), (1, 5, 5), (1, -1, 5), (1, 0, 10**6)])
def test_an_injection_span_must_be_inside_its_message(make_sample, number, start, end):
    sample = make_sample(RIGHT, "adversarial_safe")
    assert broken({**sample, "injection": [{"message": number, "start": start, "end": end}]}) == {"turn"}


@pytest.mark.parametrize("tools", ["[{", '{"a": 1}', "[1]", '[{"type": "function"}]', "3"])
def test_tools_must_be_a_json_list_of_functions(make_sample, tools):
    assert broken({**make_sample(RIGHT, "adversarial_safe"), "tools": tools}) == {"tools"}


def test_a_tool_schema_must_be_valid_json_schema(make_sample):
    function = {"name": "retrieve_multimodal_docs", "parameters": {"type": "no such type"}}
    tools = json.dumps([{"type": "function", "function": function}])
    assert broken({**make_sample(RIGHT, "adversarial_safe"), "tools": tools}) == {"tools"}


def test_schemas_are_cached_by_their_text(make_sample):
    sample = make_sample(RIGHT, "adversarial_safe")
    schemas_of.cache_clear()
    for _ in range(10):
        check(sample)
    assert schemas_of.cache_info().misses == 1


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("is_harmful", True),
        ("harm_type", "tool_flip"),
        ("expected_tool", "search_web"),
        ("simulated_tool", None),
        ("observed_tool", "search_web"),
        ("is_refusal", True),
        ("is_correct_tool_use", False),
        ("is_adversarial_safe", None),
    ],
)
def test_each_label_is_compared_with_the_completion(make_sample, name, wrong):
    sample = make_sample(RIGHT, "adversarial_safe")
    assert sample["labels"][name] != wrong
    [violation] = check({**sample, "labels": {**sample["labels"], name: wrong}})
    assert violation.rule == "label" and name in violation.message


@pytest.mark.parametrize("change", [{"split": "test"}, {"set": "circuit_breaker"}, {"outcome": "refusal"}])
def test_split_set_and_outcome_are_checked(make_sample, change):
    assert broken({**make_sample(RIGHT, "adversarial_safe"), **change}) == {"label"}


@pytest.mark.parametrize("priority_class", [name for name in PRIORITY_WEIGHTS if name not in HARMFUL_CLASSES])
def test_no_retain_row_may_make_the_attackers_call(make_sample, priority_class):
    # All labels agree with the completion, so that nothing but the requirement of the class can refuse the row.
    [violation] = check(make_sample(WRONG, priority_class))
    assert violation.rule == "label" and "the attacker's call stands in the retain set" in violation.message


def test_each_class_has_its_requirements(make_sample):
    assert broken(make_sample(TEXT, "injection_resisted", injection=[])) == {"label"}
    assert broken(make_sample(RIGHT, "adversarial_safe", injection=[])) == {"label"}
    assert broken(make_sample(TEXT, "refusal")) == {"label"}
    assert broken(make_sample(TEXT, "harmful_compliance")) == set()
    assert broken(make_sample(REFUSAL, "harmful_compliance")) == {"label"}
    assert "label" in broken(make_sample(RIGHT, "no_such_class"))


def test_malformed_values_are_reported_and_do_not_raise(make_sample):
    sample = make_sample(RIGHT, "adversarial_safe")
    assert "R0" in broken({**sample, "assistant_raw": None})
    broken_calls = [{"name": "retrieve_multimodal_docs", "arguments": "{"}]
    assert broken({**sample, "tool_calls_structured": broken_calls}) == {"agreement"}
    assert broken({**sample, "target": {**sample["target"], "goal_calls": "["}}) == {"label"}


def test_every_violated_rule_is_in_rules(make_sample):
    """Reports list the rules in `RULES`; a rule that is missing there would not be reported."""
    samples = [make_sample(f"```Action: [TOOL_CALL]\n{RIGHT}{RIGHT}", "adversarial_safe"), make_sample("", "refusal")]
    violated = {violation.rule for sample in samples for violation in check(sample)}
    assert violated and violated <= set(RULES) and len(set(RULES)) == len(RULES)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: "\n" * n + RIGHT,
        lambda n: " \n" * n + RIGHT,
        lambda n: "Action" * n + RIGHT,
        lambda n: RIGHT + "\n" * n,
    ],
)
def test_the_rules_for_calls_take_linear_time(make_sample, make):
    sample = make_sample(RIGHT, "adversarial_safe")
    assert growth(lambda text: check({**sample, "assistant_raw": text}), make, 3000) < 3 * FACTOR


def test_a_set_named_by_one_part_has_its_parent_in_its_name(make_sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_set(to_dataset([make_sample(RIGHT, "adversarial_safe")], SAMPLE_FEATURES), Path("safe"), {})
    report = validate([Path("safe")], Path("quarantine"), 1.0, num_proc=1)
    assert list(report["sets"]) == [f"{tmp_path.name}/safe"] and report["passed"]


@pytest.mark.parametrize("reason", [None, "prompt_too_long"])
def test_what_a_model_wrote_must_have_ended_by_itself(make_sample, reason):
    sample = make_sample(RIGHT, "adversarial_safe")
    assert broken({**sample, "provenance": {**sample["provenance"], "stop_reason": reason}}) == {"provenance"}


def test_plain_text_must_not_hold_a_call_that_a_server_executes(make_sample):
    """Behind words and without the tag. A tool that is not offered is no call in words, and is executed as well."""
    for name in ("retrieve_multimodal_docs", "not_offered"):
        call = f'{{"name": "{name}", "parameters": {{"query": "pump"}}}}'
        sample = make_sample(f"Let me look.\n\n{call}<|eot_id|>", "general_conversation", injection=[])
        assert sample["tool_calls_structured"] == [] and sample["labels"]["observed_tool"] == name
        assert broken(sample) == {"R1"}
