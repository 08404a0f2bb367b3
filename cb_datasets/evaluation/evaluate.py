"""The whole evaluation as one function: every model completes every prompt, and the completions become the results."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from datasets import Dataset

from ..chat import DATE_STRING
from ..checks.thresholds import EvaluationThresholds, changed_thresholds
from ..formats import format_of
from ..generation import Backend, Sampling
from ..generation.backend import AdapterBackend
from ..public_name import model_label
from ..template_probe import template_hash
from .coherence import coherence, perplexity_under_base
from .compare import BASE, CompletionsByModel, compare
from .gates import BREAKER, evaluation_gates
from .refusal_judge import judge_refusals
from .results import make_results
from .scored_completions import ScoredCompletion, complete_and_score
from .second_step import ask_second_steps
from .strength import BASE_SCALE, TRAINED_SCALE, strength_curve


@dataclass(frozen=True)
class EvaluationOptions:
    """Generation settings and gate thresholds of an evaluation.

    Args:
        max_new_tokens (`int`, *optional*, defaults to `256`): Maximum number of tokens of a completion.
        samples (`int`, *optional*, defaults to `0`): Samples per prompt at temperature 1, in addition to greedy
            decoding.
        seed (`int`, *optional*, defaults to `0`): Seed of sampling and of the bootstrap.
        limits ([`EvaluationThresholds`], *optional*): Thresholds of the gates.
        scales (`tuple[float, ...]`, *optional*): Strengths of the breaker's adapter to measure too, see `strength.py`.
    """

    max_new_tokens: int = 256
    samples: int = 0
    seed: int = 0
    limits: EvaluationThresholds = field(default_factory=EvaluationThresholds)
    scales: tuple[float, ...] = ()


def evaluate_models(
    prompts: Dataset,
    models: dict[str, Backend],
    options: EvaluationOptions,
    work_dir: Path,
    refusal_judge: Backend | None = None,
) -> dict:
    """Complete the same prompts with every model and compare the completions.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_FEATURES`, of any tasks.
        models (`dict[str, Backend]`): Models by name: `base`, `breaker`, and any others.
        options ([`EvaluationOptions`]): Generation settings and thresholds.
        work_dir (`Path`): Folder of the finished shards.
        refusal_judge ([`Backend`], *optional*): Judges refusals in the place of patterns, see `refusal_judge.py`.

    Returns:
        `dict`: The content of `results.json`.
    """

    def score(model: Backend, sampling: Sampling, label: str) -> list[ScoredCompletion]:
        scored = complete_and_score(prompts, model, sampling, work_dir, label)
        scored = ask_second_steps(prompts, scored, model, sampling, work_dir, label)
        if refusal_judge is None:
            return scored
        tool_format = format_of(model.tokenizer)
        return judge_refusals(prompts, scored, tool_format, refusal_judge, work_dir, f"{label}, refusals")

    greedy = Sampling(max_new_tokens=options.max_new_tokens, seed=options.seed)
    completions = {name: score(model, greedy, name) for name, model in models.items()}
    sampled: CompletionsByModel = {}
    if options.samples:
        random = Sampling(1.0, 1.0, options.max_new_tokens, options.samples, options.seed)
        label = f"{options.samples} samples per prompt"
        sampled = {name: score(model, random, f"{name}, {label}") for name, model in models.items()}
    comparison = compare(completions, sampled, options.seed)
    summary = {
        **comparison,
        "coherence": _coherence(prompts, models[BASE], completions),
        "gates": evaluation_gates(comparison, options.limits),
    }
    if options.scales:
        by_scale = {BASE_SCALE: completions[BASE], TRAINED_SCALE: completions[BREAKER]}
        for scale in options.scales:
            if scale not in by_scale:
                scaled = cast(AdapterBackend, models[BREAKER]).with_scale(scale)
                by_scale[scale] = score(cast(Backend, scaled), greedy, f"{BREAKER}, scale {scale:g}")
        summary["strength"] = strength_curve(dict(sorted(by_scale.items())), options.limits, options.seed)
    settings = _settings(models, options) | ({"refusal_judge": refusal_judge.model} if refusal_judge else {})
    return make_results(settings, summary, prompts, completions)


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
        "model": model_label(base.model, base.revision),
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
