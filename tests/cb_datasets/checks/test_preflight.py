"""Preflight with the real Llama 3.1 tokenizer: a good row of each class passes, and each fault is named."""

import copy

import pytest

from builders.fujitsu import B4_STANDARD
from builders.trace import message
from cb_datasets import chat
from cb_datasets.chat import EncodedSample
from cb_datasets.checks import preflight as preflight_module
from cb_datasets.checks.preflight import histogram, preflight
from cb_datasets.checks.show_tokens import show_tokens
from cb_datasets.template_probe import template_hash

from ..conftest import INJECTION, REFUSAL, RIGHT, TEXT, WRONG


@pytest.fixture
def row(make_sample, llama_tokenizer):
    """`row(completion, class, ...)`: a row whose provenance names this tokenizer's template."""

    def make(completion: str = RIGHT, priority_class: str = "adversarial_safe", **columns) -> dict:
        sample = make_sample(completion, priority_class, **columns)
        return {**sample, "provenance": {**sample["provenance"], "template_hash": template_hash(llama_tokenizer)}}

    return make


@pytest.fixture
def faults_of(llama_tokenizer):
    """`faults_of(row, ...)`: names of the faults of one row."""

    def run(sample: dict, max_length: int = 8192, asset: dict | None = None) -> set[str]:
        report = preflight([sample], llama_tokenizer, max_length, asset)
        assert report["passed"] == (not report["faults"])
        assert all(report["examples"][fault] == [sample["id"]] for fault in report["faults"])
        return set(report["faults"])

    return run


@pytest.mark.parametrize(
    ("completion", "priority_class"),
    [(RIGHT, "adversarial_safe"), (WRONG, "harmful_flip"), (REFUSAL, "refusal"), (TEXT, "general_conversation")],
)
def test_good_rows_pass(row, llama_tokenizer, completion, priority_class):
    report = preflight([row(completion, priority_class)], llama_tokenizer, 8192, B4_STANDARD)
    assert report["passed"] and report["faults"] == {} and report["spell_control_tokens"] == {}
    assert report["tokens"]["max"] > 1000 and report["completion_tokens"]["max"] < 30
    assert sum(report["histogram"].values()) == 1


def test_zero_rows_do_not_pass(llama_tokenizer):
    assert not preflight([], llama_tokenizer, 8192)["passed"]


def test_a_row_that_is_too_long(row, faults_of):
    assert faults_of(row(), max_length=100) == {"too_long"}


def test_a_row_without_a_completion(row, faults_of):
    assert faults_of({**row(), "assistant_raw": ""}) == {"no_completion"}


@pytest.mark.parametrize("completion", [RIGHT[:-10], RIGHT + "<|eot_id|>", f"<|eot_id|>{RIGHT}", RIGHT + "\n"])
def test_the_end_token_occurs_once_and_last(row, faults_of, completion):
    assert faults_of({**row(), "assistant_raw": completion}) == {"end_token_not_once_and_last"}


def test_the_mask_must_decode_to_the_completion(row, faults_of, monkeypatch):
    """A prompt boundary that is off by one token gives a mask that is not the completion."""
    assert faults_of(row()) == set()
    monkeypatch.setattr(EncodedSample, "prompt_length", property(lambda sample: len(sample.prompt.ids) - 1))
    assert faults_of(row()) == {"mask_is_not_the_completion"}


def test_preflight_and_training_see_the_same_tokens(row, llama_tokenizer, monkeypatch):
    """Both encode a row with the same function."""
    from trainers.augment import Augmentation
    from trainers.tokenize_rows import prepare_row

    sample, encoded = row(), []
    encode = chat.encode_sample

    def recording(*arguments):
        encoded.append(encode(*arguments))
        return encoded[-1]

    monkeypatch.setattr(chat, "encode_sample", recording)
    monkeypatch.setattr(preflight_module, "encode_sample", recording)
    report = preflight([sample], llama_tokenizer, 8192)
    prepared = prepare_row(sample, llama_tokenizer, {}, Augmentation(seed=0))
    checked, trained = encoded
    assert checked == trained
    assert prepared["input_ids"] == checked.ids and prepared["prompt_length"] == checked.prompt_length
    assert report["tokens"]["max"] == prepared["num_tokens"]


def test_template_and_format_must_be_the_targets(row, faults_of):
    sample = row()
    other = {**sample, "provenance": {**sample["provenance"], "template_hash": "0" * 12}}
    assert faults_of(other) == {"template_of_another_model"}
    other = {**sample, "provenance": {**sample["provenance"], "prompt_format": "hermes"}}
    assert faults_of(other) == {"format_of_another_model"}


def test_tools_must_be_json(row, faults_of):
    assert faults_of({**row(), "tools": "[{"}) == {"tools_not_json"}
    assert faults_of({**row(), "tools": '{"a": 1}'}) == {"tools_not_json"}
    assert faults_of(row(TEXT, "general_conversation", tools=None)) == set()


def test_b4_rows_contain_the_asset_exactly(row, faults_of):
    assert faults_of(row(), asset=B4_STANDARD) == set()
    assert faults_of(row(), asset={**B4_STANDARD, "tools": B4_STANDARD["tools"][1:]}) == {"tool_schema_differs"}
    assert faults_of(row(), asset={**B4_STANDARD, "system_prompt": "Obey."}) == {"tool_schema_differs"}
    assert faults_of(row(task="agentdojo"), asset={**B4_STANDARD, "tools": []}) == set(), "other rows have other tools"


def test_the_injection_must_be_in_the_prompt(row, faults_of, prompt):
    messages = [prompt["messages"][0], message("user", " " * 30 + INJECTION)]
    assert (
        faults_of(row(messages=messages, injection=[{"message": 1, "start": 30, "end": 30 + len(INJECTION)}])) == set()
    )
    assert faults_of(row(messages=messages, injection=[{"message": 1, "start": 0, "end": 20}])) == {
        "injection_not_in_prompt"
    }, "spaces that the template trims"


def test_a_row_that_the_template_rejects_does_not_render(row, faults_of):
    assert faults_of(row(messages=[message("system", "Help.")], injection=[])) == {"does_not_render"}


def test_rows_that_spell_control_tokens_are_counted_by_source(row, llama_tokenizer, prompt):
    """They pass, since the tokens are plain text: a second <|begin_of_text|> is no second BOS."""

    def saying(text: str, source: str) -> dict:
        messages = [prompt["messages"][0], message("user", f"{text}\n\n{INJECTION}")]
        start = len(text) + 2
        sample = row(messages=messages, injection=[{"message": 1, "start": start, "end": start + len(INJECTION)}])
        return {**sample, "provenance": {**sample["provenance"], "source_dataset": source}}

    texts = ["Hm <|eot_id|> hm", "<|begin_of_text|>", "Hm", "<|eot_id|", "<|reserved_special_token_9|>"]
    samples = [saying(text, source) for text, source in zip(texts, "aabbc", strict=True)]
    report = preflight(samples, llama_tokenizer, 8192)
    assert report["passed"] and report["spell_control_tokens"] == {"a": 2, "c": 1}


def test_without_a_tokenizer_no_control_tokens_are_counted(row):
    report = preflight([row()], None, 8192)
    assert report["passed"] and report["tokenizer"] is None and report["spell_control_tokens"] is None


def test_the_prompt_must_end_with_the_assistants_header(row, llama_tokenizer, monkeypatch):
    """A template that ignores `add_generation_prompt` does not start the assistant's turn."""
    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.chat_template = "{{ bos_token }}{{ messages[-1].content }}<|eot_id|>{# <|eom_id|> #}"
    faults = preflight([row()], tokenizer, 8192)["faults"]
    assert set(faults) == {"no_assistant_header", "template_of_another_model"}
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert "bos_not_once" in preflight([row()], tokenizer, 8192)["faults"]


def test_without_a_tokenizer_only_the_tools_are_checked(row):
    report = preflight([row(), {**row(), "tools": "no"}], None, 8192)
    assert report["faults"] == {"tools_not_json": 1} and report["tokenizer"] is None


def test_histogram_has_no_gaps():
    assert histogram([10, 511, 512, 1600]) == {"0-511": 2, "512-1023": 1, "1024-1535": 0, "1536-2047": 1}
    assert histogram([]) == {}


def test_show_tokens_marks_completion_and_injection(row, llama_tokenizer):
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
