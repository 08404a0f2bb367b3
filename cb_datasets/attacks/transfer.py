"""Transfer between models: what a search found on one model, tried on the others, on the same prompts.

An attacker without the weights searches on a model that is at hand. A breaker that resists searches on itself but not
what was found on the base hides its gradients rather than the attack.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..evaluation.statistics import proportion
from ..files import to_dataset
from ..generation import Backend
from ..outcomes import Outcome
from ..sample import PROMPT_FEATURES
from .fixed import FixedBudget
from .rung import greedy_answers, rung_metrics, without_errors
from .slots import with_affixes


def attack_by_transfer(
    prompts: Dataset,
    models: Mapping[str, Backend],
    searched: Sequence[Mapping[str, Any]],
    budget: FixedBudget,
    work_dir: Path,
) -> dict[str, Any]:
    """Try what search rungs found on each model on all other models.

    Args:
        prompts ([`~datasets.Dataset`]): Attacked rows of `PROMPT_FEATURES`, those of the rungs among them.
        models (`Mapping[str, Backend]`): Models by name.
        searched (`Sequence[Mapping[str, Any]]`): Results of `attack_with_tokens` for these models. For a prompt that
            several of them broke, the first is tried.
        budget ([`FixedBudget`]): Limits of the rung.
        work_dir (`Path`): Folder of finished shards.

    Returns:
        `dict`: `budget`; `models`: by target model the rates over the prompts that any other model was broken on by a
        search, `asr` if any of these texts succeeds, and `None` where there is no such prompt; `pairs`: ASR by source
        and target; and `prompts`.
    """
    rows = {row["id"]: row for row in prompts}
    found = {
        name: {id: each for rung in reversed(searched) for id, each in _found_on(name, rung["prompts"]).items()}
        for name in models
    }
    answers: dict[str, dict[str, dict[str, dict]]] = {name: {} for name in models}  # target, source, prompt
    for target, model in models.items():
        for source in models:
            if source != target and found[source]:
                answers[target][source] = _answers(rows, found[source], source, target, model, budget, work_dir)
    return {
        "budget": dataclasses.asdict(budget),
        "models": {target: _target_metrics(list(by_source.values())) for target, by_source in answers.items()},
        "pairs": {
            source: {
                target: _asr(list(answers[target][source].values())) if source in answers[target] else None
                for target in models
                if target != source
            }
            for source in models
        },
        "prompts": [
            {
                "id": id,
                "answers": {
                    target: {source: each[id] for source, each in by_source.items() if id in each}
                    for target, by_source in answers.items()
                },
            }
            for id in sorted({id for each in found.values() for id in each})
        ],
    }


def _found_on(name: str, searched: list[dict]) -> dict[str, dict[str, str]]:
    """Prefix and suffix of the successful searches on a model, by prompt."""
    answers = {prompt["id"]: prompt["answers"][name] for prompt in searched}
    return {
        id: {"prefix": answer["search"]["prefix"], "suffix": answer["search"]["suffix"]}
        for id, answer in answers.items()
        if answer["search"] and answer["outcome"] == Outcome.ATTACK_SUCCESS
    }


def _answers(
    rows: Mapping[str, dict],
    found: Mapping[str, dict[str, str]],
    source: str,
    target: str,
    model: Backend,
    budget: FixedBudget,
    work_dir: Path,
) -> dict[str, dict]:
    attacked = to_dataset([with_affixes(rows[id], **affixes) for id, affixes in found.items()], PROMPT_FEATURES)
    description = f"{target}, suffixes of {source}"
    answers = greedy_answers(attacked, model, budget.max_new_tokens, work_dir, description)
    return dict(zip(attacked["id"], answers, strict=True))


def _target_metrics(by_source: list[dict[str, dict]]) -> dict[str, Any] | None:
    """Rates over prompts; of several answers to one, the first success counts, or else the first."""
    prompts: dict[str, dict] = {}
    for answers in by_source:
        for id, answer in answers.items():
            if answer["outcome"] == Outcome.ATTACK_SUCCESS or id not in prompts:
                prompts[id] = answer
    return rung_metrics(list(prompts.values())) if without_errors(prompts.values()) else None


def _asr(answers: list[dict]) -> dict | None:
    valid = without_errors(answers)
    hits = sum(answer["outcome"] == Outcome.ATTACK_SUCCESS for answer in valid)
    return proportion(hits, len(valid)) if valid else None
