"""Supervised fine-tuning of a model in memory, with TRL's `SFTTrainer`: what anyone does who trains on a model.

Rows are tokenized by the one renderer, as for the breaker's own training, and the loss is on the completion alone.
`SFTTrainer` is given their tokens and nothing to decide about templates, truncation or packing.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from .search_budget import TamperBudget


if TYPE_CHECKING:
    from ..generation.transformers_backend import TransformersBackend


@dataclass
class _AfterStep(TrainerCallback):
    """Calls back after every step with its number."""

    call: Callable[[int], None]

    def on_step_end(self, args: Any, state: Any, control: Any, **inputs: Any) -> None:
        self.call(state.global_step)


def fine_tune(
    model: "TransformersBackend",
    rows: Dataset,
    budget: TamperBudget,
    batch_size: int,
    work_dir: Path,
    after_step: Callable[[int], None],
) -> list[float]:
    """Train a model's adapter, and return the loss of each step in nats per token of the completions.

    Args:
        model ([`TransformersBackend`]): The model, with an adapter that can be trained.
        rows ([`~datasets.Dataset`]): `input_ids` and `completion_mask` of each row.
        budget ([`TamperBudget`]): Steps, rows per step, learning rate and seed.
        batch_size (`int`): Maximum number of rows per forward pass.
        work_dir (`Path`): A folder that `SFTTrainer` wants, and writes nothing to.
        after_step (`Callable[[int], None]`): Called after each step with its number, from 1.
    """
    with model.network() as network:
        on_cpu = network.device.type == "cpu"
        per_pass = max(n for n in range(1, min(batch_size, budget.batch_size) + 1) if budget.batch_size % n == 0)
        arguments = SFTConfig(
            output_dir=str(work_dir),
            max_steps=budget.steps,
            per_device_train_batch_size=per_pass,
            gradient_accumulation_steps=budget.batch_size // per_pass,
            learning_rate=budget.learning_rate,
            # A schedule that ends at the last step would make the earlier points depend on the number of steps.
            lr_scheduler_type="constant",
            # The order is that of the rows: a shuffle would depend on what was generated between two steps.
            train_sampling_strategy="sequential",
            completion_only_loss=True,
            max_length=None,
            bf16=network.dtype == torch.bfloat16,
            gradient_checkpointing=not on_cpu,
            use_cpu=on_cpu,
            seed=budget.seed,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # the model is on one GPU, and `batch_size` is for it
        trainer = SFTTrainer(
            network,
            arguments,
            train_dataset=rows.select(row_order(len(rows), budget)),
            processing_class=model.tokenizer,
            callbacks=[_AfterStep(after_step)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def row_order(count: int, budget: TamperBudget) -> list[int]:
    """Indices of the rows of all steps, one shuffle of all rows after another; fewer steps take its beginning."""
    shuffle = random.Random(budget.seed)
    order: list[int] = []
    while len(order) < budget.steps * budget.batch_size:
        order += shuffle.sample(range(count), count)
    return order[: budget.steps * budget.batch_size]
