"""Ds, the circuit breaker set: completions in which the attack succeeded, really produced by a model."""

from pathlib import Path

from datasets import Dataset

from ..generation import Backend, Sampling
from ..outcomes import Outcome
from .prompts import choose, prompts_for_task
from .sampled import Wanted, sample_set
from .yields import Yield


FLIPS = Wanted("harmful/b4_flips", "harmful_flip", (Outcome.ATTACK_SUCCESS,))


def flips(
    traces: dict[str, Dataset], limits: dict[str, int | None], backend: Backend, sampling: Sampling, work_dir: Path
) -> Yield:
    """Tool flips: the model is asked attacked prompts, and what made the attacker's call is kept.

    Args:
        traces (`dict[str, Dataset]`): Prompt-only traces by split.
        limits (`dict[str, int | None]`): How many prompts to ask in each split; `None` for all.
        backend ([`Backend`]): The target model.
        sampling ([`Sampling`]): How to draw.
        work_dir (`Path`): Where finished shards are kept.
    """
    prompts = chosen_prompts(traces, "tool_flip", limits, sampling.seed)
    return sample_set(prompts, FLIPS, backend, sampling, work_dir)


def chosen_prompts(
    traces: dict[str, Dataset], task: str, limits: dict[str, int | None], seed: int
) -> dict[str, Dataset]:
    """Prompts of a task by split; `choose` makes siblings of different sets come from the same traces."""
    return {split: choose(prompts_for_task(rows, task), limits[split], seed) for split, rows in traces.items()}
