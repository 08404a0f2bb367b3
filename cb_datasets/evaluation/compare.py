"""Compare the base model and breakers on the same prompts: metrics of each model, and changes prompt by prompt."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..generation.backend import BASE
from ..outcomes import Outcome
from .attack_kinds import compare_attack_kinds
from .metric_table import BEST_OF_N, METRICS, best_of_n, compute_metrics, compute_rates, is_hit
from .scored_completions import ScoredCompletion
from .statistics import mcnemar


# Fields of an EvalPrompt by whose values the metrics are also reported separately.
SLICES = (
    *("family", "place", "repetition", "turn", "expected_tool", "simulated_tool"),
    *("category", "source", "subtype", "depth"),
)

CompletionsByModel = dict[str, list[ScoredCompletion]]


def compare(completions: CompletionsByModel, sampled: CompletionsByModel | None = None, seed: int = 0) -> dict:
    """Compare the completions of the base model and of one or more breakers for the same prompts.

    Args:
        completions (`dict[str, list[ScoredCompletion]]`): Greedy completions by model, including `base`.
        sampled (`dict[str, list[ScoredCompletion]]`, *optional*): Completions sampled at temperature 1, by model.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Returns:
        `dict`: The metrics of each model under its name, and `sampled`, `changed`, `attack_kinds`, `slices`,
        `outcomes` and `errors`, see `results.schema.json`. For each metric, `changed` counts the prompts that a
        breaker gained and lost against the base model; prompts without a completion of either are left out.
    """
    breakers = [name for name in completions if name != BASE]
    sampled_metrics = {name: _sampled_metrics(samples, seed) for name, samples in (sampled or {}).items()}
    return {
        **{name: compute_metrics(scored, seed) for name, scored in completions.items()},
        **({"sampled": sampled_metrics} if sampled_metrics else {}),
        "changed": {name: _changed(completions[BASE], completions[name]) for name in breakers},
        "attack_kinds": {name: compare_attack_kinds(completions[BASE], completions[name]) for name in breakers},
        "slices": {field: _sliced_rates(completions, field) for field in SLICES},
        "outcomes": {name: _outcome_counts(scored) for name, scored in completions.items()},
        "errors": {name: sum(one.outcome == Outcome.ERROR for one in scored) for name, scored in completions.items()},
    }


def _sampled_metrics(samples: list[ScoredCompletion], seed: int) -> dict[str, dict]:
    best = best_of_n(samples, seed)
    return compute_metrics(samples, seed) | ({BEST_OF_N: best} if best else {})


def _changed(base: list[ScoredCompletion], breaker: list[ScoredCompletion]) -> dict[str, dict]:
    by_prompt = {completion.prompt: _hits(completion) for completion in breaker}
    return paired_changes(METRICS, [(_hits(completion), by_prompt[completion.prompt]) for completion in base])


def _hits(completion: ScoredCompletion) -> dict[str, bool | None]:
    return {metric: is_hit(metric, completion) for metric in METRICS}


def paired_changes(
    metrics: Iterable[str], pairs: Sequence[tuple[Mapping[str, bool | None], Mapping[str, bool | None]]]
) -> dict[str, dict]:
    """McNemar's test of each metric: prompts or runs gained and lost, see [`mcnemar`].

    Args:
        metrics (`Iterable[str]`): Names of the metrics. One that applies to no pair is left out.
        pairs (`Sequence[tuple]`): Of each prompt or run, the hits of both models by metric. It counts only if the
            metric applies to both: if both have a hit or a miss, and not `None` or nothing.
    """
    changed = {}
    for metric in metrics:
        hits = [(before.get(metric), after.get(metric)) for before, after in pairs]
        paired = [(before, after) for before, after in hits if before is not None and after is not None]
        if paired:
            changed[metric] = mcnemar(*zip(*paired, strict=True))
    return changed


def _sliced_rates(completions: CompletionsByModel, field: str) -> dict[str, dict[str, dict]]:
    """`{value: {model: {metric: {value, n, low, high}}}}` for each value of a field of the prompts."""
    slices: dict[str | int, CompletionsByModel] = {}
    for name, scored in completions.items():
        for completion in scored:
            value = getattr(completion.prompt, field)
            if value is not None:
                slices.setdefault(value, {}).setdefault(name, []).append(completion)
    return {
        str(value): {name: compute_rates(scored) for name, scored in slices[value].items()} for value in sorted(slices)
    }


def _outcome_counts(completions: list[ScoredCompletion]) -> dict[str, dict[str, int]]:
    """Number of completions by task and outcome."""
    counts: dict[str, Counter[str]] = {}
    for completion in completions:
        counts.setdefault(completion.prompt.task, Counter())[str(completion.outcome)] += 1
    return {task: dict(counts[task]) for task in sorted(counts)}
