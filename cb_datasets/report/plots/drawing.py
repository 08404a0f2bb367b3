"""Style shared by all plots: colours, markers, `matplotlib` settings, and saving to a file.

The colours are those of Okabe and Ito (2008), which colour-blind people can distinguish too. Every colour has its own
marker or hatching, so that the plots can be read in black and white.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...files import in_one_move


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)
GREY, INK, LINE = "#7d8894", "#16202b", "#d7dce2"


class Look(NamedTuple):
    """Colour of a series, and the marker or hatching that identifies it without colour."""

    colour: str
    sign: str
    label: str = ""


# The base model, the breaker, and extra adapters in the order of the command line.
MODEL_LOOKS = (
    *(Look(GREY, "o"), Look(BLUE, "s"), Look(ORANGE, "^"), Look(GREEN, "D")),
    *(Look(PURPLE, "v"), Look(SKY, "P"), Look(BLACK, "X")),
)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a plot as a PNG file, atomically."""
    # The format is explicit because the temporary file has another suffix. Without the `Software` entry, equal plots
    # are equal files in every version of matplotlib.
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_one_move(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})


@contextmanager
def style() -> Iterator[None]:
    """Context in which `matplotlib` uses the style of the reports."""
    import matplotlib

    settings: Any = {
        "axes.edgecolor": GREY,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "axes.titleweight": "bold",
        "font.size": 9,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure; width and height in inches."""
    from matplotlib.figure import Figure  # unlike pyplot, needs no display

    return Figure(figsize=(width, height), layout="constrained")


def percent_axis(axes: "Axes", which: str) -> None:
    """Format one axis, `x` or `y`, in percent."""
    from matplotlib.ticker import PercentFormatter

    getattr(axes, f"{which}axis").set_major_formatter(PercentFormatter(1.0))


def whiskers(rates: list[dict]) -> list[list[float]]:
    """Lower and upper error of each rate, as `matplotlib.axes.Axes.errorbar` takes them; shape `(2, rates)`."""
    return [
        [rate["value"] - rate["low"] for rate in rates],
        [rate["high"] - rate["value"] for rate in rates],
    ]
