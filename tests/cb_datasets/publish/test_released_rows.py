"""Rows of a release render and train with `datasets`, `transformers` and TRL alone, as they do here, to the token."""

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
import transformers
from datasets import Dataset, Json, Value, load_dataset

from builders import prepare_source
from builders.trace import message, tool_call
from cb_datasets.chat import encode_prompt, encode_sample
from cb_datasets.cli.output import tokenizer
from cb_datasets.export import export_row, export_rows, import_row
from cb_datasets.files import load_rows, stream_rows
from cb_datasets.formats import FORMATS, ToolCall, get_format
from cb_datasets.formats.chat_template import with_decisions
from cb_datasets.ingest import ingest
from cb_datasets.publish.release import make_release
from cb_datasets.publish.released_rows import (
    RELEASED_PROMPT_FEATURES,
    RELEASED_SAMPLE_FEATURES,
    exact_json,
    released_row,
    released_table,
    stored_dataset,
    stored_row,
)
from cb_datasets.sample import SAMPLE_FEATURES
from cb_datasets.sets.recorded import collect_recorded_set
from cb_datasets.template_probe import rendering_provenance

from ..conftest import INJECTION, RIGHT


ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "collaborators.md"
# Two parallel calls, results without ids, then the injection.
MESSAGES = [
    message("user", "Read notes.txt and bill.txt."),
    message("assistant", None, [tool_call("read_file", {"path": name}, id="") for name in ("notes.txt", "bill.txt")]),
    message("tool", "Buy 0.7 kg."),
    message("tool", f"Pay. {INJECTION}"),
    message("assistant", "Done."),
    message("user", "And the pump?"),
]
SPAN = {"message": 3, "start": 5, "end": 5 + len(INJECTION)}


def loaded(rows: list[dict], folder: Path, features=RELEASED_SAMPLE_FEATURES) -> Dataset:
    """Rows written to a release and loaded as a collaborator loads them."""
    folder.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(released_table(map(released_row, rows), features), folder / "train.parquet")
    return load_dataset(str(folder), split="train", cache_dir=str(folder / "cache"))


def plain_ids(template_of, row: dict) -> list[int]:
    """What the documented line gives."""
    return template_of.apply_chat_template(
        row["messages"],
        tools=json.loads(row["tools"]),
        add_generation_prompt=True,
        return_dict=False,
        **row["chat_template_kwargs"],
    )


# ----------------------------------------------------------------------------------------------------------- one row


def test_parallel_calls_empty_fields_and_missing_tools_render_as_here(make_sample, llama_tokenizer, tmp_path: Path):
    samples = [
        make_sample(RIGHT, "tool_capability", messages=MESSAGES, injection=[SPAN]),
        make_sample("The pump.<|eot_id|>", "general_conversation", tools=None, injection=[]) | {"id": "chat"},
    ]
    rows = loaded(samples, tmp_path / "release")
    assert [plain_ids(llama_tokenizer, row) for row in rows] == [
        encode_prompt(llama_tokenizer, row) for row in samples
    ]
    called = [turn for turn in rows[0]["messages"] if "tool_calls" in turn]
    assert [call["function"]["arguments"] for turn in called for call in turn["tool_calls"]] == [
        {"path": "notes.txt"},
        {"path": "bill.txt"},
    ]
    [span] = rows[0]["injection"]
    assert rows[0]["messages"][span["message"]]["content"][span["start"] : span["end"]] == INJECTION
    assert all(value for row in rows for turn in row["messages"] for value in turn.values())
    assert rows[1]["tools"] == "null"


def test_json_lines_render_as_here(make_sample, llama_tokenizer):
    sample = make_sample(RIGHT, "tool_capability", messages=MESSAGES, injection=[SPAN])
    record = json.loads(json.dumps(export_row(sample)))
    rendered = llama_tokenizer.apply_chat_template(
        record["messages"], tools=record["tools"], add_generation_prompt=True
    )
    assert rendered["input_ids"] == encode_prompt(llama_tokenizer, sample)
    assert encode_prompt(llama_tokenizer, import_row(record)) == rendered["input_ids"]
    assert export_row(import_row(record)) == record


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "mistral-v13"])
def test_templates_of_other_models_take_the_rows(make_sample, real_tokenizer, tmp_path: Path, name: str):
    calls = [tool_call("read_file", {"path": "notes.txt"}, id="call00001")]
    messages = [*MESSAGES[:1], message("assistant", None, calls), message("tool", "Buy.", tool_call_id="call00001")]
    sample = written_for(real_tokenizer(name), make_sample(RIGHT, "tool_capability", messages=messages, injection=[]))
    [row] = loaded([sample], tmp_path / "release")
    assert plain_ids(real_tokenizer(name), row) == encode_prompt(real_tokenizer(name), sample)


def test_text_beside_a_call_is_left_out_where_the_format_has_none(make_sample, tmp_path: Path):
    messages = [{**turn, "content": "I look."} if turn["tool_calls"] else turn for turn in MESSAGES]
    sample = make_sample(RIGHT, "tool_capability", messages=messages, injection=[SPAN])
    call = FORMATS["pythonic"].render(ToolCall("retrieve_multimodal_docs", {"query": "pump"}), "")
    provenance = sample["provenance"] | {"prompt_format": "pythonic"}
    [row] = loaded([sample | {"assistant_raw": call, "provenance": provenance}], tmp_path / "release")
    assert all("content" not in turn for turn in row["messages"] if "tool_calls" in turn)
    [span] = row["injection"]
    assert row["messages"][span["message"]]["content"][span["start"] : span["end"]] == INJECTION


def written_for(target, sample: dict) -> dict:
    """The sample as one of the model of a tokenizer."""
    provenance, call = rendering_provenance(target), ToolCall("retrieve_multimodal_docs", {"query": "pump"})
    completion = get_format(provenance["prompt_format"]).render(call, "")
    return {**sample, "assistant_raw": completion, "provenance": sample["provenance"] | provenance}


def check_settings(own, decided, make_sample, folder: Path) -> None:
    """A row made with a decided template renders with the model's own to the same ids."""
    sample = written_for(decided, make_sample(RIGHT, "adversarial_safe"))
    rows = loaded([sample, sample | {"provenance": sample["provenance"] | {"template_settings": None}}], folder)
    assert plain_ids(own, rows[0]) == encode_prompt(decided, sample)
    assert plain_ids(own, rows[1]) == encode_prompt(own, sample) != encode_prompt(decided, sample)
    assert stored_row(rows[0]) == sample
    [exported] = export_rows(lambda: [sample], "sft", Counter())
    assert exported["chat_template_kwargs"] == rows[0]["chat_template_kwargs"]


def test_settings_of_the_template_are_in_the_rows(make_sample, llama_tokenizer, tmp_path: Path):
    own, decided = copy.deepcopy(llama_tokenizer), copy.deepcopy(llama_tokenizer)
    own.chat_template += "{%- if effort is not defined %}{{ 'Think well.' }}{%- elif brief %}{{ effort }}{%- endif %}"
    decided.chat_template = with_decisions(own.chat_template, None, {"effort": "low", "brief": True})
    check_settings(own, decided, make_sample, tmp_path / "release")


def test_qwen3_renders_the_rows_without_thinking_as_here(make_sample, real_tokenizer, tmp_path: Path):
    own = real_tokenizer("qwen3")
    decided = copy.deepcopy(own)
    decided.chat_template = with_decisions(own.chat_template, None, {"enable_thinking": False})
    check_settings(own, decided, make_sample, tmp_path / "release")


@pytest.mark.parametrize("nulls", [{"tool_calls": None}, {"tool_calls": []}])
def test_the_template_of_llama_refuses_the_fields_that_released_messages_lack(llama_tokenizer, nulls: dict):
    """Why messages are `Json` and no structs, which would give every message every field."""
    with pytest.raises((TypeError, transformers.utils.chat_template_utils.jinja2.TemplateError)):
        llama_tokenizer.apply_chat_template([{"role": "user", "content": "Hi.", **nulls}])


def test_stored_rows_come_back(make_sample, prompt: dict, tmp_path: Path):
    sample = make_sample(RIGHT, "adversarial_safe")
    rows = loaded([sample], tmp_path / "release")
    assert stored_row(rows[0]) == sample == stored_row(sample)
    assert list(stored_dataset(rows)) == [sample] and stored_dataset(rows).features == SAMPLE_FEATURES
    assert [*map(stored_row, loaded([prompt], tmp_path / "prompts", RELEASED_PROMPT_FEATURES))] == [prompt]


def test_releases_of_a_version_without_a_column_come_back(make_sample, tmp_path: Path):
    sample = make_sample(RIGHT, "adversarial_safe")
    rows = loaded([sample], tmp_path / "release")
    features = rows.features.copy()
    features["provenance"] = dict(features["provenance"])
    del features["provenance"]["template_settings"]
    features["chat_template_kwargs"] = {"date_string": Value("string")}
    older = Dataset.from_list([row | {"provenance": without_settings(row["provenance"])} for row in rows], features)
    assert stored_row(older[0]) == sample and list(stored_dataset(older)) == [sample]


def without_settings(provenance: dict) -> dict:
    return {name: value for name, value in provenance.items() if name != "template_settings"}


# ----------------------------------------------------------------------------------------------------------- numbers


def numbers() -> Iterator[float]:
    draw = random.Random(0)
    yield from (0.7, -0.7, 1e-12, 0.1 + 0.2, -0.0, 1e300, 5e-324, 8.0, float(2**70))
    for _ in range(500):
        yield from (draw.random(), draw.uniform(-180, 180), round(draw.uniform(0, 1e6), 2), draw.gauss(0, 1) * 1e-20)


def test_every_decoder_reads_the_numbers_that_were_written():
    assert Json().decode_example("0.7") != 0.7  # else `exact_json` is no longer needed
    value = {"numbers": [*numbers()], "1": [1, 2**64 - 1, -(2**63), True, None, "0.7", {}]}
    text = exact_json(value)
    for decoded in (json.loads(text), Json().decode_example(text)):
        assert json.dumps(decoded) == json.dumps(value)
    assert exact_json({"a": "b"}) == '{"a": "b"}'


def test_numbers_of_calls_are_exact_in_what_users_load(make_sample, tmp_path: Path):
    drawn = [*numbers()][:60]
    raw = RIGHT.replace('"pump"', json.dumps(drawn))
    messages = [MESSAGES[0], message("assistant", None, [tool_call("f", {"n": drawn}, id="a")]), *MESSAGES[2:3]]
    [row] = loaded([make_sample(raw, "tool_capability", messages=messages, injection=[])], tmp_path / "release")
    for turn in (row["messages"][1], row["prompt"][1], row["completion"][0]):
        [arguments] = turn["tool_calls"][0]["function"]["arguments"].values()
        assert json.dumps(arguments) == json.dumps(drawn)


def test_a_number_that_datasets_cannot_read_is_named_with_its_row(make_sample):
    sample = make_sample(RIGHT.replace('"pump"', str(2**64)), "adversarial_safe")
    with pytest.raises(
        ValueError, match=rf"^{sample['id']}: `datasets` cannot read the number {2**64} .* Mark the row"
    ):
        released_table([released_row(sample)], RELEASED_SAMPLE_FEATURES)


def test_a_completion_that_makes_no_message_is_named_with_its_row(make_sample):
    sample = make_sample(RIGHT, "adversarial_safe") | {"assistant_raw": RIGHT * 2}
    with pytest.raises(ValueError, match=rf"^{sample['id']}: malformed_completion \(trailing_text\)\. Run `validate`"):
        released_row(sample)


# ---------------------------------------------------------------------------------------------------- whole releases


@pytest.fixture(scope="module")
def release(release_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "release"
    make_release(release_data, "owner/name", folder)
    return folder


def stored_rows(data: Path) -> dict[str, dict]:
    folders = [folder for part in ("stage2", "prompts") for folder in sorted((data / part).iterdir())]
    return {row["id"]: row for row in stream_rows(folders)}


def check_rendering(release: Path, data: Path, template_of, cache: Path) -> None:
    stored, wrong, seen = stored_rows(data), [], 0
    for config in ("train", "eval"):
        for rows in load_dataset(str(release), config, cache_dir=str(cache)).values():
            for row in rows:
                seen += 1
                if plain_ids(template_of, row) != encode_prompt(template_of, stored[row["id"]]):
                    # The documented exception: `transformers` takes forged control tokens for tokens.
                    text = str(row["messages"]) + row["tools"]
                    if not any(token in text for token in template_of.get_added_vocab()):
                        wrong.append(row["id"])
    assert seen == len(stored) and wrong == []


def test_every_row_of_a_release_renders_as_here(release: Path, release_data: Path, llama_tokenizer, tmp_path: Path):
    check_rendering(release, release_data, llama_tokenizer, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["demo", "local"])
def test_every_row_of_a_recipe_renders_as_here(recipe: str, llama_tokenizer, tmp_path: Path):
    data = ROOT / "data" / recipe
    if not (data / "release" / "manifest.json").is_file():
        pytest.skip(f"no release: make cards RECIPE={recipe}")
    check_rendering(data / "release", data, llama_tokenizer, tmp_path)


def test_recorded_rows_of_real_agents_render_as_here(real_data: Path, llama_tokenizer, tmp_path: Path):
    builder = prepare_source("agentdojo", data_dir=real_data / "agentdojo", cache_dir=tmp_path / "cache")
    splits, _ = ingest(builder, 0.2, "test", 60, 0)
    samples = [
        sample
        for name in ("harmful/agentdojo_failures", "retain/agentdojo_resisted", "retain/agentdojo_benign")
        for sample in collect_recorded_set(name, splits, llama_tokenizer, 8192, False, 20).samples
    ]
    assert any(len(turn["tool_calls"]) > 1 for sample in samples for turn in sample["messages"]), "parallel calls"
    for sample, row in zip(samples, loaded(samples, tmp_path / "release"), strict=True):
        assert plain_ids(llama_tokenizer, row) == encode_prompt(llama_tokenizer, sample), sample["id"]
        for before, after in zip(sample["injection"], row["injection"], strict=True):
            text = sample["messages"][before["message"]]["content"][before["start"] : before["end"]]
            assert row["messages"][after["message"]]["content"][after["start"] : after["end"]] == text


def test_the_documented_lines_run(release: Path, llama_tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    [block] = [block for block in blocks if "apply_chat_template" in block]
    assert "cb_datasets" not in block
    [line] = re.findall(r"tokenizer\.apply_chat_template\(.*?\n    \)", block, re.DOTALL)
    card = (release / "README.md").read_text(encoding="utf-8")
    assert " ".join(line.split()) in " ".join(card.split()), "the card shows it, too"
    load = datasets.load_dataset

    def load_release(name: str, config: str, split: str, revision: str) -> Dataset:
        assert (name, revision) == ("owner/name", "v1")
        return load(str(release), config, split=split, cache_dir=str(tmp_path))

    monkeypatch.setattr(datasets, "load_dataset", load_release)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: llama_tokenizer)
    names: dict = {}
    exec(block, names)
    assert names["ids"] == encode_prompt(llama_tokenizer, stored_row(names["row"]))


def test_the_sft_trainer_of_trl_takes_the_rows_as_they_are(
    release: Path, release_data: Path, tiny_agent_path: Path, tmp_path: Path
):
    from trl import SFTConfig, SFTTrainer

    rows = load_dataset(str(release), "retain", split="train", cache_dir=str(tmp_path))
    settings = {"max_steps": 1, "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}
    config = SFTConfig(str(tmp_path / "sft"), max_length=1024, disable_tqdm=True, **settings)
    trainer = SFTTrainer(str(tiny_agent_path), config, train_dataset=rows)
    ours = tokenizer(str(tiny_agent_path))
    samples = {row["id"]: row for row in load_rows(release_data / "stage2" / "train")}
    for row in trainer.train_dataset:
        encoded = encode_sample(ours, samples[row["id"]])
        assert row["input_ids"] == encoded.ids
        assert row["labels"] == [-100] * encoded.prompt_length + encoded.completion.ids
    assert trainer.train().training_loss > 0
