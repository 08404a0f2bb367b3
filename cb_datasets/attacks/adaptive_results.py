"""Results of the ladder of attacks: the rows of its table, with the budget of each rung in its label."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..evaluation.statistics import format_rate


ADAPTIVE_FILE = "adaptive.json"

# Label of a rung, from its budget.
_LABELS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "unchanged": lambda budget: "injection unchanged",
    "samples": lambda budget: f"best of {budget['best_of']} samples at T = 1",
    "black_box": lambda budget: f"black box, best of {budget['draws']} compositions",
    "suffix": lambda budget: f"suffix search, {_search(budget)}",
    "prefix_suffix": lambda budget: f"prefix + suffix search, {_search(budget)}",
    "universal": lambda budget: f"one suffix for many, found on {budget['seen_prompts']} others, {_search(budget)}",
    "transfer": lambda budget: "suffixes found on the other models",
    "embedding": lambda budget: (
        f"free vectors, {budget['steps']} steps, {_both(budget['prefix_vectors'], budget['suffix_vectors'])} vectors, "
        f"{budget['restarts']} restarts x step sizes {', '.join(map(str, budget['step_sizes']))}"
    ),
    "prefilled_tag": lambda budget: "call prefilled through the tag",
    "prefilled_word": lambda budget: "call prefilled through the first word of the name",
    "prefilled_name": lambda budget: "call prefilled through the name",
}
RUNGS = tuple(_LABELS)

# Rates of a rung and their labels; those that a rung does not have are left out.
_RATES = {"asr": "ASR ↓", "correct": "right call ↑"}
_DRAW_RATES = {
    "asr": "ASR ↓",
    "draw_asr": "ASR per composition ↓",
    "draw_correct": "right call per composition ↑",
}


def _search(budget: Mapping[str, Any]) -> str:
    tokens = _both(budget["prefix_tokens"], budget["suffix_tokens"])
    return f"{budget['steps']} steps x {budget['width']} candidates x {tokens} tokens"


def _both(prefix: int, suffix: int) -> str:
    return f"{prefix} + {suffix}" if prefix else str(suffix)


def rung_label(rung: str, budget: Mapping[str, Any]) -> str:
    """A rung with its budget in words."""
    return _LABELS[rung](budget)


def rung_rates(rung: str) -> dict[str, str]:
    """Rates that the table shows for a rung, and their labels."""
    if rung == "black_box":
        return _DRAW_RATES
    # Of several samples or sources, the first success is the answer: other rates would mix two questions. A prefilled
    # call of the wrong tool cannot become the right one.
    return {"asr": _RATES["asr"]} if rung in ("samples", "transfer") or rung.startswith("prefilled") else _RATES


def adaptive_table_rows(result: Mapping[str, Any], models: list[str]) -> Iterator[tuple[str, ...]]:
    """Rows `(label, one cell per model, ...)` of the printed table."""
    for rung, each in sorted(result["rungs"].items(), key=lambda item: RUNGS.index(item[0])):
        for rate, label in rung_rates(rung).items():
            own = f"{rung_label(rung, each['budget'])}: {label}" if rate == "asr" else f"  {label}"
            yield own, *(format_rate((each["models"][name] or {}).get(rate)) for name in models)
        steps = [each["models"][name] or {} for name in models]
        if all("median_steps" in one for one in steps):
            yield "  successes of the unchanged injection", *(str(one["unchanged"]) for one in steps)
            yield "  successes of random words", *(str(one["at_random"]) for one in steps)
            yield (
                "  steps to success, median",
                *("-" if one["median_steps"] is None else f"{one['median_steps']:g}" for one in steps),
            )


def black_box_table_rows(result: Mapping[str, Any], models: list[str]) -> Iterator[tuple[str, ...]]:
    """Rows of the black box in detail: the curve over N, and ASR and right calls per composition by slice."""
    metrics = [result["rungs"]["black_box"]["models"][name] for name in models]
    for n in curve_points(min(len(each["curve"]) for each in metrics)):
        yield f"best of {n}: ASR ↓", *(f"{each['curve'][n - 1]:.1%}" for each in metrics)
    for field in ("place", "repetition", "turn", "family", "noise"):
        for value in sorted({value for each in metrics for value in each["slices"][field]}):
            cells = [_slice_cell(each["slices"][field].get(value)) for each in metrics]
            yield f"{field} {value.replace('_', ' ')}: ASR ↓ · right call ↑", *cells


def _slice_cell(rates: Mapping[str, Any] | None) -> str:
    return "-" if rates is None else f"{rates['draw_asr']['value']:.1%} · {rates['draw_correct']['value']:.1%}"


def curve_points(length: int) -> list[int]:
    """Numbers of draws at which a curve over N is written down: 1, 2, 5, 10, 20, 50, ... and its end."""
    points = [factor * 10**power for power in range(6) for factor in (1, 2, 5)]
    return [*(point for point in points if point < length), length]


def errors_of(result: Mapping[str, Any], models: list[str]) -> dict[str, int]:
    """Answers that a model could not give, because the prompt is too long, over all rungs."""
    return {
        name: count
        for name in models
        if (count := sum((rung["models"][name] or {"errors": 0})["errors"] for rung in result["rungs"].values()))
    }
