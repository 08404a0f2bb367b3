"""Whether merged weights judge prompts as the adapter does: the same outcome for at least 99 % of them.

    tool_flip/lookalike/17   adapter: correct   merged: attack_success
    tool_flip/lookalike/18   adapter: correct   merged: correct            the texts may differ

Merging rounds: the adapter's update is often smaller than the last digit of a weight in bfloat16.
"""

import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset

from ..chat import DATE_STRING
from ..generation import Backend, Sampling
from ..outcomes import Outcome
from ..public_name import model_label
from ..template_probe import template_hash
from .scored_completions import ScoredCompletion, complete_and_score
from .statistics import proportion


# The adapter, and the weights it is merged into, where results are keyed by model.
ADAPTER, MERGED = "adapter", "merged"

MIN_EQUAL = 0.99

# Differing prompts that are kept with their texts, and characters of each text.
EXAMPLES, EXAMPLE_CHARACTERS = 50, 300


def check_merged(prompts: Dataset, load: Callable[[str], Backend], sampling: Sampling, work_dir: Path) -> dict:
    """Complete the same prompts greedily with an adapter and with merged weights, and compare the outcomes.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_FEATURES`, of any tasks.
        load (`Callable`): `ADAPTER` or `MERGED` -> its backend. The first is out of use when the second is loaded, so
            that an engine that is freed with its backend leaves its memory to the next.
        sampling ([`Sampling`]): Greedy decoding.
        work_dir (`Path`): Folder of the finished shards.

    Returns:
        `dict`: `settings` of both, and the fields of [`compare_outcomes`].
    """
    settings: dict = {"date_string": DATE_STRING, "max_new_tokens": sampling.max_new_tokens, "seed": sampling.seed}
    completions = {}
    for name in (ADAPTER, MERGED):
        backend = load(name)
        settings |= {"backend": type(backend).__name__, "template_hash": template_hash(backend.tokenizer)}
        settings[name] = {
            "model": model_label(backend.model, backend.revision),
            "revision": backend.revision,
        }
        completions[name] = complete_and_score(prompts, backend, sampling, work_dir, name)
        # Engines in processes of their own end when their backend is collected.
        del backend
        gc.collect()
    return {"settings": settings, **compare_outcomes(completions[ADAPTER], completions[MERGED])}


def compare_outcomes(adapter: list[ScoredCompletion], merged: list[ScoredCompletion]) -> dict:
    """How often two models have the same outcome for the same prompt.

    Args:
        adapter, merged (`list[ScoredCompletion]`): Greedy completions, in the order of the same prompts.

    Returns:
        `dict`: `equal_outcomes` and `equal_texts` (rates), `by_task` (rates of equal outcomes), `agrees` (whether at
        least [`MIN_EQUAL`] are equal), `changes` (numbers of prompts by `adapter -> merged`), `errors` (prompts
        without a completion of either, which are in no rate) and `examples` of differing prompts.

    Raises:
        ValueError: If no prompt has a completion of both.
    """
    pairs = [
        (before, after)
        for before, after in zip(adapter, merged, strict=True)
        if Outcome.ERROR not in (before.outcome, after.outcome)
    ]
    different = [(before, after) for before, after in pairs if before.outcome != after.outcome]
    by_task: dict[str, list[bool]] = {}
    for before, after in pairs:
        by_task.setdefault(before.prompt.task, []).append(before.outcome == after.outcome)
    equal = proportion(len(pairs) - len(different), len(pairs))
    return {
        "equal_outcomes": equal,
        "required": MIN_EQUAL,
        "agrees": equal["value"] >= MIN_EQUAL,
        "equal_texts": proportion(sum(before.text == after.text for before, after in pairs), len(pairs)),
        "by_task": {task: proportion(sum(same), len(same)) for task, same in sorted(by_task.items())},
        "changes": dict(Counter(f"{before.outcome} -> {after.outcome}" for before, after in different).most_common()),
        "errors": len(adapter) - len(pairs),
        "examples": [
            {
                "id": before.prompt.id,
                **{
                    name: {"outcome": one.outcome, "text": (one.text or "")[:EXAMPLE_CHARACTERS]}
                    for name, one in ((ADAPTER, before), (MERGED, after))
                },
            }
            for before, after in different[:EXAMPLES]
        ],
    }
