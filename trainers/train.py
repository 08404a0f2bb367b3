"""
Train a circuit breaker from a recipe. Every option of the recipe is also a flag, and flags win:

    accelerate launch -m trainers.train --config recipes/demo.yaml
    accelerate launch -m trainers.train --config recipes/demo.yaml --rr_weight 5 --output_dir data/demo/adapter-5
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .docstring_help import docstring_help


if TYPE_CHECKING:
    from datasets import Dataset
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
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **as_dict(training_args.model_init_kwargs),
    }

    with errors_in_one_line():
        trainer = make_trainer(script_args, training_args, model_args)
        train(trainer, script_args, training_args)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the script with one line and exit status 1 for errors that its user can act on: wrong data, a full disk."""
    from cb_datasets.disk_faults import error_line
    from cb_datasets.terminal import shown

    try:
        yield
    except Exception as error:
        message = str(error) if isinstance(error, FloatingPointError) else error_line(error)
        if message is None:
            raise
        raise SystemExit(shown(message)) from error


def make_trainer(
    script_args: ScriptArguments, training_args: "CircuitBreakerConfig", model_args: "ModelConfig"
) -> "CircuitBreakerTrainer":
    """Load data and model."""
    from trl import get_peft_config, get_quantization_config

    from cb_datasets.generation.tokenizer import check_model

    from .circuit_breaker_trainer import CircuitBreakerTrainer

    check_model(str(model_args.model_name_or_path))
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
    trainer.accelerator.print(summary(trainer.state.log_history, result.metrics, training_args.output_dir))
    trainer.end()


def load_split(script_args: ScriptArguments, split: str, revision: str | None) -> tuple["Dataset", str | None]:
    """
    Load the rows of one split, and the revision of the dataset: a commit on the Hub, or a hash of the folder's rows.

    Raises:
        FileNotFoundError, ValueError: If there is no such dataset, or its rows are not samples.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi

    from cb_datasets.files import ROWS_FILE, load_rows
    from cb_datasets.publish.released_rows import stored_dataset
    from cb_datasets.sample import SAMPLE_FEATURES

    folder = Path(script_args.dataset_name)
    if folder.suffix == ".jsonl":
        raise ValueError(
            f"{folder}: the trainer reads folders. Write cb-datasets import {folder} --output "
            f"{folder.with_suffix('')}, and --dataset_name {folder.parent}."
        )
    on_disk = folder.exists() or len(folder.parts) != 2
    if on_disk:
        rows = load_rows(folder / split, SAMPLE_FEATURES)
        digest = hashlib.sha256((folder / split / ROWS_FILE).read_bytes()).hexdigest()
        return rows, revision or f"sha256:{digest[:16]}"
    if revision is None:
        revision = HfApi().dataset_info(script_args.dataset_name).sha
    # Published datasets have the usual split names of the Hub
    hub_split = {"train": "train", "eval": "test"}[split]
    rows = load_dataset(script_args.dataset_name, script_args.dataset_config, split=hub_split, revision=revision)
    return stored_dataset(rows).cast(SAMPLE_FEATURES), revision


def read_gates_report(folder: Path) -> dict | None:
    """Read the quality gates' report on a folder of samples, which `make data` writes beside it, if there is one."""
    from cb_datasets.files import read_json

    report = folder.parent / "reports" / "quality_gates.json"
    return read_json(report) if report.is_file() else None


def summary(log_history: list[dict], metrics: dict[str, float], output_dir: str | None) -> str:
    """One line on a finished run: its metrics in the first and in the last log entry."""
    logs = [entry for entry in log_history if "cosine/ds" in entry or "cosine/dr" in entry]
    results = [f"Trained {logs[-1]['step']} steps in {metrics['train_runtime']:.0f} s"]
    for title, key in (("cosine on Ds", "cosine/ds"), ("cosine on Dr", "cosine/dr")):
        if key in logs[-1]:
            results.append(f"{title} {logs[0][key]:.3f} -> {logs[-1][key]:.3f}")
    losses = [key for key in logs[-1] if key.startswith("loss/")]
    results += [f"{key.removeprefix('loss/')} {logs[0][key]:.3f} -> {logs[-1][key]:.3f}" for key in losses]
    return f"{', '.join(results)}; adapter in {output_dir}"


def make_parser() -> "TrlParser":
    from trl import ModelConfig, TrlParser

    from .circuit_breaker_config import CircuitBreakerConfig

    # The annotation of TRL's parser fits no dataclass
    types: Any = (ScriptArguments, CircuitBreakerConfig, ModelConfig)
    return TrlParser(types, description=__doc__.strip().split("\n")[0])


def parse_arguments(args: list[str] | None = None) -> tuple:
    """Parse the command line and the recipe; a wrong setting is one line."""
    try:
        return make_parser().parse_args_and_config(args)
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(*parse_arguments())
