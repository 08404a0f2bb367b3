"""Ds, the circuit breaker set: completions in which the attack succeeded, really produced by a model."""

import dataclasses
from collections import Counter

from datasets import Dataset

from ..files import to_dataset
from ..generation import Sampling
from ..outcomes import Outcome
from ..sample import PROMPT_FEATURES, clean_messages
from .filter_completions import KeepRule, complete_and_filter
from .sample_set import SampleSet
from .target_model import SEEDS_PER_ROUND, TargetModel, without


FLIP_RULE = KeepRule("harmful/b4_flips", "harmful_flip", (Outcome.ATTACK_SUCCESS,))


@dataclasses.dataclass(frozen=True)
class FlipOptions:
    """What is done with the flips beside keeping them.

    Args:
        target_n (`int`, *optional*): Ask prompts that gave no flip again, with other seeds, until so many samples are
            there; without it, every prompt is asked once.
        rounds (`int`, *optional*, defaults to `3`): Most rounds, the first one included.
        min_yield (`float`, *optional*, defaults to `0.0`): Share of prompts that must give a flip; fewer is an error.
        max_category_share (`float`, *optional*, defaults to `1.0`): Largest share of one category; what is over it is
            dropped as `over_category_share`.
        include_forced (`bool`, *optional*, defaults to `False`): Ask prompts that gave no flip once more, with the
            head of the attacker's call put into the model's mouth (`completion_source = forced`).
        redact (`bool`, *optional*, defaults to `False`): Cut the injection from the kept rows' messages, as Zou et al.
            (2024) do with harmful requests; only `rr` may use such rows.
    """

    target_n: int | None = None
    rounds: int = 3
    min_yield: float = 0.0
    max_category_share: float = 1.0
    include_forced: bool = False
    redact: bool = False


def generate_flips(
    traces: dict[str, Dataset], target_model: TargetModel, sampling: Sampling, options: FlipOptions = FlipOptions()
) -> SampleSet:
    """Tool flips: the model is asked attacked prompts, and what made the attacker's call is kept.

    Args:
        traces (`dict[str, Dataset]`): Prompt-only traces by split.
        target_model ([`TargetModel`]): The target model.
        sampling ([`Sampling`]): How to draw.
        options ([`FlipOptions`], *optional*): What else is done.

    Raises:
        ValueError: If fewer prompts give a flip than `min_yield` says.
    """
    prompts = target_model.prompts(traces, "tool_flip", sampling.seed)
    result = complete_and_filter(prompts, FLIP_RULE, target_model, sampling)
    if target_model.rank is not None:
        return result  # what follows needs the shards of all ranks
    for number in range(1, options.rounds):
        if options.target_n is None or len(result.samples) >= options.target_n or sampling.temperature == 0:
            break
        missing = without(prompts, {sample["pair"] for sample in result.samples})
        again = dataclasses.replace(sampling, seed=sampling.seed + number * SEEDS_PER_ROUND)
        result.add(complete_and_filter(missing, FLIP_RULE, target_model, again))
    asked = sum(len(rows) for rows in prompts.values())
    flipped = {sample["pair"] for sample in result.samples}
    if len(flipped) < options.min_yield * asked:
        raise ValueError(
            f"{len(flipped)} of {asked} prompts gave a flip, fewer than the share of {options.min_yield} that is "
            f"asked for. Draw more samples or a higher temperature, or lower --min-yield."
        )
    if options.include_forced:
        missing = {split: _forced(rows, flipped, target_model) for split, rows in prompts.items()}
        result.add(complete_and_filter(missing, FLIP_RULE, target_model, sampling, completion_source="forced"))
    _balance(result, options.max_category_share)
    if options.redact:
        result.samples = [redacted(sample) for sample in result.samples]
    return result


def _forced(prompts: Dataset, done: set[str], target_model: TargetModel) -> Dataset:
    """The prompts that gave nothing, each with the head of the attacker's call as prefill."""
    rows = [
        {
            **prompt,
            "id": f"{prompt['id']}/forced",
            "target": {
                **prompt["target"],
                "prefill": target_model.tool_format.call_head(prompt["target"]["simulated_tool"]),
            },
        }
        for prompt in prompts
        if prompt["pair"] not in done
    ]
    return to_dataset(rows, PROMPT_FEATURES)


def _balance(result: SampleSet, max_share: float) -> None:
    counts = Counter(sample["category"] for sample in result.samples)
    [(largest, count)] = counts.most_common(1) or [(None, 0)]
    others = counts.total() - count
    if count <= max_share * counts.total() or others == 0:
        return  # with one category there is nothing to balance it with: the gate on categories will say so
    allowed = int(max_share / (1 - max_share) * others)
    # Ids are hashes of contents, so their order picks at random.
    kept = sorted(sample["id"] for sample in result.samples if sample["category"] == largest)[:allowed]
    over = {sample["id"] for sample in result.samples if sample["category"] == largest} - set(kept)
    result.remove(over, "over_category_share")


def redacted(sample: dict) -> dict:
    """A harmful sample without the injection that led to it."""
    provenance = sample["provenance"] | {"redacted": True}
    return {**sample, "messages": clean_messages(sample), "injection": [], "provenance": provenance}
