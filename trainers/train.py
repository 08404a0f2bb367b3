"""
Train a circuit breaker from a recipe. Every option of the recipe is also a flag, and flags win:

    accelerate launch -m trainers.train --config recipes/demo.yaml
    accelerate launch -m trainers.train --config recipes/demo.yaml --alpha 5 --output_dir data/demo/adapter-alpha-5
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from trl import ModelConfig, TrlParser

    from .circuit_breaker_config import CircuitBreakerConfig


@dataclass
class ScriptArguments:
    """
    Arguments of the script, beside those of the model and of the training.

    Args:
        dataset_name (`str`):
            Path of the folder of merged samples. `train/` in it is trained on, and `eval/` is what the losses are
            evaluated on where `eval_strategy` asks for it.
    """

    dataset_name: str = field(
        metadata={
            "help": "Path of the folder of merged samples. `train/` in it is trained on, and `eval/` is what the "
            "losses are evaluated on where `eval_strategy` asks for it."
        }
    )


def main(script_args: ScriptArguments, training_args: "CircuitBreakerConfig", model_args: "ModelConfig") -> None:
    from trl import get_peft_config

    from cb_datasets.files import load_rows
    from cb_datasets.sample import SAMPLE_FEATURES

    from .circuit_breaker_trainer import CircuitBreakerTrainer

    if model_args.model_name_or_path is None:
        raise SystemExit("No model: set `model_name_or_path` in the recipe or as a flag.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (training_args.model_init_kwargs or {})

    try:
        folder = Path(script_args.dataset_name)
        evaluates = training_args.eval_strategy != "no"
        trainer = CircuitBreakerTrainer(
            model=model_args.model_name_or_path,
            args=training_args,
            train_dataset=load_rows(folder / "train", SAMPLE_FEATURES),
            eval_dataset=load_rows(folder / "eval", SAMPLE_FEATURES) if evaluates else None,
            peft_config=get_peft_config(model_args),
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error

    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.accelerator.print(summary(trainer.state.log_history, result.metrics, training_args.output_dir))
    trainer.end()


def summary(log_history: list[dict], metrics: dict[str, float], output_dir: str) -> str:
    """One line of what a run did, from the first and the last of its logs."""
    logs = [entry for entry in log_history if "cosine/ds" in entry or "cosine/dr" in entry]
    parts = [f"Trained {logs[-1]['step']} steps in {metrics['train_runtime']:.0f} s"]
    for title, key in (("cosine on Ds", "cosine/ds"), ("cosine on Dr", "cosine/dr")):
        if key in logs[-1]:
            parts.append(f"{title} {logs[0][key]:.3f} -> {logs[-1][key]:.3f}")
    for key in logs[-1]:
        if key.startswith("loss/"):
            parts.append(f"{key.removeprefix('loss/')} {logs[0][key]:.3f} -> {logs[-1][key]:.3f}")
    return f"{', '.join(parts)}; adapter in {output_dir}"


def make_parser() -> "TrlParser":
    from trl import ModelConfig, TrlParser

    from .circuit_breaker_config import CircuitBreakerConfig

    return TrlParser((ScriptArguments, CircuitBreakerConfig, ModelConfig), description=__doc__.strip().split("\n")[0])


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
