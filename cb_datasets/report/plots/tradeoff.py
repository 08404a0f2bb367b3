"""Plot of several evaluations, such as checkpoints: attack success against retained behaviour."""

import math
from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING

from ...evaluation.compare import BASE
from ...evaluation.metric_table import METRIC_LABELS
from ...evaluation.results import model_names
from .drawing import MODEL_LOOKS, Look, new_figure, percent_axis, style, whiskers


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Labels of points that are closer than this would overlap.
_NEAR = 0.04


def draw_tradeoff(runs: Mapping[str, dict]) -> "Figure":
    """Attack success against benign calls, and against correct calls under attack.

    Args:
        runs (`Mapping[str, dict]`): Results by name, checkpoints in order.

    Raises:
        ValueError: If no evaluation has attacked prompts.
    """
    measured = {metric for results in runs.values() for model in model_names(results) for metric in results[model]}
    x_metrics = [metric for metric in ("benign_call", "correct_under_attack") if metric in measured]
    if not any("asr" in results[BASE] for results in runs.values()):
        raise ValueError("No evaluation has attacked prompts (tool_flip), so there is no attack success to draw.")
    with style():
        figure = new_figure(4.4 * len(x_metrics), 4)
        row = figure.subplots(1, len(x_metrics), squeeze=False, sharey=True)[0]
        for axes, x_metric in zip(row, x_metrics, strict=True):
            for model, look in zip(_all_models(runs), cycle(MODEL_LOOKS), strict=False):
                _draw_model(axes, x_metric, model, look, runs)
            axes.set(xlabel=METRIC_LABELS[x_metric], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
            percent_axis(axes, "x")
            percent_axis(axes, "y")
        figure.axes[0].set_ylabel(METRIC_LABELS["asr"])
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _all_models(runs: Mapping[str, dict]) -> list[str]:
    return list(dict.fromkeys(model for results in runs.values() for model in model_names(results)))


def _draw_model(axes: "Axes", x_metric: str, model: str, look: Look, runs: Mapping[str, dict]) -> None:
    """One model's point in each evaluation, with intervals, connected in order."""
    points = [(name, results[model]) for name, results in runs.items() if model in results]
    points = [(name, metrics) for name, metrics in points if x_metric in metrics and "asr" in metrics]
    if not points:
        return
    if model == BASE:  # the same model in all evaluations
        points = points[:1]
    xs, ys = ([metrics[metric] for _, metrics in points] for metric in (x_metric, "asr"))
    axes.errorbar(
        [rate["value"] for rate in xs],
        [rate["value"] for rate in ys],
        xerr=whiskers(xs),
        yerr=whiskers(ys),
        fmt=look.sign,
        color=look.colour,
        linestyle=":" if len(points) > 1 else "none",
        elinewidth=0.8,
        label=model,
    )
    if len(runs) > 1 and model != BASE:
        _annotate(
            axes, [(x["value"], y["value"]) for x, y in zip(xs, ys, strict=True)], [name for name, _ in points], look
        )


def _annotate(axes: "Axes", points: list[tuple[float, float]], names: list[str], look: Look) -> None:
    """Write the evaluations' names at their points. Evaluations with nearly equal metrics share one label."""
    names_at: dict[tuple[float, float], list[str]] = {}
    for point, name in zip(points, names, strict=True):
        near = next((other for other in names_at if math.dist(point, other) < _NEAR), point)
        names_at.setdefault(near, []).append(name)
    for point, shared in names_at.items():
        # Near the right edge, the text goes to the left of its point.
        leftwards = point[0] > 0.7
        axes.annotate(
            ", ".join(shared),
            point,
            xytext=(-5 if leftwards else 5, 4),
            textcoords="offset points",
            ha="right" if leftwards else "left",
            fontsize=7,
            color=look.colour,
        )
