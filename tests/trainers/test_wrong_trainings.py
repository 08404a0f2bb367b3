"""Wrong trainings and diagnostics: each ends in one line that names the recipe and key, or the file and row."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from cb_datasets.files import save_rows, to_dataset
from cb_datasets.sample import SAMPLE_FEATURES
from trainers import train
from trainers.diagnostics import __main__ as diagnostics

from .conftest import make_attacked_rows, make_model


RECIPE = {
    "use_peft": True,
    "lora_r": 4,
    "target_layers": [2, 3],
    "max_steps": 1,
    "logging_steps": 1,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 2,
    "retain_batch_size": 2,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """A folder from which a training and diagnostics go through: `recipe.yaml`, `model/`, `data/`, `adapter/`."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(model_path, folder / "model")
    for split in ("train", "eval"):
        save_rows(make_attacked_rows(split=split), folder / "data" / split, report={})
    get_peft_model(make_model(), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def here(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, to be broken, as the working directory."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_recipe()
    return tmp_path


def write_recipe(**settings: Any) -> None:
    places = {"model_name_or_path": "model", "dataset_name": "data", "output_dir": "output"}
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | places | settings))


def run_training(*flags: str) -> None:
    train.main(*train.parse_arguments([*(() if "--config" in flags else ("--config", "recipe.yaml")), *flags]))


def run_diagnostics(**flags: str) -> None:
    values = {"model": "model", "adapter": "adapter", "data": "data/eval", "output": "cosines.json"} | flags
    words = [word for name, value in values.items() if value for word in (f"--{name}", value)]
    diagnostics.main(*diagnostics.parse_arguments(words))


def error_line(run: Callable[[], None], capsys: pytest.CaptureFixture) -> tuple[str, int]:
    """The line that a run ends with, as its terminal shows it, and its exit status."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run()
    if isinstance(end.value.code, str):  # which Python prints
        return end.value.code, 1
    return capsys.readouterr().err.rstrip("\n"), end.value.code


def check(run: Callable[[], None], pattern: str, capsys: pytest.CaptureFixture, status: int = 1) -> None:
    line, code = error_line(run, capsys)
    assert code == status and "\n" not in line and len(line) < 600, line
    assert re.search(pattern, line), line


# ---------------------------------------------------------------------------------------------------- recipes

FILES = {
    "missing": (None, r"There is no file recipe\.yaml"),
    "a folder": ("/", r"recipe\.yaml is a folder"),
    "empty": (b"", r"recipe\.yaml: .*no settings"),
    "comments": (b"# nothing\n", r"recipe\.yaml: .*no settings"),
    "a list": (b"- use_peft: true\n", r"recipe\.yaml: .*`key: value`"),
    "a word": (b"selective\n", r"recipe\.yaml: .*`key: value`"),
    "latin-1": ("output_dir: Daten für\n".encode("latin-1"), r"recipe\.yaml: not UTF-8"),
    "a tab": (b"use_peft: true\n\tlora_r: 4\n", r"recipe\.yaml:2: .*tab"),
    "an open quote": (b'use_peft: true\nmodel_name_or_path: "model\n', r"recipe\.yaml:\d: not YAML"),
    "a control character": (b"output_dir: a\x00b\n", r"recipe\.yaml:1: not YAML"),
    "two documents": (b"use_peft: true\n---\nuse_peft: false\n", r"recipe\.yaml:2: not YAML"),
    "a Python object": (b"seed: !!python/object/apply:os.system [ls]\n", r"recipe\.yaml:1: not YAML"),
    "a key twice": (b"lora_r: 4\nlora_r: 8\n", r"recipe\.yaml:2: `lora_r` .*twice"),
    "a number as key": (b"1: 2\n", r"recipe\.yaml: `1` is no setting"),
    "nothing as key": (b"null: 2\n", r"recipe\.yaml: `None` is no setting"),
    "a list as key": (b"[1]: 2\n", r"recipe\.yaml:1: not YAML"),
    "env as a list": (b"env: [A]\n", r"recipe\.yaml: `env` .*`NAME: value`"),
}

KEYS = {
    "alhpa": ({"alhpa": 10}, r"recipe\.yaml: `alhpa` is no setting"),
    "learning_rat": ({"learning_rat": 1e-4}, r"recipe\.yaml: `learning_rat` is no setting.*`learning_rate`"),
    "lr_schedule_type": ({"lr_schedule_type": "cosine"}, r"`lr_schedule_type` .*`lr_scheduler_type`"),
    "max_step": ({"max_step": 1}, r"`max_step` .*`max_steps`"),
    "two misspelt": ({"lora_R": 1, "rr_wieght": 1}, r"`lora_R` .*`lora_r`"),
    "a flag's spelling": ({"--lora-r": 1}, r"`--lora-r` .*`lora_r`"),
    "another trainer's": ({"packing": True}, r"recipe\.yaml: `packing` is no setting"),
}

VALUES: dict[str, list[Any]] = {
    "learning_rate": [[1e-4], "fast", {"rate": 1}, -1, float("nan"), float("inf"), True, None],
    "max_steps": [[1, 2], "many", 1.5, 0, -3, None],
    "per_device_train_batch_size": [[2], 0, -1],
    "retain_batch_size": [[2], 0],
    "gradient_accumulation_steps": [[2], 0, -1],
    "lora_r": [[8], 0, -1, "big"],
    "lora_alpha": [[8], -1],
    "lora_dropout": [[0.1], 1.5, -0.1, float("nan")],
    "rr_weight": [[1], -1, float("nan"), "heavy"],
    "retain_kl_weight": [-1],
    "distill_weight": [-5],
    "span_wrap_probability": [3, -0.5, float("nan"), [0.5]],
    "text_noise_probability": [1.1],
    "lora_b_init_std": [-1, float("nan")],
    "injection_weight": [-1],
    "decision_weight": [-1],
    "kl_temperature": [0, -1, float("nan")],
    "adversary_steps": [-1, [1]],
    "adversary_rate": [2, float("nan")],
    "adversary_radius": [-1],
    "adversary_warmup": [2],
    "adversary_padding": [-1],
    "weight_decay": [-1, float("nan")],
    "warmup_steps": [-5, float("nan")],
    "max_grad_norm": [-1, float("nan")],
    "adam_beta1": [2],
    "logging_steps": [0, -1, [1]],
    "save_steps": [0],
    "eval_steps": [0],
    "logits_chunk_size": [0],
    "max_length": [0, [1]],
    "pad_to_multiple_of": [0],
    "dataset_num_proc": [0],
    "dataloader_num_workers": [-1],
    "seed": [-1, 10**30, [1], None],
    "bf16": ["perhaps"],
    "use_peft": [3],
    "merge": ["sometimes"],
    "target_layers": ["three", 3, [], [0], [-1], ["a"], [float("nan")]],
    "triplet_margins": [5, [1]],
    "retain_l2_layers": [["nose"], ["target", "2"]],
    "num_train_epochs": [3],
    "neftune_noise_alpha": [5.0],
    "label_smoothing_factor": [0.1],
    "train_sampling_strategy": ["group_by_length"],
    "auto_find_batch_size": [True],
    "eval_on_start": [True],
    "term_classes": [["rr"], {"nose": []}, {"rr": ["nose"]}, {"rr": "harmful_flip"}, {"rr": None}, {"rr": []}, "{rr"],
    "preset": ["selectiv", ["selective"], None],
    "schedule": ["linaer", ["linear"]],
    "rr_tokens": ["some"],
    "retain_l2_distance": ["long"],
    "optim": ["adamw_troch", ["adamw_torch"], "adafactor_8"],
    "lr_scheduler_type": ["cosin", ["cosine"], 5],
    "eval_strategy": ["often"],
    "save_strategy": ["often", ["no"]],
    "logging_strategy": ["often"],
    "hub_strategy": ["often"],
    "log_level": ["loud"],
    "report_to": ["wandb", "tensorboard", "nose", ["wandb", "nose"], 5],
    "fsdp": ["nose"],
    "deepspeed": ["nose.json"],
    "accelerator_config": ["nose.json", {"nose": 1}, {"dispatch_batches": True}],
    "dtype": ["float7", ["float32"], "int8"],
    "attn_implementation": ["nose"],
    "model_init_kwargs": [["a"], {"nose": 1}, {"trust_remote_code": True}, {"use_safetensors": False}, "{a"],
    "lr_scheduler_kwargs": ["{a"],
    "optim_args": ["nose"],
    "gradient_checkpointing_kwargs": [["a"]],
    "use_liger_kernel": [True],
    "lora_target_modules": [["nose"], 5],
    "push_to_hub": [True],
    "output_dir": [["a"], 5],
    "model_name_or_path": [["model"], 5, None],
    "dataset_name": [["data"], 5, None],
    "reference_cache": ["recipe.yaml"],
}
VALUE_CASES = [(name, value) for name, values in VALUES.items() for value in values]

COMBINED = {
    "no adapter": ({"use_peft": False}, "use_peft"),
    "two precisions": ({"bf16": True, "fp16": True}, "bf16"),
    "padding": ({"padding_free": False}, "padding_free"),
    "two quantizations": ({"load_in_4bit": True, "load_in_8bit": True}, "8 bit and 4 bit"),
    "an argument of the schedule": (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"nose": 1}},
        "`lr_scheduler_type: cosine`.*nose",
    ),
    "no checkpoint": ({"resume_from_checkpoint": "nose"}, "nose"),
    "plateau": ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type"),
    "no minimum": ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type"),
    "best model": ({"load_best_model_at_end": True, "save_strategy": "steps"}, "load_best_model_at_end"),
    "no evaluation": ({"eval_strategy": "steps", "dataset_name": "other"}, "No dataset in other"),
    "output on data": ({"output_dir": "data"}, "`output_dir`: data is data, which `dataset_name` reads"),
    "output in data": ({"output_dir": "data/train/x"}, "`output_dir`: data/train/x lies in data, which"),
    "output around data": ({"output_dir": "."}, r"`output_dir`: \. contains data, which"),
    "output on the model": ({"output_dir": "model"}, "`output_dir`: model is model, which `model_name_or_path` loads"),
    "cache in data": ({"reference_cache": "data/cache"}, "`reference_cache`: data/cache lies in data"),
    "remote code": ({"trust_remote_code": True, "model_name_or_path": "someone/model"}, "model_revision"),
}


@pytest.mark.parametrize("name", FILES)
def test_wrong_recipes(name, here, capsys):
    content, pattern = FILES[name]
    Path("recipe.yaml").unlink()
    if content == "/":
        Path("recipe.yaml").mkdir()
    elif content is not None:
        Path("recipe.yaml").write_bytes(content)
    check(run_training, pattern, capsys)


@pytest.mark.parametrize("name", [*KEYS, *COMBINED])
def test_misspelt_keys_and_values_that_do_not_go_together(name, here, capsys):
    settings, pattern = (KEYS | COMBINED)[name]
    write_recipe(**settings)
    check(run_training, pattern, capsys)


@pytest.mark.parametrize(("name", "value"), VALUE_CASES, ids=[f"{n}-{v}" for n, v in VALUE_CASES])
def test_wrong_values(name, value, here, capsys):
    write_recipe(**{name: value})
    check(run_training, name, capsys)


@pytest.mark.parametrize(
    ("name", "value"), [("load_in_4bit", True), ("load_in_8bit", True), ("optim", "adamw_bnb_8bit")]
)
def test_values_that_need_a_package_which_is_not_installed(name, value, here, capsys, monkeypatch):
    for module in {"bitsandbytes", *(each for each in sys.modules if each.startswith("bitsandbytes."))}:
        monkeypatch.setitem(sys.modules, module, None)
    write_recipe(**{name: value})
    check(run_training, name, capsys)


FLAGS = {
    "unknown": (["--nose", "1"], "--nose"),
    "misspelt": (["--learning_rat", "1"], "--learning_rate"),
    "without a value": (["--learning_rate"], "--learning_rate"),
    "a word": (["--learning_rate", "fast"], "--learning_rate"),
    "a word for a switch": (["--bf16", "perhaps"], "--bf16"),
    "no recipe's name": (["--config"], "--config"),
    "a word too many": (["nose"], "nose"),
    "a choice": (["--optim", "nose"], "--optim"),
}
BAD_FLAGS = {
    "nan": (["--learning_rate", "nan"], "learning_rate"),
    "negative": (["--learning_rate=-1"], "learning_rate"),
    "schedule": (["--schedule", "nose"], "schedule"),
    "layers": (["--target_layers", "99"], "target_layers"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_wrong_usage(name, here, capsys):
    flags, pattern = FLAGS[name]
    check(lambda: run_training(*flags), pattern, capsys, status=2)


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_wrong_flags(name, here, capsys):
    flags, pattern = BAD_FLAGS[name]
    check(lambda: run_training(*flags), pattern, capsys)


# ------------------------------------------------------------------------------------------- models and outputs


def _edit_json(path: str, **values: Any) -> None:
    config = json.loads(Path(path).read_text()) | values
    Path(path).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def _cut(path: str, keep: float = 0.5) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: int(len(data) * keep)])


def _to_pickle() -> None:
    torch.save(load_file("model/model.safetensors"), "model/pytorch_model.bin")
    Path("model/model.safetensors").unlink()


def _template(text: str) -> None:
    Path("model/chat_template.jinja").write_text(text)


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "no folder": (lambda: shutil.rmtree("model"), r"model"),
    "a file": (lambda: (shutil.rmtree("model"), Path("model").touch()), r"model is a file"),
    "empty": (lambda: (shutil.rmtree("model"), Path("model").mkdir()), r"model is not a model folder"),
    "no config": (lambda: Path("model/config.json").unlink(), r"model.*config\.json"),
    "cut config": (lambda: _cut("model/config.json"), r"model/config\.json:\d+: not JSON"),
    "empty config": (lambda: Path("model/config.json").write_text(""), r"model/config\.json:1: not JSON"),
    "list as config": (lambda: Path("model/config.json").write_text("[]"), r"model/config\.json"),
    "binary config": (lambda: Path("model/config.json").write_bytes(b"\xff\xfe\x00"), r"model/config\.json"),
    "no model type": (lambda: _edit_json("model/config.json", model_type=None), r"model/config\.json.*model_type"),
    "unknown model type": (lambda: _edit_json("model/config.json", model_type="nose"), r"model.*nose"),
    "word as size": (lambda: _edit_json("model/config.json", hidden_size="big"), r"model.*hidden_size"),
    "another size": (lambda: _edit_json("model/config.json", hidden_size=64), r"model.*(size|shape)"),
    "more layers": (lambda: _edit_json("model/config.json", num_hidden_layers=6), r"^model: 18 weights .*layers\.4"),
    "an encoder": (lambda: _edit_json("model/config.json", model_type="vit", architectures=["ViTModel"]), r"^model: "),
    "no weights": (lambda: Path("model/model.safetensors").unlink(), r"model.*safetensors"),
    "cut weights": (lambda: _cut("model/model.safetensors"), r"model/model\.safetensors"),
    "nearly whole weights": (lambda: _cut("model/model.safetensors", 0.99), r"model/model\.safetensors"),
    "empty weights": (lambda: _cut("model/model.safetensors", 0), r"model/model\.safetensors"),
    "garbage weights": (
        lambda: Path("model/model.safetensors").write_bytes(b"\x80garbage" * 99),
        r"model/model\.safetensors",
    ),
    "a missing shard": (
        lambda: (
            Path("model/model.safetensors").unlink(),
            Path("model/model.safetensors.index.json").write_text(
                json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}})
            ),
        ),
        r"model-00001-of-00002\.safetensors",
    ),
    "a broken index": (
        lambda: (
            Path("model/model.safetensors").unlink(),
            Path("model/model.safetensors.index.json").write_text("{"),
        ),
        r"model/model\.safetensors\.index\.json",
    ),
    "only a pickle": (_to_pickle, r"model.*pickle.*--allow_pickled_weights"),
    "cut vocabulary": (lambda: _cut("model/tokenizer.json"), r"model.*tokenizer\.json"),
    "empty vocabulary": (lambda: _cut("model/tokenizer.json", 0), r"model.*tokenizer\.json"),
    "no vocabulary": (lambda: Path("model/tokenizer.json").unlink(), r"model"),
    "cut tokenizer config": (lambda: _cut("model/tokenizer_config.json"), r"model/tokenizer_config\.json"),
    "list as tokenizer config": (lambda: Path("model/tokenizer_config.json").write_text("[]"), r"tokenizer_config"),
    "cut template": (lambda: _cut("model/chat_template.jinja"), r"model.*template"),
    "no template": (lambda: Path("model/chat_template.jinja").unlink(), r"model has no chat template"),
    "an empty template": (lambda: _template(""), r"model.*template"),
    "a template that fails": (lambda: _template("{{ messages[99].role.x }}"), r"model.*template"),
    "a template with an unknown filter": (lambda: _template("<|eom_id|>{{ messages | nose }}"), r"model.*template"),
    "a template without tools": (
        lambda: _template("{% for m in messages %}{{ m.content }}<|eom_id|><|python_tag|>{% endfor %}"),
        r"model.*template",
    ),
    "a binary template": (lambda: Path("model/chat_template.jinja").write_bytes(b"\xff\xfe"), r"^model: .*template"),
    "output is a file": (lambda: Path("output").touch(), r"`output_dir`.*output is a file"),
    "output below a file": (lambda: write_recipe(output_dir="recipe.yaml/output"), r"`output_dir`.*recipe\.yaml is a"),
    "a Hub id offline": (lambda: write_recipe(model_name_or_path="someone/model"), r"someone/model"),
    "a word as Hub id": (lambda: write_recipe(model_name_or_path="nose"), r"nose"),
    "no Hub id": (lambda: write_recipe(model_name_or_path="a/b/c/d"), r"a/b/c/d"),
    "no tokenizer": (lambda: write_recipe(tokenizer_name_or_path="/nowhere"), r"There is no folder /nowhere"),
    "a tokenizer offline": (lambda: write_recipe(tokenizer_name_or_path="some/one"), r"some/one"),
    "a revision offline": (
        lambda: write_recipe(model_name_or_path="someone/model", model_revision="c0ffee"),
        r"someone/model",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_wrong_models_and_outputs(name, here, capsys):
    breaking, pattern = MODELS[name]
    breaking()
    check(run_training, pattern, capsys)


# ---------------------------------------------------------------------------------------------------------- data


def _edit_row(split: str = "train", number: int = 4, **columns: Any) -> None:
    """Change some columns of one row: `adversarial_safe/1`, whose attack is in its only message."""
    rows = list(make_attacked_rows(split=split))
    assert rows[number]["id"] == "adversarial_safe/1"
    rows[number] |= columns
    save_rows(Dataset.from_list(rows, features=SAMPLE_FEATURES), Path("data") / split, report={})


def _edit_message(**keys: Any) -> None:
    message = make_attacked_rows()[4]["messages"][0] | keys
    _edit_row(messages=[message])


def _edit_span(**keys: Any) -> None:
    span = make_attacked_rows()[4]["injection"][0] | keys
    _edit_row(injection=[span])


_ROW = r"^data/train.*row 5 \(adversarial_safe/1\)"
ROWS: dict[str, tuple[Callable[[], Any], str]] = {
    "null messages": (lambda: _edit_row(messages=None), _ROW + ".*messages"),
    "no messages": (lambda: _edit_row(messages=[]), _ROW + ".*messages"),
    "a null message": (lambda: _edit_row(messages=[None]), _ROW + ".*message 0"),
    "null content": (lambda: _edit_message(content=None), _ROW + ".*message 0"),
    "null role": (lambda: _edit_message(role=None), _ROW + ".*message 0"),
    "an unknown role": (lambda: _edit_message(role="wizard"), _ROW + ".*message 0"),
    "a span outside": (lambda: _edit_span(end=10_000), _ROW + ".*injection"),
    "a span of another message": (lambda: _edit_span(message=7), _ROW + ".*injection"),
    "a span of a negative message": (lambda: _edit_span(message=-1), _ROW + ".*injection"),
    "a negative span": (lambda: _edit_span(start=-3), _ROW + ".*injection"),
    "a span backwards": (lambda: _edit_span(start=9, end=5), _ROW + ".*injection"),
    "an empty span": (lambda: _edit_span(start=9, end=9), _ROW + ".*injection"),
    "a null start": (lambda: _edit_span(start=None), _ROW + ".*injection"),
    "a null end": (lambda: _edit_span(end=None), _ROW + ".*injection"),
    "a null message number": (lambda: _edit_span(message=None), _ROW + ".*injection"),
    "a null span": (lambda: _edit_row(injection=[None]), _ROW + ".*injection"),
    "null spans": (lambda: _edit_row(injection=None), _ROW + ".*injection"),
    "no completion": (lambda: _edit_row(assistant_raw=None), _ROW + ".*assistant_raw"),
    "an empty completion": (lambda: _edit_row(assistant_raw=""), _ROW + ".*assistant_raw"),
    "null set": (lambda: _edit_row(set=None), _ROW + ".*set"),
    "an unknown set": (lambda: _edit_row(set="nose"), _ROW + ".*set"),
    "another set": (lambda: _edit_row(set="circuit_breaker"), _ROW + ".*set"),
    "null class": (lambda: _edit_row(priority_class=None), _ROW + ".*priority_class"),
    "an unknown class": (lambda: _edit_row(priority_class="nose"), _ROW + ".*priority_class"),
    "null id": (lambda: _edit_row(id=None), r"^data/train.*row 5.*id"),
    "null provenance": (lambda: _edit_row(provenance=None), "adversarial_safe/1.*provenance"),
    "null target": (lambda: _edit_row(target=None), _ROW + ".*target"),
    "tools in words": (lambda: _edit_row(tools="nose"), _ROW + ".*tools"),
    "tools of numbers": (lambda: _edit_row(tools="[1]"), _ROW + ".*tools"),
    "tools without a name": (lambda: _edit_row(tools='[{"function": {}}]'), _ROW + ".*tools"),
    "a call in words": (
        lambda: _edit_message(
            role="assistant",
            tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "nose"}}],
        ),
        _ROW + ".*message 0",
    ),
    "a null call": (
        lambda: _edit_message(role="assistant", tool_calls=[{"id": "1", "type": "function", "function": None}]),
        _ROW + ".*message 0",
    ),
    "a row of the eval split": (
        lambda: (write_recipe(eval_strategy="steps", eval_steps=1), _edit_row("eval", messages=None)),
        r"^data/eval.*row 5 \(adversarial_safe/1\).*messages",
    ),
    "a long row": (lambda: write_recipe(max_length=20), r"max_length"),
    "no folder": (lambda: shutil.rmtree("data"), r"No dataset in data/train"),
    "a file": (lambda: (shutil.rmtree("data"), Path("data").touch()), r"data"),
    "JSON lines": (lambda: write_recipe(dataset_name="data.jsonl"), r"data\.jsonl: the trainer reads folders"),
    "no rows": (
        lambda: save_rows(to_dataset([], SAMPLE_FEATURES), Path("data/train"), report={}),
        r"(no|zero) row",
    ),
    "a cut file": (lambda: _cut("data/train/data.parquet"), r"data/train/data\.parquet"),
    "an empty file": (lambda: _cut("data/train/data.parquet", 0), r"data/train/data\.parquet"),
    "garbage": (lambda: Path("data/train/data.parquet").write_bytes(b"garbage" * 99), r"data/train/data\.parquet"),
    "a folder as file": (
        lambda: (Path("data/train/data.parquet").unlink(), Path("data/train/data.parquet").mkdir()),
        r"data/train",
    ),
    "other columns": (
        lambda: save_rows(Dataset.from_list([{"text": "a"}]), Path("data/train"), report={}),
        r"data/train/data\.parquet: not the expected rows",
    ),
    "no eval split": (
        lambda: (write_recipe(eval_strategy="steps", eval_steps=1), shutil.rmtree("data/eval")),
        r"No dataset in data/eval",
    ),
    "a Hub id offline": (lambda: write_recipe(dataset_name="someone/samples"), r"someone/samples"),
}


@pytest.mark.parametrize("name", ROWS)
def test_wrong_data(name, here, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    breaking, pattern = ROWS[name]
    breaking()
    check(run_training, pattern, capsys)


# --------------------------------------------------------------------------------------------------- diagnostics


def _edit_eval(**columns: Any) -> None:
    _edit_row("eval", **columns)


DIAGNOSTICS: dict[str, tuple[Callable[[], Any], dict[str, str], str, int]] = {
    "no flags": (lambda: None, {"model": "", "adapter": "", "data": "", "output": ""}, "--model", 2),
    "an unknown flag": (lambda: None, {"nose": "1"}, "--nose", 2),
    "a word for a number": (lambda: None, {"max_rows": "many"}, "--max_rows", 2),
    "no rows wanted": (lambda: None, {"max_rows": "0"}, "--max_rows", 1),
    "negative rows": (lambda: None, {"max_rows": "-1"}, "--max_rows", 1),
    "no model": (lambda: None, {"model": "/nowhere"}, "There is no folder /nowhere", 1),
    "a Hub id offline": (lambda: None, {"model": "someone/model"}, "someone/model", 1),
    "cut weights": (lambda: _cut("model/model.safetensors"), {}, r"model/model\.safetensors", 1),
    "cut config": (lambda: _cut("model/config.json"), {}, r"model/config\.json", 1),
    "cut vocabulary": (lambda: _cut("model/tokenizer.json"), {}, r"model.*tokenizer\.json", 1),
    "only a pickle": (_to_pickle, {}, r"model.*pickle", 1),
    "cut template": (lambda: _cut("model/chat_template.jinja"), {}, r"model.*template", 1),
    "no tokenizer": (lambda: None, {"tokenizer": "/nowhere"}, "There is no folder /nowhere", 1),
    "output in the data": (lambda: None, {"output": "data/eval/cosines.json"}, "--output: .* lies in data/eval", 1),
    "output on a config": (lambda: None, {"output": "adapter/adapter_config.json"}, "--output: .* lies in adapter", 1),
    "no adapter": (lambda: None, {"adapter": "/nowhere"}, "There is no folder /nowhere", 1),
    "a file as adapter": (lambda: None, {"adapter": "recipe.yaml"}, r"recipe\.yaml", 1),
    "no config of the adapter": (lambda: Path("adapter/adapter_config.json").unlink(), {}, "adapter_config", 1),
    "a cut config of the adapter": (lambda: _cut("adapter/adapter_config.json"), {}, "adapter/adapter_config", 1),
    "a list as config of the adapter": (
        lambda: Path("adapter/adapter_config.json").write_text("[]"),
        {},
        "adapter/adapter_config",
        1,
    ),
    "an unknown kind of adapter": (
        lambda: _edit_json("adapter/adapter_config.json", peft_type="NOSE"),
        {},
        "adapter.*NOSE",
        1,
    ),
    "cut weights of the adapter": (lambda: _cut("adapter/adapter_model.safetensors"), {}, "adapter/adapter_model", 1),
    "a pickle as adapter": (
        lambda: (
            torch.save(load_file("adapter/adapter_model.safetensors"), "adapter/adapter_model.bin"),
            Path("adapter/adapter_model.safetensors").unlink(),
        ),
        {},
        "adapter.*pickle",
        1,
    ),
    "an adapter of another size": (lambda: _edit_json("adapter/adapter_config.json", r=8), {}, "adapter", 1),
    "an adapter of another model": (
        lambda: _edit_json("adapter/adapter_config.json", target_modules=["nose"]),
        {},
        "adapter.*nose",
        1,
    ),
    "an adapter without a name": (lambda: None, {"also": "adapter"}, "--also", 1),
    "no other adapter": (lambda: None, {"also": "plain=/nowhere"}, "/nowhere", 1),
    "no data": (lambda: None, {"data": "/nowhere"}, "No dataset in /nowhere", 1),
    "a cut file": (lambda: _cut("data/eval/data.parquet"), {}, r"data/eval/data\.parquet", 1),
    "zero rows": (
        lambda: save_rows(to_dataset([], SAMPLE_FEATURES), Path("data/eval"), report={}),
        {},
        "data/eval.*zero rows",
        1,
    ),
    "null messages": (lambda: _edit_eval(messages=None), {}, r"data/eval.*row 5 .*messages", 1),
    "null spans": (lambda: _edit_eval(injection=None), {}, r"data/eval.*row 5 .*injection", 1),
    "tools in words": (lambda: _edit_eval(tools="nose"), {}, r"data/eval.*row 5 .*tools", 1),
    "null class": (lambda: _edit_eval(priority_class=None), {}, r"data/eval.*row 5 .*priority_class", 1),
    "output is a folder": (lambda: None, {"output": "data"}, "data is a folder", 1),
    "output below a file": (lambda: None, {"output": "recipe.yaml/x.json"}, r"recipe\.yaml is a file", 1),
}


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_wrong_diagnostics(name, here, capsys):
    breaking, flags, pattern, status = DIAGNOSTICS[name]
    breaking()
    check(lambda: run_diagnostics(**flags), pattern, capsys, status)


def test_resuming_from_the_newest_checkpoint_is_no_wrong_value(here):
    write_recipe(resume_from_checkpoint=False)
    train.parse_arguments(["--config", "recipe.yaml"])


def test_the_folder_that_is_broken_above_is_whole(here):
    run_training()
    run_diagnostics()
    assert Path("output/adapter_model.safetensors").is_file() and Path("cosines.json").is_file()
