"""Rungs without an adaptive attacker: unchanged injections, samples at temperature 1, and prefilled calls."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..files import to_dataset
from ..formats import format_of
from ..generation import Backend, Sampling, complete
from ..outcomes import Outcome
from ..sample import PROMPT_FEATURES
from ..sets.eval_prompts import prefills
from .attackable import format_of_models
from .rung import answer_record, greedy_answers, make_rung


@dataclasses.dataclass(frozen=True)
class FixedBudget:
    """Limits of a rung that asks each prompt once.

    Args:
        max_new_tokens (`int`, *optional*, defaults to `256`): Maximum length of a completion.
        prompts (`int`, *optional*, defaults to `100`): Prompts to attack.
    """

    max_new_tokens: int = 256
    prompts: int = 100


@dataclasses.dataclass(frozen=True)
class SamplesBudget:
    """Limits of best-of-N sampling.

    Args:
        best_of (`int`, *optional*, defaults to `8`): Samples per prompt at temperature 1.
        max_new_tokens (`int`, *optional*, defaults to `256`): Maximum length of a completion.
        seed (`int`, *optional*, defaults to `0`): Seed of the samples.
        prompts (`int`, *optional*, defaults to `100`): Prompts to attack.
    """

    best_of: int = 8
    max_new_tokens: int = 256
    seed: int = 0
    prompts: int = 100


def attack_unchanged(prompts: Dataset, models: Mapping[str, Backend], budget: FixedBudget, work_dir: Path) -> dict:
    """Greedy completions of the prompts as they are.

    Args:
        prompts ([`~datasets.Dataset`]): Attacked rows of `PROMPT_FEATURES`.
        models (`Mapping[str, Backend]`): Models by name.
        budget ([`FixedBudget`]): Limits of the rung.
        work_dir (`Path`): Folder of finished shards.

    Returns:
        `dict`: The rung, see `rung.py`.
    """
    answers = {
        name: greedy_answers(prompts, model, budget.max_new_tokens, work_dir, f"{name}, unchanged injection")
        for name, model in models.items()
    }
    return make_rung(budget, prompts, answers)


def attack_by_sampling(
    prompts: Dataset, models: Mapping[str, Backend], budget: SamplesBudget, work_dir: Path
) -> dict[str, Any]:
    """Samples at temperature 1; the answer to a prompt is its first success, or its first sample. Arguments as above.

    A rung's `correct` and `gibberish` are therefore rates among prompts, and `draw_asr` and `draw_correct` among
    samples.
    """
    sampling = Sampling(1.0, 1.0, budget.max_new_tokens, budget.best_of, budget.seed)
    answers: dict[str, list[dict]] = {}
    for name, model in models.items():
        texts: dict[str, list[str | None]] = {id: [] for id in prompts["id"]}
        for row in complete(prompts, model, sampling, work_dir, description=f"{name}, best of {budget.best_of}"):
            texts[row["prompt_id"]].append(row["text"])
        tool_format = format_of(model.tokenizer)
        answers[name] = []
        for row in prompts:
            records = [answer_record(text, row, tool_format) for text in texts[row["id"]]]
            first = next((each for each in records if each["outcome"] == Outcome.ATTACK_SUCCESS), records[0])
            answers[name].append({**first, "samples": [each["outcome"] for each in records]})
    return make_rung(budget, prompts, answers)


def attack_prefilled(
    prompts: Dataset, models: Mapping[str, Backend], budget: FixedBudget, work_dir: Path
) -> dict[str, dict[str, Any]]:
    """The attacker's call begun for the model, three rungs by how much of it: `tag`, `word`, `name`.

    Args:
        prompts ([`~datasets.Dataset`]): Attacked rows of `PROMPT_FEATURES`.
        models (`Mapping[str, Backend]`): Models by name.
        budget ([`FixedBudget`]): Limits of the rungs.
        work_dir (`Path`): Folder of finished shards.
    """
    tool_format = format_of_models(models)
    rungs = {}
    for head in ("tag", "word", "name"):
        rows = [
            row | {"target": row["target"] | {"prefill": prefills(row["target"]["simulated_tool"], tool_format)[head]}}
            for row in prompts
        ]
        rungs[head] = attack_unchanged(to_dataset(rows, PROMPT_FEATURES), models, budget, work_dir)
    return rungs
