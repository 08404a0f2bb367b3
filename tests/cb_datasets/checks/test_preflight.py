"""Preflight: a good row of each kind passes, and each fault is named, on the real Llama 3.1 tokenizer."""

import copy

import pytest

from builders.fujitsu import B4_STANDARD
from builders.trace import message
from cb_datasets import chat
from cb_datasets.chat import EncodedSample, template_hash
from cb_datasets.checks import preflight as preflight_module
from cb_datasets.checks.preflight import histogram, preflight
from cb_datasets.checks.show_tokens import show_tokens

from ..conftest import INJECTION, REFUSAL, RIGHT, TEXT, WRONG


@pytest.fixture
def row(make_sample, llama_tokenizer):
    """A row made for this tokenizer: `row(completion, class, ...)`."""

    def make(completion: str = RIGHT, priority_class: str = "adversarial_safe", **columns) -> dict:
        sample = make_sample(completion, priority_class, **columns)
        return {**sample, "provenance": {**sample["provenance"], "template_hash": template_hash(llama_tokenizer)}}

    return make


@pytest.fixture
def found(llama_tokenizer):
    """Names of the faults of one row."""

    def run(sample: dict, max_length: int = 8192, asset: dict | None = None, strict: bool = False) -> set[str]:
        report = preflight([sample], llama_tokenizer, max_length, asset, strict)
        assert report["passed"] == (not report["faults"])
        assert all(report["examples"][fault] == [sample["id"]] for fault in report["faults"])
        return set(report["faults"])

    return run


@pytest.mark.parametrize(
    ("completion", "priority_class"),
    [(RIGHT, "adversarial_safe"), (WRONG, "harmful_flip"), (REFUSAL, "refusal"), (TEXT, "general_conversation")],
)
def test_good_rows_pass(row, llama_tokenizer, completion, priority_class):
    report = preflight([row(completion, priority_class)], llama_tokenizer, 8192, B4_STANDARD, strict=True)
    assert report["passed"] and report["faults"] == {} and report["warnings"] == {}
    assert report["tokens"]["max"] > 1000 and report["completion_tokens"]["max"] < 30
    assert sum(report["histogram"].values()) == 1


def test_nothing_has_passed_without_rows(llama_tokenizer):
    assert not preflight([], llama_tokenizer, 8192)["passed"]


def test_a_row_that_is_too_long(row, found):
    assert found(row(), max_length=100) == {"too_long"}


def test_a_row_without_a_completion(row, found):
    assert found({**row(), "assistant_raw": ""}) == {"empty_mask", "end_token_not_once_and_last"}


@pytest.mark.parametrize("completion", [RIGHT[:-10], RIGHT + "<|eot_id|>", f"<|eot_id|>{RIGHT}", RIGHT + "\n"])
def test_the_end_token_stands_once_and_last(row, found, completion):
    assert found({**row(), "assistant_raw": completion}) == {"end_token_not_once_and_last"}


def test_the_mask_must_decode_to_the_completion(row, found, monkeypatch):
    """Were the boundary guessed, by one token for instance, the mask would say something else."""
    assert found(row()) == set()
    monkeypatch.setattr(EncodedSample, "prompt_length", property(lambda sample: len(sample.prompt.ids) - 1))
    assert found(row()) == {"mask_is_not_the_completion"}


def test_preflight_and_training_see_the_same_tokens(row, llama_tokenizer, monkeypatch):
    """Preflight says what training will do because both encode a row by one function."""
    from trainers.augment import Augmentation
    from trainers.tokenize_rows import prepare_row

    sample, seen = row(), []
    encode = chat.encode_sample

    def watched(*arguments):
        seen.append(encode(*arguments))
        return seen[-1]

    monkeypatch.setattr(chat, "encode_sample", watched)
    monkeypatch.setattr(preflight_module, "encode_sample", watched)
    report = preflight([sample], llama_tokenizer, 8192)
    prepared = prepare_row(sample, llama_tokenizer, {}, Augmentation(seed=0))
    checked, trained = seen
    assert checked == trained
    assert prepared["input_ids"] == checked.ids and prepared["prompt_length"] == checked.prompt_length
    assert report["tokens"]["max"] == prepared["num_tokens"]


def test_rows_of_another_model(row, found):
    sample = row()
    other = {**sample, "provenance": {**sample["provenance"], "template_hash": "0" * 12}}
    assert found(other) == {"template_of_another_model"}
    other = {**sample, "provenance": {**sample["provenance"], "prompt_format": "hermes"}}
    assert found(other) == {"format_of_another_model"}


def test_tools_must_be_json(row, found):
    assert found({**row(), "tools": "[{"}) == {"tools_not_json"}
    assert found({**row(), "tools": '{"a": 1}'}) == {"tools_not_json"}
    assert found(row(TEXT, "general_conversation", tools=None)) == set()


def test_b4_rows_carry_the_asset_to_the_letter(row, found):
    assert found(row(), asset=B4_STANDARD) == set()
    assert found(row(), asset={**B4_STANDARD, "tools": B4_STANDARD["tools"][1:]}) == {"tool_schema_differs"}
    assert found(row(), asset={**B4_STANDARD, "system_prompt": "Obey."}) == {"tool_schema_differs"}
    assert found(row(task="agentdojo"), asset={**B4_STANDARD, "tools": []}) == set(), "other rows have other tools"


def test_the_injection_must_be_in_the_prompt(row, found, prompt):
    messages = [prompt["messages"][0], message("user", " " * 30 + INJECTION)]
    assert found(row(messages=messages, injection=[{"message": 1, "start": 30, "end": 30 + len(INJECTION)}])) == set()
    assert found(row(messages=messages, injection=[{"message": 1, "start": 0, "end": 20}])) == {
        "injection_not_in_prompt"
    }, "blanks, which the template trims"


def test_a_row_that_the_template_refuses(row, found):
    assert found(row(messages=[message("system", "Help.")])) == {"does_not_render"}


def test_a_control_token_that_somebody_wrote_is_a_warning(row, found, llama_tokenizer, prompt):
    messages = [prompt["messages"][0], message("user", f"Hm <|eot_id|> hm\n\n{INJECTION}")]
    spans = [{"message": 1, "start": 18, "end": 18 + len(INJECTION)}]
    sample = row(messages=messages, injection=spans)
    assert preflight([sample], llama_tokenizer, 8192)["warnings"] == {"control_tokens_in_messages": 1}
    assert found(sample) == set()
    assert found(sample, strict=True) == {"control_tokens_in_messages"}


def test_the_prompt_must_end_with_the_assistants_header(row, llama_tokenizer, monkeypatch):
    """A template that ignores `add_generation_prompt` leaves the model in the middle of nowhere."""
    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.chat_template = "{{ bos_token }}{{ messages[-1].content }}<|eot_id|>{# <|eom_id|> #}"
    faults = preflight([row()], tokenizer, 8192)["faults"]
    assert set(faults) == {"no_assistant_header", "template_of_another_model"}
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert "bos_not_once" in preflight([row()], tokenizer, 8192)["faults"]


def test_without_a_tokenizer_only_the_tools_are_looked_at(row):
    report = preflight([row(), {**row(), "tools": "no"}], None, 8192)
    assert report["faults"] == {"tools_not_json": 1} and report["tokenizer"] is None


def test_histogram_has_no_gaps():
    assert histogram([10, 511, 512, 1600]) == {"0-511": 2, "512-1023": 1, "1024-1535": 0, "1536-2047": 1}
    assert histogram([]) == {}


def test_a_shown_sample_marks_what_is_trained_on(row, llama_tokenizer):
    text = show_tokens(row(), llama_tokenizer)
    shown = text.plain
    assert "[[<|python_tag|>|{" in shown and shown.count("|") > 10
    inside = shown[shown.index("[[") + 2 : shown.index("]]")]
    assert inside.replace("|python_tag|", "\0").replace("|eom_id|", "\1").replace("|", "") == RIGHT.replace(
        "|python_tag|", "\0"
    ).replace("|eom_id|", "\1")
    yellow = [shown[span.start : span.end] for span in text.spans if "yellow" in str(span.style)]
    assert len(yellow) == 1 and INJECTION in yellow[0]
    assert "with loss" in shown
