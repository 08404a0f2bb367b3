"""Plots of how far a breaker moved the hidden states: the cosines in the file that `trainers.diagnostics` writes.

    {"layers": [1, 2, ...], "positions": [-24, ..., 47], "classes": {"harmful_flip": {
        "rows": 400, "rows_at": [...], "tool_name_at": 6.0,
        "cosine": {"breaker": {"by_layer": {"completion": {"mean": [...], "low": [...], ...}}, "by_token": [...]}},
        "to_clean": {"base": ..., "breaker": ...}}}}

`cosine` compares an adapter's states with the base model's; `to_clean` compares the states under attack with the base
model's states on the same prompt without the attack. Positions count from the first token of the completion.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...disk_faults import as_written
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
    import numpy as np
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

# A token position is shown only if at least this fraction of the class's rows reach it.
MIN_FRACTION_OF_ROWS = 0.1


def read_diagnostics(path: Path) -> dict:
    """Read cosines.

    Args:
        path (`Path`): File that `trainers.diagnostics` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has another format.
    """
    diagnostics = read_json(path)
    keys = {"settings", "layers", "positions", "classes"}
    if diagnostics.get("schema_version") != 1 or not keys <= set(diagnostics):
        raise ValueError(f"{path}: not the cosines that `python -m trainers.diagnostics` of this version writes.")
    return diagnostics


def check_evaluated(path: Path, diagnostics: dict, adapters: Mapping[str, str]) -> None:
    """Check that cosines are of evaluated weights.

    Args:
        path (`Path`): The file that they are from.
        diagnostics (`dict`): The cosines.
        adapters (`Mapping[str, str]`): Revisions of the evaluated adapters by name, see [`~results.is_evaluated`].

    Raises:
        ValueError: If they are of others.
    """
    with as_written(path, "Run `python -m trainers.diagnostics` again."):
        measured = dict(diagnostics["settings"]["adapters"])
    for name, revision in measured.items():
        if not is_evaluated(adapters, name, revision):
            raise ValueError(
                f"{path}: cosines of {name} {revision}, which is not evaluated here ({dict(adapters)}). Run "
                "`python -m trainers.diagnostics` with the same adapters under the same names."
            )


def draw_diagnostics(diagnostics: dict, folder: Path) -> None:
    """Draw and save the plots of cosines.

    Args:
        diagnostics (`dict`): Cosines, see [`read_diagnostics`].
        folder (`Path`): Folder of `cosine_by_layer.png`, `cosine_by_token.png` and, if any rows are attacked,
            `to_clean_by_token.png`.
    """
    save_figure(draw_layers(diagnostics), folder / "cosine_by_layer.png")
    save_figure(draw_tokens(diagnostics, "cosine"), folder / "cosine_by_token.png")
    if _classes_with(diagnostics, "to_clean"):
        save_figure(draw_tokens(diagnostics, "to_clean"), folder / "to_clean_by_token.png")


def _classes_with(diagnostics: dict, measure: str) -> dict[str, dict[str, Any]]:
    """Cosines of the classes that have a measure, in the order of [`CLASS_LOOKS`]."""
    classes = diagnostics["classes"]
    return {name: classes[name] for name in CLASS_LOOKS if measure in classes.get(name, {})}


def draw_layers(diagnostics: dict) -> "Figure":
    """Cosines by layer, mean over rows with the 10th and 90th percentile: a row per measure, a column per adapter."""
    adapters, layers = list(diagnostics["settings"]["adapters"]), diagnostics["layers"]
    measures = [measure for measure in ("cosine", "to_clean") if _classes_with(diagnostics, measure)]
    with style():
        figure = new_figure(4.0 * len(adapters) + 1.9, 2.9 * len(measures))
        grid = figure.subplots(len(measures), len(adapters), squeeze=False, sharex=True, sharey=True)
        for row, measure in zip(grid, measures, strict=True):
            for axes, adapter in zip(row, adapters, strict=True):
                for name, cosines in _classes_with(diagnostics, measure).items():
                    _draw_curve(axes, layers, cosines[measure][adapter], CLASS_LOOKS[name], "-")
                    # The base model's cosine to itself is 1, so its curve is drawn for the other measure only.
                    if measure == "to_clean":
                        _draw_curve(axes, layers, cosines[measure][BASE], CLASS_LOOKS[name], ":")
                axes.set_title({"cosine": adapter, "to_clean": f"{adapter}: before (dotted) and after"}[measure])
            row[0].set_ylabel(
                {"cosine": "cosine to the base", "to_clean": "cosine to the base\non the clean prompt"}[measure]
            )
        for axes in grid[-1]:
            axes.set_xlabel("layer")
        _layer_ticks(grid[-1][0], layers)
        handles = [_legend_handle(CLASS_LOOKS[name]) for name in _classes_with(diagnostics, "cosine")]
        figure.legend(handles=handles, loc="outside right upper", title="completion, its tokens' mean")
    return figure


def _legend_handle(look: Look) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look.colour, marker=look.sign, markersize=4, label=look.label)


def _draw_curve(axes: "Axes", layers: list[int], cosines: dict, look: Look, linestyle: str) -> None:
    """The mean over rows; for solid lines, also the range from the 10th to the 90th percentile."""
    completion = cosines["by_layer"]["completion"]
    if linestyle == "-":
        axes.fill_between(layers, completion["low"], completion["high"], color=look.colour, alpha=0.13, linewidth=0)
    axes.plot(
        layers, completion["mean"], linestyle, color=look.colour, marker=look.sign, markersize=3.5, linewidth=1.4
    )


def _layer_ticks(axes: "Axes", layers: list[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlim(layers[0] - 0.3, layers[-1] + 0.3)


def draw_tokens(diagnostics: dict, measure: str) -> "Figure":
    """Mean cosine at each layer and token as heat maps: a row per class, a column per model.

    Args:
        diagnostics (`dict`): Cosines, see [`read_diagnostics`].
        measure (`str`): `cosine` or `to_clean`.
    """
    import numpy as np

    classes = _classes_with(diagnostics, measure)
    models = list(next(iter(classes.values()))[measure])
    positions, layers = np.array(diagnostics["positions"]), diagnostics["layers"]
    shown = _shown_positions(classes, measure, positions)
    # The axes are shared, so they span all positions that any class shows.
    first, last = (positions[np.any(list(shown.values()), axis=0)][end] for end in (0, -1))
    edges = np.arange(positions[0], positions[-1] + 2) - 0.5
    layer_edges = np.arange(len(layers) + 1) + layers[0] - 0.5
    with style():
        figure = new_figure(3.6 * len(models) + 1.2, 1.15 * len(classes) + 0.8)
        grid = figure.subplots(len(classes), len(models), squeeze=False, sharex=True, sharey=True)
        for row, (name, cosines) in zip(grid, classes.items(), strict=True):
            for axes, model in zip(row, models, strict=True):
                cells = np.array(cosines[measure][model]["by_token"], dtype=float)
                cells[:, ~shown[name]] = np.nan  # drawn as empty cells
                mesh = axes.pcolormesh(edges, layer_edges, cells, vmin=0, vmax=1, cmap="cividis")
                _format_token_axes(axes, cosines["tool_name_at"], (first - 0.5, last + 0.5))
                axes.set_title(f"{model}: {CLASS_LOOKS[name].label}, {cosines['rows']} rows", fontsize=8)
            row[0].set_ylabel("layer")
        for axes in grid[-1]:
            axes.set_xlabel("token of the completion")
        label = {"cosine": "cosine to the base", "to_clean": "cosine to the base on the clean prompt"}[measure]
        figure.colorbar(mesh, ax=grid, label=label, extend="min", shrink=min(1.0, 2 / len(classes)), aspect=15)
    return figure


def _shown_positions(
    classes: dict[str, dict[str, Any]], measure: str, positions: "np.ndarray"
) -> dict[str, "np.ndarray"]:
    """For each class a mask of the token positions to show."""
    import numpy as np

    shown = {
        name: np.array(cosines["rows_at"]) >= max(1, MIN_FRACTION_OF_ROWS * cosines["rows"])
        for name, cosines in classes.items()
    }
    if measure == "to_clean":
        # Prompts with and without the attack have different tokens: only completions are compared.
        shown = {name: mask & (positions >= 0) for name, mask in shown.items()}
    return shown


def _format_token_axes(axes: "Axes", tool_name_at: float | None, xlim: tuple[float, float]) -> None:
    """Mark where the completion begins (solid line) and where its tool's name begins (dotted line)."""
    from matplotlib.ticker import MaxNLocator

    axes.grid(visible=False)
    axes.axvline(-0.5, color="white", linewidth=1.2)
    if tool_name_at is not None:
        axes.axvline(tool_name_at - 0.5, color="white", linewidth=1.2, linestyle=":")
    axes.set_xlim(*xlim)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
