"""How all pictures are drawn: colours, marks, style, and the way to a file.

Colours are those of Okabe and Ito (2008), which people tell apart however they see colours; every colour comes with a
mark or a hatching of its own, so that the pictures can be read in black and white.
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
    """How one thing is drawn: its colour, and a mark or a hatching that says the same without colour."""

    colour: str
    sign: str
    label: str = ""


# The base, the breaker, and further models in the order in which they were named.
MODEL_LOOKS = (
    *(Look(GREY, "o"), Look(BLUE, "s"), Look(ORANGE, "^"), Look(GREEN, "D")),
    *(Look(PURPLE, "v"), Look(SKY, "P"), Look(BLACK, "X")),
)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a picture as a PNG, in one move."""
    # The format is named because the temporary file's name does not tell it; without `Software` a picture is the same
    # whatever version drew it.
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_one_move(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})


@contextmanager
def style() -> Iterator[None]:
    """Within the context, `matplotlib` draws as all our pictures are drawn."""
    import matplotlib

    ours: Any = {
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
    with matplotlib.rc_context(ours):
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty picture, its sides in inches."""
    from matplotlib.figure import Figure  # without a display

    return Figure(figsize=(width, height), layout="constrained")


def percent_axis(axes: "Axes", which: str) -> None:
    """Percent on one axis, `x` or `y`."""
    from matplotlib.ticker import PercentFormatter

    getattr(axes, f"{which}axis").set_major_formatter(PercentFormatter(1.0))


def whiskers(rates: list[dict]) -> list[list[float]]:
    """Lengths of the two arms of each interval."""
    return [
        [rate["value"] - rate["low"] for rate in rates],
        [rate["high"] - rate["value"] for rate in rates],
    ]
