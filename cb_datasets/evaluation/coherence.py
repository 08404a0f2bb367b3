"""Whether a model's text is coherent: repetition, entropy, and perplexity under the base model.

A breaker that garbles its output makes no wrong call either, so safety metrics alone would rate it well.
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


# Prompts of each task on which perplexity is measured: enough for a mean, at little cost compared with generation.
PERPLEXITY_PROMPTS = 50
# Completions per call of the backend, which is one step of the progress bar.
_CHUNK = 128

_WORD = re.compile(r"<\|[^|>]*\|>|\w+")
# In characters: longer than most strings that occur twice in ordinary sentences and calls.
_SPAN = 10


def repetition(text: str) -> float:
    """Fraction of a text's ten-character spans that repeat an earlier one; 0 if the text is shorter than a span.

    The complement of distinct-n (Li et al. 2016, arXiv 1510.03055). It is computed on characters, so that repeated
    text without spaces and repeated special tokens count too, in any language.
    """
    spans = [text[start : start + _SPAN] for start in range(len(text) - _SPAN + 1)]
    return 1 - len(set(spans)) / len(spans) if spans else 0.0


def entropy(text: str) -> float:
    """Shannon entropy in bits of a text's words, including special tokens: 0 for one repeated word, log2(n) for n
    different ones."""
    counts = Counter(_WORD.findall(text.casefold())).values()
    total = sum(counts)
    return sum(count / total * math.log2(total / count) for count in counts)


def coherence(texts: Sequence[str]) -> dict:
    """`{repetition, entropy, n}`, means over completions.

    Raises:
        ValueError: If there are no completions.
    """
    if not texts:
        raise ValueError("Coherence over zero rows is undefined.")
    n = len(texts)
    return {"repetition": sum(map(repetition, texts)) / n, "entropy": sum(map(entropy, texts)) / n, "n": n}


def perplexity_under_base(base: Backend, prompts: Dataset, completions: list[ScoredCompletion], name: str) -> dict:
    """`{perplexity_under_base, perplexity_n}`: perplexity of a model's completions under the base model.

        exp( - sum_i log p0(y_i | x_i) / sum_i |y_i| )      y_i completion, x_i prompt, |y| tokens

    Args:
        base ([`Backend`]): The base model. If it is no [`Scorer`], the perplexity is `None`.
        prompts ([`~datasets.Dataset`]): The evaluated rows; [`PERPLEXITY_PROMPTS`] of each task are used.
        completions (`list[ScoredCompletion]`): One per prompt, in the same order.
        name (`str`): Label of the progress bar.
    """
    if not isinstance(base, Scorer):
        return {"perplexity_under_base": None, "perplexity_n": 0}
    texts = {completion.prompt.id: completion.text for completion in completions if completion.text is not None}
    rows = [row for row in _perplexity_rows(prompts) if row["id"] in texts]
    total, tokens = 0.0, 0
    for start in tqdm(range(0, len(rows), _CHUNK), f"{name}, perplexity"):
        chunk = rows[start : start + _CHUNK]
        prompt_ids = [encode_prompt(base.tokenizer, row) for row in chunk]
        completion_ids = [encode_completion(base.tokenizer, texts[row["id"]]) for row in chunk]
        total += sum(base.log_likelihoods(prompt_ids, completion_ids))
        tokens += sum(map(len, completion_ids))
    return {"perplexity_under_base": math.exp(-total / tokens) if tokens else None, "perplexity_n": len(rows)}


def _perplexity_rows(prompts: Dataset) -> list[dict]:
    tasks = dict.fromkeys(prompts["task"])
    by_task = {task: [index for index, other in enumerate(prompts["task"]) if other == task] for task in tasks}
    return [
        row for indices in by_task.values() for row in choose(prompts.select(indices), PERPLEXITY_PROMPTS, 0, "id")
    ]
