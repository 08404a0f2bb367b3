"""One suffix for many prompts: searched on a few prompts at once, judged on others.

Zou et al. 2023, arXiv 2307.15043, section 2.3. The loss is the mean over the prompts that the search sees; each has
its own attacker's call. What such a suffix breaks, an attacker breaks without a search of its own.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from tqdm import tqdm

from ..chat import encode_completion
from ..files import to_dataset
from ..formats import format_of
from ..sample import PROMPT_FEATURES
from .attackable import attack_targets, complete_unchanged, format_of_models, is_success
from .call_loss import CallLoss
from .rung import FinishedSearches, greedy_answers, make_rung
from .search_budget import UniversalBudget
from .slots import UnsearchableError, make_slots, with_affixes
from .token_search import search_tokens
from .white_box import greedy_texts, make_fitting_slots, usable_tokens_of


if TYPE_CHECKING:
    from ..generation.transformers_backend import TransformersBackend


def attack_with_one_suffix(
    prompts: Dataset,
    models: "Mapping[str, TransformersBackend]",
    budget: UniversalBudget,
    batch_size: int,
    work_dir: Path,
) -> dict[str, Any]:
    """Search one suffix per model on the first `seen_prompts` prompts, and try it on all others.

    Args:
        prompts ([`~datasets.Dataset`]): Attacked rows of `PROMPT_FEATURES`, more than `seen_prompts`.
        models (`Mapping[str, TransformersBackend]`): Models by name, the base first.
        budget ([`UniversalBudget`]): Limits of the attacker.
        batch_size (`int`): Candidates per forward pass.
        work_dir (`Path`): Folder of finished shards and searches.

    Returns:
        `dict`: The rung, see `rung.py`, with `found`: by model, the fields of its [`SearchResult`], `seen_asr`, the
        number of seen prompts that it succeeds on, and `left_out`, the number of those that cannot be searched, by
        reason.

    Raises:
        ValueError: If there are no other prompts, every one is too long for a model, or no seen one can be searched.
    """
    if len(prompts) <= budget.seen_prompts:
        raise ValueError(f"{len(prompts)} prompts are too few to search on {budget.seen_prompts} and judge on others.")
    seen = prompts.select(range(budget.seen_prompts))
    others = prompts.select(range(budget.seen_prompts, len(prompts)))
    tool_format = format_of_models(models)
    base = next(iter(models))
    texts = complete_unchanged(seen, {base: models[base]}, budget.max_new_tokens, work_dir)[base]
    heads = [attack_targets(row, text, tool_format)["opening"] for row, text in zip(seen, texts, strict=True)]
    found: dict[str, dict] = {}
    answers: dict[str, list[dict]] = {}
    with tqdm(desc="universal", total=len(models), unit="model") as bar:
        for name, model in models.items():
            bar.set_postfix_str(name)
            finished = FinishedSearches(work_dir, "universal", model, budget)
            found[name] = finished.get(
                list(seen),
                heads,
                partial(_search, list(seen), heads, model, budget, batch_size),
            )
            bar.update()
    for name, model in models.items():
        attacked = [with_affixes(row, found[name]["prefix"], found[name]["suffix"]) for row in others]
        rows, description = to_dataset(attacked, PROMPT_FEATURES), f"{name}, one suffix on the others"
        answers[name] = greedy_answers(rows, model, budget.max_new_tokens, work_dir, description)
    return {**make_rung(budget, others, answers), "found": found}


def _search(
    rows: list[dict],
    heads: list[str],
    model: "TransformersBackend",
    budget: UniversalBudget,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    usable, generator = usable_tokens_of(model), torch.Generator().manual_seed(seed)
    reasons = [_why_unsearchable(model, row, budget, usable, generator) for row in rows]
    kept = [index for index, reason in enumerate(reasons) if reason is None]
    left_out = dict(Counter(reason for reason in reasons if reason is not None))
    if not kept:
        raise ValueError(f"No prompt can be searched with a suffix ({left_out}); choose other prompts by --seed.")
    rows, heads = [rows[index] for index in kept], [heads[index] for index in kept]
    slots = make_slots(model.tokenizer, rows, budget.lengths, usable, generator)
    tool_format = format_of(model.tokenizer)
    with model.network() as network:
        losses = [
            CallLoss(network, each, encode_completion(model.tokenizer, head), batch_size)
            for each, head in zip(slots, heads, strict=True)
        ]

        def successes(texts: list[str]) -> list[bool]:
            return [is_success(row, text, tool_format) for row, text in zip(rows, texts, strict=True)]

        result = search_tokens(
            losses,
            slots,
            usable,
            budget,
            generator,
            complete=lambda prompt_ids: greedy_texts(model, prompt_ids, budget.max_new_tokens),
            are_successes=lambda texts: all(successes(texts)),
        )
    fields = dataclasses.asdict(result)
    return {
        **fields.pop("affixes"),
        **fields,
        "seen_asr": sum(successes(result.completions)),
        "left_out": left_out,
    }


def _why_unsearchable(
    model: "TransformersBackend", row: dict, budget: UniversalBudget, usable: torch.Tensor, generator: torch.Generator
) -> str | None:
    try:
        make_fitting_slots(model, row, budget, usable, generator)
    except UnsearchableError as error:
        return error.reason
    return None
