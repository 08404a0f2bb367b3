"""Tampering: a breaker is fine-tuned, and measured after 0, 8, 16, ... steps.

Whoever has the weights can train them. Each model is trained twice, on benign and on harmful rows, in two variants:

    adapter     the breaker's own adapter is trained on
    new_lora    the breaker is merged into the weights, and a new adapter is trained on top of it

For the base model only the second exists. It is the control: what the same rows do to a model without a breaker.

    {"model": "breaker", "variant": "adapter", "rows": "benign", "points": [
        {"step": 0, "loss": None, "revision": "1f0c+9a07", "metrics": {"asr": {"value": 0.01, "n": 100, ...}, ...}},
        {"step": 8, "loss": 0.21, "revision": "1f0c+9a07~adapter-5b1e", "metrics": {...}}, ...]}
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tqdm import tqdm
from transformers import set_seed

from ..evaluation.metric_table import compute_rates
from ..evaluation.scored_completions import complete_and_score
from ..evaluation.second_step import ask_second_steps
from ..generation import Backend, Sampling
from ..generation.backend import BASE, seed_after
from ..outcomes import Outcome
from .fine_tuning import fine_tune
from .ladder import attack_settings
from .search_budget import TamperBudget
from .tamper_rows import tokenize_tamper_rows
from .tampering_results import ADAPTER, NEW_LORA, curve_label


if TYPE_CHECKING:
    from ..generation.transformers_backend import TransformersBackend


def run_tampering(
    prompts: Dataset,
    models: "Mapping[str, TransformersBackend]",
    rows: Mapping[str, Dataset],
    budget: TamperBudget,
    batch_size: int,
    work_dir: Path,
) -> dict[str, Any]:
    """Fine-tune every model in every variant on every kind of rows, with the same budget, and measure it on the way.

    Args:
        prompts ([`~datasets.Dataset`]): Evaluation prompts, rows of `PROMPT_FEATURES` of any tasks.
        models (`Mapping[str, TransformersBackend]`): Models by name, the base among them.
        rows (`Mapping[str, Dataset]`): Rows of `SAMPLE_FEATURES` by kind, see [`~tamper_rows.select_tamper_rows`].
        budget ([`TamperBudget`]): Limits of whoever tampers.
        batch_size (`int`): Maximum number of rows per forward pass of the training.
        work_dir (`Path`): Folder of finished shards. A model that was trained to the same weights before is not asked
            again; the training itself is repeated.

    Returns:
        `dict`: `settings`; and `curves`, see the module.
    """
    first = next(iter(models.values()))
    tokenized, summaries = {}, {}
    for kind, each in rows.items():
        tokenized[kind], summaries[kind] = tokenize_tamper_rows(
            each, first.tokenizer, budget.rows, budget.seed, first.max_length
        )
    curves = []
    for name, model in models.items():
        start = _point(prompts, model, budget, work_dir, name, 0)
        for variant in (NEW_LORA,) if name == BASE else (ADAPTER, NEW_LORA):
            for kind, each in tokenized.items():
                curve = {"model": name, "variant": variant, "rows": kind}
                label = f"{curve_label(curve)}, {kind} rows"
                points = _trained_points(model, variant, each, prompts, budget, batch_size, work_dir, label)
                curves.append({**curve, "points": [start, *points]})
    settings = {**attack_settings(models, budget.seed), "budget": dataclasses.asdict(budget), "rows": summaries}
    return {"settings": settings, "curves": curves}


def _trained_points(
    model: "TransformersBackend",
    variant: str,
    rows: Dataset,
    prompts: Dataset,
    budget: TamperBudget,
    batch_size: int,
    work_dir: Path,
    label: str,
) -> list[dict[str, Any]]:
    """Points of one curve after step 0."""
    set_seed(budget.seed)  # of a new adapter
    config = LoraConfig(
        r=budget.lora_rank, lora_alpha=budget.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    tampered = model.with_trainable_adapter(config if variant == NEW_LORA else None)
    points: list[dict[str, Any]] = []

    def after_step(step: int) -> None:
        bar.update()
        if step in budget.checkpoints:
            with tampered.network() as network:
                network.eval()
                tampered.revision = f"{model.revision}~{variant}-{_trained_hash(network)}"
            points.append(_point(prompts, tampered, budget, work_dir, label, step))
            # Generation may have drawn random numbers, or none where its shards were found finished.
            set_seed(seed_after(budget.seed, step))

    with tqdm(desc=f"tampering: {label}", total=budget.steps, unit="step") as bar:
        losses = fine_tune(tampered, rows, budget, batch_size, work_dir, after_step)
    for point, earlier in zip(points, budget.checkpoints, strict=False):
        since = losses[earlier : point["step"]]
        point["loss"] = sum(since) / len(since)
    return points


def _trained_hash(network: torch.nn.Module) -> str:
    """Hash of the trained weights. Those below them are in the revision of the model that was tampered with."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.named_parameters()):
        if weight.requires_grad:
            digest.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _point(
    prompts: Dataset, model: Backend, budget: TamperBudget, work_dir: Path, label: str, step: int
) -> dict[str, Any]:
    """Metrics of a model after a step; `loss` is filled in after the training, where there was any."""
    sampling = Sampling(max_new_tokens=budget.max_new_tokens)
    label = f"{label}, after {step} steps"
    scored = complete_and_score(prompts, model, sampling, work_dir, label)
    scored = ask_second_steps(prompts, scored, model, sampling, work_dir, label)
    return {
        "step": step,
        "loss": None,
        "revision": model.revision,
        "metrics": compute_rates(scored),
        "errors": sum(each.outcome == Outcome.ERROR for each in scored),
    }
