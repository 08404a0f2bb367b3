import json
import random

import jsonschema
import pytest
from datasets import Dataset

from cb_datasets.export import export_jsonl, export_row, import_jsonl, import_row, json_schema
from cb_datasets.files import load_rows, stream_rows
from cb_datasets.sample import (
    PRIORITY_WEIGHTS,
    SAMPLE_FEATURES,
    clean_messages,
    content_id,
    cut_spans,
    empty_provenance,
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


# ---------------------------------------------------------------------------------------------------------------------
# JSON lines -> dataset -> JSON lines

AWKWARD = [
    "",
    " ",
    "a",
    "0",
    "123",
    "null",
    "[]",
    "\u2011",
    "\u2028",
    "\n",
    "\x7f",
    "é",
    "👩‍👧",
    "\\",
    '"',
    "<|eot_id|>",
]


class Draw:
    """Random samples of any shape that the schema allows."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> str:
        return "".join(self.random.choices(AWKWARD, k=self.random.randrange(6)))

    def name(self) -> str:
        return "x" + self.text()

    def maybe(self, make):
        return make() if self.random.random() < 0.6 else None

    def value(self, depth: int = 0):
        numbers = [0, -1, 2**70, 0.7, 1e-12, 0.1 + 0.2, -0.0, 1e300]
        simple = [None, True, False, self.random.choice(numbers), self.text()]
        if depth > 2 or self.random.random() < 0.6:
            return self.random.choice(simple)
        if self.random.random() < 0.5:
            return [self.value(depth + 1) for _ in range(self.random.randrange(3))]
        return self.object(depth + 1)

    def object(self, depth: int = 0) -> dict:
        return {self.text(): self.value(depth) for _ in range(self.random.randrange(4))}

    def many(self, make) -> list:
        return [make() for _ in range(self.random.randrange(3))]

    def call(self) -> dict:
        return {"name": self.text(), "arguments": self.object()}

    def message(self) -> dict:
        made = {"id": self.text(), "type": "function", "function": self.call()}
        told = {key: text for key in ("tool_call_id", "name") if (text := self.maybe(self.text))}
        return self.random.choice(
            [
                {"role": "x" + self.text(), "content": self.text()},
                {"role": "tool", "content": self.text(), **told},
                {"role": "assistant", "tool_calls": [made]},
                {"role": "assistant", "content": "x" + self.text(), "tool_calls": [made]},
            ]
        )

    def span(self) -> dict:
        return {key: self.random.randrange(100) for key in ("message", "start", "end")}

    def record(self) -> dict:
        names = {key: self.name() for key in ("id", "group", "assistant_raw", "outcome")}
        texts = {key: self.maybe(self.text) for key in ("pair", "task", "family", "category", "subtype")}
        calls = {key: self.maybe(lambda: self.many(self.object)) for key in ("expected_calls", "goal_calls")}
        labels = {key: self.maybe(lambda: self.random.random() < 0.5) for key in BOOLEANS}
        told = {"temperature": 0.7, "top_p": self.maybe(self.random.random), "seed": self.random.randrange(2**40)}
        return {
            **names,
            **texts,
            "split": self.random.choice(["train", "eval"]),
            "set": self.random.choice(["circuit_breaker", "retain"]),
            "priority_class": self.random.choice(list(PRIORITY_WEIGHTS)),
            "messages": self.many(self.message),
            "tools": self.maybe(lambda: self.many(self.object)),
            "injection": self.many(self.span),
            "target": {key: self.maybe(self.text) for key in TARGET_NAMES} | calls,
            "tool_calls_structured": self.many(self.call),
            "labels": {key: self.maybe(self.text) for key in LABEL_NAMES} | labels,
            "provenance": {key: self.maybe(self.text) for key in PROVENANCE_NAMES} | told | {"redacted": None},
        }


BOOLEANS = ("is_harmful", "is_refusal", "is_correct_tool_use", "is_adversarial_safe")
LABEL_NAMES = ("harm_type", "expected_tool", "simulated_tool", "observed_tool")
TARGET_NAMES = ("expected_tool", "simulated_tool", "prefill")
PROVENANCE_NAMES = tuple(empty_provenance("a", "b"))


def test_json_lines_survive_a_dataset_to_the_letter(tmp_path):
    draw = Draw(seed=0)
    validator = jsonschema.Draft202012Validator(json_schema())
    records = [draw.record() for _ in range(300)]
    for record in records:
        validator.validate(record)
    # In the order of columns that a dataset has.
    records = [{name: record[name] for name in SAMPLE_FEATURES} for record in records]
    lines = tmp_path / "lines.jsonl"
    export_jsonl(map(import_row, records), lines)
    assert [json.loads(line) for line in lines.read_text(encoding="utf-8").split("\n")[:-1]] == records
    assert import_jsonl(lines, tmp_path / "rows") == len(records)
    export_jsonl(stream_rows([tmp_path / "rows"], SAMPLE_FEATURES), tmp_path / "again.jsonl")
    again = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert again == sorted(records, key=lambda record: record["split"] != "train"), "a set has its train rows first"
    import_jsonl(tmp_path / "again.jsonl", tmp_path / "rows_again")
    export_jsonl(stream_rows([tmp_path / "rows_again"], SAMPLE_FEATURES), tmp_path / "third.jsonl")
    assert (tmp_path / "third.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()


def test_a_dataset_survives_json_lines(make_sample, tmp_path):
    samples = [make_sample(WRONG, "harmful_flip"), make_sample(RIGHT, "benign_twin", injection=[], tools=None)]
    export_jsonl(samples, tmp_path / "lines.jsonl")
    import_jsonl(tmp_path / "lines.jsonl", tmp_path / "rows")
    assert list(load_rows(tmp_path / "rows", SAMPLE_FEATURES)) == samples
    assert import_row(export_row(samples[0])) == samples[0]


def test_a_column_may_be_null_for_thousands_of_lines_and_then_not(make_sample, tmp_path):
    """Types are those of the columns, not of the first rows, so none is taken for a column of nulls."""
    late = make_sample(WRONG, "harmful_flip", category="A", subtype="B", family="html_comment")
    provenance = late["provenance"] | {"redacted": True, "temperature": 0.5, "seed": 7, "fitted": "tools 4 -> 2"}
    late |= {"provenance": provenance}
    nulls = {"category": None, "subtype": None, "family": None, "tools": None, "injection": []}
    early = late | nulls | {"provenance": provenance | dict.fromkeys(("redacted", "temperature", "seed", "fitted"))}
    export_jsonl([*[early] * 3000, late], tmp_path / "lines.jsonl")
    assert import_jsonl(tmp_path / "lines.jsonl", tmp_path / "rows") == 3001
    rows = load_rows(tmp_path / "rows", SAMPLE_FEATURES)
    assert rows[0] == early and rows[-1] == late


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"split": "test"}, r"lines.jsonl:2: \$.split: 'test' is not one of"),
        ({"injection": [{"message": "a", "start": 0, "end": 1}]}, r"\$.injection\[0\].message"),
        ({"extra": 1}, "Additional properties"),
        ({"tool_calls_structured": [{"name": "a", "arguments": "{}"}]}, "arguments"),
    ],
)
def test_a_line_that_is_no_sample_is_named(make_sample, tmp_path, change, told):
    records = [export_row(make_sample(RIGHT, "adversarial_safe"))] * 2
    lines = [json.dumps(records[0]), json.dumps(records[1] | change)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        import_jsonl(tmp_path / "lines.jsonl", tmp_path / "rows")
    assert not list((tmp_path / "rows").glob("*")), "nothing is half written"
