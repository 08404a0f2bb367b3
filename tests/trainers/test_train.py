"""The training script, from a recipe and folders of samples to a saved adapter."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from builders.trace import message
from cb_datasets.files import save_rows
from cb_datasets.generation.backend import revision_of
from cb_datasets.publish.released_rows import RELEASED_SAMPLE_FEATURES, released_row, released_table
from cb_datasets.sample import RETAIN_CLASSES, SAMPLE_FEATURES
from tests.small_disk import run_in_namespace
from tests.trainers.conftest import made_for
from trainers.quantized import keep_differentiable
from trainers.train import ScriptArguments, load_split, main, make_parser, parse_arguments


REPOSITORY = Path(__file__).parents[2]
SELECTIVE_RECIPE, PLAIN_RECIPE = (REPOSITORY / "recipes" / f"{name}.yaml" for name in ("demo", "demo-plain_rr"))


def run(*flags: str, recipe: Path = PLAIN_RECIPE) -> None:
    main(*make_parser().parse_args_and_config(["--config", str(recipe), *flags]))


@pytest.fixture
def flags(tmp_path, rows, model_path):
    """Flags that replace the model and data of a recipe."""
    for split in ("train", "eval"):
        save_rows(rows(split=split), tmp_path / "stage2" / split, report={})
    values = {
        "model_name_or_path": model_path,
        "dataset_name": tmp_path / "stage2",
        "output_dir": tmp_path / "adapter",
        "max_steps": 4,
        "logging_steps": 3,  # the last step has no log entry
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def test_launch_command_of_a_recipe_trains_and_saves_an_adapter(flags, tmp_path, model_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m"]
    result = subprocess.run(
        [*command, "trainers.train", "--config", "recipes/demo-plain_rr.yaml", *flags],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    [line] = [line for line in result.stdout.splitlines() if line.startswith("Trained")]
    assert line.startswith("Trained 4 steps in ")
    assert line.endswith(f"adapter in {tmp_path / 'adapter'}")
    assert "4/4" in result.stderr  # the progress bar

    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], len(adapter["target_modules"])) == (8, 16, 7)
    assert adapter["layers_to_transform"] == [0, 1, 2, 3]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path), tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(("other", "revision"), [([], "c0ffee"), (["--tokenizer_name_or_path", "other"], "main")])
def test_the_tokenizer_has_the_revision_of_its_model(flags, monkeypatch, other, revision):
    class Loaded(Exception):
        pass

    def load(name, revision, trust_remote_code):
        raise Loaded(name, revision)

    monkeypatch.setattr("trainers.circuit_breaker_trainer.load_tokenizer", load)
    with pytest.raises(Loaded) as loaded:
        run(*flags, "--model_revision", "c0ffee", *other)
    assert loaded.value.args == (other[-1] if other else flags[1], revision)


def test_evaluation_reads_the_eval_folder(flags, capsys):
    run(*flags, "--eval_strategy", "steps", "--eval_steps", "4")
    assert "eval_loss/rr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows_options", "message"),
    [
        (None, "No dataset in .*/train: data.parquet is missing"),
        ({"harmful": 0}, "no row of the circuit breaker set"),
        ({"retain": {}}, "no row of the retain set"),
        ({"retain": {"adversarial_safe": 3}}, "no row of the retain set"),  # a class that this recipe leaves out
    ],
)
def test_bad_data_end_the_run_with_one_line(tmp_path, rows, flags, rows_options, message):
    folder = tmp_path / "bad"
    if rows_options is not None:
        save_rows(rows(**rows_options), folder / "train", report={})
    with pytest.raises(SystemExit, match=message) as error:
        run(*flags, "--dataset_name", str(folder))
    assert isinstance(error.value.code, str)  # printed, and the exit status is 1


def test_missing_model_and_unknown_keys_are_refused(flags, tmp_path):
    with pytest.raises(SystemExit, match="No model"):
        main(*make_parser().parse_args_and_config(["--output_dir", str(tmp_path), *flags[2:], "--use_cpu"]))
    with pytest.raises(SystemExit, match="There is no folder /nowhere"):
        run(*flags, "--model_name_or_path", "/nowhere")
    (tmp_path / "recipe.yaml").write_text("alhpa: 10\n")
    with pytest.raises(ValueError, match="alhpa"):
        make_parser().parse_args_and_config(["--config", str(tmp_path / "recipe.yaml"), *flags, "--use_cpu"])


@pytest.mark.parametrize(
    ("lines", "message"), [("assistant_only_loss: true\n", "`assistant_only_loss` is a"), ("alhpa: 10\n", "alhpa")]
)
def test_a_wrong_setting_ends_the_run_with_one_line(flags, tmp_path, lines, message):
    (tmp_path / "recipe.yaml").write_text(lines)
    with pytest.raises(SystemExit, match=message) as error:
        parse_arguments(["--config", str(tmp_path / "recipe.yaml"), *flags, "--use_cpu"])
    assert isinstance(error.value.code, str) and "\n" not in error.value.code
    with pytest.raises(SystemExit, match="assistant_only_loss"):
        parse_arguments([*flags, "--use_cpu", "--assistant_only_loss"])
    # What TRL's own recipes say about it by default is no mistake.
    (tmp_path / "recipe.yaml").write_text("assistant_only_loss: false\n")
    parse_arguments(["--config", str(tmp_path / "recipe.yaml"), *flags, "--use_cpu"])


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_one_of_the_trainer(path):
    _, training_args, model_args = parse_arguments(["--config", str(path), "--use_cpu", "--bf16", "false"])
    written = yaml.safe_load(path.read_text())
    assert training_args.target_layers == written.get("target_layers", [0.3125, 0.625])
    assert model_args.lora_target_modules == written.get("lora_target_modules")


def test_plain_recipe_of_the_demo_retains_every_class_but_adversarial_safe():
    recipe = yaml.safe_load(PLAIN_RECIPE.read_text())
    assert recipe["preset"] == "reference"
    assert set(recipe["term_classes"]["retain_l2"]) == set(RETAIN_CLASSES) - {"adversarial_safe"}


def test_recipe_of_the_demo_is_the_selective_preset(flags, tmp_path, attacked_rows, capsys):
    save_rows(attacked_rows(), tmp_path / "attacked" / "train", report={})
    run(*flags, "--dataset_name", str(tmp_path / "attacked"), recipe=SELECTIVE_RECIPE)
    output = capsys.readouterr().out
    assert all(f"{term} " in output for term in ("distill", "splice", "retain_kl", "unlikelihood"))


def test_run_writes_card_curves_and_merged_model(flags, tmp_path, rows, capsys):
    reports = tmp_path / "reports"
    reports.mkdir()
    gate = {"name": "harmful: attack succeeded", "value": 1.0, "limit": 0.8, "rows": 6}
    (reports / "quality_gates.json").write_text(json.dumps({"passed": True, "gates": [gate]}))
    run(*flags, "--merge", "true")
    folder = tmp_path / "adapter"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "trainer_state.json").is_file()
    AutoModelForCausalLM.from_pretrained(folder / "merged")
    card = (folder / "README.md").read_text()
    digest = hashlib.sha256((tmp_path / "stage2" / "train" / "data.parquet").read_bytes()).hexdigest()
    assert f"`sha256:{digest[:16]}`" in card
    assert "harmful: attack succeeded" in card
    assert "cosine on Ds" in capsys.readouterr().out


def test_dataset_of_the_hub_is_loaded_at_its_commit(monkeypatch, rows):
    requests = []
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name: SimpleNamespace(sha="c0ffee"))
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: requests.append((args, kwargs)) or rows())
    script_args = ScriptArguments("someone/samples", dataset_config="default")
    loaded, revision = load_split(script_args, "train", None)
    assert (loaded.num_rows, revision) == (16, "c0ffee")
    assert requests == [(("someone/samples", "default"), {"split": "train", "revision": "c0ffee"})]
    assert load_split(script_args, "train", "0ld")[1] == "0ld"


def test_rows_of_a_release_are_read_as_they_were_stored(monkeypatch, rows):
    stored = [row | {"assistant_raw": "Fine.<|eot_id|>"} for row in rows(even=True)]
    for row in stored:
        row["provenance"] = row["provenance"] | {"prompt_format": "llama3_json"}
        row["messages"] = [message(**turn) for turn in row["messages"]]
    released = Dataset(released_table(map(released_row, stored), RELEASED_SAMPLE_FEATURES))
    assert "labels" not in released.column_names
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: released)
    loaded, _ = load_split(ScriptArguments("someone/samples"), "train", "c0ffee")
    assert list(loaded) == stored and loaded.features == SAMPLE_FEATURES


def test_rows_of_another_model_are_refused_before_the_model_loads(flags, tiny_agent_path):
    with pytest.raises(SystemExit) as refused:
        run(*flags, "--model_name_or_path", str(tiny_agent_path), "--attn_implementation", "no-such-attention")
    rendering = r"format llama3_json and chat template [0-9a-f]{12}"
    assert re.fullmatch(
        rf"Row ds/0 \(and 15 more\) of the train dataset was made for another model: it has {rendering}, and the "
        rf"tokenizer \S+ has {rendering}\. Make the data with this model, or train the model of the data\.",
        str(refused.value),
    )


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        (
            {"prompt_format": "hermes"},
            "refusal/1 of the train .* it has format hermes and chat template [0-9a-f]+",
        ),
        ({"template_hash": None}, "refusal/1 of the train dataset has no `provenance.template_hash`, so it may have"),
        (
            {"template_hash": None, "prompt_format": None},
            "no `provenance.prompt_format` and no `provenance.template",
        ),
    ],
)
def test_one_row_of_another_format_or_of_none_is_named(provenance, message, rows, flags, tmp_path):
    changed = [row for row in rows() if row["id"] != "refusal/1"]
    changed += [row | {"provenance": row["provenance"] | provenance} for row in rows() if row["id"] == "refusal/1"]
    save_rows(Dataset.from_list(changed, features=SAMPLE_FEATURES), tmp_path / "stage2" / "train", report={})
    with pytest.raises(SystemExit, match=message):
        run(*flags)


def test_rows_to_evaluate_on_are_refused_too(make_trainer, rows, tokenizer):
    other = [row | {"provenance": row["provenance"] | {"template_hash": "0123456789ab"}} for row in rows()]
    dataset = Dataset.from_list(other, features=SAMPLE_FEATURES)
    with pytest.raises(ValueError, match=r"^Row ds/0 .* of the eval dataset was made for another model"):
        make_trainer(eval_dataset=dataset)
    with pytest.raises(ValueError, match=r"^Row ds/0 .* of the eval dataset was made for another model"):
        make_trainer().evaluate(dataset)


def test_quantized_model_is_trained(flags, tmp_path, rows, tiny_agent_path):
    pytest.importorskip("bitsandbytes", reason="no bitsandbytes: pip install 'cb-datasets[qlora]'")
    for split in ("train", "eval"):
        own = made_for(rows(split=split), AutoTokenizer.from_pretrained(tiny_agent_path))
        save_rows(own, tmp_path / "stage2" / split, report={})
    run(*flags, "--load_in_4bit", "true", "--model_name_or_path", str(tiny_agent_path))
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_agent_path), tmp_path / "adapter")
    with pytest.raises(SystemExit, match="`merge` is not supported with a quantized model"):
        run(*flags, "--load_in_4bit", "true", "--model_name_or_path", str(tiny_agent_path), "--merge", "true")


def test_gradients_of_a_quantized_model_do_not_change_after_an_evaluation_pass(tmp_path):
    pytest.importorskip("bitsandbytes", reason="no bitsandbytes: pip install 'cb-datasets[qlora]'")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=four_bits)
    keep_differentiable(model)

    def gradient() -> torch.Tensor:
        states = torch.ones(1, 4, 128, requires_grad=True)
        model.train()(inputs_embeds=states).logits.square().sum().backward()
        return states.grad

    before = gradient()
    with torch.no_grad():
        model.eval()(torch.arange(4)[None])
    torch.testing.assert_close(gradient(), before)


def test_an_adapter_does_not_tell_where_it_was_trained(flags, tmp_path, monkeypatch, model_path):
    """Everything lies in the home folder of somebody whose name stands in no file that is passed on."""
    home = tmp_path / "home" / "jane-example"
    shutil.copytree(model_path, home / "models" / "tiny")
    shutil.copytree(tmp_path / "stage2", home / "data" / "stage2")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "jane-example")
    monkeypatch.setenv("LOGNAME", "jane-example")
    places = {"model_name_or_path": "models/tiny", "dataset_name": "data/stage2", "output_dir": "data/adapter"}
    moved = [word for name, place in places.items() for word in (f"--{name}", str(home / place))]
    run(*flags, *moved, "--merge", "true", "--save_strategy", "steps", "--save_steps", "2")
    folder = home / "data" / "adapter"
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert {Path("README.md"), Path("merged/config.json"), Path("checkpoint-4/adapter_config.json")} <= files
    assert not [path for path in files if path.name == "training_args.bin"]
    telling = [path for path in files if re.search(rb"jane.example", (folder / path).read_bytes())]
    assert telling == []
    config = json.loads((folder / "adapter_config.json").read_text())
    card = (folder / "README.md").read_text()
    assert config["base_model_name_or_path"] == "tiny" and "base_model:" not in card
    assert f"`local model tiny (weights {revision_of(str(home / 'models' / 'tiny'))})`" in card
    assert 'from_pretrained("path/to/base")' in card and "The local folder `stage2`" in card
    # Nothing that was left out is needed to go on, or to load it.
    run(*flags, *moved, "--max_steps", "6", "--resume_from_checkpoint", str(folder / "checkpoint-4"))
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(home / "models" / "tiny"), folder)


def test_a_full_disk_ends_training_in_one_line(flags, tmp_path):
    """Neither a checkpoint nor an adapter that is not whole stays; with space, the same command goes through."""
    disk = tmp_path / "disk"
    disk.mkdir()
    program = (sys.executable, "-m", "tests.trainers.full_disk_training", disk, "--config", PLAIN_RECIPE, *flags)
    result = run_in_namespace('exec "$@"', *program)
    assert result.returncode == 0, result.stderr
    trainings = json.loads(result.stdout)
    for name in ("with checkpoints", "without"):
        found = trainings[name]
        assert found["status"] == 1 and found["files"] == [] and "Traceback" not in found["log"], found
        [line] = [line for line in found["log"].splitlines() if line.endswith("and run the same command again.")]
        assert "No space left on device" in line
    found = trainings["with space"]
    assert found["status"] == 0 and not [name for name in found["files"] if name.endswith(".tmp")], found


def test_json_lines_are_imported_first(tmp_path):
    with pytest.raises(ValueError, match=r"Write cb-datasets import .*train\.jsonl --output .*stage2/train, and"):
        load_split(ScriptArguments(str(tmp_path / "stage2" / "train.jsonl")), "train", None)
