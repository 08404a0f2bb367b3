"""The evaluation as one call: every model is asked every prompt, and what they did becomes the results."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from ..chat import DATE_STRING, template_hash
from ..checks.thresholds import EvaluationThresholds, changed
from ..generation import Backend, Sampling
from .coherence import coherence, perplexity_under
from .compare import BASE, CompletionsByModel, compare
from .gates import evaluation_gates
from .results import results
from .scored_completions import complete_and_score


@dataclass(frozen=True)
class EvaluationOptions:
    """How models are asked.

    Args:
        max_new_tokens (`int`, *optional*, defaults to `256`): Most tokens of an answer.
        samples (`int`, *optional*, defaults to `0`): Draws of each prompt at temperature 1, besides the greedy answer.
        seed (`int`, *optional*, defaults to `0`): Of the draws and of the bootstrap.
        limits ([`EvaluationThresholds`], *optional*): What the gates demand.
    """

    max_new_tokens: int = 256
    samples: int = 0
    seed: int = 0
    limits: EvaluationThresholds = EvaluationThresholds()


def evaluate_models(prompts: Dataset, models: dict[str, Backend], options: EvaluationOptions, work_dir: Path) -> dict:
    """Ask all models the same prompts and compare them.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_FEATURES`, of any tasks.
        models (`dict[str, Backend]`): `base`, `breaker`, and further ones by name.
        options ([`EvaluationOptions`]): How they are asked.
        work_dir (`Path`): Where finished shards are kept.

    Returns:
        `dict`: What `results.json` holds.
    """
    greedy = Sampling(max_new_tokens=options.max_new_tokens, seed=options.seed)
    answers = {name: complete_and_score(prompts, model, greedy, work_dir, name) for name, model in models.items()}
    drawn = {}
    if options.samples:
        random = Sampling(1.0, 1.0, options.max_new_tokens, options.samples, options.seed)
        for name, model in models.items():
            drawn[name] = complete_and_score(prompts, model, random, work_dir, f"{name}, {options.samples} draws")
    comparison = compare(answers, drawn, options.seed)
    found = {
        **comparison,
        "coherence": _coherence(prompts, models[BASE], answers),
        "gates": evaluation_gates(comparison, options.limits),
    }
    return results(_settings(models, options), found, prompts, answers)


def _coherence(prompts: Dataset, base: Backend, answers: CompletionsByModel) -> dict[str, dict]:
    return {
        name: {
            **coherence([answer.text for answer in given if answer.text is not None]),
            **perplexity_under(base, prompts, given, name),
        }
        for name, given in answers.items()
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
        "thresholds_changed": changed(options.limits),
    }
