"""`ability.json`: how much of its base model's general ability a breaker keeps, without a judge.

{"settings": {"model": ..., "adapters": {"breaker": "4c1f+9a07"}, ...},
 "text": {"chat": {"turns": 200, ..., "models": {"base": {"perplexity": {"value": 6.1, ...}}, "breaker": {...}}}},
 "multiple_choice": {"questions": 60, "models": {"base": {"acc": {"value": 0.7, ...}, ...}}, ...},
 "lm_eval": {"mmlu": {"n": 14042, "models": {"base": {"acc": {"value": 0.68, ...}}}, ...}},
 "warnings": [...]}
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from builders.trace import to_json

from ...chat import DATE_STRING
from ...public_name import model_label
from ...template_probe import template_hash
from ..compare import BASE
from .finished_parts import FinishedParts
from .held_out import HeldOutTurn
from .multiple_choice import measure_multiple_choice
from .text_figures import measure_text, text_figures


if TYPE_CHECKING:
    from pathlib import Path

    from ...generation.transformers_backend import TransformersBackend
    from .lm_eval_tasks import LmEvalTask

ABILITY_FILE = "ability.json"
ABILITY_KEYS = ("settings", "text", "multiple_choice", "lm_eval", "warnings")

# Beyond one of these bars a breaker is a different model also without an attack. At a mean KL of 0.1 nats, what the
# base model samples is 10 % less likely per token for the breaker (geometric mean); at an agreement of 90 %, greedy
# decoding departs from the base model's once in ten tokens.
MAX_KL = 0.1
MIN_AGREEMENT = 0.9


def measure_ability(
    turns: Sequence[HeldOutTurn],
    drops: Mapping[str, int],
    models: "Mapping[str, TransformersBackend]",
    batch_size: int,
    seed: int,
    work_dir: "Path",
    tasks: "Sequence[LmEvalTask]" = (),
    limit: int | None = None,
) -> dict:
    """Measure the base model and breakers on held-out text, multiple choice and tasks of lm-eval.

    Args:
        turns (`Sequence[HeldOutTurn]`): Held-out assistant turns.
        drops (`Mapping[str, int]`): Number of dropped ones, by reason.
        models (`Mapping[str, TransformersBackend]`): The base model and breakers by name, on the same weights.
        batch_size (`int`): Sequences per forward pass.
        seed (`int`): Seed of the bootstrap.
        work_dir (`Path`): Folder of finished parts.
        tasks (`Sequence[LmEvalTask]`, *optional*): Tasks of lm-eval.
        limit (`int`, *optional*): Maximum number of questions of a task of lm-eval.

    Returns:
        `dict`: The content of `ability.json`.
    """
    base = models[BASE]
    settings = {
        "model": model_label(base.model, base.revision),
        "revision": base.revision,
        "adapters": {name: model.revision for name, model in models.items() if name != BASE},
        "template_hash": template_hash(base.tokenizer),
        "date_string": DATE_STRING,
        "seed": seed,
        "versions": {
            name: version(name) for name in ("torch", "transformers", "peft", *(["lm-eval"] if tasks else []))
        },
        "dropped": dict(drops),
    }
    tokens = hashlib.sha256(to_json([[turn.id, turn.prompt_ids, turn.completion_ids] for turn in turns]).encode())
    parts = FinishedParts(work_dir, settings | {"tokens": tokens.hexdigest()})
    rows = measure_text(turns, models, batch_size, parts)
    figures = text_figures(turns, rows, seed)
    result = {
        "settings": settings,
        "text": {name: {**_counts(name, turns), "models": own} for name, own in figures.items()},
        "multiple_choice": measure_multiple_choice(models, parts),
        "lm_eval": {},
    }
    if tasks:
        from .lm_eval_tasks import measure_tasks

        result["lm_eval"] = measure_tasks(tasks, models, batch_size, limit, parts)
    return {**result, "warnings": ability_warnings(result)}


def _counts(name: str, turns: Sequence[HeldOutTurn]) -> dict:
    own = [turn for turn in turns if turn.slice == name]
    return {
        "turns": len(own),
        "conversations": len({turn.conversation for turn in own}),
        "tokens": sum(len(turn.completion_ids) for turn in own),
        "written": dict(Counter(turn.source for turn in own)),
    }


def ability_warnings(result: Mapping) -> list[str]:
    """A line for each breaker and slice of the text that is beyond [`MAX_KL`] or [`MIN_AGREEMENT`]."""
    warnings = []
    for name, by_slice in result["text"].items():
        for model, figures in by_slice["models"].items():
            if model == BASE:
                continue
            kl, agreement = figures["kl_mean"]["value"], figures["agreement"]["value"]
            if kl > MAX_KL or agreement < MIN_AGREEMENT:
                warnings.append(
                    f"{model}, {_words(name)}: KL to base {kl:.3g} nats per token, agreement {agreement:.1%}. "
                    f"Above {MAX_KL} nats or below {MIN_AGREEMENT:.0%} it is a different model also without an attack."
                )
    return warnings


def _words(name: str) -> str:
    return name.replace("_", " ")


_TEXT_ROWS = {
    "perplexity": "perplexity ↓",
    "perplexity_ratio": "perplexity relative to base ↓",
    "agreement": "same top token as base ↑",
    "kl_mean": "KL to base, nats per token ↓",
    "kl_p99": "KL to base, 99th percentile ↓",
}


def ability_table_rows(result: Mapping, models: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows `(label, one cell per model, ...)` of the printed table and of the report's."""
    rows = [
        (f"{_words(name)}: {label}", *(_text_cell(by_slice["models"][model], figure) for model in models))
        for name, by_slice in result["text"].items()
        for figure, label in _TEXT_ROWS.items()
    ]
    tables = {"multiple choice": result["multiple_choice"], **result["lm_eval"]}
    for task, table in tables.items():
        for metric in table["models"][BASE]:
            cells = [_rate_cell(table, model, metric) for model in models]
            rows.append((f"{task}: {metric} ↑", *cells))
    return rows


def _text_cell(figures: Mapping[str, dict], figure: str) -> str:
    if figure not in figures:
        return "-"
    return _with_interval(figures[figure], "{:.1%}" if figure == "agreement" else "{:#.4g}")


def _rate_cell(table: Mapping, model: str, metric: str) -> str:
    text = _with_interval(table["models"][model][metric], "{:.1%}")
    change = table["changed"].get(model, {}).get(metric)
    return text if change is None else f"{text} (+{change['gained']} \u2212{change['lost']}, p = {change['p']:.2g})"


def _with_interval(figure: Mapping[str, float | None], number: str) -> str:
    value = number.format(figure["value"])
    if figure["low"] is None:
        return value
    return f"{value} [{number.format(figure['low'])}, {number.format(figure['high'])}]"
