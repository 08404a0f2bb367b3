"""Pictures of hidden states: how far a breaker moved them, from the cosines that `trainers.diagnostics` wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...evaluation.compare import BASE
from ...evaluation.results import is_evaluated
from ...files import read_json
from .drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    Look,
    new_figure,
    save_figure,
    style,
)


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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

# A cell of a picture by token needs this share of its class's rows.
MIN_SHARE_OF_ROWS = 0.1


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
