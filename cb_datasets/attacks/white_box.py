"""Rungs that attack each prompt with gradients: searches for tokens, and free vectors as their upper bound."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from tqdm import tqdm

from ..chat import MAX_LENGTH, encode_completion
from ..formats import ToolCallFormat
from ..generation import Sampling
from ..generation.shard import PROMPT_TOO_LONG
from ..outcomes import Outcome
from .attackable import attack_targets, complete_unchanged, format_of_models, is_success
from .call_loss import CallLoss
from .embedding_attack import search_vectors
from .rung import FinishedSearches, answer_record, make_rung, search_metrics
from .search_budget import EmbeddingBudget, SearchBudget
from .slots import Slots, UnsearchableError, make_slots, usable_tokens
from .token_search import search_tokens


if TYPE_CHECKING:
    from ..generation.transformers_backend import TransformersBackend

# Model, prompt, openings by name, seed -> fields of the result.
_Search = Callable[["TransformersBackend", dict, dict[str, str], int], dict[str, Any]]


def attack_with_tokens(
    prompts: Dataset,
    models: "Mapping[str, TransformersBackend]",
    budget: SearchBudget,
    batch_size: int,
    work_dir: Path,
    rung: str = "suffix",
) -> dict[str, Any]:
    """Search tokens around the injection of each prompt, see `token_search.py`.

    Args:
        prompts ([`~datasets.Dataset`]): Attacked rows of `PROMPT_FEATURES`.
        models (`Mapping[str, TransformersBackend]`): Models by name, the base first.
        budget ([`SearchBudget`]): Limits of the attacker.
        batch_size (`int`): Candidates per forward pass.
        work_dir (`Path`): Folder of finished shards and searches.
        rung (`str`, *optional*, defaults to `"suffix"`): Name of the rung, for its progress bar and files.

    Returns:
        `dict`: The rung, see `rung.py`. A model's answers have `search`, `None` if the injection succeeds unchanged.

    Raises:
        ValueError: If every prompt is too long for a model.
    """

    tool_format = format_of_models(models)

    def search(model: "TransformersBackend", row: dict, targets: dict[str, str], seed: int) -> dict[str, Any]:
        usable = usable_tokens_of(model)
        generator = torch.Generator().manual_seed(seed)
        slots = make_fitting_slots(model, row, budget, usable, generator)
        with model.network() as network:
            loss = CallLoss(network, slots, encode_completion(model.tokenizer, targets["opening"]), batch_size)
            result = search_tokens(
                [loss],
                [slots],
                usable,
                budget,
                generator,
                complete=lambda prompt_ids: greedy_texts(model, prompt_ids, budget.max_new_tokens),
                are_successes=lambda texts: is_success(row, texts[0], tool_format),
            )
        fields = dataclasses.asdict(result)
        return {"completion": fields.pop("completions")[0], **fields.pop("affixes"), **fields}

    return _attack_each(prompts, models, budget, work_dir, rung, search)


def attack_with_embeddings(
    prompts: Dataset,
    models: "Mapping[str, TransformersBackend]",
    budget: EmbeddingBudget,
    batch_size: int,
    work_dir: Path,
    rung: str = "embedding",
) -> dict[str, Any]:
    """Optimise free vectors around the injection of each prompt, see `embedding_attack.py`; arguments as above."""

    tool_format = format_of_models(models)

    def search(model: "TransformersBackend", row: dict, targets: dict[str, str], seed: int) -> dict[str, Any]:
        generator, usable = torch.Generator().manual_seed(seed), usable_tokens_of(model)
        drawn = [make_fitting_slots(model, row, budget, usable, generator) for _ in range(budget.restarts)]
        slots = drawn[0]
        with model.network() as network:
            weight = network.get_input_embeddings().weight.detach()
            losses = {
                target: CallLoss(network, slots, encode_completion(model.tokenizer, text), batch_size)
                for target, text in targets.items()
            }
            result = search_vectors(
                losses,
                torch.stack([weight[each.initial] for each in drawn]).float(),
                weight.float().std().item(),
                budget,
                complete=lambda vectors: _texts_of_vectors(model, slots, weight, vectors, budget.max_new_tokens),
                is_success=lambda text: is_success(row, text, tool_format),
            )
        return dataclasses.asdict(result)

    return _attack_each(prompts, models, budget, work_dir, rung, search)


def _attack_each(
    prompts: Dataset,
    models: "Mapping[str, TransformersBackend]",
    budget: SearchBudget | EmbeddingBudget,
    work_dir: Path,
    rung: str,
    search: _Search,
) -> dict[str, Any]:
    """Search each prompt whose injection does not succeed unchanged, or take its result from its file."""
    unchanged = complete_unchanged(prompts, models, budget.max_new_tokens, work_dir)
    tool_format = format_of_models(models)
    base = next(iter(models))
    targets = [attack_targets(row, text, tool_format) for row, text in zip(prompts, unchanged[base], strict=True)]
    answers: dict[str, list[dict]] = {}
    with tqdm(desc=rung.replace("_", " "), total=len(prompts) * len(models), unit="prompt") as bar:
        for name, model in models.items():
            finished, answers[name] = FinishedSearches(work_dir, rung, model, budget), []
            for row, text, target in zip(prompts, unchanged[name], targets, strict=True):
                bar.set_postfix_str(f"{name}, {_successes(answers[name])} broken")
                searched = None
                if text is not None and not is_success(row, text, tool_format):
                    searched = finished.get([row], [target], partial(_searched, search, model, row, target))
                answers[name].append(_searched_answer(row, text, searched, tool_format))
                bar.update()
    return make_rung(budget, prompts, answers, search_metrics)


def _searched(
    search: _Search, model: "TransformersBackend", row: dict, targets: dict[str, str], seed: int
) -> dict[str, Any]:
    """The result of a search, or the reason why the prompt cannot be searched."""
    try:
        return search(model, row, targets, seed)
    except UnsearchableError as error:
        return {"completion": None, "reason": error.reason}


def _searched_answer(
    row: dict, unchanged: str | None, searched: dict[str, Any] | None, tool_format: ToolCallFormat
) -> dict[str, Any]:
    """The answer under attack. Without a search, it is the answer to the unchanged injection."""
    text = searched["completion"] if searched else unchanged
    search = {key: value for key, value in (searched or {}).items() if key not in ("completion", "won")}
    return {**answer_record(text, row, tool_format), "search": search or None}


def _successes(answers: Sequence[Mapping[str, Any]]) -> int:
    return sum(answer["outcome"] == Outcome.ATTACK_SUCCESS for answer in answers)


def usable_tokens_of(model: "TransformersBackend") -> torch.Tensor:
    """[`~slots.usable_tokens`] of a model, on the CPU."""
    with model.network() as network:
        return usable_tokens(model.tokenizer, len(network.get_input_embeddings().weight))


def make_fitting_slots(
    model: "TransformersBackend",
    row: dict,
    budget: SearchBudget | EmbeddingBudget,
    usable: torch.Tensor,
    generator: torch.Generator,
) -> Slots:
    """Slots of one prompt. A prompt that fits the context unchanged may not fit with its slots.

    Raises:
        UnsearchableError: `no_slots`, or `prompt_too_long`.
    """
    [slots] = make_slots(model.tokenizer, [row], budget.lengths, usable, generator)
    if len(slots.ids) + budget.max_new_tokens > min(MAX_LENGTH, model.max_length):
        raise UnsearchableError(PROMPT_TOO_LONG, f"{row['id']}: too long with a prefix or suffix.")
    return slots


def greedy_texts(model: "TransformersBackend", prompt_ids: list[list[int]], max_new_tokens: int) -> list[str]:
    """Greedy completions of prompts."""
    generated = model.generate(prompt_ids, Sampling(max_new_tokens=max_new_tokens), 0)
    return [completion.text for [completion] in generated]


def _texts_of_vectors(
    model: "TransformersBackend", slots: Slots, weight: torch.Tensor, vectors: torch.Tensor, max_new_tokens: int
) -> list[str]:
    """Greedy completions of the prompt with vectors in its slots."""
    positions = torch.tensor(slots.positions, device=weight.device)
    embedded = weight[slots.ids].expand(len(vectors), -1, -1).index_copy(1, positions, vectors.to(weight.dtype))
    completions = model.generate_from_embeddings(embedded, Sampling(max_new_tokens=max_new_tokens))
    return [completion.text for completion in completions]
