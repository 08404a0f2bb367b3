"""The curves of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


# A panel for each of these beginnings of a logged name.
PANELS = {"cosine/": "cosine to the frozen states", "loss/": "terms of the loss", "coefficient/": "their coefficients"}


def plot_curves(log_history: Sequence[dict[str, Any]], path: Path) -> None:
    """
    Draw what a run logged, over its optimizer steps.

    Args:
        log_history (`Sequence[dict[str, Any]]`):
            `trainer.state.log_history`.
        path (`Path`):
            File to write, a PNG.
    """
    from matplotlib.figure import Figure  # without a display

    figure = Figure(figsize=(4 * len(PANELS), 3.2), layout="constrained")
    for axes, (prefix, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name in sorted({key for entry in log_history for key in entry if key.startswith(prefix)}):
            points = [(entry["step"], entry[name]) for entry in log_history if name in entry]
            alpha = 0.4 if "_layer_" in name else 1.0
            axes.plot(*zip(*points, strict=True), marker=".", label=name.removeprefix(prefix), alpha=alpha)
        axes.set(title=title, xlabel="optimizer step")
        if axes.lines:
            axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
