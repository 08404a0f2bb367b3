"""The results for people: a table on the screen, the same as Markdown, and a plot."""

from pathlib import Path

from ..files import write_json, write_text
from .compare import BASE
from .figures import LABELS
from .results import model_names


def table_rows(figures: dict, models: list[str]) -> list[tuple[str, ...]]:
    """`(label, cell, cell, ...)` for every figure that was measured, with a cell for each model.

    Args:
        figures (`dict`): Figures by model: the results, or their `sampled`.
        models (`list[str]`): The models to show.
    """
    measured = [name for name in LABELS if any(name in figures[model] for model in models)]
    return [(LABELS[name], *(_cell(figures[model].get(name)) for model in models)) for name in measured]


def _cell(figure: dict | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['value']:6.1%}  [{figure['low']:.1%}, {figure['high']:.1%}]  n={figure['n']}"


def write_report(found: dict, folder: Path) -> None:
    """Write `results.json`, `report.md` and `report.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    _plot(found, folder / "report.png")
    write_text(folder / "report.md", _markdown(found))
    write_json(folder / "results.json", found)


def _markdown(found: dict) -> str:
    models = model_names(found)
    lines = ["# Base against breaker", ""]
    lines += [f"- {key}: `{value}`" for key, value in found["settings"].items()]
    lines += ["", "Rates with 95 % Wilson intervals; greedy decoding, the same prompts for all.", ""]
    lines += _table(["", *models], table_rows(found, models))
    if "sampled" in found:
        draws = found["settings"]["samples"]
        lines += [f"Drawn at temperature 1, {draws} times each; intervals count prompts, not draws.", ""]
        lines += _table(["", *models], table_rows(found["sampled"], models))
    lines += ["## What changed", "", "Prompts that came to count and that ceased to, against the base model.", ""]
    for name, changed in found["changed"].items():
        rows = [(LABELS[key], part["gained"], part["lost"], f"{part['p']:.2g}") for key, part in changed.items()]
        lines += _table([name, "gained", "lost", "McNemar p"], rows)
    lines += ["## Attack families", "", *_families(found, models)]
    failures = ", ".join(f"{name} {count}" for name, count in found["errors"].items())
    lines += [f"Engine failures: {failures}.", ""]
    lines += [
        "The attacks are fixed texts: these figures say nothing about an attacker who adapts to the breaker.",
        "",
    ]
    lines += ["![base against breaker](report.png)", ""]
    return "\n".join(lines)


def _families(found: dict, models: list[str]) -> list[str]:
    header = ["family", "n", *(f"{name} {what}" for name in models for what in ("ASR", "correct"))]
    rows = []
    for family, part in found["slices"]["family"].items():
        if "asr" in part[BASE]:
            shown = [part[name][key] for name in models for key in ("asr", "correct_under_attack")]
            rows.append((family, part[BASE]["asr"]["n"], *(f"{figure['value']:.1%}" for figure in shown)))
    return _table(header, rows)


def _table(header: list[str], rows: list[tuple]) -> list[str]:
    """A Markdown table and the empty line after it."""
    lines = [header, ["---"] * len(header), *rows]
    return [*("| " + " | ".join(str(cell).strip() for cell in line) + " |" for line in lines), ""]


def _plot(comparison: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    keys = [key for key in LABELS if key in comparison["base"] and key in comparison["breaker"]]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(keys) + 1.2))
    for offset, side, colour in ((-0.19, "base", "#9aa5b1"), (0.19, "breaker", "#1f6f8b")):
        values = [comparison[side][key] for key in keys]
        errors = [
            [value["value"] - value["low"] for value in values],
            [value["high"] - value["value"] for value in values],
        ]
        positions = [index + offset for index in range(len(keys))]
        widths = [value["value"] for value in values]
        axes.barh(positions, widths, 0.36, xerr=errors, color=colour, label=side, error_kw={"lw": 1, "capsize": 2})
    axes.set_yticks(range(len(keys)), [LABELS[key] for key in keys])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.set_xlabel("share of prompts, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
