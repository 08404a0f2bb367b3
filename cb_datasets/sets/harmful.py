"""Ds, the circuit breaker set: completions sampled from a model in which the attack succeeded."""

import dataclasses
import functools
from collections import Counter

from datasets import Dataset

from ..files import to_dataset
from ..generation import Sampling
from ..outcomes import Outcome
from ..sample import PROMPT_FEATURES, clean_messages
from .filter_completions import KeepRule, complete_and_filter
from .plan import Pass
from .prompts import FLIP_TASKS
from .rounds import first_round, sample_in_rounds
from .sample_set import SampleSet
from .target_model import TargetModel, drop_completed_pairs, seed_of_pass


FLIP_RULE = KeepRule("harmful/b4_flips", "harmful_flip", (Outcome.ATTACK_SUCCESS,))


@dataclasses.dataclass(frozen=True)
class FlipOptions:
    """Options of [`generate_flips`].

    Args:
        target_n (`int`, *optional*): Ask in rounds until there are this many samples, see `rounds.py`, and prompts
            that gave no flip again, with other seeds; without it, every prompt is completed once.
        rounds (`int`, *optional*, defaults to `3`): Maximum number of passes over the prompts, the first one included.
        min_yield (`float`, *optional*, defaults to `0.0`): Minimum fraction of prompts that give a flip.
        max_category_share (`float`, *optional*, defaults to `1.0`): Maximum fraction of one category; the rest of
            it is dropped as `over_category_share`.
        include_forced (`bool`, *optional*, defaults to `False`): Complete prompts that gave no flip once more, with
            the head of the attacker's call as prefill (`completion_source = forced`).
        redact (`bool`, *optional*, defaults to `False`): Cut the injection from the kept rows' messages, as Zou et al.
            (2024) do with harmful requests; only rerouting terms may use such rows.
    """

    target_n: int | None = None
    rounds: int = 3
    min_yield: float = 0.0
    max_category_share: float = 1.0
    include_forced: bool = False
    redact: bool = False

    def num_passes(self, sampling: Sampling) -> int:
        """Number of passes over the prompts. A greedy model would give the same completions in every pass."""
        return 1 if self.target_n is None or sampling.temperature == 0 else self.rounds

    def passes(self, sampling: Sampling) -> list[Pass]:
        """The passes, in words."""
        described = [Pass(f"T = {sampling.temperature}", sampling.num_samples)] * self.num_passes(sampling)
        forced = Pass(f"T = {sampling.temperature}, the head of the attacker's call given", sampling.num_samples)
        return described + [forced] * self.include_forced


def generate_flips(
    traces: dict[str, Dataset],
    target_model: TargetModel,
    sampling: Sampling,
    options: FlipOptions = FlipOptions(),
    name: str = FLIP_RULE.id_prefix,
) -> SampleSet:
    """Tool flips: completions of attacked prompts that make the attacker's call.

    Args:
        traces (`dict[str, Dataset]`): Prompt-only traces by split.
        target_model ([`TargetModel`]): The target model.
        sampling ([`Sampling`]): How to sample.
        options ([`FlipOptions`], *optional*): Rounds, balance, forced calls, redaction.
        name (`str`, *optional*): Name of the set.

    Raises:
        ValueError: If fewer prompts give a flip than `min_yield` says.
    """
    prompts = target_model.prompts(traces, FLIP_TASKS, sampling.seed)
    size, order = (options.target_n, sampling.num_samples), (sampling.seed, target_model.per_tool)
    if target_model.rank is not None:  # what follows needs the shards of all ranks
        return complete_and_filter(first_round(prompts, *size, *order), FLIP_RULE, target_model, sampling, name)
    flips = SampleSet(name)
    for number in range(options.num_passes(sampling)):
        missing = drop_completed_pairs(prompts, {sample["pair"] for sample in flips.samples})
        again = dataclasses.replace(sampling, seed=seed_of_pass(sampling.seed, number))
        ask = functools.partial(
            complete_and_filter, rule=FLIP_RULE, target_model=target_model, sampling=again, name=name
        )
        sample_in_rounds(missing, ask, flips, *size, *order)
    num_prompts = sum(len(rows) for rows in prompts.values())
    flipped = {sample["pair"] for sample in flips.samples}
    if len(flipped) < options.min_yield * num_prompts:
        raise ValueError(
            f"{len(flipped)} of {num_prompts} prompts gave a flip, below the fraction {options.min_yield}. "
            "Sample more completions or at a higher temperature, or lower --min-yield."
        )
    if options.include_forced:
        missing = {split: _forced(rows, flipped, target_model) for split, rows in prompts.items()}
        flips.add_round(complete_and_filter(missing, FLIP_RULE, target_model, sampling, name, "forced"))
    _balance(flips, options.max_category_share)
    if options.redact:
        flips.samples = [redacted(sample) for sample in flips.samples]
    return flips


def _forced(prompts: Dataset, flipped: set[str], target_model: TargetModel) -> Dataset:
    """The prompts without a flip, each with the head of the attacker's call as prefill."""
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
        if prompt["pair"] not in flipped
    ]
    return to_dataset(rows, PROMPT_FEATURES)


def _balance(flips: SampleSet, max_share: float) -> None:
    """Drop flips of the largest categories until each is at most `max_share` of all."""
    counts = Counter(sample["category"] for sample in flips.samples)
    allowed = _category_cap(list(counts.values()), max_share)
    over: set[str] = set()
    for category in counts:
        # Ids are hashes of contents, so their order picks at random.
        ids = sorted(sample["id"] for sample in flips.samples if sample["category"] == category)
        over |= set(ids[allowed:])
    flips.remove(over, "over_category_share")


def _category_cap(counts: list[int], max_share: float) -> int:
    """The number of flips that each category may keep, for none to exceed the share.

    With a share of 0.4:

        100, 90 and 10    20, so that 20, 20 and 10 stay
        100 and 90        100: two categories cannot both be below a half, and the gate on categories says so
    """
    largest = max(counts, default=0)
    caps = (cap for cap in range(largest, 0, -1) if cap <= max_share * sum(min(count, cap) for count in counts))
    return next(caps, largest)


def redacted(sample: dict) -> dict:
    """A harmful sample without the injection that led to it."""
    provenance = sample["provenance"] | {"redacted": True}
    return {**sample, "messages": clean_messages(sample), "injection": [], "provenance": provenance}
