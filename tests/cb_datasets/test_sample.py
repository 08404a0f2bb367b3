import json

import jsonschema
import pytest
from datasets import Dataset

from cb_datasets.sample import (
    PRIORITY_WEIGHTS,
    SAMPLE_FEATURES,
    clean_messages,
    content_id,
    cut_spans,
    export_jsonl,
    json_schema,
)

from .conftest import REQUEST, RIGHT, WRONG


def test_clean_prompt_is_the_request_alone(prompt):
    assert clean_messages(prompt)[1]["content"] == REQUEST
    assert prompt["messages"][1]["content"] != REQUEST, "the row itself must stay as it was"


def test_cutting_keeps_the_text_around_a_span():
    messages = [{"role": "tool", "content": "name: A\nEVIL ONE\nnote: B EVIL TWO end"}]
    spans = [{"message": 0, "start": 8, "end": 17}, {"message": 0, "start": 25, "end": 34}]
    assert cut_spans(messages, spans)[0]["content"] == "name: A\nnote: B end"


def test_samples_survive_parquet_exactly(make_sample, tmp_path):
    sample = make_sample(WRONG.replace('"pump"', '"0.7 1e-12 123 \u2011"'), "harmful_flip")
    rows = Dataset.from_list([sample, make_sample(RIGHT, "adversarial_safe")], features=SAMPLE_FEATURES)
    rows.to_parquet(tmp_path / "rows.parquet")
    again = Dataset.from_parquet(str(tmp_path / "rows.parquet"))
    assert again.features == SAMPLE_FEATURES
    assert again[0] == rows[0]
    assert set(json.loads(again[0]["tools"])[0]["function"]["parameters"]["properties"]) == {"query"}


def test_export_is_valid_against_the_schema(make_sample, tmp_path):
    export_jsonl([make_sample(WRONG, "harmful_flip")], tmp_path / "rows.jsonl")
    [line] = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(row)
    assert row["tool_calls_structured"] == [{"name": "search_web", "arguments": {"query": "pump"}}]
    assert isinstance(row["tools"], list)
    for broken in ({"split": "test"}, {"priority_class": "nice"}, {"assistant_raw": ""}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({**row, **broken})


def test_ids_follow_content():
    assert content_id("a", "x", "y") == content_id("a", "x", "y")
    assert content_id("a", "x", "y") != content_id("a", "xy", "")
    assert len(content_id("a", "x").removeprefix("a/")) >= 12


def test_weights_are_those_of_the_design():
    assert PRIORITY_WEIGHTS["adversarial_safe"] == 2.0 and PRIORITY_WEIGHTS["general_conversation"] == 0.8
    assert len(PRIORITY_WEIGHTS) == 9
