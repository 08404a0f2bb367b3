"""Pictures of one evaluation: every figure with its interval, and what became of the prompts of each task."""

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


def draw_results(found: dict, folder: Path) -> None:
    """Draw the pictures of one evaluation.

    Args:
        found (`dict`): Its results.
        folder (`Path`): Where `report.png` and `outcomes.png` go.
    """
    save_figure(draw_figures(found), folder / "report.png")
    save_figure(draw_outcomes(found), folder / "outcomes.png")


def draw_figures(found: dict) -> "Figure":
    """Every figure that was measured, with its 95 % Wilson interval."""
    models = model_names(found)
    keys = [key for key in METRIC_LABELS if any(key in found[model] for model in models)]
    with style():
        figure = new_figure(8, 0.36 * len(keys) + 1.1)
        axes = figure.subplots()
        for at, (model, look) in enumerate(zip(models, cycle(MODEL_LOOKS), strict=False)):
            shift = 0.62 * ((at + 0.5) / len(models) - 0.5)
            there = [(row, found[model][key]) for row, key in enumerate(keys) if key in found[model]]
            axes.errorbar(
                [rate["value"] for _, rate in there],
                [row + shift for row, _ in there],
                xerr=whiskers([rate for _, rate in there]),
                fmt=look.sign,
                color=look.colour,
                label=model,
                markersize=5,
                elinewidth=1.6,
                clip_on=False,
            )
        axes.set_yticks(range(len(keys)), [METRIC_LABELS[key] for key in keys])
        axes.set(ylim=(len(keys) - 0.5, -0.5), xlim=(0, 1), xlabel="share of prompts, with its 95 % interval")
        percent_axis(axes, "x")
        figure.legend(loc="outside upper center", ncols=len(models))
    return figure


def draw_outcomes(found: dict) -> "Figure":
    """A bar for each task and model, divided by what became of the prompts."""
    models, tasks = model_names(found), sorted(found["outcomes"][BASE], key=_task_order)
    seen = [outcome for outcome in Outcome if any(outcome in found["outcomes"][m][t] for m in models for t in tasks)]
    places = [task_at * (len(models) + 1) + at for task_at in range(len(tasks)) for at in range(len(models))]
    bars = [(task, model) for task in tasks for model in models]
    with style():
        figure = new_figure(8, 0.21 * (len(places) + len(tasks)) + 1.0)
        axes = figure.subplots()
        axes.grid(visible=False)
        done = [0.0] * len(bars)
        for outcome in seen:
            counts = [found["outcomes"][model][task] for task, model in bars]
            shares = [of.get(outcome, 0) / sum(of.values()) for of in counts]
            look = OUTCOME_LOOKS[outcome]
            drawn = axes.barh(
                places, shares, 0.86, left=done, color=look.colour, hatch=look.sign, edgecolor="white", label=outcome
            )
            # 0.996 is not all of them
            told = ["" if share < 0.06 else f"{share:.1%}" if 0.99 < share < 1 else f"{share:.0%}" for share in shares]
            plate = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
            for label in axes.bar_label(drawn, told, label_type="center", fontsize=7):
                label.set_bbox(plate if label.get_text() else None)
            done = [start + share for start, share in zip(done, shares, strict=True)]
        axes.set_yticks(places, [model for _, model in bars])
        for at, task in enumerate(tasks):
            n = sum(found["outcomes"][BASE][task].values())
            axes.text(0, at * (len(models) + 1) - 0.62, f"{task}, n = {n}", weight="bold", va="bottom")
        axes.set(ylim=(places[-1] + 0.6, -1.4), xlim=(0, 1))
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0, labelbottom=False)
        figure.legend(loc="outside upper center", ncols=min(len(seen), 7), columnspacing=1.2, handlelength=1.4)
    return figure


def _task_order(task: str) -> int:
    """Ours in their order, others after them."""
    return (*EVALUATION_TASKS, task).index(task)
