"""Rows for other trainers: their layout, what is left out, and that TRL's own trainers train on the ids that we do."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from datasets import IterableDataset, Json, List, load_dataset

from builders.trace import message, tool_call
from cb_datasets.chat import encode_prompt, encode_sample, render_prompt
from cb_datasets.cli.output import tokenizer
from cb_datasets.export import TRL_FEATURES, export_rows, is_exact
from cb_datasets.files import load_rows, save_rows, to_dataset
from cb_datasets.sample import SAMPLE_FEATURES

from .conftest import REFUSAL, RIGHT, TEXT, WRONG
from .release_data import run


HISTORY = [
    message("user", "Read notes.txt and bill.txt."),
    message("assistant", None, [tool_call("read_file", {"path": name}, id="") for name in ("notes.txt", "bill.txt")]),
    message("tool", "Buy 0.7 kg."),
    message("tool", ""),
    message("user", "And the pump?"),
]


def converted(samples: list[dict], layout: str) -> tuple[list[dict], Counter]:
    drops = Counter()
    return list(export_rows(lambda: iter(samples), layout, drops)), drops


def call(name: str, **arguments) -> dict:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "call", "type": "function", "function": function}]}


# ------------------------------------------------------------------------------------------------------------- layouts


def test_sft_rows_hold_the_completions_of_dr_alone(make_sample):
    samples = [
        make_sample(WRONG, "harmful_flip"),
        make_sample(f"Let me look. {RIGHT}", "adversarial_safe"),
        make_sample(REFUSAL, "refusal"),
    ]
    rows, drops = converted(samples, "sft")
    assert [row["completion"] for row in rows] == [
        [call("retrieve_multimodal_docs", query="pump") | {"content": "Let me look."}],
        [{"role": "assistant", "content": "I can't help with that."}],
    ]
    assert drops == {"circuit_breaker": 1}
    assert [turn["role"] for turn in rows[0]["prompt"]] == ["system", "user"]
    assert rows[0]["tools"] == samples[0]["tools"] and rows[0]["id"] == samples[1]["id"]
    assert rows[0]["chat_template_kwargs"] == {"date_string": samples[1]["provenance"]["date_string"]}


def test_dpo_rejects_a_completion_of_ds_for_its_sibling_at_the_same_prompt(make_sample):
    clean = [message("user", "Which manuals show the pump?")]
    harmful = make_sample(WRONG, "harmful_flip")
    samples = [
        harmful,
        make_sample(RIGHT.replace("pump", "clean"), "benign_twin", messages=clean),  # the pair's clean prompt
        make_sample(RIGHT, "adversarial_safe"),
        make_sample(RIGHT.replace("pump", "second"), "adversarial_safe"),
        make_sample(WRONG, "harmful_flip", pair="of another"),
        make_sample(WRONG, "harmful_flip", tools="[]"),
        make_sample(WRONG, "harmful_flip", provenance={**harmful["provenance"], "redacted": True}),
    ]
    [row], drops = converted(samples, "dpo")
    assert row["chosen"] == [call("retrieve_multimodal_docs", query="pump")]
    assert row["rejected"] == [call("search_web", query="pump")]
    assert (row["pair"], row["id"]) == ("test/1", samples[0]["id"])
    assert "use search_web instead" in row["prompt"][-1]["content"]
    assert drops == {"retain": 3, "no_sibling_with_this_prompt": 2, "redacted": 1}


def test_openai_rows_pair_calls_with_results_and_train_on_the_completion_alone(make_sample):
    [row], _ = converted([make_sample(RIGHT, "tool_capability", messages=HISTORY)], "openai")
    assert [(turn["role"], turn.get("weight")) for turn in row["messages"]] == [
        ("user", None), ("assistant", 0), ("tool", None), ("assistant", 0), ("tool", None), ("user", None),
        ("assistant", 1),
    ]  # fmt: skip
    calls = [turn["tool_calls"][0] for turn in row["messages"] if "tool_calls" in turn]
    assert [each["function"]["arguments"] for each in calls] == [
        '{"path": "notes.txt"}', '{"path": "bill.txt"}', '{"query": "pump"}',
    ]  # fmt: skip
    assert len({each["id"] for each in calls}) == 3
    results = [turn for turn in row["messages"] if turn["role"] == "tool"]
    assert [turn["tool_call_id"] for turn in results] == [each["id"] for each in calls[:2]]
    assert row["tools"][0]["type"] == "function" and row["parallel_tool_calls"] is False
    [plain], _ = converted([make_sample(TEXT, "general_conversation", tools=None)], "openai")
    assert set(plain) == {"messages"}  # the API refuses an empty list of tools


@pytest.mark.parametrize(
    ("messages", "reason"), [(HISTORY[:2], "unanswered_call"), (HISTORY[3:], "result_without_call")]
)
def test_openai_rows_without_pairs_of_call_and_result_are_dropped(make_sample, messages: list[dict], reason: str):
    assert converted([make_sample(RIGHT, "tool_capability", messages=messages)], "openai") == ([], {reason: 1})


@pytest.mark.parametrize("layout", ["sft", "openai"])
def test_a_completion_that_is_no_turn_is_dropped_with_its_form(make_sample, layout: str):
    samples = [make_sample(RIGHT, "adversarial_safe") | {"assistant_raw": raw} for raw in (RIGHT * 2, "<|eot_id|>")]
    _, drops = converted(samples, layout)
    assert drops == {"malformed_completion (trailing_text)": 1, "malformed_completion (empty)": 1}


# ------------------------------------------------------------------------------------------------------- exact numbers


def with_number(make_sample, number: str) -> dict:
    return make_sample(RIGHT.replace('"pump"', number), "adversarial_safe")


def test_numbers_that_the_library_changes_are_counted(make_sample, tmp_path: Path):
    numbers = ["0.25", "0.7", "3", str(2**64), '"0.7"']
    samples = [with_number(make_sample, number) | {"id": str(at)} for at, number in enumerate(numbers)]
    rows, _ = converted(samples, "sft")
    assert [is_exact(row) for row in rows] == [True, False, True, False, True]
    save_rows(to_dataset(samples, SAMPLE_FEATURES), tmp_path / "set", {})
    output = run("export", tmp_path / "set", "--format", "sft", "--output", tmp_path / "sft.jsonl")
    assert "export sft: 5 rows of 5 samples, dropped 0" in output
    assert "numbers of 2 rows change in load_dataset" in output


def test_a_stream_of_rows_keeps_every_number_for_the_trainer(make_sample, tiny_agent_path: Path, tmp_path: Path):
    from trl import SFTConfig, SFTTrainer

    samples = [with_number(make_sample, number) for number in ("0.7", str(2**64))]
    rows = IterableDataset.from_generator(lambda: export_rows(lambda: samples, "sft", Counter()))
    trainer = SFTTrainer(str(tiny_agent_path), SFTConfig(**settings(tmp_path)), train_dataset=rows)
    ours = tokenizer(str(tiny_agent_path))
    assert [row["input_ids"] for row in trainer.train_dataset] == [encode_sample(ours, each).ids for each in samples]
    assert trainer.train().training_loss > 0


def test_the_json_feature_still_changes_numbers():
    # Why calls and tools are JSON text in every column that is stored or published, see `publish/folder.py`. If this
    # fails, the decoder has become exact: publish them as `Json`, so that the Hub's viewer shows their structure.
    assert List(Json()).feature.decode_example('{"q": 0.7}') == {"q": 0.7000000000000001}
    with pytest.raises(ValueError):
        Json().decode_example(f'{{"q": {2**64}}}')


# ------------------------------------------------------------------------------------------------------- real trainers


@pytest.fixture(scope="module")
def train(release_data: Path) -> list[dict]:
    return list(load_rows(release_data / "stage2" / "train"))


def exported(release_data: Path, layout: str, folder: Path, *, features: bool = True):
    file = folder / f"{layout}.jsonl"
    output = run("export", release_data / "stage2" / "train", "--format", layout, "--output", file)
    kwargs = {"features": TRL_FEATURES[layout]} if features else {}
    return load_dataset("json", data_files=str(file), split="train", cache_dir=tempfile.mkdtemp(), **kwargs), output


def settings(folder: Path) -> dict:
    return {
        "output_dir": str(folder / "trained"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_length": 1024,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def test_the_template_of_llama_writes_the_rows(make_sample, llama_tokenizer):
    sample = make_sample(RIGHT, "tool_capability", messages=HISTORY)
    [row], _ = converted([sample], "sft")
    kwargs = {"tools": json.loads(row["tools"]), "tokenize": False, **row["chat_template_kwargs"]}
    prompt = llama_tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **kwargs)
    assert prompt == render_prompt(llama_tokenizer, sample)
    both = llama_tokenizer.apply_chat_template(row["prompt"] + row["completion"], **kwargs)
    written = '{"name": "retrieve_multimodal_docs", "parameters": {"query": "pump"}}<|eot_id|>'
    assert both == prompt + written


@pytest.mark.parametrize("features", [True, False])
def test_the_sft_trainer_trains_on_the_ids_that_we_train_on(
    release_data: Path, train: list[dict], tiny_agent_path: Path, tmp_path: Path, features: bool
):
    from trl import SFTConfig, SFTTrainer

    rows, output = exported(release_data, "sft", tmp_path, features=features)
    kept = [row for row in train if row["set"] == "retain"]
    assert f"{len(kept)} rows of {len(train)} samples" in output
    assert f"dropped {len(train) - len(kept)} (circuit_breaker {len(train) - len(kept)})" in output
    trainer = SFTTrainer(str(tiny_agent_path), SFTConfig(**settings(tmp_path)), train_dataset=rows)
    ours = tokenizer(str(tiny_agent_path))
    assert len(trainer.train_dataset) == len(kept)
    for sample, row in zip(kept, trainer.train_dataset, strict=True):
        encoded = encode_sample(ours, sample)
        assert row["input_ids"] == encoded.ids
        masked = [-100] * encoded.prompt_length + encoded.completion.ids
        assert row["labels"] == masked
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    assert trainer.train().training_loss > 0
    assert any((weight != before[name]).any() for name, weight in trainer.model.named_parameters())


def test_the_dpo_trainer_takes_the_pairs(release_data: Path, train: list[dict], tiny_agent_path: Path, tmp_path: Path):
    from trl import DPOConfig, DPOTrainer

    rows, output = exported(release_data, "dpo", tmp_path)
    harmful = {row["id"]: row for row in train if row["set"] == "circuit_breaker"}
    safe = {row["pair"]: row for row in train if row["priority_class"] == "adversarial_safe"}
    assert f"export dpo: {len(harmful)} rows of {len(train)} samples, dropped {len(train) - len(harmful)}" in output
    trainer = DPOTrainer(str(tiny_agent_path), args=DPOConfig(**settings(tmp_path)), train_dataset=rows)
    ours = tokenizer(str(tiny_agent_path))
    assert set(trainer.train_dataset["id"]) == set(harmful)
    for row in trainer.train_dataset:
        rejected, chosen = harmful[row["id"]], safe[row["pair"]]
        assert row["prompt_ids"] == encode_prompt(ours, rejected) == encode_prompt(ours, chosen)
        assert row["rejected_ids"] == encode_sample(ours, rejected).completion.ids
        assert row["chosen_ids"] == encode_sample(ours, chosen).completion.ids
    assert trainer.train().training_loss > 0


def test_nothing_to_export_is_an_error(make_sample, tmp_path: Path):
    save_rows(to_dataset([make_sample(RIGHT, "adversarial_safe")], SAMPLE_FEATURES), tmp_path / "set", {})
    with pytest.raises(ValueError, match=r"set: no sample gives a row for dpo; dropped 1 \(retain 1\)"):
        run("export", tmp_path / "set", "--format", "dpo", "--output", tmp_path / "dpo.jsonl")
    assert list(tmp_path.glob("*.jsonl")) == []
