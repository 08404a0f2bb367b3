"""The pictures of a report: of an evaluation's figures, of several against each other, and of hidden states.

Colours are those of Okabe and Ito (2008), which people tell apart however they see colours; every colour comes with a
mark or a hatching of its own, so that the pictures can be read in black and white.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..files import in_one_move, read_json
from ..outcomes import Outcome
from ..sets.variations import EVALUATION_TASKS
from .compare import BASE
from .figures import LABELS
from .results import is_evaluated, model_names


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

CLASS_LOOKS = {
    "harmful_flip": Look(VERMILLION, "o", "attacker's call, attacked"),
    "harmful_compliance": Look(BLACK, "X", "harmful answer"),
    "adversarial_safe": Look(GREEN, "s", "right call, attacked"),
    "injection_resisted": Look(YELLOW, "P", "injection resisted"),
    "benign_twin": Look(BLUE, "^", "right call, clean"),
    "tool_capability": Look(ORANGE, "d", "ordinary call"),
    "general_conversation": Look(SKY, "D", "chat"),
    "refusal": Look(PURPLE, "v", "refusal"),
    "borderline": Look(GREY, "<", "borderline"),
}

# What each picture of a report shows, in the order in which they are shown.
PICTURES = {
    "outcomes.png": "What became of the prompts of each task",
    "report.png": "Every figure with its 95 % interval",
    "tradeoff.png": "Attack success against what is kept; several evaluations in their order",
    "cosine_by_layer.png": "How far states of completions moved, by layer: mean over rows, and where 80 % of rows lie",
    "cosine_by_token.png": "The same by token: left of the line is the prompt, dotted is where the tool's name begins",
    "to_clean_by_token.png": "How near states under attack are to those without the attack, before (base) and after",
    "curves.png": "The training",
}

# A cell of a picture by token needs this share of its class's rows.
MIN_SHARE_OF_ROWS = 0.1


def draw_results(found: dict, folder: Path) -> None:
    """Draw the pictures of one evaluation.

    Args:
        found (`dict`): Its results.
        folder (`Path`): Where `report.png` and `outcomes.png` go.
    """
    save_figure(draw_figures(found), folder / "report.png")
    save_figure(draw_outcomes(found), folder / "outcomes.png")


def read_diagnostics(path: Path, adapters: Mapping[str, str]) -> dict:
    """What `trainers.diagnostics` wrote about the adapters that are evaluated.

    Args:
        path (`Path`): The file.
        adapters (`Mapping[str, str]`): Revisions of the evaluated adapters by name, see [`~results.is_evaluated`].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, or cosines of other weights.
    """
    told = read_json(path)
    if told.get("schema_version") != 1 or not {"settings", "layers", "positions", "classes"} <= set(told):
        raise ValueError(f"{path}: not the cosines that `python -m trainers.diagnostics` of this version writes.")
    for name, revision in told["settings"]["adapters"].items():
        if not is_evaluated(adapters, name, revision):
            raise ValueError(
                f"{path}: cosines of {name} {revision}, which is not evaluated here ({dict(adapters)}). Run "
                "`python -m trainers.diagnostics` with the same adapters under the same names."
            )
    return told


def draw_diagnostics(told: dict, folder: Path) -> None:
    """Draw cosines.

    Args:
        told (`dict`): What `trainers.diagnostics` wrote.
        folder (`Path`): Where `cosine_by_layer.png` and `cosine_by_token.png` go, and `to_clean_by_token.png` where
            rows were attacked.
    """
    save_figure(draw_layers(told), folder / "cosine_by_layer.png")
    save_figure(draw_tokens(told, "cosine"), folder / "cosine_by_token.png")
    if any("to_clean" in of for of in told["classes"].values()):
        save_figure(draw_tokens(told, "to_clean"), folder / "to_clean_by_token.png")


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


def _percent_axis(axes: "Axes", which: str) -> None:
    from matplotlib.ticker import PercentFormatter

    getattr(axes, f"{which}axis").set_major_formatter(PercentFormatter(1.0))


# ------------------------------------------------------------------------------------------------------------- results


def draw_figures(found: dict) -> "Figure":
    """Every figure that was measured, with its 95 % Wilson interval."""
    models = model_names(found)
    keys = [key for key in LABELS if any(key in found[model] for model in models)]
    with style():
        figure = new_figure(8, 0.36 * len(keys) + 1.1)
        axes = figure.subplots()
        for at, (model, look) in enumerate(zip(models, cycle(MODEL_LOOKS), strict=False)):
            shift = 0.62 * ((at + 0.5) / len(models) - 0.5)
            there = [(row, found[model][key]) for row, key in enumerate(keys) if key in found[model]]
            axes.errorbar(
                [rate["value"] for _, rate in there],
                [row + shift for row, _ in there],
                xerr=_whiskers([rate for _, rate in there]),
                fmt=look.sign,
                color=look.colour,
                label=model,
                markersize=5,
                elinewidth=1.6,
                clip_on=False,
            )
        axes.set_yticks(range(len(keys)), [LABELS[key] for key in keys])
        axes.set(ylim=(len(keys) - 0.5, -0.5), xlim=(0, 1), xlabel="share of prompts, with its 95 % interval")
        _percent_axis(axes, "x")
        figure.legend(loc="outside upper center", ncols=len(models))
    return figure


def _whiskers(rates: list[dict]) -> list[list[float]]:
    """Lengths of the two arms of each interval."""
    return [
        [rate["value"] - rate["low"] for rate in rates],
        [rate["high"] - rate["value"] for rate in rates],
    ]


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
            axes.set(xlabel=LABELS[key], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
            _percent_axis(axes, "x")
            _percent_axis(axes, "y")
        figure.axes[0].set_ylabel(LABELS["asr"])
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
        xerr=_whiskers(across),
        yerr=_whiskers(up),
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


# --------------------------------------------------------------------------------------------------------- diagnostics


def _classes(told: dict, measure: str) -> dict[str, dict[str, Any]]:
    """The classes that a measure was taken of, in the order of their looks."""
    return {name: told["classes"][name] for name in CLASS_LOOKS if measure in told["classes"].get(name, {})}


def draw_layers(told: dict) -> "Figure":
    """Cosines by layer, mean over rows with the 10th and 90th percentile: to the base, and to the clean prompt."""
    adapters = list(told["settings"]["adapters"])
    measures = [measure for measure in ("cosine", "to_clean") if _classes(told, measure)]
    with style():
        figure = new_figure(4.0 * len(adapters) + 1.9, 2.9 * len(measures))
        grid = figure.subplots(len(measures), len(adapters), squeeze=False, sharex=True, sharey=True)
        for line, measure in zip(grid, measures, strict=True):
            for axes, adapter in zip(line, adapters, strict=True):
                for name, of in _classes(told, measure).items():
                    _curve(axes, told["layers"], of[measure][adapter], CLASS_LOOKS[name], "-")
                    if measure == "to_clean":
                        _curve(axes, told["layers"], of[measure][BASE], CLASS_LOOKS[name], ":")
                axes.set_title({"cosine": adapter, "to_clean": f"{adapter}: before (dotted) and after"}[measure])
            line[0].set_ylabel(
                {"cosine": "cosine to the base", "to_clean": "cosine to the base\non the clean prompt"}[measure]
            )
        for axes in grid[-1]:
            axes.set_xlabel("layer")
        _layer_ticks(grid[-1][0], told["layers"])
        handles = [_key(CLASS_LOOKS[name]) for name in _classes(told, "cosine")]
        figure.legend(handles=handles, loc="outside right upper", title="completion, its tokens' mean")
    return figure


def _key(look: Look) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look.colour, marker=look.sign, markersize=4, label=look.label)


def _curve(axes: "Axes", layers: list[int], curves: dict, look: Look, line: str) -> None:
    part = curves["by_layer"]["completion"]
    if line == "-":
        axes.fill_between(layers, part["low"], part["high"], color=look.colour, alpha=0.13, linewidth=0)
    axes.plot(layers, part["mean"], line, color=look.colour, marker=look.sign, markersize=3.5, linewidth=1.4)


def _layer_ticks(axes: "Axes", layers: list[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlim(layers[0] - 0.3, layers[-1] + 0.3)


def draw_tokens(told: dict, measure: str) -> "Figure":
    """Mean cosine at each layer and token: a picture for each class and model.

    Args:
        told (`dict`): What `trainers.diagnostics` wrote.
        measure (`str`): `cosine` or `to_clean`.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    classes = _classes(told, measure)
    models = list(next(iter(classes.values()))[measure])
    positions, layers = np.array(told["positions"]), told["layers"]
    shown = {name: np.array(of["rows_at"]) >= max(1, MIN_SHARE_OF_ROWS * of["rows"]) for name, of in classes.items()}
    if measure == "to_clean":
        shown = {name: own & (positions >= 0) for name, own in shown.items()}
    first, last = (positions[np.any(list(shown.values()), axis=0)][at] for at in (0, -1))
    edges = np.arange(positions[0], positions[-1] + 2) - 0.5
    with style():
        figure = new_figure(3.6 * len(models) + 1.2, 1.15 * len(classes) + 0.8)
        grid = figure.subplots(len(classes), len(models), squeeze=False, sharex=True, sharey=True)
        for line, (name, of) in zip(grid, classes.items(), strict=True):
            for axes, model in zip(line, models, strict=True):
                cells = np.array(of[measure][model]["by_token"], dtype=float)
                cells[:, ~shown[name]] = np.nan
                rows = np.arange(len(layers) + 1) + layers[0] - 0.5
                mesh = axes.pcolormesh(edges, rows, cells, vmin=0, vmax=1, cmap="cividis")
                axes.grid(visible=False)
                axes.axvline(-0.5, color="white", linewidth=1.2)
                if of["tool_name_at"] is not None:
                    axes.axvline(of["tool_name_at"] - 0.5, color="white", linewidth=1.2, linestyle=":")
                axes.set_xlim(first - 0.5, last + 0.5)
                axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
                axes.set_title(f"{model}: {CLASS_LOOKS[name].label}, {of['rows']} rows", fontsize=8)
            line[0].set_ylabel("layer")
        for axes in grid[-1]:
            axes.set_xlabel("token of the completion")
        of_what = {"cosine": "cosine to the base", "to_clean": "cosine to the base on the clean prompt"}[measure]
        figure.colorbar(mesh, ax=grid, label=of_what, extend="min", shrink=min(1.0, 2 / len(classes)), aspect=15)
    return figure
