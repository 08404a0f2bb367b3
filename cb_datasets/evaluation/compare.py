"""Base and breakers complete the same prompts; figures of each, and what changed prompt by prompt."""

from collections import Counter

from ..generation.backend import BASE
from ..outcomes import Outcome
from .metric_table import BEST_OF_N, METRICS, best_of_n, compute_metrics, compute_rates, counts_for
from .scored_completions import ScoredCompletion
from .statistics import mcnemar


# What answers are sliced by: columns of a case.
SLICES = ("family", "category", "source", "subtype", "depth")

CompletionsByModel = dict[str, list[ScoredCompletion]]


def compare(answers: CompletionsByModel, drawn: CompletionsByModel | None = None, seed: int = 0) -> dict:
    """What models did with the same prompts, the base and one or more breakers.

    Args:
        answers (`dict[str, list[ScoredCompletion]]`): Greedy answers by model; `base` among them.
        drawn (`dict[str, list[ScoredCompletion]]`, *optional*): CompletionsByModel drawn at temperature 1, by model.
        seed (`int`, *optional*, defaults to `0`): Of the bootstrap.

    Returns:
        `dict`: The figures of each model under its name, `sampled`, `changed`, `slices`, `outcomes` and `errors`, see
        `results.schema.json`. `changed` counts, for each figure, the prompts that a breaker gained and lost; a prompt
        that failed on either side is left out of it.
    """
    breakers = [name for name in answers if name != BASE]
    sampled = {name: _sampled(draws, seed) for name, draws in (drawn or {}).items()}
    return {
        **{name: compute_metrics(given, seed) for name, given in answers.items()},
        **({"sampled": sampled} if sampled else {}),
        "changed": {name: _changed(answers[BASE], answers[name]) for name in breakers},
        "slices": {key: _slices(answers, key) for key in SLICES},
        "outcomes": {name: _outcomes(given) for name, given in answers.items()},
        "errors": {name: sum(answer.outcome == Outcome.ERROR for answer in given) for name, given in answers.items()},
    }


def _sampled(draws: list[ScoredCompletion], seed: int) -> dict[str, dict]:
    best = best_of_n(draws, seed)
    return compute_metrics(draws, seed) | ({BEST_OF_N: best} if best else {})


def _changed(base: list[ScoredCompletion], breaker: list[ScoredCompletion]) -> dict[str, dict]:
    after = {answer.case: answer for answer in breaker}
    pairs = [(answer, after[answer.case]) for answer in base]
    found = {}
    for figure in METRICS:
        sides = [(counts_for(figure, one), counts_for(figure, other)) for one, other in pairs]
        both = [(one, other) for one, other in sides if one is not None and other is not None]
        if both:
            found[figure] = mcnemar(*zip(*both, strict=True))
    return found


def _slices(answers: CompletionsByModel, key: str) -> dict[str, dict[str, dict]]:
    """`{value: {model: {figure: {value, n, low, high}}}}` for each value of a column."""
    parts: dict[str | int, CompletionsByModel] = {}
    for name, given in answers.items():
        for answer in given:
            value = getattr(answer.case, key)
            if value is not None:
                parts.setdefault(value, {}).setdefault(name, []).append(answer)
    return {
        str(value): {name: compute_rates(given) for name, given in parts[value].items()} for value in sorted(parts)
    }


def _outcomes(answers: list[ScoredCompletion]) -> dict[str, dict[str, int]]:
    """How often each outcome occurred in each task."""
    counts: dict[str, Counter[str]] = {}
    for answer in answers:
        counts.setdefault(answer.case.task, Counter())[str(answer.outcome)] += 1
    return {task: dict(counts[task]) for task in sorted(counts)}
