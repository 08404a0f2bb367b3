"""Several evaluations against each other: attack success against what is kept."""

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


def draw_tradeoff(runs: Mapping[str, dict]) -> "Figure":
    """Attack success against clean calls that are kept, and against right calls under attack.

    Args:
        runs (`Mapping[str, dict]`): Results by name, checkpoints in their order.

    Raises:
        ValueError: If no evaluation has attacked prompts.
    """
    kept = ("benign_call", "correct_under_attack")
    sides = [key for key in kept if any(key in found[m] for found in runs.values() for m in model_names(found))]
    if not any("asr" in found[BASE] for found in runs.values()):
        raise ValueError("No evaluation has attacked prompts (tool_flip), so there is no attack success to draw.")
    with style():
        figure = new_figure(4.4 * len(sides), 4)
        for axes, key in zip(figure.subplots(1, len(sides), squeeze=False, sharey=True)[0], sides, strict=True):
            for model, look in zip(_models_of(runs), cycle(MODEL_LOOKS), strict=False):
                _path(axes, key, model, look, runs)
            axes.set(xlabel=METRIC_LABELS[key], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
            percent_axis(axes, "x")
            percent_axis(axes, "y")
        figure.axes[0].set_ylabel(METRIC_LABELS["asr"])
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _models_of(runs: Mapping[str, dict]) -> list[str]:
    return list(dict.fromkeys(model for found in runs.values() for model in model_names(found)))


def _path(axes: "Axes", key: str, model: str, look: Look, runs: Mapping[str, dict]) -> None:
    """One model's points in all evaluations, with intervals, in their order."""
    there = [(name, found[model]) for name, found in runs.items() if model in found]
    there = [(name, rates) for name, rates in there if key in rates and "asr" in rates]
    if not there:
        return
    if model == BASE:  # the same model was asked each time
        there = there[:1]
    across, up = ([rates[name] for _, rates in there] for name in (key, "asr"))
    axes.errorbar(
        [rate["value"] for rate in across],
        [rate["value"] for rate in up],
        xerr=whiskers(across),
        yerr=whiskers(up),
        fmt=look.sign,
        color=look.colour,
        linestyle=":" if len(there) > 1 else "none",
        elinewidth=0.8,
        label=model,
    )
    names: dict[tuple[float, float], list[str]] = {}
    for (name, _), x, y in zip(there, across, up, strict=True):
        names.setdefault((x["value"], y["value"]), []).append(name)
    if len(runs) > 1 and model != BASE:
        for point, of in names.items():
            leftwards = point[0] > 0.7
            axes.annotate(
                ", ".join(of),
                point,
                xytext=(-5 if leftwards else 5, 4),
                textcoords="offset points",
                ha="right" if leftwards else "left",
                fontsize=7,
                color=look.colour,
            )
