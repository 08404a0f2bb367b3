"""Plot of the training curves of a run."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from cb_datasets.report.plots.drawing import BLUE, MODEL_LOOKS, VERMILLION, Look, new_figure, save_figure, style


# One panel for each prefix of logged names.
PANELS = {"cosine/": "cosine to the frozen states", "loss/": "terms of the loss", "coefficient/": "their coefficients"}

# The mean over the target layers is drawn bold, single layers thin, both in the colour of their set.
SETS = {"ds": Look(VERMILLION, "o", "Ds"), "dr": Look(BLUE, "s", "Dr")}


def plot_curves(log_history: Sequence[dict[str, Any]], path: Path) -> None:
    """
    Plot the logged metrics of a run over its optimizer steps.

    Args:
        log_history (`Sequence[dict[str, Any]]`):
            `trainer.state.log_history`.
        path (`Path`):
            PNG file to write.
    """
    with style():
        figure = new_figure(3.7 * len(PANELS), 3)
        for axes, (prefix, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            other_looks = cycle(MODEL_LOOKS[1:])
            for name in sorted({key for entry in log_history for key in entry if key.startswith(prefix)}):
                points = [(entry["step"], entry[name]) for entry in log_history if name in entry]
                label, _, layer = name.removeprefix(prefix).partition("_layer_")
                look = SETS.get(label) or next(other_looks)._replace(label=label)
                line_style = {"linewidth": 0.7, "alpha": 0.6} if layer else {"marker": look.sign, "label": look.label}
                axes.plot(*zip(*points, strict=True), color=look.colour, markersize=3, **line_style)
            axes.set(title=title, xlabel="optimizer step")
            if axes.lines:
                axes.legend(fontsize="small")
        save_figure(figure, path)
