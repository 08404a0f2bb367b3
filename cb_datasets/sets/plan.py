"""What a generating step will ask, and what that costs: said before a model is loaded.

What a target of 500 samples prints:

    rounds: 500 of the 1424 prompts first, then what is missing at the yield so far, until there are 500 samples
    pass 1: 1424 prompts, 1 x T = 0.7
    pass 2: prompts without a sample, 1 x T = 0.7
    cost at least: 500 prompts of about 521,000 tokens; 500 completions of at most 128,000 tokens
    cost at most: 2,848 prompts of about 2,967,616 tokens; 2,848 completions of at most 729,088 tokens
"""

import dataclasses
from collections.abc import Iterator

from datasets import Dataset

from ..chat import encode_prompt
from ..generation.tokenizer import load_tokenizer
from ..splits import choose
from .rounds import round_size
from .target_model import modified


# Prompts of each task and split whose tokens are counted.
_MEASURED = 20


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over prompts, with one way to sample.

    Args:
        description (`str`): The way to sample, e.g. `T = 0.7`.
        num_samples (`int`): Completions per prompt.
    """

    description: str
    num_samples: int


def plan_lines(
    num_prompts: int, passes: list[Pass], target_n: int | None, prompt_tokens: float | None, max_new_tokens: int
) -> Iterator[str]:
    """What a step will ask, and what that costs at least and at most, in words.

    Args:
        num_prompts (`int`): Number of prompts there are.
        passes (`list[Pass]`): The passes over them, each over those without a sample.
        target_n (`int`, *optional*): Number of samples at which the step stops.
        prompt_tokens (`float`, *optional*): Mean number of tokens of a prompt, if known.
        max_new_tokens (`int`): Maximum number of tokens of a completion.
    """
    first = num_prompts
    if target_n is not None:
        first = min(num_prompts, round_size(target_n, 0, 0, passes[0].num_samples))
        yield (
            f"rounds: {first} of the {num_prompts} prompts first, then what is missing at the yield so far, until "
            f"there are {target_n} samples"
        )
    for number, each in enumerate(passes, 1):
        over = f"{num_prompts} prompts" if number == 1 else "prompts without a sample"
        yield f"pass {number}: {over}, {each.num_samples} x {each.description}"
    least = (first, first * passes[0].num_samples)
    most = (num_prompts * len(passes), num_prompts * sum(each.num_samples for each in passes))
    costs = {"cost": least} if least == most else {"cost at least": least, "cost at most": most}
    for name, (prompts, completions) in costs.items():
        read = "" if prompt_tokens is None else f" of about {round(prompts * prompt_tokens):,} tokens"
        yield (
            f"{name}: {prompts:,} prompts{read}; {completions:,} completions of at most "
            f"{completions * max_new_tokens:,} tokens"
        )


def mean_tokens(prompts: list[Dataset], model: str, system_modifier: str | None) -> float | None:
    """Mean number of tokens of a prompt, measured on some of them; `None` where the tokenizer is not at hand."""
    try:
        tokenizer = load_tokenizer(model)
    except (OSError, ValueError):
        return None
    measured = [
        len(encode_prompt(tokenizer, row))
        for rows in prompts
        for row in modified(choose(rows, _MEASURED, seed=0), system_modifier)
    ]
    return sum(measured) / len(measured) if measured else None
