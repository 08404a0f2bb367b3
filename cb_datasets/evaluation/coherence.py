"""Whether what a model writes still holds together: repetition, entropy, and how likely the base model finds it.

A breaker that garbles its output makes no wrong call either, so safety figures alone would praise it.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from datasets import Dataset
from tqdm import tqdm

from ..chat import encode_completion, encode_prompt
from ..generation import Backend, Scorer
from ..splits import choose
from .scored_completions import ScoredCompletion


# Prompts of each task on which perplexity is measured: enough for a mean, and little beside generating.
PERPLEXITY_PROMPTS = 50
# Completions of one call of the backend, between two steps of the progress bar.
_CHUNK = 128

_WORD = re.compile(r"<\|[^|>]*\|>|\w+")
# Characters: longer than what ordinary sentences and calls have in common with themselves.
_SPAN = 10


def repetition(text: str) -> float:
    """Share of a text's spans of ten characters that stand in it before; 0 where it is shorter.

    The complement of distinct-n (Li et al. 2016, arXiv 1510.03055), on characters, so that babble without blanks and
    special tokens over and over count, whatever the language.
    """
    spans = [text[start : start + _SPAN] for start in range(len(text) - _SPAN + 1)]
    return 1 - len(set(spans)) / len(spans) if spans else 0.0


def entropy(text: str) -> float:
    """Shannon entropy in bits of a text's words, special tokens among them: 0 for one word over and over, log2(n) for
    n different ones."""
    counts = Counter(_WORD.findall(text.casefold())).values()
    total = sum(counts)
    return sum(count / total * math.log2(total / count) for count in counts)


def coherence(texts: Sequence[str]) -> dict:
    """`{repetition, entropy, n}`, means over completions.

    Raises:
        ValueError: If there are none.
    """
    if not texts:
        raise ValueError("Coherence over zero rows is not a number.")
    n = len(texts)
    return {"repetition": sum(map(repetition, texts)) / n, "entropy": sum(map(entropy, texts)) / n, "n": n}


def perplexity_under(base: Backend, prompts: Dataset, answers: list[ScoredCompletion], name: str) -> dict:
    """`{perplexity_under_base, perplexity_n}`: of a model's answers, for the base model after the same prompts.

        exp( - sum_i log p0(y_i | x_i) / sum_i |y_i| )      y_i answer, x_i prompt, |y| tokens

    Args:
        base ([`Backend`]): The base model; without a [`Scorer`] there is no perplexity (`None`).
        prompts ([`~datasets.Dataset`]): The rows that were asked; of each task, [`PERPLEXITY_PROMPTS`] are taken.
        answers (`list[ScoredCompletion]`): One for each prompt, in their order.
        name (`str`): Label of the progress bar.
    """
    if not isinstance(base, Scorer):
        return {"perplexity_under_base": None, "perplexity_n": 0}
    texts = {answer.case.id: answer.text for answer in answers if answer.text is not None}
    rows = [row for row in _chosen(prompts) if row["id"] in texts]
    total, tokens = 0.0, 0
    for start in tqdm(range(0, len(rows), _CHUNK), f"{name}, perplexity"):
        part = rows[start : start + _CHUNK]
        asked = [encode_prompt(base.tokenizer, row) for row in part]
        written = [encode_completion(base.tokenizer, texts[row["id"]]) for row in part]
        total += sum(base.log_likelihoods(asked, written))
        tokens += sum(map(len, written))
    return {"perplexity_under_base": math.exp(-total / tokens) if tokens else None, "perplexity_n": len(rows)}


def _chosen(prompts: Dataset) -> list[dict]:
    tasks = dict.fromkeys(prompts["task"])
    by_task = {task: [at for at, of in enumerate(prompts["task"]) if of == task] for task in tasks}
    return [row for rows in by_task.values() for row in choose(prompts.select(rows), PERPLEXITY_PROMPTS, 0, "id")]
