"""Rounds of prompts, until there are enough samples: no more prompts than the target needs.

    target 500, half of the prompts give a sample
    round 1     500 prompts -> 250 samples      as many as a yield of 1 would need
    round 2     550 prompts -> 275 samples      what is missing, at the yield so far, and a tenth more

At a low yield a round asks at most twice as many prompts as all before it, since the yield of few prompts says little.
"""

import math
from collections.abc import Callable

from datasets import Dataset

from ..splits import chosen_order
from .sample_set import SampleSet


# Prompts beyond those that the yield so far calls for: one round more costs more than they do.
_MARGIN = 1.1
_MAX_GROWTH = 2


def sample_in_rounds(
    prompts: dict[str, Dataset],
    ask: Callable[[dict[str, Dataset]], SampleSet],
    samples: SampleSet,
    target_n: int | None,
    num_samples: int,
    seed: int,
    per_tool: int = 0,
) -> None:
    """Complete prompts and add what is kept to `samples`, until there are `target_n`.

    Args:
        prompts (`dict[str, Dataset]`): Prompts by split.
        ask (`Callable`): Completes prompts and returns what is kept.
        samples ([`SampleSet`]): What is kept so far; grows.
        target_n (`int`, *optional*): Number of samples. Without it all prompts are asked in one round.
        num_samples (`int`): Completions per prompt.
        seed (`int`): Seed of the order in which prompts are asked.
        per_tool (`int`, *optional*, defaults to `0`): Number of prompts per expected tool that come first.
    """
    if target_n is None:
        samples.add_round(ask(prompts))
        return
    order, asked, before = _order(prompts, seed, per_tool), 0, len(samples.samples)
    while asked < len(order) and len(samples.samples) < target_n:
        missing = target_n - len(samples.samples)
        count = round_size(missing, asked, len(samples.samples) - before, num_samples)
        samples.add_round(ask(_select(prompts, order[asked : asked + count])))
        asked += count


def round_size(missing: int, asked: int, kept: int, num_samples: int) -> int:
    """Number of prompts of the next round.

    Args:
        missing (`int`): Number of samples that are missing.
        asked (`int`): Number of prompts asked so far.
        kept (`int`): Number of samples that they gave.
        num_samples (`int`): Completions per prompt.
    """
    if asked == 0:
        return math.ceil(missing / num_samples)
    most = _MAX_GROWTH * asked
    return most if kept == 0 else min(most, math.ceil(_MARGIN * missing * asked / kept))


def first_round(
    prompts: dict[str, Dataset], target_n: int | None, num_samples: int, seed: int, per_tool: int = 0
) -> dict[str, Dataset]:
    """The prompts that [`sample_in_rounds`] asks first: all that can be asked before any completion is known."""
    if target_n is None:
        return prompts
    return _select(prompts, _order(prompts, seed, per_tool)[: round_size(target_n, 0, 0, num_samples)])


def _order(prompts: dict[str, Dataset], seed: int, per_tool: int) -> list[tuple[str, int]]:
    """All prompts as `(split, index)`, those of the splits evenly mixed."""
    places = [
        ((number + 0.5) / len(rows), split, index)
        for split, rows in prompts.items()
        for number, index in enumerate(chosen_order(rows, seed, per_tool=per_tool))
    ]
    return [(split, index) for _, split, index in sorted(places)]


def _select(prompts: dict[str, Dataset], chosen: list[tuple[str, int]]) -> dict[str, Dataset]:
    return {
        split: rows.select(sorted(index for name, index in chosen if name == split)) for split, rows in prompts.items()
    }
