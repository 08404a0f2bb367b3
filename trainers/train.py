"""
Train a circuit breaker from a recipe. Every option of the recipe is also a flag, and flags win:

    accelerate launch --quiet -m trainers.train --config recipes/demo.yaml
    accelerate launch --quiet -m trainers.train --config recipes/demo.yaml --rr_weight 5 --output_dir data/demo/x5
"""

import hashlib
import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import OneLineUsage, errors_in_one_line, usage_error
from .docstring_help import docstring_help
from .recipe import check_recipe, read_recipe
from .setting_checks import check_numbers


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import TrainerState
    from trl import ModelConfig, TrlParser

    from .circuit_breaker_config import CircuitBreakerConfig
    from .circuit_breaker_trainer import CircuitBreakerTrainer


@dataclass
@docstring_help
class ScriptArguments:
    """
    Arguments of the script, in addition to those of the model and of the training.

    Args:
        dataset_name (`str`):
            Folder of merged samples, with subfolders `train/` and `eval/`, or id of a published dataset on the Hub,
            with splits `train` and `test`. The losses are evaluated on the second if `eval_strategy` asks for it.
        dataset_config (`str`, *optional*):
            Name of the dataset's configuration on the Hub.
    """

    dataset_name: str
    dataset_config: str | None = None


def main(script_args: ScriptArguments, training_args: "CircuitBreakerConfig", model_args: "ModelConfig") -> None:
    from .circuit_breaker_config import as_dict

    if model_args.model_name_or_path is None:
        raise SystemExit("No model: set `model_name_or_path` in the recipe or as a flag.")
    if script_args.dataset_name is None:
        raise SystemExit("No data: set `dataset_name` in the recipe or as a flag.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **as_dict(training_args.model_init_kwargs),
    }

    with errors_in_one_line(
        "Repeat the command with --resume_from_checkpoint true to go on from its last checkpoint."
    ):
        check_settings(training_args, model_args)
        check_places(script_args, training_args, model_args)
        trainer = make_trainer(script_args, training_args, model_args)
        train(trainer, script_args, training_args)


def check_settings(training_args: "CircuitBreakerConfig", model_args: "ModelConfig") -> None:
    """
    Raise an error for what can be known to fail before data and model are loaded.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: If the output is a file, a package is missing, the optimizer
            cannot be made, or the files of the model are not whole, or run code that nobody asked for.
    """
    from cb_datasets.generation.model_files import check_model_files, check_remote_code
    from cb_datasets.generation.tokenizer import check_model

    from .setting_checks import check_optimizer, check_output, check_packages

    if not model_args.use_peft:
        raise ValueError("A circuit breaker is an adapter: set `use_peft: true` in the recipe.")
    for name in ("output_dir", "reference_cache"):
        check_output(name, getattr(training_args, name))
    check_packages(model_args, {"load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes"})
    check_optimizer(training_args)
    model = str(model_args.model_name_or_path)
    check_model(model)
    check_model_files(model, training_args.allow_pickled_weights)
    if training_args.trust_remote_code:
        check_remote_code(model, model_args.model_revision)


def check_places(
    script_args: ScriptArguments, training_args: "CircuitBreakerConfig", model_args: "ModelConfig"
) -> None:
    """
    Check that the training does not write over, into or around what it reads.

    Raises:
        ValueError: If it would; the message names the settings.
    """
    from cb_datasets.path_rules import NamedPath, Role, check_all_apart

    paths = {
        "dataset_name": (script_args.dataset_name, Role.READ),
        "model_name_or_path": (model_args.model_name_or_path, Role.MODEL),
        "tokenizer_name_or_path": (training_args.tokenizer_name_or_path, Role.MODEL),
        "output_dir": (training_args.output_dir, Role.WRITE),
        "reference_cache": (training_args.reference_cache, Role.CACHE),
    }
    check_all_apart(NamedPath(f"`{name}`", Path(path), role) for name, (path, role) in paths.items() if path)


def make_trainer(
    script_args: ScriptArguments, training_args: "CircuitBreakerConfig", model_args: "ModelConfig"
) -> "CircuitBreakerTrainer":
    """Load data and model."""
    from trl import get_peft_config, get_quantization_config

    from .circuit_breaker_trainer import CircuitBreakerTrainer

    train_dataset, revision = load_split(script_args, "train", training_args.dataset_revision)
    training_args.dataset_revision = revision
    return CircuitBreakerTrainer(
        model=str(model_args.model_name_or_path),
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=None if training_args.eval_strategy == "no" else load_split(script_args, "eval", revision)[0],
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )


def train(
    trainer: "CircuitBreakerTrainer", script_args: ScriptArguments, training_args: "CircuitBreakerConfig"
) -> None:
    """Train, and save everything that belongs to the adapter, the adapter's weights last."""
    from transformers.trainer import TRAINER_STATE_NAME

    from cb_datasets.files import filling

    from .curves import plot_curves
    from .lora_targets import coverage_line

    trainer.accelerator.print(coverage_line(trainer.lora_coverage))
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    output = trainer.output_folder
    with filling(output) if training_args.should_save else nullcontext(output) as folder:
        trainer.save_model(str(folder))
        if training_args.should_save:
            trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        if training_args.merge:
            trainer.save_merged(folder / "merged")
        if trainer.is_world_process_zero():
            plot_curves(trainer.state.log_history, folder / "curves.png")
        gates = read_gates_report(Path(script_args.dataset_name))
        trainer.create_model_card(dataset_name=script_args.dataset_name, gates=gates, folder=folder)
    trainer.accelerator.print(summary(trainer.state, result.metrics, training_args.output_dir))
    trainer.end()


def load_split(script_args: ScriptArguments, split: str, revision: str | None) -> tuple["Dataset", str | None]:
    """
    Load the rows of one split, and the revision of the dataset: a commit on the Hub, or a hash of the folder's rows.

    Raises:
        FileNotFoundError, ValueError: If there is no such dataset, or its rows are not samples.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    from cb_datasets.files import ROWS_FILE, load_rows
    from cb_datasets.publish.released_rows import stored_dataset
    from cb_datasets.sample import SAMPLE_FEATURES
    from cb_datasets.text_faults import check_rows

    folder = Path(script_args.dataset_name)
    if folder.suffix == ".jsonl":
        raise ValueError(
            f"{folder}: the trainer reads folders. Write cb-datasets import {folder} --output "
            f"{folder.with_suffix('')}, and --dataset_name {folder.parent}."
        )
    on_disk = folder.exists() or len(folder.parts) != 2
    if on_disk:
        rows = load_rows(folder / split, SAMPLE_FEATURES)
        if len(rows) == 0:
            raise ValueError(f"{folder / split}: there are zero rows. Run the step that makes them again.")
        check_rows(rows, folder / split)
        digest = hashlib.sha256((folder / split / ROWS_FILE).read_bytes()).hexdigest()
        return rows, revision or f"sha256:{digest[:16]}"
    # Published datasets have the usual split names of the Hub
    hub_split = {"train": "train", "eval": "test"}[split]
    try:
        if revision is None:
            revision = HfApi().dataset_info(script_args.dataset_name).sha
        rows = load_dataset(script_args.dataset_name, script_args.dataset_config, split=hub_split, revision=revision)
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{script_args.dataset_name} is neither a folder of samples nor available on the Hub: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    rows = stored_dataset(rows).cast(SAMPLE_FEATURES)
    check_rows(rows, f"{script_args.dataset_name}, split {hub_split}")
    return rows, revision


def read_gates_report(folder: Path) -> dict | None:
    """Read the quality gates' report on a folder of samples, which `make data` writes beside it, if there is one."""
    from cb_datasets.files import read_json

    report = folder.parent / "reports" / "quality_gates.json"
    return read_json(report) if report.is_file() else None


def summary(state: "TrainerState", metrics: dict[str, float], output_dir: str | None) -> str:
    """One line on a finished run: its metrics in the first and in the last log entry."""
    results = [f"Trained {state.global_step} steps in {metrics['train_runtime']:.0f} s"]
    logs = [entry for entry in state.log_history if "cosine/ds" in entry or "cosine/dr" in entry]
    if not logs:  # a run that is shorter than `logging_steps`
        return f"{results[0]}; adapter in {output_dir}"
    for title, key in (("cosine on Ds", "cosine/ds"), ("cosine on Dr", "cosine/dr")):
        if key in logs[-1]:
            results.append(f"{title} {logs[0][key]:.3f} -> {logs[-1][key]:.3f}")
    losses = [key for key in logs[-1] if key.startswith("loss/")]
    results += [f"{key.removeprefix('loss/')} {logs[0][key]:.3f} -> {logs[-1][key]:.3f}" for key in losses]
    return f"{', '.join(results)}; adapter in {output_dir}"


# The annotation of TRL's parser fits no dataclass
def _settings() -> tuple[Any, ...]:
    from trl import ModelConfig

    from .circuit_breaker_config import CircuitBreakerConfig

    return ScriptArguments, CircuitBreakerConfig, ModelConfig


def make_parser() -> "TrlParser":
    from trl import TrlParser

    class Parser(OneLineUsage, TrlParser):
        pass

    return Parser(_settings(), allow_abbrev=False, description=__doc__.strip().split("\n")[0])


def parse_arguments(args: list[str] | None = None) -> tuple:
    """Parse the command line and the recipe; a wrong setting is one line, before anything is loaded."""
    words = list(sys.argv[1:] if args is None else args)
    recipe = _recipe_of(words)
    with errors_in_one_line():
        if recipe is not None:
            settings = read_recipe(recipe)  # first: what is no recipe fails before libraries are imported
            check_recipe(settings, _settings(), recipe)
        parser: Any = make_parser()
        try:
            parsed = parser.parse_strictly(words, parser.parse_args_and_config)
            check_numbers(parsed[2])
        except (ValueError, ImportError, OSError, TypeError) as error:
            raise ValueError(_with_place(" ".join(str(error).split()), recipe, words)) from error
    return tuple(parsed)


def _recipe_of(words: list[str]) -> Path | None:
    """Take the recipe's path from the flags, in either spelling, and leave that which TRL's parser reads."""
    for index, word in enumerate(words):
        if word.startswith("--config="):
            words[index : index + 1] = ["--config", word.removeprefix("--config=")]
    if "--config" not in words:
        return None
    path = words[words.index("--config") + 1 :][:1]
    if not path or path[0].startswith("--"):
        usage_error("argument --config: expected the path of a recipe")
    return Path(path[0])


def _with_place(message: str, recipe: Path | None, words: list[str]) -> str:
    """An error about a setting, with the recipe, unless the setting was given as a flag."""
    flags = {word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    named = set(re.findall(r"`(\w+)`", message))
    return message if recipe is None or named & flags else f"{recipe}: {message}"


if __name__ == "__main__":
    main(*parse_arguments())
