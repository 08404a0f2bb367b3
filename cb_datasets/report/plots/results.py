"""Plots of one evaluation: every metric with its interval, and the outcomes of the prompts of each task."""

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from ...evaluation.compare import BASE
from ...evaluation.metric_table import METRIC_LABELS
from ...evaluation.results import model_names
from ...outcomes import Outcome
from ...sets.eval_prompts import EVALUATION_TASKS
from .drawing import (
    BLACK,
    BLUE,
    GREEN,
    MODEL_LOOKS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    Look,
    new_figure,
    percent_axis,
    save_figure,
    style,
    whiskers,
)


if TYPE_CHECKING:
    from matplotlib.figure import Figure

OUTCOME_LOOKS = {
    Outcome.ATTACK_SUCCESS: Look(VERMILLION, "////"),
    Outcome.CORRECT: Look(GREEN, ""),
    Outcome.OTHER_TOOL: Look(ORANGE, "\\\\\\"),
    Outcome.MULTI_CALL: Look(YELLOW, "++"),
    Outcome.REFUSAL: Look(SKY, ".."),
    Outcome.NO_CALL: Look(BLUE, ""),
    Outcome.MALFORMED: Look(PURPLE, "xx"),
    Outcome.ERROR: Look(BLACK, ""),
}


def draw_results(results: dict, folder: Path) -> None:
    """Draw and save the plots of one evaluation.

    Args:
        results (`dict`): Its results.
        folder (`Path`): Folder of `report.png` and `outcomes.png`.
    """
    save_figure(draw_metrics(results), folder / "report.png")
    save_figure(draw_outcomes(results), folder / "outcomes.png")


def draw_metrics(results: dict) -> "Figure":
    """All measured metrics with their 95 % Wilson intervals: a row per metric, a marker per model."""
    models = model_names(results)
    metrics = [name for name in METRIC_LABELS if any(name in results[model] for model in models)]
    with style():
        figure = new_figure(8, 0.36 * len(metrics) + 1.1)
        axes = figure.subplots()
        for index, (model, look) in enumerate(zip(models, cycle(MODEL_LOOKS), strict=False)):
            # The models' markers share a row without overlapping.
            shift = 0.62 * ((index + 0.5) / len(models) - 0.5)
            rates = [(row, results[model][name]) for row, name in enumerate(metrics) if name in results[model]]
            axes.errorbar(
                [rate["value"] for _, rate in rates],
                [row + shift for row, _ in rates],
                xerr=whiskers([rate for _, rate in rates]),
                fmt=look.sign,
                color=look.colour,
                label=model,
                markersize=5,
                elinewidth=1.6,
                clip_on=False,
            )
        axes.set_yticks(range(len(metrics)), [METRIC_LABELS[name] for name in metrics])
        axes.set(ylim=(len(metrics) - 0.5, -0.5), xlim=(0, 1), xlabel="share of prompts, with its 95 % interval")
        percent_axis(axes, "x")
        figure.legend(loc="outside upper center", ncols=len(models))
    return figure


def draw_outcomes(results: dict) -> "Figure":
    """A stacked bar per task and model: the fraction of prompts with each outcome."""
    outcomes, models = results["outcomes"], model_names(results)
    tasks = sorted(outcomes[BASE], key=_task_order)
    present = [outcome for outcome in Outcome if any(outcome in outcomes[m][t] for m in models for t in tasks)]
    bars = [(task, model) for task in tasks for model in models]
    # The bars of one task are adjacent; above them, one row is left empty for the task's title.
    rows_per_task = len(models) + 1
    rows = [task * rows_per_task + model for task in range(len(tasks)) for model in range(len(models))]
    with style():
        figure = new_figure(8, 0.21 * (len(rows) + len(tasks)) + 1.0)
        axes = figure.subplots()
        axes.grid(visible=False)
        left = [0.0] * len(bars)
        for outcome in present:
            counts = [outcomes[model][task] for task, model in bars]
            fractions = [by_outcome.get(outcome, 0) / sum(by_outcome.values()) for by_outcome in counts]
            look = OUTCOME_LOOKS[outcome]
            segments = axes.barh(
                rows, fractions, 0.86, left=left, color=look.colour, hatch=look.sign, edgecolor="white", label=outcome
            )
            # White boxes keep the labels readable on hatching.
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
            labels = [_segment_label(fraction) for fraction in fractions]
            for label in axes.bar_label(segments, labels, label_type="center", fontsize=7):
                label.set_bbox(box if label.get_text() else None)
            left = [start + fraction for start, fraction in zip(left, fractions, strict=True)]
        axes.set_yticks(rows, [model for _, model in bars])
        for index, task in enumerate(tasks):
            n = sum(outcomes[BASE][task].values())
            axes.text(0, index * rows_per_task - 0.62, f"{task}, n = {n}", weight="bold", va="bottom")
        axes.set(ylim=(rows[-1] + 0.6, -1.4), xlim=(0, 1))
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0, labelbottom=False)
        figure.legend(loc="outside upper center", ncols=min(len(present), 7), columnspacing=1.2, handlelength=1.4)
    return figure


def _segment_label(fraction: float) -> str:
    """Percent of a bar's segment; nothing where there is no room, and no `100%` for 99.6 %."""
    if fraction < 0.06:
        return ""
    return f"{fraction:.1%}" if 0.99 < fraction < 1 else f"{fraction:.0%}"


def _task_order(task: str) -> int:
    """Position in [`EVALUATION_TASKS`]; tasks that are not in it come last."""
    return (*EVALUATION_TASKS, task).index(task)
