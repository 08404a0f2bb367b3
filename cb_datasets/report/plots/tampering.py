"""Plot of the tampering: attack success and what is kept, over the number of fine-tuning steps."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from ...attacks.tampering_results import ADAPTER, KINDS, asr_metric, curve_label, curves_on, steps_of
from ...evaluation.metric_table import METRIC_LABELS
from .drawing import MODEL_LOOKS, Look, new_figure, percent_axis, style, whiskers


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TAMPERING_PLOT = "tampering.png"


def draw_tampering(results: Mapping[str, Any], models: Sequence[str]) -> "Figure":
    """A row of plots for each kind of rows: ASR, right calls under attack and benign calls over the steps.

    Args:
        results (`Mapping`): The content of `tampering.json`.
        models (`Sequence[str]`): The models to show, the base among them.
    """
    asr = asr_metric(results["task"])
    right = {"asr": "correct_under_attack", "fidelity_obeyed": "fidelity_reported"}.get(
        asr, asr.replace("asr", "correct")
    )
    wanted = (asr, right, "benign_call")
    metrics = [metric for metric in wanted if metric in results["curves"][0]["points"][0]["metrics"]]
    looks = dict(zip(models, cycle(MODEL_LOOKS), strict=False))
    with style():
        figure = new_figure(3.4 * len(metrics), 2.9 * len(KINDS) + 0.6)
        grid = figure.subplots(len(KINDS), len(metrics), squeeze=False, sharex=True, sharey=True)
        for kind, row in zip(KINDS, grid, strict=True):
            for metric, axes in zip(metrics, row, strict=True):
                axes.set_title(f"{kind} rows")
                axes.set_ylabel(METRIC_LABELS[metric])
                for curve in curves_on(results, kind, models):
                    _draw_curve(axes, curve, metric, looks[curve["model"]])
                _format(axes, steps_of(results))
        for axes in grid[-1]:
            axes.set_xlabel("fine-tuning steps")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _draw_curve(axes: "Axes", curve: Mapping[str, Any], metric: str, look: Look) -> None:
    """One curve with its intervals; dashed and hollow where a breaker's own adapter is trained."""
    points = [point for point in curve["points"] if metric in point["metrics"]]
    rates = [point["metrics"][metric] for point in points]
    axes.errorbar(
        [point["step"] for point in points],
        [rate["value"] for rate in rates],
        yerr=whiskers(rates),
        fmt=look.sign,
        markersize=4,
        color=look.colour,
        markerfacecolor="white" if curve["variant"] == ADAPTER else look.colour,
        linestyle="--" if curve["variant"] == ADAPTER else "-",
        elinewidth=0.6,
        label=curve_label(curve),
    )


def _format(axes: "Axes", steps: Sequence[int]) -> None:
    # Logarithmic, with a linear part for step 0.
    axes.set_xscale("symlog", base=2, linthresh=steps[1])
    axes.set_xticks(steps, list(map(str, steps)))
    axes.minorticks_off()
    axes.set(ylim=(-0.03, 1.03), xlim=(-0.4 * steps[1], 1.2 * steps[-1]))
    percent_axis(axes, "y")
