"""The whole evaluation as one function: every model completes every prompt, and the completions become the results."""

from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from ..chat import DATE_STRING, template_hash
from ..checks.thresholds import EvaluationThresholds, changed_thresholds
from ..generation import Backend, Sampling
from .coherence import coherence, perplexity_under_base
from .compare import BASE, CompletionsByModel, compare
from .gates import evaluation_gates
from .results import make_results
from .scored_completions import complete_and_score


@dataclass(frozen=True)
class EvaluationOptions:
    """Generation settings and gate thresholds of an evaluation.

    Args:
        max_new_tokens (`int`, *optional*, defaults to `256`): Maximum number of tokens of a completion.
        samples (`int`, *optional*, defaults to `0`): Samples per prompt at temperature 1, in addition to greedy
            decoding.
        seed (`int`, *optional*, defaults to `0`): Seed of sampling and of the bootstrap.
        limits ([`EvaluationThresholds`], *optional*): Thresholds of the gates.
    """

    max_new_tokens: int = 256
    samples: int = 0
    seed: int = 0
    limits: EvaluationThresholds = field(default_factory=EvaluationThresholds)


def evaluate_models(prompts: Dataset, models: dict[str, Backend], options: EvaluationOptions, work_dir: Path) -> dict:
    """Complete the same prompts with every model and compare the completions.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_FEATURES`, of any tasks.
        models (`dict[str, Backend]`): Models by name: `base`, `breaker`, and any others.
        options ([`EvaluationOptions`]): Generation settings and thresholds.
        work_dir (`Path`): Folder of the finished shards.

    Returns:
        `dict`: The content of `results.json`.
    """
    greedy = Sampling(max_new_tokens=options.max_new_tokens, seed=options.seed)
    completions = {name: complete_and_score(prompts, model, greedy, work_dir, name) for name, model in models.items()}
    sampled = {}
    if options.samples:
        random = Sampling(1.0, 1.0, options.max_new_tokens, options.samples, options.seed)
        for name, model in models.items():
            label = f"{name}, {options.samples} samples per prompt"
            sampled[name] = complete_and_score(prompts, model, random, work_dir, label)
    comparison = compare(completions, sampled, options.seed)
    summary = {
        **comparison,
        "coherence": _coherence(prompts, models[BASE], completions),
        "gates": evaluation_gates(comparison, options.limits),
    }
    return make_results(_settings(models, options), summary, prompts, completions)


def _coherence(prompts: Dataset, base: Backend, completions: CompletionsByModel) -> dict[str, dict]:
    return {
        name: {
            **coherence([completion.text for completion in scored if completion.text is not None]),
            **perplexity_under_base(base, prompts, scored, name),
        }
        for name, scored in completions.items()
    }


def _settings(models: dict[str, Backend], options: EvaluationOptions) -> dict:
    base = models[BASE]
    return {
        "model": base.model,
        "revision": base.revision,
        "adapters": {name: model.revision for name, model in models.items() if name != BASE},
        "backend": type(base).__name__,
        "template_hash": template_hash(base.tokenizer),
        "date_string": DATE_STRING,
        "max_new_tokens": options.max_new_tokens,
        "samples": options.samples,
        "seed": options.seed,
        "thresholds_changed": changed_thresholds(options.limits),
    }
