"""The ladder of attacks: from fixed texts to free vectors, base and breakers on equal budgets.

    unchanged        the injections as they are                                   fixed.py
    samples          best of N samples at temperature 1                           fixed.py
    black_box        best of N random compositions, no gradient, no feedback      black_box.py
    suffix           tokens behind the injection, searched with gradients         white_box.py
    prefix_suffix    tokens before and behind it                                  white_box.py
    universal        one suffix for many prompts                                  universal.py
    transfer         suffixes that were found on the other models                 transfer.py
    embedding        free vectors in place of tokens, the upper bound             white_box.py
    prefilled_*      the attacker's call begun for the model                      fixed.py

Each rung can be run alone: `attack_*` in these modules. A rung that breaks nothing proves nothing: a larger budget or
another attack may.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from datasets import Dataset

from ..chat import DATE_STRING
from ..public_name import model_label
from ..splits import choose
from ..template_probe import template_hash
from .black_box import BlackBoxBudget, attack_with_compositions
from .budget_limits import with_limits
from .fixed import FixedBudget, SamplesBudget, attack_by_sampling, attack_prefilled, attack_unchanged
from .rung import CODE_HASH
from .search_budget import EmbeddingBudget, SearchBudget, UniversalBudget
from .transfer import attack_by_transfer
from .universal import attack_with_one_suffix
from .white_box import attack_with_embeddings, attack_with_tokens


if TYPE_CHECKING:
    from ..generation.transformers_backend import TransformersBackend


@dataclasses.dataclass(frozen=True)
class Budgets:
    """Budget of each rung; one with `prompts=0` is left out.

    Transfer tries what the rungs `suffix` and `prefix_suffix` found: its `prompts` only says whether it is run.
    """

    unchanged: FixedBudget = field(default_factory=FixedBudget)
    samples: SamplesBudget = field(default_factory=SamplesBudget)
    black_box: BlackBoxBudget = field(default_factory=BlackBoxBudget)
    suffix: SearchBudget = field(default_factory=SearchBudget)
    prefix_suffix: SearchBudget = field(default_factory=lambda: SearchBudget(prefix_tokens=10, prompts=40))
    universal: UniversalBudget = field(default_factory=lambda: UniversalBudget(prompts=40))
    transfer: FixedBudget = field(default_factory=FixedBudget)
    embedding: EmbeddingBudget = field(default_factory=lambda: EmbeddingBudget(prompts=40))
    prefilled: FixedBudget = field(default_factory=FixedBudget)

    @classmethod
    def of_text(cls, limits: Iterable[str], max_new_tokens: int, seed: int) -> Self:
        """The default budgets with some limits changed.

        Args:
            limits (`Iterable[str]`): `RUNG.LIMIT=VALUE`, for example `suffix.steps=30`.
            max_new_tokens (`int`): Maximum length of a completion, in every rung.
            seed (`int`): Seed of every rung.

        Raises:
            ValueError: If there is no such rung or limit, or the value is not of its type.
        """
        defaults = {each.name: getattr(cls(), each.name) for each in dataclasses.fields(cls)}
        return cls(**with_limits(defaults, limits, max_new_tokens, seed))

    def check(self, num_prompts: int) -> None:
        """Refuse prompts that are too few for a rung, before a model is loaded.

        Raises:
            ValueError: If one suffix for many prompts would be judged on none.
        """
        if self.universal.prompts and num_prompts <= self.universal.seen_prompts:
            raise ValueError(
                f"One suffix for many prompts is judged on prompts that its search does not see, and {num_prompts} "
                f"are too few to let it see {self.universal.seen_prompts}. Lower that by --budget "
                "universal.seen_prompts=N, or leave the rung out by --budget universal.prompts=0."
            )


def run_ladder(
    prompts: Dataset,
    models: "dict[str, TransformersBackend]",
    budgets: Budgets,
    batch_size: int,
    work_dir: Path,
) -> dict[str, Any]:
    """Run every rung against every model.

    Args:
        prompts ([`~datasets.Dataset`]): Attackable rows of `PROMPT_FEATURES`. Each rung takes its number of them,
            chosen by a hash, so that a smaller choice is part of a larger one; the black box composes from all.
        models (`dict[str, TransformersBackend]`): Models by name, the base first: its completions define the openings
            that the searches aim at.
        budgets ([`Budgets`]): Limits of the attacker, the same for every model.
        batch_size (`int`): Sequences per forward pass of the searches.
        work_dir (`Path`): Folder of finished shards and searches: an interrupted ladder resumes.

    Returns:
        `dict`: `settings`, and `rungs` by name, see `rung.py`; those that are left out are missing.

    Raises:
        ValueError: If every prompt of a rung is too long for a model.
    """
    seed = budgets.black_box.seed

    def chosen(count: int) -> Dataset:
        return choose(prompts, count, seed)

    fast = {name: _on_fast_weights(model) for name, model in models.items()}
    rungs: dict[str, Any] = {}
    if count := budgets.unchanged.prompts:
        rungs["unchanged"] = attack_unchanged(chosen(count), fast, budgets.unchanged, work_dir)
    if count := budgets.samples.prompts:
        rungs["samples"] = attack_by_sampling(chosen(count), fast, budgets.samples, work_dir)
    if count := budgets.black_box.prompts:
        rungs["black_box"] = attack_with_compositions(chosen(count), prompts, fast, budgets.black_box, work_dir)
    for rung in ("suffix", "prefix_suffix"):
        budget = getattr(budgets, rung)
        if budget.prompts:
            rungs[rung] = attack_with_tokens(chosen(budget.prompts), fast, budget, batch_size, work_dir, rung)
    if count := budgets.universal.prompts:
        taken = chosen(count + budgets.universal.seen_prompts)
        rungs["universal"] = attack_with_one_suffix(taken, fast, budgets.universal, batch_size, work_dir)
    searched = [rungs[rung] for rung in ("suffix", "prefix_suffix") if rung in rungs]
    if budgets.transfer.prompts and searched and len(models) > 1:
        rungs["transfer"] = attack_by_transfer(prompts, fast, searched, budgets.transfer, work_dir)
    if count := budgets.embedding.prompts:
        rungs["embedding"] = attack_with_embeddings(chosen(count), fast, budgets.embedding, batch_size, work_dir)
    if count := budgets.prefilled.prompts:
        prefilled = attack_prefilled(chosen(count), fast, budgets.prefilled, work_dir)
        rungs |= {f"prefilled_{head}": rung for head, rung in prefilled.items()}
    return {"settings": attack_settings(models, seed), "rungs": rungs}


def _on_fast_weights(model: "TransformersBackend") -> "TransformersBackend":
    """On a CPU a model with merged weights; on a GPU the model itself, whose copy could exceed the memory."""
    with model.network() as network:
        return model.merged() if network.device.type == "cpu" else model


def attack_settings(models: "Mapping[str, TransformersBackend]", seed: int) -> dict[str, Any]:
    """What the results of an attack depend on besides prompts and budget."""
    tokenizer = next(iter(models.values())).tokenizer
    return {
        "seed": seed,
        "models": {
            name: {"model": model_label(model.model, model.revision), "revision": model.revision}
            for name, model in models.items()
        },
        "template_hash": template_hash(tokenizer),
        "date_string": DATE_STRING,
        "code": CODE_HASH,
        "versions": {package: version(package) for package in ("torch", "transformers", "peft")},
        "threads": torch.get_num_threads(),
    }
